//! The proxies that are compared, as child processes: started, waited for, ended.
//!
//! A contender ends its processes when it is dropped, on every path out of the bench.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::proc::{children, effective_user, resident_kib};

/// How long a proxy may take to serve its first request.
const READY_MAX: Duration = Duration::from_secs(15);
/// How long a proxy may take to end before it is killed.
const STOP_MAX: Duration = Duration::from_secs(2);

/// The proxies this bench knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    /// No proxy: what the backend and the generator cost by themselves.
    Direct,
    /// nginx as a plain proxy with kept-alive upstream connections.
    Nginx,
    /// The router.
    Pointsman,
}

impl Name {
    /// All of them, in the order they are run.
    pub(crate) const ALL: [Name; 3] = [Name::Direct, Name::Nginx, Name::Pointsman];

    /// The name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Name::Direct => "direct",
            Name::Nginx => "nginx",
            Name::Pointsman => "pointsman",
        }
    }
}

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) backend: SocketAddr,
    pub(crate) nginx: Option<PathBuf>,
    pub(crate) router: PathBuf,
    /// A directory for configurations, data and logs.
    pub(crate) scratch: PathBuf,
}

/// A proxy that is running.
pub(crate) struct Contender {
    pub(crate) name: Name,
    pub(crate) addr: SocketAddr,
    /// The processes whose CPU time and memory count; none for no proxy.
    pub(crate) pids: Vec<u32>,
    /// The proxy and its leash; ended by `Drop`.
    child: Option<(Child, Child)>,
}

impl Contender {
    /// Starts a proxy before the backend and waits until it serves.
    pub(crate) fn start(name: Name, setup: &Setup) -> io::Result<Contender> {
        let addr = if name == Name::Direct { setup.backend } else { free_port()? };
        let log = setup.scratch.join(format!("{}.log", name.name()));
        let child = match name {
            Name::Direct => None,
            Name::Nginx => Some(start_nginx(setup, addr, &log)?),
            Name::Pointsman => Some(start_router(setup, addr, &log)?),
        };
        let mut contender = Contender { name, addr, pids: Vec::new(), child };
        // nginx knows no health of its own: what it passes on from the backend will do.
        let path = if name == Name::Pointsman { "/health" } else { "/v1/models" };
        contender.wait_until_ready(path).map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            io::Error::other(format!("{} does not serve: {error}\n{}", name.name(), tail(&said)))
        })?;
        if let Some((child, _)) = &contender.child {
            // The first of nginx's workers may answer while its master is still starting the last.
            sleep(Duration::from_millis(100));
            contender.pids = std::iter::once(child.id()).chain(children(child.id())?).collect();
        }
        Ok(contender)
    }

    /// Resident memory of its processes, in KiB. Pages that workers share are counted once per worker, so
    /// only differences mean something.
    pub(crate) fn resident_kib(&self) -> io::Result<u64> {
        self.pids.iter().map(|pid| resident_kib(*pid)).sum()
    }

    fn wait_until_ready(&mut self, path: &str) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            if let Some((child, _)) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            match status_of(self.addr, path) {
                Ok(200) => return Ok(()),
                answer if begun.elapsed() > READY_MAX => {
                    return Err(io::Error::other(format!("GET {path} gives {answer:?} after {READY_MAX:?}")));
                }
                _ => sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let Some((child, leash)) = &mut self.child else { return };
        // Asked politely first: nginx's workers outlive a master that is killed.
        drop(leash.stdin.take());
        let _ = leash.wait();
        let begun = Instant::now();
        while begun.elapsed() < STOP_MAX {
            if let Ok(Some(_)) = child.try_wait() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        for worker in children(child.id()).unwrap_or_default() {
            let _ = Command::new("kill").arg("-KILL").arg(worker.to_string()).status();
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A process that asks `pid` to end when its own stdin closes, which also happens if this bench is killed.
fn leash(pid: u32) -> io::Result<Child> {
    let script = r#"cat > /dev/null; kill -TERM "$1" 2> /dev/null"#;
    Command::new("sh").args(["-c", script, "sh", &pid.to_string()]).stdin(Stdio::piped()).spawn()
}

/// A command for `program` with room for thousands of sockets, which the usual limit has not.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new("sh");
    let script = r#"ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"; exec "$@""#;
    command.arg("-c").arg(script).arg("sh").arg(program).stdin(Stdio::null());
    command
}

fn start_router(setup: &Setup, addr: SocketAddr, log: &Path) -> io::Result<(Child, Child)> {
    let config = setup.scratch.join("pointsman.yaml");
    let data = setup.scratch.join("pointsman-data");
    fs::write(
        &config,
        format!("endpoints:\n  - http://{}\nmax_concurrent_connections: 100000\n", setup.backend),
    )?;
    fs::create_dir_all(&data)?;
    let mut command = command(&setup.router);
    command.arg("serve").arg("--config").arg(&config).arg("--listen").arg(addr.to_string());
    command.arg("--data").arg(&data).current_dir(&setup.scratch);
    spawn(command, log)
}

fn start_nginx(setup: &Setup, addr: SocketAddr, log: &Path) -> io::Result<(Child, Child)> {
    let program = setup.nginx.as_ref().ok_or_else(|| io::Error::other("nginx is not installed"))?;
    let prefix = setup.scratch.join("nginx");
    fs::create_dir_all(&prefix)?;
    let config = prefix.join("nginx.conf");
    // As root, workers would become another user, who may not enter the scratch directory.
    let user = if effective_user()? == 0 { "user root;" } else { "" };
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", prefix.display()))
        .collect();
    fs::write(
        &config,
        format!(
            "{user}
daemon off;
worker_processes auto;
worker_rlimit_nofile 65536;
pid {prefix}/nginx.pid;
error_log stderr warn;
events {{
    worker_connections 16384;
}}
http {{
    access_log off;
{temp}    tcp_nodelay on;
    keepalive_requests 100000000;
    client_max_body_size 64m;
    upstream backend {{
        server {backend};
        keepalive 256;
        keepalive_requests 100000000;
    }}
    server {{
        listen {addr} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
",
            prefix = prefix.display(),
            backend = setup.backend,
        ),
    )?;
    let mut command = command(program);
    command.arg("-p").arg(&prefix).arg("-c").arg(&config).arg("-e").arg("stderr");
    spawn(command, log)
}

fn spawn(mut command: Command, log: &Path) -> io::Result<(Child, Child)> {
    let log = File::create(log)?;
    let mut child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    match leash(child.id()) {
        Ok(leash) => Ok((child, leash)),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

fn status_of(addr: SocketAddr, path: &str) -> io::Result<u16> {
    let wait = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&addr, wait)?;
    stream.set_read_timeout(Some(wait))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let code = std::str::from_utf8(&head[9..]).ok().and_then(|text| text.parse().ok());
    code.ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
