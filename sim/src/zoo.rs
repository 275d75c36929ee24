//! Bugs put back into the real code, one patch each, to see whether anybody notices.
//!
//! Every `zoo/*.patch` begins with a header: `id`, `origin`, `failure` (what goes wrong), one `detector`
//! line for each of the checkers expected to catch it, and the `promise` it breaks, all written down before
//! the first run. A detector is `sim`, `loom MODEL` or `shuttle SCENARIO`. Where a bug may break one of
//! several promises they are divided by ` | `, and `because` says why; `(deadlock)` behind a promise says that a
//! model may see it broken as a deadlock. What was found is what the failures say, never what was expected.

mod races;
mod worlds;

use core::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::oracle;

/// Who is expected to catch a bug.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Detector {
    /// Whole worlds.
    Sim,
    /// A model of `loom-tests`.
    Loom(String),
    /// A scenario of `loom-tests`.
    Shuttle(String),
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detector::Sim => f.pad("sim"),
            Detector::Loom(model) => f.pad(&format!("loom {model}")),
            Detector::Shuttle(scenario) => f.pad(&format!("shuttle {scenario}")),
        }
    }
}

/// What an entry's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: String,
    pub(crate) origin: String,
    pub(crate) failure: String,
    pub(crate) detectors: Vec<Detector>,
    /// As it is written; see [`declared`].
    pub(crate) promise: String,
}

/// How a failure is called that names no promise.
const DEADLOCK: &str = "deadlock";

/// What a header's `promise` line lets its detectors find.
fn declared(promise: &str) -> Vec<&str> {
    promise
        .split(" | ")
        .flat_map(|one| match one.strip_suffix(" (deadlock)") {
            Some(name) => vec![name, DEADLOCK],
            None => vec![one],
        })
        .collect()
}

/// How a detector fared with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Caught,
    Missed,
    Stale,
    WrongDetector,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::Caught => "caught",
            Status::Missed => "missed",
            Status::Stale => "stale",
            Status::WrongDetector => "wrong-detector",
        }
    }
}

/// One line of the results: one entry and one of its detectors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) origin: String,
    pub(crate) failure: String,
    pub(crate) detector: Detector,
    pub(crate) promise: String,
    pub(crate) status: Status,
    /// Promises found broken, with how many starting seeds found each.
    pub(crate) found: Vec<(String, u64)>,
    /// Seeds (sim), schedules (shuttle) or interleavings (loom) until the bug showed, in the median and at
    /// the 95th percentile of the starting seeds.
    pub(crate) seeds_median: Option<u64>,
    pub(crate) seeds_p95: Option<u64>,
    /// The search alone, over all starting seeds.
    pub(crate) seconds: f64,
    /// What shrinking made of the first seed that showed it.
    #[serde(default)]
    pub(crate) shrunk: Option<Shrunk>,
    /// For each promise found, a seed that shows it and what it shows; or what the tools said of a stale patch.
    pub(crate) note: String,
}

/// A world that shows a bug, made smaller.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Shrunk {
    pub(crate) events_before: u64,
    pub(crate) events: u64,
    pub(crate) seconds: f64,
}

impl Entry {
    fn new(header: &Header, detector: &Detector) -> Entry {
        Entry {
            id: header.id.clone(),
            origin: header.origin.clone(),
            failure: header.failure.clone(),
            detector: detector.clone(),
            promise: header.promise.clone(),
            status: Status::Stale,
            found: Vec::new(),
            seeds_median: None,
            seeds_p95: None,
            seconds: 0.0,
            shrunk: None,
            note: String::new(),
        }
    }

    /// Notes what shows this promise broken, unless it was found before.
    fn shown_first(&mut self, promise: &str, what: impl FnOnce() -> String) {
        if self.found.iter().all(|(known, _)| known != promise) {
            let between = if self.note.is_empty() { "" } else { " | " };
            self.note.push_str(&format!("{between}{}", what()));
        }
    }

    fn found_by_one(&mut self, promise: &str) {
        match self.found.iter_mut().find(|(known, _)| known == promise) {
            Some((_, times)) => *times += 1,
            None => self.found.push((promise.to_owned(), 1)),
        }
    }

    /// Sums up what each starting seed took, `None` where it found nothing.
    fn judge(&mut self, mut until_found: Vec<Option<u64>>) {
        self.found.sort_by_key(|found| std::cmp::Reverse(found.1));
        // A start that found nothing sorts last.
        until_found.sort_by_key(|seeds| seeds.unwrap_or(u64::MAX));
        self.seeds_median = until_found[until_found.len() / 2];
        self.seeds_p95 = until_found[(until_found.len() * 19 / 20).saturating_sub(1)];
        let expected = declared(&self.promise);
        let as_expected = self.found.iter().all(|(found, _)| expected.contains(&found.as_str()));
        self.status = match self.seeds_p95 {
            Some(_) if as_expected => Status::Caught,
            Some(_) => Status::WrongDetector,
            None => Status::Missed,
        };
    }
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
    let fields = |name: &'static str| {
        let lines = patch.lines().take_while(|line| !line.starts_with("--- "));
        lines.filter_map(move |line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let field =
        |name| fields(name).next().map(str::to_owned).ok_or_else(|| format!("the header has no `{name}`"));
    let detectors = fields("detector").map(|detector| match detector.split_once(' ') {
        None if detector == "sim" => Ok(Detector::Sim),
        Some(("loom", model)) => Ok(Detector::Loom(model.to_owned())),
        Some(("shuttle", scenario)) => Ok(Detector::Shuttle(scenario.to_owned())),
        _ => Err(format!("there is no detector `{detector}`")),
    });
    let header = Header {
        id: field("id")?,
        origin: field("origin")?,
        failure: field("failure")?,
        detectors: detectors.collect::<Result<_, _>>()?,
        promise: field("promise")?,
    };
    if header.detectors.is_empty() {
        return Err("the header has no `detector`".to_owned());
    }
    let expected = declared(&header.promise);
    if let Some(unknown) = expected.iter().find(|name| **name != DEADLOCK && !oracle::PROMISES.contains(name))
    {
        return Err(format!("no promise is called `{unknown}`"));
    }
    if header.promise.contains(" | ") != field("because").is_ok() {
        return Err("several promises need a `because`, one needs none".to_owned());
    }
    Ok(header)
}

impl Zoo {
    /// Whether there is such a patch.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.root.join("sim/zoo").join(format!("{id}.patch")).is_file()
    }

    /// The patches, by name.
    pub(crate) fn patches(&self) -> io::Result<Vec<PathBuf>> {
        let files = fs::read_dir(self.root.join("sim/zoo"))?.collect::<Result<Vec<_>, _>>()?;
        let mut patches: Vec<PathBuf> = files.into_iter().map(|file| file.path()).collect();
        patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        patches.sort();
        Ok(patches)
    }

    /// Lets the declared detectors that are `wanted` look for these bugs; `told` hears of each as it is done.
    pub(crate) fn visit(
        &self,
        patches: &[PathBuf],
        wanted: impl Fn(&Detector) -> bool,
        mut told: impl FnMut(&Entry),
    ) -> Result<Vec<Entry>, String> {
        let (mut all, mut races) = (Vec::new(), Vec::new());
        for path in patches {
            let read = fs::read_to_string(path).map_err(|error| error.to_string());
            let header =
                read.and_then(|text| header(&text)).map_err(|why| format!("{}: {why}", path.display()))?;
            for detector in header.detectors.iter().filter(|detector| wanted(detector)) {
                let entry = Entry::new(&header, detector);
                if *detector != Detector::Sim {
                    races.push(entry);
                    continue;
                }
                let entry = self.look_in_worlds(path, entry);
                told(&entry);
                all.push(entry);
            }
        }
        let races = self.look_in_races(races)?;
        races.iter().for_each(told);
        all.extend(races);
        Ok(all)
    }

    /// Puts what was found beside what earlier visits found, for all patches there are now, and writes
    /// `results.json` and `RESULTS.md`.
    pub(crate) fn keep(&self, entries: &[Entry]) -> Result<(), String> {
        let folder = self.root.join("sim/zoo");
        let earlier = fs::read(folder.join("results.json")).unwrap_or_else(|_| b"[]".to_vec());
        let mut all: Vec<Entry> =
            serde_json::from_slice(&earlier).map_err(|error| format!("results.json: {error}"))?;
        let same = |a: &Entry, b: &Entry| (&a.id, &a.detector) == (&b.id, &b.detector);
        all.retain(|old| entries.iter().all(|new| !same(old, new)));
        all.extend_from_slice(entries);
        let patches = self.patches().map_err(|error| error.to_string())?;
        let is_declared = |entry: &Entry| {
            let path = patches.iter().find(|path| path.file_stem().is_some_and(|name| *name == *entry.id));
            let text = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
            // What was found while the header said something else is to be found anew.
            let stands = |header: Header| {
                header.detectors.contains(&entry.detector) && header.promise == entry.promise
            };
            header(&text).is_ok_and(stands)
        };
        all.retain(is_declared);
        all.sort_by(|a, b| (&a.id, &a.detector).cmp(&(&b.id, &b.detector)));
        fs::write(folder.join("RESULTS.md"), page(&all))
            .and_then(|()| fs::write(folder.join("results.json"), format!("{:#}\n", serde_json::json!(all))))
            .map_err(|error| format!("the results cannot be written: {error}"))
    }
}

/// The part of the patches that is due at a commit: `count` of those the simulator looks for, another part
/// at each of the next commits' hashes.
pub(crate) fn part_of(patches: Vec<PathBuf>, turn: u64, count: usize) -> Vec<PathBuf> {
    let is_of_worlds = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        header(&text).is_ok_and(|header| header.detectors.contains(&Detector::Sim))
    };
    let mut due: Vec<PathBuf> = patches.into_iter().filter(is_of_worlds).collect();
    if !due.is_empty() {
        let first = usize::try_from(turn % due.len() as u64).unwrap_or(0);
        due.rotate_left(first);
    }
    due.truncate(count);
    due
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

/// How much smaller the worlds became that showed a bug, as a sentence.
fn shrinking(entries: &[Entry]) -> String {
    let all: Vec<Shrunk> = entries.iter().filter_map(|entry| entry.shrunk).collect();
    let mut left: Vec<f64> =
        all.iter().map(|shrunk| 100.0 * shrunk.events as f64 / shrunk.events_before as f64).collect();
    left.sort_by(f64::total_cmp);
    let Some(median) = left.get(left.len() / 2) else { return String::new() };
    let longest = all.iter().map(|shrunk| shrunk.seconds).fold(0.0, f64::max);
    format!(
        "Shrinking the first seed that showed a bug left {median:.1}% of its events in the median of {} worlds, in at\n\
         most {longest:.1} s.\n",
        left.len()
    )
}

/// The results as a page.
fn page(entries: &[Entry]) -> String {
    let caught = entries.iter().filter(|entry| entry.status == Status::Caught).count();
    let mut ids: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
    ids.dedup();
    let mut page = format!(
        "# The zoo's results\n\n\
         Written by `cargo run --release -p sim -- zoo`: {} bugs, {caught} of {} searches caught what they look for.\n\n\
         `median` and `p95` count what it took until the bug showed, over 20 starting seeds: seeds of at most {} (sim), or\n\
         schedules of at most {} by the scheduler that was quickest (shuttle). loom explores in one order, so there is one\n\
         number: the interleaving that showed it. A dash means that more than one start in twenty found nothing.\n\n\
         {}\n\
         | id | origin | detector | promise expected | promise found | median | p95 | seconds | events, shrunk to | status |\n\
         |---|---|---|---|---|---:|---:|---:|---:|---|\n",
        ids.len(),
        entries.len(),
        worlds::SEEDS_MAX,
        races::SCHEDULES_MAX,
        shrinking(entries),
    );
    let number = |seeds: Option<u64>| seeds.map_or("-".to_owned(), |seeds| seeds.to_string());
    for entry in entries {
        let found: Vec<String> =
            entry.found.iter().map(|(promise, times)| format!("{promise} x{times}")).collect();
        page.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.1} | {} | {} |\n",
            entry.id,
            entry.origin,
            entry.detector,
            entry.promise.replace(" | ", " or "),
            found.join(", "),
            number(entry.seeds_median),
            number(entry.seeds_p95),
            entry.seconds,
            entry.shrunk.map_or(String::new(), |to| format!("{}, {}", to.events_before, to.events)),
            entry.status.name(),
        ));
    }
    page.push_str("\n## What each is, and what showed it\n\n");
    for entry in entries {
        page.push_str(&format!(
            "- **{}** ({}): {} ({})\n",
            entry.id,
            entry.detector,
            entry.failure,
            entry.note.replace('\n', " ")
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn here() -> Zoo {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Zoo { root, scratch: PathBuf::new(), cargo: String::new() }
    }

    #[test]
    fn every_patch_has_a_header_whose_promise_is_checked() {
        let patches = here().patches().expect("the zoo is there");
        for patch in &patches {
            let text = fs::read_to_string(patch).expect("readable");
            let header = header(&text).unwrap_or_else(|why| panic!("{}: {why}", patch.display()));
            assert_eq!(Some(header.id.as_str()), patch.file_stem().and_then(|name| name.to_str()));
        }
        assert!(patches.len() >= 45, "{}", patches.len());
    }

    #[test]
    fn a_header_that_promises_nothing_known_is_refused() {
        let header = |lines: &str| header(&format!("id: a\norigin: b\nfailure: c\n{lines}\n--- a/x\n"));
        assert!(header("detector: sim\npromise: answer-ends").is_ok());
        assert!(header("detector: sim").is_err());
        assert!(header("promise: answer-ends").is_err());
        assert!(header("detector: sim\npromise: nonsense").is_err());
        assert!(header("detector: luck\npromise: answer-ends").is_err());
        assert!(header("detector: sim\npromise: answer-ends (deadlock)").is_ok());
        assert!(header("detector: sim\npromise: answer-ends (late)").is_err());
        let two = "detector: sim\npromise: answer-ends | slot-limit";
        assert!(header(two).is_err());
        assert!(header(&format!("{two}\nbecause: a slot that is kept keeps somebody out")).is_ok());
        assert!(header("detector: sim\npromise: answer-ends\nbecause: of nothing").is_err());
    }

    #[test]
    fn one_start_that_found_what_the_header_does_not_say_is_one_too_many() {
        let judged = |promise: &str, found: &[(&str, usize)]| {
            let text = format!(
                "id: a\norigin: b\nfailure: c\ndetector: sim\npromise: {promise}\nbecause: x\n--- a/x\n"
            );
            let text = if promise.contains(" | ") { text } else { text.replace("because: x\n", "") };
            let mut entry = Entry::new(&header(&text).expect("a header"), &Detector::Sim);
            found.iter().for_each(|(promise, times)| (0..*times).for_each(|_| entry.found_by_one(promise)));
            entry.judge(vec![Some(1); 20]);
            entry.status
        };
        assert_eq!(judged("answer-ends", &[("answer-ends", 19), ("slot-limit", 1)]), Status::WrongDetector);
        assert_eq!(
            judged("answer-ends | slot-limit", &[("answer-ends", 19), ("slot-limit", 1)]),
            Status::Caught
        );
        assert_eq!(judged("answer-ends (deadlock)", &[("deadlock", 19), ("answer-ends", 1)]), Status::Caught);
        assert_eq!(judged("answer-ends", &[("deadlock", 20)]), Status::WrongDetector);
    }

    /// The ids and the seed of each `(`id`, ...; seed N` in the README's stories.
    fn quoted(text: &str) -> Vec<(Vec<String>, u64)> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut quoted = Vec::new();
        for (at, mark) in text.match_indices("; seed ") {
            let seed = &text[at + mark.len()..];
            let digits = seed.find(|c: char| !c.is_ascii_digit()).unwrap_or(seed.len());
            let seed = seed[..digits].parse().expect("a seed is a number");
            let before = &text[..at];
            let from = before.rfind(['(', ';']).expect("a seed stands behind its entry");
            let ids = before[from..].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            quoted.push((ids, seed));
        }
        quoted
    }

    #[test]
    fn every_seed_in_a_story_is_the_one_that_showed_its_bug_last() {
        let zoo = here().root.join("sim/zoo");
        let story = fs::read_to_string(zoo.join("README.md")).expect("the stories are there");
        let kept = fs::read(zoo.join("results.json")).expect("the results are there");
        let kept: Vec<Entry> = serde_json::from_slice(&kept).expect("they can be read");
        let quoted = quoted(&story);
        assert!(quoted.len() >= 30, "only {} seeds are quoted", quoted.len());
        for (ids, seed) in quoted {
            let shown: Vec<&Entry> = kept
                .iter()
                .filter(|entry| entry.detector == Detector::Sim && ids.contains(&entry.id))
                .collect();
            let [entry] = shown[..] else {
                panic!("seed {seed} is quoted for {ids:?}, which is not one entry of the simulator's")
            };
            assert!(
                entry.note.starts_with(&format!("seed {seed}: ")),
                "{}: {} is quoted, {}",
                entry.id,
                seed,
                entry.note
            );
        }
    }

    #[test]
    fn the_results_kept_are_what_todays_headers_declare() {
        let zoo = here();
        let kept = fs::read(zoo.root.join("sim/zoo/results.json")).expect("the results are there");
        let kept: Vec<Entry> = serde_json::from_slice(&kept).expect("they can be read");
        for entry in &kept {
            let patch = zoo.root.join(format!("sim/zoo/{}.patch", entry.id));
            let text = fs::read_to_string(&patch).unwrap_or_else(|why| panic!("{}: {why}", entry.id));
            let header = header(&text).expect("a header");
            let (id, by) = (&entry.id, &entry.detector);
            assert!(header.detectors.contains(by), "{id} is not looked for by {by}");
            assert_eq!(entry.promise, header.promise, "{id} by {by} is to be visited again");
            for (found, _) in &entry.found {
                assert!(declared(&header.promise).contains(&found.as_str()), "{id} by {by} found {found}");
            }
        }
    }

    #[test]
    fn the_parts_of_all_turns_are_the_whole() {
        let patches = here().patches().expect("the zoo is there");
        let whole = part_of(patches.clone(), 0, usize::MAX);
        let mut visited: Vec<PathBuf> =
            (0..whole.len() as u64).flat_map(|turn| part_of(patches.clone(), turn, 2)).collect();
        visited.sort();
        visited.dedup();
        assert_eq!(visited, whole);
    }

    #[test]
    fn a_search_is_judged_by_its_slowest_starts_and_by_the_promise() {
        let text = "id: a\norigin: b\nfailure: c\ndetector: sim\npromise: answer-ends\n--- a/x\n";
        let judged = |promise: &str, until_found: Vec<Option<u64>>| {
            let mut entry = Entry::new(&header(text).expect("a header"), &Detector::Sim);
            until_found.iter().flatten().for_each(|_| entry.found_by_one(promise));
            entry.judge(until_found);
            (entry.status, entry.seeds_p95)
        };
        let mut starts = vec![Some(3); 20];
        assert_eq!(judged("answer-ends", starts.clone()), (Status::Caught, Some(3)));
        assert_eq!(judged("slot-limit", starts.clone()).0, Status::WrongDetector);
        assert_eq!(judged("deadlock", starts.clone()).0, Status::WrongDetector);
        starts[7] = None;
        assert_eq!(judged("answer-ends", starts.clone()).0, Status::Caught);
        starts[8] = None;
        assert_eq!(judged("answer-ends", starts), (Status::Missed, None));
        assert_eq!(judged("answer-ends", vec![Some(9)]), (Status::Caught, Some(9)));
    }
}
