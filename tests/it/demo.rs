//! `pointsman demo` does what its own lines say, within two seconds.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_line_the_demo_prints_works_when_it_is_typed() {
    let began = Instant::now();
    let mut demo = Demo(
        Command::new(env!("CARGO_BIN_EXE_pointsman"))
            .args(["demo", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let guide: Vec<String> =
        lines.map(Result::unwrap).take_while(|line| !line.starts_with("Stop it")).collect();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?} to serve");
    let commands: Vec<&str> =
        guide.iter().map(|line| line.trim()).filter(|line| line.starts_with("curl ")).collect();
    assert!(commands.len() >= 5, "{guide:?}");
    for command in commands {
        let limited = command.replacen("curl ", "curl -sS --fail --max-time 5 ", 1);
        let output = Command::new("sh").args(["-c", &limited]).output().unwrap();
        let endless = command.contains("usage-stream");
        assert!(output.status.success() || endless, "{command}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{command}");
    }
}
