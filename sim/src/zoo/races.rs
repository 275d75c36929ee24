//! loom and shuttle as detectors: `loom-tests` holds a copy of the source with each bug put back, and its
//! runner says in JSON lines what it took to find it.

use std::collections::BTreeSet;
use std::env::temp_dir;
use std::fs;
use std::process::{Command, Stdio, id};

use serde_json::Value;

use super::{Detector, Entry, Zoo};

/// Seeds shuttle's schedulers start from.
const STARTS: u64 = 20;

/// Schedules each of shuttle's schedulers tries from one of them.
pub(super) const SCHEDULES_MAX: u64 = 2_000;

/// One search by one of the two.
struct Twin {
    id: String,
    by: String,
    /// Which of shuttle's schedulers.
    scheduler: Option<String>,
    /// Interleavings or schedules.
    took: u64,
    secs: f64,
    /// What it says is broken.
    broken: Option<String>,
    said: String,
}

impl Twin {
    fn read(line: &str) -> Option<Twin> {
        let line: Value = serde_json::from_str(line).ok()?;
        if line["kind"] != "twin" {
            return None;
        }
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        Some(Twin {
            id: text("id")?,
            by: text("by")?,
            scheduler: text("scheduler"),
            took: line["iteration"].as_u64().or(line["schedules"].as_u64())?,
            secs: line["secs"].as_f64().unwrap_or(0.0),
            broken: text("broken"),
            said: text("said").unwrap_or_default(),
        })
    }
}

impl Zoo {
    pub(super) fn look_in_races(&self, entries: Vec<Entry>) -> Result<Vec<Entry>, String> {
        let is_loom = |entry: &Entry| matches!(entry.detector, Detector::Loom(_));
        let (loom, shuttle): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_loom);
        let mut judged = self.search("loom", 1, loom)?;
        judged.extend(self.search("shuttle", STARTS, shuttle)?);
        Ok(judged)
    }

    fn search(&self, driver: &str, starts: u64, mut entries: Vec<Entry>) -> Result<Vec<Entry>, String> {
        if entries.is_empty() {
            return Ok(entries);
        }
        let mut until_found = vec![Vec::new(); entries.len()];
        for seed in 0..starts {
            let twins = self.twins(driver, seed, &entries)?;
            for (entry, until_found) in entries.iter_mut().zip(&mut until_found) {
                let name = match &entry.detector {
                    Detector::Sim => continue,
                    Detector::Loom(name) | Detector::Shuttle(name) => name.clone(),
                };
                let own: Vec<&Twin> = twins.iter().filter(|t| t.id == entry.id && t.by == name).collect();
                entry.seconds += own.iter().map(|twin| twin.secs).sum::<f64>();
                if own.is_empty() {
                    entry.note = "nothing was searched: the patch no longer applies".to_owned();
                    continue;
                }
                // Every scheduler's failure counts for what it says; the quickest, for how long it took.
                let broken: BTreeSet<&str> = own.iter().filter_map(|twin| twin.broken.as_deref()).collect();
                let quickest = |of: &dyn Fn(&str) -> bool| {
                    let failed = own.iter().filter(|twin| twin.broken.as_deref().is_some_and(of));
                    failed.min_by_key(|twin| twin.took)
                };
                until_found.push(quickest(&|_| true).map(|twin| twin.took));
                for promise in broken {
                    let shown = quickest(&|of| of == promise).expect("it is one of theirs");
                    entry.shown_first(promise, || match &shown.scheduler {
                        Some(by) => format!("seed {seed}, {by}, schedule {}: {}", shown.took, shown.said),
                        None => format!("interleaving {}: {}", shown.took, shown.said),
                    });
                    entry.found_by_one(promise);
                }
            }
        }
        let searched = |(_, until_found): &(_, Vec<_>)| !until_found.is_empty();
        for (entry, until_found) in entries.iter_mut().zip(until_found).filter(searched) {
            entry.judge(until_found);
        }
        Ok(entries)
    }

    /// Has the runner search for these bugs, from one seed.
    fn twins(&self, driver: &str, seed: u64, entries: &[Entry]) -> Result<Vec<Twin>, String> {
        let report = temp_dir().join(format!("pointsman-zoo-{driver}-{}.jsonl", id()));
        let _ = fs::remove_file(&report);
        let mut words = self.cargo.split_whitespace();
        let mut test = Command::new(words.next().unwrap_or("cargo"));
        test.args(words).args(["test", "--locked", "--release", "--features", driver, "--test", driver]);
        test.arg("--manifest-path").arg(self.root.join("loom-tests/Cargo.toml"));
        test.args(["--", "--seed", &seed.to_string()]).args(entries.iter().map(|entry| entry.id.as_str()));
        test.env(format!("{}_REPORT", driver.to_uppercase()), &report).stdin(Stdio::null());
        let output = test.output().map_err(|error| format!("{driver} cannot be run: {error}"))?;
        let lines = fs::read_to_string(&report).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{driver} left no report: {}", said.lines().last().unwrap_or("no word"))
        })?;
        let _ = fs::remove_file(&report);
        Ok(lines.lines().filter_map(Twin::read).collect())
    }
}
