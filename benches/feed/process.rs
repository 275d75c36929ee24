//! The router as a process of its own: started on a port, killed without warning, started again on the same data.
//!
//! It ends with its value, and with its parent: a leash kills it when the parent's end of a pipe closes.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman::adapters::upstream::install_tls;
use pointsman::pretend::{Model, Pretend, Profile};

/// `pointsman serve` in a folder of its own.
pub(crate) struct Process {
    child: Child,
    leash: Child,
    folder: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Process {
    /// With this configuration, on a free port of the loopback. Data and log are in `folder`.
    pub(crate) fn start(folder: &Path, yaml: &str) -> io::Result<Process> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("config.yaml"), yaml)?;
        Process::start_at(folder, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn start_at(folder: &Path, listen: SocketAddr) -> io::Result<Process> {
        let log = File::options().create(true).append(true).open(folder.join("log"))?;
        // Room for thousands of sockets, which the usual limit has not.
        let script = r#"ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"; exec "$@""#;
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_pointsman"), "serve", "--listen"])
            .arg(listen.to_string())
            .current_dir(folder)
            .env_remove("NOMYO_ROUTER_CONFIG_PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("stdout was asked for")).read_line(&mut line)?;
        let address = line.trim().strip_prefix("pointsman listens on http://").and_then(|at| at.parse().ok());
        let Some(address) = address else {
            let _ = child.kill();
            let _ = child.wait();
            let said = fs::read_to_string(folder.join("log")).unwrap_or_default();
            return Err(io::Error::other(format!("the router did not start: {line}{said}")));
        };
        let script = r#"cat > /dev/null; kill -KILL "$1" 2> /dev/null"#;
        let leash = Command::new("sh")
            .args(["-c", script, "sh", &child.id().to_string()])
            .stdin(Stdio::piped())
            .spawn()?;
        Ok(Process { child, leash, folder: folder.to_owned(), address })
    }

    /// Ends it with `kill -9`. What is given starts it again: same data, same port.
    pub(crate) fn kill(mut self) -> io::Result<impl FnOnce() -> io::Result<Process>> {
        self.child.kill()?;
        self.child.wait()?;
        let (folder, address) = (self.folder.clone(), self.address);
        Ok(move || Process::start_at(&folder, address))
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The leash first: it must not outlive the number that it would kill.
        let _ = self.leash.kill();
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A backend that serves these models, one token for each answer.
pub(crate) fn backend<M: Into<Model>>(models: impl IntoIterator<Item = M>) -> io::Result<Pretend> {
    install_tls();
    Pretend::start(Profile::ollama(models).tokens(1), SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// A configuration before these endpoints: every slot free, no limit on subscribers, and further lines.
pub(crate) fn yaml(endpoints: &[String], more: &str) -> String {
    let list: String = endpoints.iter().map(|endpoint| format!("  - {endpoint}\n")).collect();
    format!("endpoints:\n{list}max_concurrent_connections: 10000\n{more}")
}
