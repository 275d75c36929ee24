//! Many seeds: which of them break a promise, what happened in them, how fast it went.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "how long the check itself takes is told by a real clock; no world sees it"
)]

use std::fs;
use std::io::{self, IsTerminal, Write, stderr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::faults::Fault;
use crate::run::{self, Outcome};
use crate::scenario::{self, Scenario};
use crate::seeds::Seeds;
use crate::shared::Shared;
use crate::sometimes::Point;
use crate::streams::Seed;
use crate::world::Tally;

/// A seed that breaks a promise.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) seed: u64,
    pub(crate) scenario: String,
    pub(crate) promise: String,
    pub(crate) why: String,
    pub(crate) events: u64,
}

/// What came of a check.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seeds: u64,
    pub(crate) events: u64,
    pub(crate) nanos: u64,
    pub(crate) found: Vec<Found>,
    pub(crate) tally: Tally,
    pub(crate) wall_seconds: f64,
}

/// Which seeds, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) seeds: Seeds,
    pub(crate) scenario: Option<Scenario>,
    pub(crate) jobs: usize,
    /// Stop once so many violations are found.
    pub(crate) found_max: usize,
}

/// So many seeds reach every fault and every point; fewer are not held to it.
pub(crate) const COVERAGE_FROM: u64 = 20_000;

impl Report {
    fn take(&mut self, seed: u64, scenario: Option<Scenario>, outcome: Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.nanos += outcome.nanos;
        let sums = self.tally.fired.iter_mut().chain(&mut self.tally.reached);
        for (sum, more) in sums.zip(outcome.tally.fired.iter().chain(&outcome.tally.reached)) {
            *sum += more;
        }
        if let Some(violation) = outcome.violation {
            let scenario = scenario.map_or("mixed", Scenario::name).to_owned();
            let (promise, why) = (violation.promise, violation.why);
            self.found.push(Found { seed, scenario, promise, why, events: outcome.events });
        }
    }

    fn merge(&mut self, other: Report) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.nanos += other.nanos;
        self.found.extend(other.found);
        let sums = self.tally.fired.iter_mut().chain(&mut self.tally.reached);
        for (sum, more) in sums.zip(other.tally.fired.iter().chain(&other.tally.reached)) {
            *sum += more;
        }
    }

    /// Faults and points that never came up.
    pub(crate) fn never(&self) -> Vec<&'static str> {
        let faults = Fault::ALL.iter().filter(|fault| self.tally.fired[**fault as usize] == 0);
        let points = Point::ALL.iter().filter(|point| self.tally.reached[**point as usize] == 0);
        faults.map(|fault| fault.name()).chain(points.map(|point| point.name())).collect()
    }

    /// Every promise held, and everything that must be visited was.
    pub(crate) fn is_clean(&self, held_to_coverage: bool) -> bool {
        self.found.is_empty() && (!held_to_coverage || self.never().is_empty())
    }

    fn seeds_per_second(&self) -> f64 {
        self.seeds as f64 / self.wall_seconds.max(1e-9)
    }

    /// As `--json` prints it.
    pub(crate) fn json(&self) -> Value {
        let counts = |names: Vec<(&str, u64)>| -> Value {
            Value::Object(
                names.into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>(),
            )
        };
        let faults = Fault::ALL.iter().map(|fault| (fault.name(), self.tally.fired[*fault as usize]));
        let points = Point::ALL.iter().map(|point| (point.name(), self.tally.reached[*point as usize]));
        serde_json::json!({
            "seeds": self.seeds,
            "events": self.events,
            "violations": self.found,
            "faults_fired": counts(faults.collect()),
            "sometimes": counts(points.collect()),
            "simulated_seconds": self.nanos as f64 / 1e9,
            "wall_seconds": self.wall_seconds,
            "seeds_per_second": self.seeds_per_second(),
        })
    }

    /// As it is printed for people.
    pub(crate) fn text(&self, held_to_coverage: bool) -> String {
        let mut text = String::new();
        for found in &self.found {
            text.push_str(&format!(
                "seed {}: {} is broken: {}\n  again: cargo run --release -p sim -- replay {} --scenario {} --trace\n",
                found.seed, found.promise, found.why, found.seed, found.scenario
            ));
        }
        let never = self.never();
        if held_to_coverage && !never.is_empty() {
            text.push_str(&format!("never happened in these seeds: {}\n", never.join("; ")));
        }
        text.push_str(&format!(
            "{} seeds, {} events ({:.0} a seed), {} violations; {:.1} s, {:.0} seeds/s, {:.0} simulated seconds a second\n",
            self.seeds,
            self.events,
            self.events as f64 / self.seeds.max(1) as f64,
            self.found.len(),
            self.wall_seconds,
            self.seeds_per_second(),
            self.nanos as f64 / 1e9 / self.wall_seconds.max(1e-9),
        ));
        text
    }

    /// How often each fault and each point came up.
    pub(crate) fn coverage(&self) -> String {
        let faults = Fault::ALL.iter().map(|fault| (self.tally.fired[*fault as usize], fault.name()));
        let points = Point::ALL.iter().map(|point| (self.tally.reached[*point as usize], point.name()));
        faults.chain(points).map(|(times, name)| format!("{times:>12}  {name}\n")).collect()
    }

    /// Replaces what stands between the marks in the file by this report.
    pub(crate) fn record(&self, path: &Path, seeds: Seeds, jobs: usize, held: bool) -> io::Result<()> {
        const MARKS: [&str; 2] = ["<!-- begin: sim check -->\n", "<!-- end: sim check -->"];
        let text = fs::read_to_string(path)?;
        let cut =
            text.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?.1)));
        let (before, after) = cut.ok_or_else(|| io::Error::other(format!("it has no {MARKS:?}")))?;
        let Seeds { first, count } = seeds;
        let debug = if cfg!(debug_assertions) { "debug" } else { "release" };
        let report = format!(
            "```text\ncheck --seeds {first}..+{count} --jobs {jobs}, {debug} build\n{}\n{}```\n",
            self.text(held),
            self.coverage()
        );
        fs::write(path, format!("{before}{}{report}{}{after}", MARKS[0], MARKS[1]))
    }
}

/// Lives through all seeds of `order`.
pub(crate) fn check(order: Order) -> Report {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    let found = AtomicU64::new(0);
    let total = Shared::new(Report::default());
    let progress = stderr().is_terminal();
    std::thread::scope(|scope| {
        for _ in 0..order.jobs.max(1) {
            scope.spawn(|| {
                let mut mine = Report::default();
                while !enough.load(Relaxed) {
                    let index = next.fetch_add(1, Relaxed);
                    let Some(seed) = order.seeds.get(index) else { break };
                    let outcome = run::run(&scenario::plan(Seed(seed), order.scenario), false);
                    if outcome.violation.is_some()
                        && found.fetch_add(1, Relaxed) + 1 >= order.found_max as u64
                    {
                        enough.store(true, Relaxed);
                    }
                    mine.take(seed, order.scenario, outcome);
                    if progress && index.is_multiple_of(500) {
                        show(index, order.seeds.count, found.load(Relaxed));
                    }
                }
                total.lock().merge(mine);
            });
        }
    });
    if progress {
        // The bar makes room for the report; a terminal that is gone does not matter.
        let _ = write!(stderr(), "\r\x1b[K");
    }
    let mut report = core::mem::take(&mut *total.lock());
    report.found.sort_by_key(|found| found.seed);
    report.wall_seconds = began.elapsed().as_secs_f64();
    report
}

fn show(done: u64, of: u64, found: u64) {
    let width = 40;
    let full = (done * width / of.max(1)) as usize;
    let bar: String = (0..width as usize).map(|at| if at < full { '#' } else { '.' }).collect();
    let _ = write!(stderr(), "\r[{bar}] {done} of {of} seeds, {found} violations");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick(scenario: Option<Scenario>, count: u64) -> Report {
        check(Order { seeds: Seeds { first: 0, count }, scenario, jobs: 2, found_max: 3 })
    }

    #[test]
    fn two_hundred_seeds_keep_every_promise() {
        let report = quick(None, 200);
        assert!(report.found.is_empty(), "{}", report.text(false));
        assert_eq!(report.seeds, 200);
    }

    #[test]
    fn the_json_has_the_fields_ci_reads() {
        let json = quick(Scenario::find("calm").flatten(), 2).json();
        for field in [
            "seeds",
            "events",
            "violations",
            "faults_fired",
            "sometimes",
            "simulated_seconds",
            "wall_seconds",
            "seeds_per_second",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
    }

    #[test]
    fn a_report_without_a_point_is_not_clean_when_it_is_held_to_coverage() {
        let report = quick(Scenario::find("calm").flatten(), 2);
        assert!(report.is_clean(false) && !report.is_clean(true));
        assert!(report.text(true).contains("never happened"));
    }
}
