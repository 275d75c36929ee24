//! A real router process, started as a user would start it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// `pointsman serve` in a folder of its own, on a port of its own. Killed when dropped.
pub struct Router {
    child: Child,
    address: String,
    folder: TempDir,
    pub http: reqwest::Client,
}

impl Router {
    /// With this configuration file.
    pub fn start(yaml: &str) -> Router {
        let folder = tempfile::tempdir().unwrap();
        Router::start_in(folder, yaml, &[])
    }

    /// Before these endpoints, with further lines of configuration.
    pub fn before(endpoints: &[String], more: &str) -> Router {
        Router::start(&yaml(endpoints, more))
    }

    /// The same, after these commands of a shell, like `ulimit`.
    pub fn after(commands: &str, yaml: &str) -> Router {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{commands}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_pointsman")]);
        Router::start_with(shell, tempfile::tempdir().unwrap(), yaml, &[])
    }

    fn start_in(folder: TempDir, yaml: &str, more: &[&str]) -> Router {
        Router::start_with(Command::new(env!("CARGO_BIN_EXE_pointsman")), folder, yaml, more)
    }

    fn start_with(mut command: Command, folder: TempDir, yaml: &str, more: &[&str]) -> Router {
        std::fs::write(folder.path().join("config.yaml"), yaml).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(more)
            .current_dir(folder.path())
            .env_remove("NOMYO_ROUTER_CONFIG_PATH")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("pointsman listens on ").map(str::to_owned);
        let Some(address) = address else {
            let _ = child.kill();
            panic!("the router did not start: {line}\n{}", read(&folder.path().join("log")));
        };
        pointsman::adapters::upstream::install_tls();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Router { child, address, folder, http }
    }

    /// Ends this process with `kill -9` and starts another on the same data.
    pub fn kill_and_restart(mut self, more: &[&str]) -> Router {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.restart(more)
    }

    /// Starts another process on the same data; this one must have ended.
    pub fn restart(self, more: &[&str]) -> Router {
        let yaml = read(&self.folder.path().join("config.yaml"));
        let mut this = std::mem::ManuallyDrop::new(self);
        assert!(this.child.try_wait().unwrap().is_some(), "the first process has ended");
        // The folder moves on to the next router; the rest of this one is done with.
        let folder = std::mem::replace(&mut this.folder, tempfile::tempdir().unwrap());
        drop(std::mem::ManuallyDrop::into_inner(this));
        Router::start_in(folder, &yaml, more)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn log(&self) -> String {
        read(&self.folder.path().join("log"))
    }

    /// Replaces the configuration file and sends SIGHUP.
    pub fn reload(&self, yaml: &str) {
        std::fs::write(self.folder.path().join("config.yaml"), yaml).unwrap();
        self.signal("HUP");
    }

    pub fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < limit, "the router has not ended within {limit:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.http.get(self.url(path)).send().await.unwrap().json().await.unwrap()
    }

    /// Status and JSON body of a POST.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> (u16, Value) {
        let response = self.http.post(self.url(path)).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap();
        let json = serde_json::from_slice(&body)
            .unwrap_or_else(|error| panic!("{path} answered {status} with no JSON ({error}): {body:?}"));
        (status, json)
    }

    /// `/api/usage` has no request in flight, within two seconds.
    pub async fn assert_idle(&self) {
        let began = Instant::now();
        loop {
            let usage = self.get("/api/usage").await;
            if usage["usage_counts"] == serde_json::json!({}) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(2), "requests are still in flight: {usage}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut out = String::new();
            if let Some(stdout) = &mut self.child.stdout {
                let _ = stdout.read_to_string(&mut out);
            }
            println!("--- router's output\n{out}--- router's log\n{}", self.log());
        }
    }
}

/// A configuration with these endpoints and further lines.
pub fn yaml(endpoints: &[String], more: &str) -> String {
    let list: String = endpoints.iter().map(|endpoint| format!("  - {endpoint}\n")).collect();
    format!("endpoints:\n{list}{more}")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
