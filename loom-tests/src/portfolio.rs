//! The runner around shuttle: a portfolio of schedulers over each scenario, in processes of their own.
//!
//! Every schedule is run twice, the second time as a check that nothing but the scheduler decides what
//! happens (`UncontrolledNondeterminismCheckScheduler`); only the first run is counted. A failure is
//! kept as a file under `schedules/`, with the version of shuttle that made it, and every later run
//! begins by replaying what is kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use serde_json::{Value, json};
use shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, Scheduler, UncontrolledNondeterminismCheckScheduler,
    UrwRandomScheduler,
};
use shuttle::{Config, FailurePersistence, Runner};

use crate::options::Options;
use crate::report;
use crate::zoo::{Entry, is_declared, measured};

/// Several tasks over the production types.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// `file::function`.
    pub name: &'static str,
    /// How many tasks it runs, itself included.
    pub tasks: usize,
    /// What it claims, as a sentence.
    pub claim: &'static str,
    /// One execution.
    pub run: fn(),
}

/// Everything one package of scenarios has to run.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Must pass.
    pub scenarios: &'static [&'static [Scenario]],
    /// Must be found.
    pub zoo: &'static [Entry<Scenario>],
}

/// The schedulers, by the names in which reports and replays speak.
const PORTFOLIO: [&str; 4] = ["random", "pct2", "pct3", "urw"];

/// Schedules per scenario, over all schedulers: by default, and with `FULL=1`.
const SCHEDULES: [usize; 2] = [2_000, 100_000];

/// The most schedules each scheduler spends on finding a bug that was put back: by default, and with
/// `FULL=1`.
const HUNT: [usize; 2] = [2_000, 20_000];

/// Its encoding of schedules changes between versions, so it is pinned, and files say which made them.
const SHUTTLE: &str = "0.9.9";

/// The seed of the quick form, which is the same every time.
const SEED: u64 = 0x9075_3a11;

static RUNS: AtomicU64 = AtomicU64::new(0);

impl Suite {
    fn all(&self) -> impl Iterator<Item = &'static Scenario> {
        self.scenarios.iter().flat_map(|scenarios| scenarios.iter())
    }

    /// What a key of a child process stands for.
    fn resolve(&self, key: &str) -> Option<Job> {
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "scenario" => {
                let (name, scheduler) = rest.split_once('/')?;
                let run = self.all().find(|scenario| scenario.name == name)?.run;
                Some(Job { run, scheduler: scheduler.to_owned() })
            }
            "kept" => {
                let kept = Kept::read(Path::new(rest))?;
                let run = self.all().find(|scenario| scenario.name == kept.scenario)?.run;
                Some(Job { run, scheduler: format!("replay {}", kept.schedule) })
            }
            _ => {
                let mut parts = rest.split('/');
                let (id, detector, scheduler) = (parts.next()?, parts.next()?, parts.next()?);
                let entry = self.zoo.iter().find(|entry| entry.id == id && entry.detector == detector)?;
                let run = entry.models.iter().find(|scenario| scenario.name == detector)?.run;
                Some(Job { run, scheduler: scheduler.to_owned() })
            }
        }
    }

    /// The test binary's `main`.
    pub fn main(&self) -> ExitCode {
        let options = Options::read("SHUTTLE_REPORT");
        if let Some(key) = &options.one {
            let Some(job) = self.resolve(key) else {
                eprintln!("there is no {key}");
                return ExitCode::FAILURE;
            };
            let hunt = key.starts_with("zoo/");
            job.execute(&options, hunt);
        }
        if options.list {
            self.all().for_each(|scenario| println!("{}: {}", scenario.name, scenario.claim));
            return ExitCode::SUCCESS;
        }
        Run::new(self, options).finish()
    }
}

/// What one child process does.
struct Job {
    run: fn(),
    scheduler: String,
}

impl Job {
    /// Runs the schedules and says what came of them; never returns.
    fn execute(&self, options: &Options, hunt: bool) -> ! {
        let began = Instant::now();
        let schedules = match options.trace {
            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            None if hunt => HUNT[usize::from(options.full)],
            None => SCHEDULES[usize::from(options.full)] / PORTFOLIO.len(),
        };
        let seed = options.seed.unwrap_or(SEED);
        let kept = std::env::temp_dir().join(format!("pointsman-shuttle-{}", std::process::id()));
        fs::create_dir_all(&kept).expect("a writable folder for temporary files");
        let run = self.run;
        let checked = !self.scheduler.starts_with("replay");
        // Each schedule runs twice while it is checked.
        let counted = move || if checked { RUNS.load(Relaxed).div_ceil(2) } else { RUNS.load(Relaxed) };
        let said = {
            let kept = kept.clone();
            move |failed: Option<&str>, place: Option<String>| -> ! {
                let schedule = fs::read_to_string(kept.join("schedule000.txt")).ok();
                let _ = fs::remove_dir_all(&kept);
                report::answer(&json!({
                    "schedules": counted(), "secs": began.elapsed().as_secs_f64(), "seed": seed,
                    "failed": failed, "place": place, "schedule": schedule,
                }))
            }
        };
        let mut config = Config::new();
        config.stack_size = 0x4_0000;
        config.failure_persistence = FailurePersistence::File(Some(kept));
        config.silence_warnings = true;
        // Shuttle's own hook comes before this one and has written the schedule down by then.
        panic::set_hook(Box::new({
            let said = said.clone();
            move |panic| {
                let message = panic.payload_as_str().unwrap_or("a panic without words");
                said(Some(message), panic.location().map(ToString::to_string))
            }
        }));
        let closure = move || {
            RUNS.fetch_add(1, Relaxed);
            run();
        };
        match self.scheduler.as_str() {
            "random" => check(RandomScheduler::new_from_seed(seed, schedules), config, closure),
            "pct2" => check(PctScheduler::new_from_seed(seed, 2, schedules), config, closure),
            "pct3" => check(PctScheduler::new_from_seed(seed, 3, schedules), config, closure),
            "urw" => check(UrwRandomScheduler::new_from_seed(seed, schedules), config, closure),
            replay => {
                let encoded =
                    replay.strip_prefix("replay ").unwrap_or_else(|| panic!("no scheduler {replay}"));
                let mut scheduler = ReplayScheduler::new_from_encoded(encoded);
                scheduler.set_allow_incomplete();
                Runner::new(scheduler, config).run(closure);
            }
        }
        said(None, None)
    }
}

fn check(scheduler: impl Scheduler + 'static, config: Config, run: impl Fn() + Send + Sync + 'static) {
    Runner::new(UncontrolledNondeterminismCheckScheduler::new(scheduler), config).run(run);
}

/// A schedule that once failed.
struct Kept {
    scenario: String,
    version: String,
    schedule: String,
}

impl Kept {
    fn read(path: &Path) -> Option<Kept> {
        let value: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Some(Kept { scenario: text("scenario")?, version: text("shuttle")?, schedule: text("schedule")? })
    }

    /// All of them, in the order of their names.
    fn files() -> Vec<PathBuf> {
        let folder = fs::read_dir(report::file("schedules")).into_iter().flatten();
        let mut files: Vec<PathBuf> = folder
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
            .collect();
        files.sort();
        files
    }
}

/// One whole run: what is kept, every scenario, every bug put back, the table.
struct Run<'s> {
    suite: &'s Suite,
    options: Options,
    seed: u64,
    /// Schedules and seconds of each scenario, over its schedulers.
    totals: BTreeMap<&'static str, (u64, f64)>,
    /// By bug and detector: how many schedules each scheduler took, if it found it.
    hunts: BTreeMap<(&'static str, &'static str), BTreeMap<&'static str, Option<u64>>>,
    lines: Vec<Value>,
    complaints: Vec<String>,
}

impl<'s> Run<'s> {
    fn new(suite: &'s Suite, options: Options) -> Self {
        let fresh = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(SEED, |since| u64::try_from(since.as_nanos() & 0xffff_ffff).unwrap_or(SEED));
        Run {
            suite,
            seed: options.seed.unwrap_or(if options.full { fresh } else { SEED }),
            options,
            totals: BTreeMap::new(),
            hunts: BTreeMap::new(),
            lines: Vec::new(),
            complaints: Vec::new(),
        }
    }

    fn finish(mut self) -> ExitCode {
        let began = Instant::now();
        let mut keys: Vec<String> =
            Kept::files().iter().map(|path| format!("kept/{}", path.display())).collect();
        for scheduler in PORTFOLIO {
            if self.options.scheduler.as_deref().is_some_and(|only| only != scheduler) {
                continue;
            }
            for scenario in self.suite.all().filter(|scenario| self.options.wants(scenario.name)) {
                keys.push(format!("scenario/{}/{scheduler}", scenario.name));
            }
        }
        for scenario in self.suite.all() {
            if !self.suite.zoo.iter().any(|entry| entry.detector == scenario.name) {
                let name = scenario.name;
                self.complaints.push(format!("{name} has no bug to find: who knows whether it can fail?"));
            }
        }
        for entry in self.suite.zoo {
            if !(self.options.wants(entry.id) || self.options.wants(entry.detector)) {
                continue;
            }
            match entry.stale {
                Some(why) => self.complaints.push(format!("sim/zoo/{}.patch is stale: {why}", entry.id)),
                None => keys.extend(PORTFOLIO.map(|by| format!("zoo/{}/{}/{by}", entry.id, entry.detector))),
            }
        }
        let jobs = self.options.jobs;
        let extra = ["--seed".to_owned(), self.seed.to_string()];
        report::run_each(&keys, &extra, jobs, |key, answer| self.take(key, answer));
        self.sum_up();
        report::append(self.options.report.as_deref(), &self.lines);
        if self.options.write_tables && self.options.filters.is_empty() {
            self.write_table();
        }
        println!(
            "{} runs in {:.1} s on {jobs} cores, seed {}, {} complaints",
            keys.len(),
            began.elapsed().as_secs_f64(),
            self.seed,
            self.complaints.len()
        );
        for complaint in &self.complaints {
            println!("FAILED {complaint}");
        }
        if self.complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn take(&mut self, key: &str, answer: Result<Value, String>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return self.complaints.push(format!("{key} said nothing: {why}")),
        };
        let (kind, rest) = key.split_once('/').expect("a key of ours");
        let (rest, scheduler) = rest.rsplit_once('/').expect("a key of ours");
        let scheduler = PORTFOLIO.into_iter().find(|known| *known == scheduler).unwrap_or("replay");
        match kind {
            "kept" => self.kept(Path::new(&key["kept/".len()..]), &answer),
            "scenario" => self.scenario(rest, scheduler, &answer),
            _ => self.hunted(rest, scheduler, &answer),
        }
    }

    fn kept(&mut self, path: &Path, answer: &Value) {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let version = Kept::read(path).map(|kept| kept.version).unwrap_or_default();
        match answer["failed"].as_str() {
            None => println!("KEPT {file} passes now"),
            // The code has changed so much that this order of steps is impossible, or it was written
            // by another version: nothing is shown either way.
            Some(said) if version != SHUTTLE || said.contains("schedule") => {
                println!("KEPT {file} (shuttle {version}) no longer fits: {said}");
            }
            Some(said) => self.complaints.push(format!("{file} fails as it did when it was kept: {said}")),
        }
    }

    fn scenario(&mut self, name: &str, scheduler: &'static str, answer: &Value) {
        let scenario = self.suite.all().find(|scenario| scenario.name == name).expect("a key of ours");
        let (schedules, secs) =
            (answer["schedules"].as_u64().unwrap_or(0), answer["secs"].as_f64().unwrap_or(0.0));
        let total = self.totals.entry(scenario.name).or_default();
        total.0 += schedules;
        total.1 += secs;
        self.lines.push(json!({
            "kind": "run", "scenario": name, "scheduler": scheduler, "schedules": schedules, "secs": secs,
            "schedules_per_sec": schedules as f64 / secs.max(1e-9), "seed": self.seed, "failed": answer["failed"],
        }));
        let Some(said) = answer["failed"].as_str() else { return };
        let seed = self.seed;
        let place = answer["place"].as_str().unwrap_or("an unknown place");
        let file = format!("{}-{scheduler}-{seed}.json", name.replace("::", "-"));
        if let Some(schedule) = answer["schedule"].as_str() {
            let kept = json!({
                "scenario": name, "shuttle": SHUTTLE, "scheduler": scheduler, "seed": seed, "said": said,
                "schedule": schedule.trim(),
            });
            let _ = fs::create_dir_all(report::file("schedules"));
            let text = serde_json::to_string_pretty(&kept).expect("a schedule serialises");
            fs::write(report::file("schedules").join(&file), text + "\n").expect("a schedule can be kept");
        }
        self.complaints.push(format!(
            "{name} in schedule {schedules} of scheduler {scheduler}, seed {seed}, at {place}: {said}\n  kept as \
             schedules/{file}; replay: cargo test --release --manifest-path loom-tests/Cargo.toml --features shuttle \
             --test shuttle -- --one scenario/{name}/{scheduler} --seed {seed}"
        ));
    }

    fn hunted(&mut self, rest: &str, scheduler: &'static str, answer: &Value) {
        let (id, detector) = rest.split_once('/').expect("a key of ours");
        let find = |entry: &&Entry<Scenario>| entry.id == id && entry.detector == detector;
        let entry = self.suite.zoo.iter().find(find).expect("a key of ours");
        let schedules = answer["schedules"].as_u64().unwrap_or(0);
        let said = answer["failed"].as_str();
        let broken = said.map(measured);
        let found = broken.filter(|broken| is_declared(entry.promise, broken)).map(|_| schedules);
        if let (Some(said), None) = (said, found) {
            self.complaints.push(format!(
                "the bug {id} made {detector} fail under {scheduler}, but by {said:?} and not by {:?}",
                entry.promise
            ));
        }
        self.lines.push(json!({
            "kind": "twin", "id": id, "by": detector, "scheduler": scheduler, "promise": entry.promise,
            "found": found.is_some(), "schedules": schedules, "secs": answer["secs"], "broken": broken, "said": said,
        }));
        self.hunts.entry((entry.id, entry.detector)).or_default().insert(scheduler, found);
    }

    fn sum_up(&mut self) {
        for (name, (schedules, secs)) in &self.totals {
            let rate = *schedules as f64 / secs.max(1e-9);
            println!("SCENARIO {name} schedules={schedules} secs={secs:.2} schedules/s={rate:.0}");
            self.lines.push(json!({
                "kind": "scenario", "name": name, "schedules": schedules, "secs": secs, "schedules_per_sec": rate,
            }));
        }
        for ((id, detector), by) in &self.hunts {
            let found: Vec<String> = by
                .iter()
                .map(|(by, at)| format!("{by}={}", at.map_or("-".to_owned(), |at| at.to_string())))
                .collect();
            println!("TWIN {id} by={detector} schedules: {}", found.join(" "));
            if by.values().all(Option::is_none) {
                self.complaints.push(format!("the bug {id} was not found by {detector} under any scheduler"));
            }
        }
    }

    fn write_table(&self) {
        let mut region = String::from(
            "| scenario | tasks | claim | schedules | schedules/s |\n|---|---:|---|---:|---:|\n",
        );
        for scenario in self.suite.all() {
            let Scenario { name, tasks, claim, .. } = scenario;
            let (schedules, secs) = self.totals.get(name).copied().unwrap_or_default();
            let rate = schedules as f64 / secs.max(1e-9);
            writeln!(region, "| `{name}` | {tasks} | {claim} | {schedules} | {rate:.0} |")
                .expect("a string grows");
        }
        region.push_str("\n| bug put back | found by | promise |");
        PORTFOLIO.iter().for_each(|by| write!(region, " {by} |").expect("a string grows"));
        region.push_str("\n|---|---|---|---:|---:|---:|---:|\n");
        for ((id, detector), by) in &self.hunts {
            let promise =
                self.suite.zoo.iter().find(|entry| entry.id == *id).map_or("", |entry| entry.promise);
            // A bar would end the table's cell.
            let promise = promise.replace(" | ", " or ");
            write!(region, "| `sim/zoo/{id}.patch` | `{detector}` | `{promise}` |").expect("a string grows");
            for scheduler in PORTFOLIO {
                let at = by.get(scheduler).copied().flatten().map_or("-".to_owned(), |at| at.to_string());
                write!(region, " {at} |").expect("a string grows");
            }
            region.push('\n');
        }
        report::rewrite_readme("shuttle tables", &region);
    }
}
