//! Bugs put back into the real code, one patch each, to see whether the oracle notices.
//!
//! Every `zoo/*.patch` begins with a header: `id`, `origin`, `models` (the failure), `detector` and
//! `promise` (who is expected to catch it, written down before the first run). The patch is applied to
//! a scratch copy, which is built and run over 20 starting seeds, 2,000 seeds from each.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "how long an entry takes is told by a real clock; no world sees it"
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::oracle;

/// Starting seeds per entry.
const STARTS: u64 = 20;

/// Seeds tried from each.
const SEEDS_MAX: u64 = 2_000;

/// Between two starting seeds.
const APART: u64 = 1_000_000;

/// What an entry's header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) id: String,
    pub(crate) origin: String,
    pub(crate) models: String,
    pub(crate) detector: String,
    pub(crate) promise: String,
}

/// How an entry fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Caught,
    Missed,
    Stale,
    WrongDetector,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Caught => "caught",
            Status::Missed => "missed",
            Status::Stale => "stale",
            Status::WrongDetector => "wrong-detector",
        }
    }
}

/// One line of the results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    pub(crate) header: Header,
    pub(crate) status: Status,
    /// Promises found broken, with how many starting seeds found each.
    pub(crate) found: Vec<(String, u64)>,
    /// Seeds until the first violation, in the median and at the 95th percentile of the starts.
    pub(crate) seeds_median: Option<u64>,
    pub(crate) seeds_p95: Option<u64>,
    pub(crate) seconds: f64,
    /// A seed that shows it, or what the tools said of a stale patch.
    pub(crate) note: String,
}

/// Where the zoo's patches are and where their copies are built.
pub(crate) struct Zoo {
    pub(crate) root: PathBuf,
    pub(crate) scratch: PathBuf,
    /// The command that builds, `cargo` unless something must stand before it.
    pub(crate) cargo: String,
}

/// Reads the header of a patch.
pub(crate) fn header(patch: &str) -> Result<Header, String> {
    let field = |name: &str| {
        let mut lines = patch.lines().take_while(|line| !line.starts_with("--- "));
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map(str::to_owned).ok_or_else(|| format!("the header has no `{name}`"))
    };
    let header = Header {
        id: field("id")?,
        origin: field("origin")?,
        models: field("models")?,
        detector: field("detector")?,
        promise: field("promise")?,
    };
    if header.detector == "sim" && !oracle::PROMISES.contains(&header.promise.as_str()) {
        return Err(format!("no check of the simulator is called `{}`", header.promise));
    }
    Ok(header)
}

impl Zoo {
    /// The patches, by name.
    pub(crate) fn patches(&self) -> io::Result<Vec<PathBuf>> {
        let files = fs::read_dir(self.root.join("sim/zoo"))?.collect::<Result<Vec<_>, _>>()?;
        let mut patches: Vec<PathBuf> = files.into_iter().map(|file| file.path()).collect();
        patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        patches.sort();
        Ok(patches)
    }

    /// Tries one patch.
    pub(crate) fn visit(&self, patch: &Path) -> Result<Entry, String> {
        let text = fs::read_to_string(patch).map_err(|error| error.to_string())?;
        let header = header(&text).map_err(|why| format!("{}: {why}", patch.display()))?;
        let began = Instant::now();
        let mut entry = Entry {
            header,
            status: Status::Stale,
            found: Vec::new(),
            seeds_median: None,
            seeds_p95: None,
            seconds: 0.0,
            note: String::new(),
        };
        match self.build(patch) {
            Ok(()) => self.hunt(&mut entry),
            Err(why) => entry.note = why,
        }
        entry.seconds = began.elapsed().as_secs_f64();
        Ok(entry)
    }

    fn build(&self, patch: &Path) -> Result<(), String> {
        for part in ["src", "sim/src", "benches", "tests", "Cargo.toml", "Cargo.lock", "sim/Cargo.toml"] {
            mirror(&self.root.join(part), &self.scratch.join(part))
                .map_err(|error| format!("{part}: {error}"))?;
        }
        let patch = fs::File::open(patch).map_err(|error| error.to_string())?;
        let mut apply = Command::new("patch");
        apply.args(["-p1", "--fuzz=0", "--batch", "--no-backup-if-mismatch"]);
        run(apply.current_dir(&self.scratch).stdin(patch))?;
        let mut words = self.cargo.split_whitespace();
        let mut build = Command::new(words.next().unwrap_or("cargo"));
        build.args(words).args(["build", "--release", "-p", "sim", "--target-dir"]);
        build.arg(self.scratch.join("target")).current_dir(&self.scratch).stdin(Stdio::null());
        // Built often and run briefly; and with debug assertions an inverted lock order is seen.
        build.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        build.env("CARGO_INCREMENTAL", "1");
        build.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
        build.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false");
        run(&mut build)
    }

    fn hunt(&self, entry: &mut Entry) {
        let mut until_found: Vec<Option<u64>> = Vec::new();
        for start in 0..STARTS {
            let first = start * APART;
            let mut check = Command::new(self.scratch.join("target/release/sim"));
            check.args([
                "check",
                "--json",
                "--stop-after",
                "1",
                "--seeds",
                &format!("{first}..+{SEEDS_MAX}"),
            ]);
            let output = check.stdin(Stdio::null()).output();
            let json = output.ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok());
            let found = json.as_ref().map(|json| &json["violations"][0]);
            let (promise, seed) = match found {
                // The process itself died: caught, but by nobody's promise.
                None => ("abort".to_owned(), first),
                Some(Value::Null) => {
                    until_found.push(None);
                    continue;
                }
                Some(found) => {
                    let promise = found["promise"].as_str().unwrap_or_default().to_owned();
                    if entry.note.is_empty() {
                        entry.note =
                            format!("seed {}: {}", found["seed"], found["why"].as_str().unwrap_or_default());
                    }
                    (promise, found["seed"].as_u64().unwrap_or(first))
                }
            };
            until_found.push(Some(seed - first + 1));
            match entry.found.iter_mut().find(|(known, _)| *known == promise) {
                Some((_, times)) => *times += 1,
                None => entry.found.push((promise, 1)),
            }
        }
        entry.found.sort_by_key(|found| std::cmp::Reverse(found.1));
        // A start that found nothing sorts last.
        until_found.sort_by_key(|seeds| seeds.unwrap_or(u64::MAX));
        entry.seeds_median = until_found[until_found.len() / 2];
        entry.seeds_p95 = until_found[until_found.len() * 19 / 20 - 1];
        entry.status = match (entry.seeds_p95, entry.found.first()) {
            (Some(_), Some((promise, _))) if *promise == entry.header.promise => Status::Caught,
            (Some(_), _) => Status::WrongDetector,
            (None, _) => Status::Missed,
        };
    }
}

/// Runs a command to its end; on failure the end of what it said.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let said =
        String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
    let wrong: Vec<&str> =
        said.lines().filter(|line| line.contains("error") || line.contains("FAILED")).collect();
    Err(wrong.first().copied().unwrap_or("it failed without a word").to_owned())
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

impl Zoo {
    /// Puts what was found beside what earlier visits found, for all patches there are now, and writes
    /// `results.json` and `RESULTS.md`.
    pub(crate) fn keep(&self, entries: &[Entry]) -> Result<(), String> {
        let folder = self.root.join("sim/zoo");
        let earlier = fs::read(folder.join("results.json")).unwrap_or_else(|_| b"[]".to_vec());
        let mut all: Vec<Entry> =
            serde_json::from_slice(&earlier).map_err(|error| format!("results.json: {error}"))?;
        all.retain(|old| entries.iter().all(|new| new.header.id != old.header.id));
        all.extend_from_slice(entries);
        let patches = self.patches().map_err(|error| error.to_string())?;
        let name = |path: &PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let names: Vec<String> = patches.iter().filter_map(name).collect();
        all.retain(|entry| names.contains(&entry.header.id));
        all.sort_by(|a, b| a.header.id.cmp(&b.header.id));
        fs::write(folder.join("RESULTS.md"), page(&all))
            .and_then(|()| fs::write(folder.join("results.json"), format!("{:#}\n", serde_json::json!(all))))
            .map_err(|error| format!("the results cannot be written: {error}"))
    }
}

/// The results as a page.
pub(crate) fn page(entries: &[Entry]) -> String {
    let mut page = String::from(
        "# The zoo's results\n\nWritten by `cargo run --release -p sim -- zoo`. Seeds until the first violation, over 20 starting seeds\nof at most 2,000 seeds each; a dash means that more starts than one in twenty found nothing.\n\n| id | origin | expected | found | median | p95 | seconds | status |\n|---|---|---|---|---|---|---|---|\n",
    );
    let number = |seeds: Option<u64>| seeds.map_or("-".to_owned(), |seeds| seeds.to_string());
    for entry in entries {
        let found: Vec<String> =
            entry.found.iter().map(|(promise, times)| format!("{promise} x{times}")).collect();
        page.push_str(&format!(
            "| {} | {} | {}: {} | {} | {} | {} | {:.0} | {} |\n",
            entry.header.id,
            entry.header.origin,
            entry.header.detector,
            entry.header.promise,
            found.join(", "),
            number(entry.seeds_median),
            number(entry.seeds_p95),
            entry.seconds,
            entry.status.name(),
        ));
    }
    page.push_str("\n## What each is, and what showed it\n\n");
    for entry in entries {
        page.push_str(&format!("- **{}**: {} ({})\n", entry.header.id, entry.header.models, entry.note));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_has_a_header_whose_promise_is_checked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let zoo = Zoo { root, scratch: PathBuf::new(), cargo: String::new() };
        let patches = zoo.patches().expect("the zoo is there");
        for patch in &patches {
            let text = fs::read_to_string(patch).expect("readable");
            let header = header(&text).unwrap_or_else(|why| panic!("{}: {why}", patch.display()));
            assert_eq!(Some(header.id.as_str()), patch.file_stem().and_then(|name| name.to_str()));
        }
        assert!(patches.len() >= 20, "{}", patches.len());
    }

    #[test]
    fn a_header_without_a_promise_is_refused() {
        assert!(header("id: a\norigin: b\nmodels: c\ndetector: sim\n--- a/x\n").is_err());
        assert!(header("id: a\norigin: b\nmodels: c\ndetector: sim\npromise: nonsense\n--- a/x\n").is_err());
    }
}
