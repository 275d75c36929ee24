//! What a run leaves behind: JSON lines for machines, a committed table of counts, and a region of the
//! README that only the runner writes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;

use serde_json::Value;

/// A file beside this package's manifest.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Appends JSON lines to `path`, if there is one.
pub fn append(path: Option<&Path>, lines: &[Value]) {
    let Some(path) = path else { return };
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|error| panic!("the report {} cannot be written: {error}", path.display()));
}

/// Replaces what stands between `<!-- NAME begin -->` and `<!-- NAME end -->` in the README.
pub fn rewrite_readme(name: &str, region: &str) {
    let path = file("README.md");
    let text = fs::read_to_string(&path).expect("the README is there");
    let (begin, end) = (format!("<!-- {name} begin -->\n"), format!("<!-- {name} end -->"));
    let from = text.find(&begin).expect("the README has the region's first marker") + begin.len();
    let to = text.find(&end).expect("the README has the region's last marker");
    fs::write(&path, format!("{}{region}{}", &text[..from], &text[to..])).expect("the README can be written");
}

/// Runs this program once per key, `jobs` at a time, and calls `done` with each answer as it comes:
/// the JSON line marked `ANSWER`, or what the process said instead.
///
/// A process of its own for each, because a failing model is best stopped where it stands: unwinding
/// through threads that exist only inside a checker aborts more often than it helps.
pub fn run_each(
    keys: &[String],
    extra: &[String],
    jobs: usize,
    mut done: impl FnMut(&str, Result<Value, String>),
) {
    let next = Mutex::new(keys.iter());
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (next, send) = (&next, send.clone());
            scope.spawn(move || {
                loop {
                    let Some(key) = next.lock().expect("no worker panics").next() else { return };
                    let answer = run_one(key, extra);
                    if send.send((key.as_str(), answer)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (key, answer) in receive {
            done(key, answer);
        }
    });
}

fn run_one(key: &str, extra: &[String]) -> Result<Value, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .args(["--one", key])
        .args(extra)
        .output()
        .map_err(|error| format!("could not start: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let answer = stdout.lines().rev().find_map(|line| line.strip_prefix("ANSWER "));
    match answer.map(serde_json::from_str) {
        Some(Ok(value)) => Ok(value),
        _ => Err(format!("{}: {stdout}{}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

/// Says the answer of a process started by [`run_each`] and ends it.
pub fn answer(value: &Value) -> ! {
    println!("\nANSWER {value}");
    std::process::exit(0)
}
