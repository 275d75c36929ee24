//! This program started again in another role: the backend, or the load generator.
//!
//! A helper that is dropped is ended; one whose parent dies ends by itself, because its stdin closes.

use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::contender::command;

/// The hidden argument that gives this program another role.
pub(crate) const ROLE: &str = "--role";

/// Set when the user wants the bench to end; every wait looks at it.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A process of this program in another role.
pub(crate) struct Helper {
    child: Child,
    lines: Receiver<String>,
}

impl Helper {
    /// Starts `role` with one further argument.
    pub(crate) fn start(role: &str, argument: &str) -> io::Result<Helper> {
        let mut command = command(&std::env::current_exe()?);
        command.args([ROLE, role, argument]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().expect("stdout was asked for");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Helper { child, lines })
    }

    /// The next line it prints, waited for at most this long.
    pub(crate) fn line(&self, most: Duration) -> io::Result<String> {
        let deadline = Instant::now() + most;
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("a helper process ended without an answer"));
                }
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It holds nothing that a sudden end could spoil.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
