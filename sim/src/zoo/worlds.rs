//! The simulator as a detector: the patch is applied to a scratch copy, which is built and run over 20
//! starting seeds.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "how long a search takes is told by a real clock; no world sees it"
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::{Entry, Shrunk, Status, Zoo, run};
use crate::corpus;

/// Starting seeds per entry.
const STARTS: u64 = 20;

/// Seeds tried from each.
pub(super) const SEEDS_MAX: u64 = 2_000;

/// Between two starting seeds.
const APART: u64 = 1_000_000;

impl Zoo {
    pub(super) fn look_in_worlds(&self, patch: &Path, mut entry: Entry) -> Entry {
        match self.build(patch) {
            Ok(()) => self.hunt(&mut entry),
            Err(why) => entry.note = why,
        }
        entry
    }

    fn build(&self, patch: &Path) -> Result<(), String> {
        for part in ["src", "sim/src", "benches", "tests", "Cargo.toml", "Cargo.lock", "sim/Cargo.toml"] {
            mirror(&self.root.join(part), &self.scratch.join(part))
                .map_err(|error| format!("{part}: {error}"))?;
        }
        let mut apply = Command::new("git");
        apply.arg("apply").arg(patch).current_dir(&self.scratch).stdin(Stdio::null());
        // Within a repository git would apply the patch there, or nowhere.
        apply.env("GIT_CEILING_DIRECTORIES", self.scratch.parent().unwrap_or(&self.scratch));
        run(&mut apply)?;
        let mut words = self.cargo.split_whitespace();
        let mut build = Command::new(words.next().unwrap_or("cargo"));
        build.args(words).args(["build", "--release", "-p", "sim", "--target-dir"]);
        build.arg(self.scratch.join("target")).current_dir(&self.scratch).stdin(Stdio::null());
        // Built often and run briefly; and with debug assertions an inverted lock order is seen.
        build.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        build.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        build.env("CARGO_INCREMENTAL", "1");
        build.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
        build.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false");
        run(&mut build)
    }

    fn hunt(&self, entry: &mut Entry) {
        let began = Instant::now();
        let (mut until_found, mut first_found) = (Vec::new(), None);
        for start in 0..STARTS {
            let first = start * APART;
            let seeds = format!("{first}..+{SEEDS_MAX}");
            let mut check = Command::new(self.scratch.join("target/release/sim"));
            check.args(["check", "--json", "--stop-after", "1", "--seeds", &seeds]);
            let output = check.stdin(Stdio::null()).output();
            let json = output.ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok());
            let (promise, seed) = match json.as_ref().map(|json| &json["violations"][0]) {
                // The process itself died: caught, but by nobody's promise.
                None => ("abort".to_owned(), first),
                Some(Value::Null) => {
                    until_found.push(None);
                    continue;
                }
                Some(found) => {
                    let promise = found["promise"].as_str().unwrap_or_default().to_owned();
                    let why = found["why"].as_str().unwrap_or_default();
                    entry.shown_first(&promise, || format!("seed {}: {why}", found["seed"]));
                    (promise, found["seed"].as_u64().unwrap_or(first))
                }
            };
            until_found.push(Some(seed - first + 1));
            first_found.get_or_insert(seed);
            entry.found_by_one(&promise);
        }
        entry.judge(until_found);
        entry.seconds = began.elapsed().as_secs_f64();
        entry.shrunk = first_found.and_then(|seed| self.shrink(seed, &entry.id));
        self.look_in_kept_worlds(entry);
    }

    /// A world that was kept because it showed this bug must show it again.
    fn look_in_kept_worlds(&self, entry: &mut Entry) {
        let folder = self.root.join("sim/corpus");
        let own = |path: &PathBuf| corpus::read(path).is_ok_and(|kept| kept.zoo.as_ref() == Some(&entry.id));
        let kept: Vec<PathBuf> = corpus::files(&folder).unwrap_or_default().into_iter().filter(own).collect();
        for path in kept {
            let mut again = Command::new(self.scratch.join("target/release/sim"));
            let status = again.arg("corpus").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).status();
            if status.is_ok_and(|status| status.code() == Some(0)) {
                entry.status = Status::Missed;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                entry.note.push_str(&format!("; the kept world {name} no longer shows it"));
            }
        }
    }

    fn shrink(&self, seed: u64, id: &str) -> Option<Shrunk> {
        let mut shrink = Command::new(self.scratch.join("target/release/sim"));
        shrink
            .args(["shrink", &seed.to_string(), "--zoo", id, "--json", "--folder"])
            .arg(self.scratch.join("shrunk"));
        let output = shrink.stdin(Stdio::null()).output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }
}

/// Makes `to` what `from` is, and touches only what differs, so that little is built again.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        let new = fs::read(from)?;
        if fs::read(to).ok().as_deref() != Some(&new) {
            fs::write(to, new)?;
        }
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for old in fs::read_dir(to)? {
        let old = old?;
        if !from.join(old.file_name()).exists() {
            if old.path().is_dir() { fs::remove_dir_all(old.path())? } else { fs::remove_file(old.path())? }
        }
    }
    for file in fs::read_dir(from)? {
        let file = file?;
        mirror(&file.path(), &to.join(file.file_name()))?;
    }
    Ok(())
}
