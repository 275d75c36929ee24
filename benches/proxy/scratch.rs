//! A place for what a bench writes. Used by both benches.

use std::io;
use std::path::PathBuf;

/// A directory that goes away with its value.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// For the bench of this name, in this process.
    pub(crate) fn new(name: &str) -> io::Result<Scratch> {
        let path = std::env::temp_dir().join(format!("pointsman-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs in the temporary directory are not worth an error.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
