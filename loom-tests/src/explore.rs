//! The runner around loom.
//!
//! `loom::model::Builder::check` returns in three places: at `max_permutations`, after `max_duration`
//! (both looked at only every `checkpoint_interval` iterations, both silent), and when no branch is
//! left. So this runner sets neither limit, whatever the environment says, counts the iterations in
//! the closure itself, and enforces its own budget by ending the process: if `check` comes back at
//! all, the exploration was complete. What loom itself says then (`Completed in N iterations`) is
//! caught as well and must agree with the count.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::panic;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use loom::model::Builder;
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;

use crate::options::Options;
use crate::report;
use crate::zoo::{Entry, is_declared, measured};

/// One model over the production types.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// `file::function`.
    pub name: &'static str,
    /// The most preemptions explored; `None`: all of them.
    pub bound: Option<usize>,
    /// What it claims, as a sentence.
    pub claim: &'static str,
    /// One iteration.
    pub run: fn(),
}

/// A bug put back by a variant of the model, out of production's building blocks, where production
/// code leaves no room for a patch.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Its name in the zoo.
    pub id: &'static str,
    /// The model of which this is the buggy twin.
    pub of: &'static str,
    /// The promise that breaks.
    pub promise: &'static str,
    /// Where the bug comes from.
    pub origin: &'static str,
    /// One iteration.
    pub run: fn(),
}

/// The longest one model may take on one core.
const BUDGET: Duration = Duration::from_secs(60);

/// The same in the nightly form, which lifts every bound.
const NIGHTLY_BUDGET: Duration = Duration::from_secs(40 * 60);

/// Where the committed counts stand.
const COUNTS: &str = "counts.json";

/// Everything one package of models has to run.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Must pass, completely explored.
    pub models: &'static [&'static [Model]],
    /// Must be found.
    pub variants: &'static [&'static [Variant]],
    /// Must be found.
    pub zoo: &'static [Entry<Model>],
}

impl Suite {
    fn model(&self, name: &str) -> Option<&'static Model> {
        self.models.iter().flat_map(|models| models.iter()).find(|model| model.name == name)
    }

    /// What a key of a child process stands for: its bound and one iteration.
    fn resolve(&self, key: &str) -> Option<(Option<usize>, fn())> {
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "model" => self.model(rest).map(|model| (model.bound, model.run)),
            "variant" => {
                let all = self.variants.iter().flat_map(|variants| variants.iter());
                let variant = all.copied().find(|variant| variant.id == rest)?;
                Some((self.model(variant.of)?.bound, variant.run))
            }
            _ => {
                let (id, detector) = rest.split_once('/')?;
                let entry = self.zoo.iter().find(|entry| entry.id == id && entry.detector == detector)?;
                let model = entry.models.iter().find(|model| model.name == detector)?;
                Some((model.bound, model.run))
            }
        }
    }

    fn twins(&self) -> Vec<Twin> {
        let patched = self.zoo.iter().map(|entry| Twin {
            key: format!("zoo/{}/{}", entry.id, entry.detector),
            id: entry.id,
            of: entry.detector,
            promise: entry.promise,
            stale: entry.stale,
            patch: true,
        });
        let variants = self.variants.iter().flat_map(|variants| variants.iter()).map(|variant| Twin {
            key: format!("variant/{}", variant.id),
            id: variant.id,
            of: variant.of,
            promise: variant.promise,
            stale: None,
            patch: false,
        });
        patched.chain(variants).collect()
    }

    /// The test binary's `main`.
    pub fn main(&self) -> ExitCode {
        let options = Options::read("LOOM_REPORT");
        if let Some(key) = &options.one {
            let Some((bound, run)) = self.resolve(key) else {
                eprintln!("there is no {key}");
                return ExitCode::FAILURE;
            };
            explore(bound.filter(|_| !options.full), run, &options);
        }
        if options.list {
            for model in self.models.iter().flat_map(|models| models.iter()) {
                println!("{}: {}", model.name, model.claim);
            }
            return ExitCode::SUCCESS;
        }
        Run::new(self, options).finish()
    }
}

/// What was found, for a table.
fn cell(broken: Option<&str>) -> &str {
    broken.unwrap_or("nothing")
}

struct Twin {
    key: String,
    id: &'static str,
    of: &'static str,
    promise: &'static str,
    stale: Option<&'static str>,
    patch: bool,
}

static ITERATIONS: AtomicU64 = AtomicU64::new(0);
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Ends this process with `outcome` as its answer.
fn said(mut outcome: Value) -> ! {
    let began = BEGAN.get().expect("set before the first iteration");
    outcome["explored"] = ITERATIONS.load(Relaxed).into();
    outcome["secs"] = began.elapsed().as_secs_f64().into();
    report::answer(&outcome)
}

/// Explores one model to its end, its failure or its budget, and says which; never returns.
fn explore(bound: Option<usize>, run: fn(), options: &Options) -> ! {
    let budget: Duration = match std::env::var("LOOM_BUDGET_SECS").ok().and_then(|secs| secs.parse().ok()) {
        Some(secs) => Duration::from_secs(secs),
        None if options.full => NIGHTLY_BUDGET,
        None => BUDGET,
    };
    let trace = options.trace;
    BEGAN.get_or_init(Instant::now);
    panic::set_hook(Box::new(move |panic| {
        if trace.is_some() {
            eprintln!("{panic}");
        }
        let message = panic.payload_as_str().unwrap_or("a panic without words");
        let place = panic.location().map(ToString::to_string);
        said(json!({ "complete": false, "failed": message, "place": place }))
    }));

    let mut builder = Builder::new();
    builder.max_permutations = None;
    builder.max_duration = None;
    builder.preemption_bound = bound;
    builder.checkpoint_file = None;
    builder.checkpoint_interval = usize::MAX;
    builder.location = trace.is_some();
    builder.max_branches = 10_000;
    let words = Words { verbose: trace.is_some() };
    tracing::subscriber::with_default(words, || {
        builder.check(move || {
            let iteration = ITERATIONS.fetch_add(1, Relaxed) + 1;
            TRACING.store(trace == Some(iteration), Relaxed);
            if iteration.is_multiple_of(256) && BEGAN.get().is_some_and(|began| began.elapsed() >= budget) {
                said(json!({ "complete": false, "failed": Value::Null }));
            }
            run();
        });
    });
    // `check` came back and no limit was set, so nothing is left to explore; loom's own count agrees.
    assert_eq!(COMPLETED.load(Relaxed), ITERATIONS.load(Relaxed), "loom has counted otherwise");
    said(json!({ "complete": true }))
}

/// Whether this iteration is shown.
static TRACING: AtomicBool = AtomicBool::new(false);

/// The iterations loom says it completed.
static COMPLETED: AtomicU64 = AtomicU64::new(0);

/// Listens to what loom says: its closing count always, everything in the iteration to be traced.
struct Words {
    verbose: bool,
}

impl tracing::Subscriber for Words {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        TRACING.load(Relaxed) || (metadata.is_event() && metadata.target() == "loom::model")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.verbose { LevelFilter::TRACE } else { LevelFilter::INFO })
    }

    fn register_callsite(&self, metadata: &'static tracing::Metadata<'static>) -> Interest {
        if metadata.is_span() { Interest::never() } else { Interest::sometimes() }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let count =
            line.0.trim().strip_prefix("Completed in ").and_then(|rest| rest.strip_suffix(" iterations"));
        if let Some(count) = count.and_then(|count| count.parse().ok()) {
            COMPLETED.store(count, Relaxed);
        }
        if TRACING.load(Relaxed) {
            eprintln!("{}", line.0.trim());
        }
    }
}

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?} ").expect("a string grows");
        } else {
            write!(self.0, "{}={value:?} ", field.name()).expect("a string grows");
        }
    }
}

/// One whole run: every model, every twin, the tables.
struct Run<'s> {
    suite: &'s Suite,
    options: Options,
    /// The committed counts.
    expected: BTreeMap<String, Value>,
    counted: BTreeMap<String, Value>,
    lines: Vec<Value>,
    complaints: Vec<String>,
    /// Rows of the README's two tables, by name.
    rows: BTreeMap<String, String>,
    twins: BTreeMap<String, String>,
}

impl<'s> Run<'s> {
    fn new(suite: &'s Suite, options: Options) -> Self {
        let expected = fs::read_to_string(report::file(COUNTS))
            .ok()
            .map(|text| serde_json::from_str(&text).expect("the committed counts are a JSON object"))
            .unwrap_or_default();
        Run {
            suite,
            options,
            expected,
            counted: BTreeMap::new(),
            lines: Vec::new(),
            complaints: Vec::new(),
            rows: BTreeMap::new(),
            twins: BTreeMap::new(),
        }
    }

    fn finish(mut self) -> ExitCode {
        let began = Instant::now();
        let models: Vec<&Model> = self.suite.models.iter().flat_map(|models| models.iter()).collect();
        let twins = self.suite.twins();
        for model in &models {
            if !twins.iter().any(|twin| twin.of == model.name) {
                self.complaints
                    .push(format!("{} has no buggy twin: who knows whether it can fail?", model.name));
            }
        }
        let mut keys: Vec<String> = models
            .iter()
            .filter(|model| self.options.wants(model.name))
            .map(|model| format!("model/{}", model.name))
            .collect();
        // The longest first, so that the last core is not left alone with it.
        keys.sort_by_key(|key| {
            let name = key.trim_start_matches("model/");
            std::cmp::Reverse(
                self.expected.get(name).and_then(|count| count["explored"].as_u64()).unwrap_or(u64::MAX),
            )
        });
        for twin in &twins {
            if !(self.options.wants(twin.id) || self.options.wants(twin.of)) {
                continue;
            }
            match twin.stale {
                None => keys.push(twin.key.clone()),
                Some(why) => self.complaints.push(format!("sim/zoo/{}.patch is stale: {why}", twin.id)),
            }
        }
        let jobs = self.options.jobs;
        report::run_each(&keys, &[], jobs, |key, answer| match twins.iter().find(|twin| twin.key == key) {
            Some(twin) => self.twin(twin, answer),
            None => {
                let name = key.trim_start_matches("model/");
                self.model(self.suite.model(name).expect("a key of ours"), answer);
            }
        });
        report::append(self.options.report.as_deref(), &self.lines);
        if self.options.write_tables && self.options.filters.is_empty() && !self.options.full {
            self.write_tables();
        }
        println!(
            "{} explorations in {:.1} s on {jobs} cores, {} complaints",
            keys.len(),
            began.elapsed().as_secs_f64(),
            self.complaints.len()
        );
        for complaint in &self.complaints {
            println!("FAILED {complaint}");
        }
        if self.complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn model(&mut self, model: &Model, answer: Result<Value, String>) {
        let name = model.name;
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return self.complaints.push(format!("{name} said nothing: {why}")),
        };
        let (explored, secs) =
            (answer["explored"].as_u64().unwrap_or(0), answer["secs"].as_f64().unwrap_or(0.0));
        let complete = answer["complete"] == true;
        let limit = model.bound.filter(|_| !self.options.full);
        let bound = limit.map_or("none".to_owned(), |bound| bound.to_string());
        println!("MODEL {name} explored={explored} complete={complete} bound={bound} secs={secs:.2}");
        self.lines.push(json!({
            "kind": "model", "name": name, "explored": explored, "complete": complete, "bound": limit, "secs": secs,
        }));
        let count = json!({ "explored": explored, "bound": limit });
        self.rows.insert(
            name.to_owned(),
            format!("| `{name}` | {} | {explored} | {bound} | {secs:.1} |\n", model.claim),
        );
        if let Some(failed) = answer["failed"].as_str() {
            let place = answer["place"].as_str().unwrap_or("an unknown place");
            self.complaints.push(format!(
                "{name} in iteration {explored}, at {place}: {failed}\n  replay: cargo test --release \
                 --manifest-path loom-tests/Cargo.toml --features loom --test loom -- --one model/{name} --trace {explored}"
            ));
        } else if !complete {
            self.complaints
                .push(format!("{name} was not explored completely in time: after {secs:.0} s no end"));
        } else if !self.options.write_tables
            && limit == model.bound
            && self.expected.get(name) != Some(&count)
        {
            let before = self.expected.get(name).map_or("nothing".to_owned(), Value::to_string);
            self.complaints.push(format!(
                "{name} explored {explored} at bound {bound}, {COUNTS} says {before}: if that is what you meant, \
                 run again with TABLES=write"
            ));
        }
        self.counted.insert(name.to_owned(), count);
    }

    fn twin(&mut self, twin: &Twin, answer: Result<Value, String>) {
        let Twin { key, id, of, promise, .. } = twin;
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return self.complaints.push(format!("{key} said nothing: {why}")),
        };
        let (at, secs) = (answer["explored"].as_u64().unwrap_or(0), answer["secs"].as_f64().unwrap_or(0.0));
        let failed = answer["failed"].as_str();
        let broken = failed.map(measured);
        let found = broken.is_some_and(|broken| is_declared(promise, broken));
        println!("TWIN {id} by={of} found={found} iteration={at} secs={secs:.2}");
        self.lines.push(json!({
            "kind": "twin", "id": id, "by": of, "promise": promise, "found": found, "iteration": at, "secs": secs,
            "broken": broken, "said": failed,
        }));
        let put_back = if twin.patch {
            format!("`sim/zoo/{id}.patch`")
        } else {
            "variant in the model's file".to_owned()
        };
        self.twins
            .insert(key.clone(), format!("| `{id}` | {put_back} | `{of}` | `{}` | {at} |\n", cell(broken)));
        if !found {
            let instead = failed.unwrap_or("nothing wrong");
            self.complaints.push(format!(
                "the bug {id} was not found by {of}: after {at} iterations it saw {instead:?}, expected was {promise:?}"
            ));
        }
    }

    fn write_tables(&self) {
        let text = serde_json::to_string_pretty(&self.counted).expect("counts serialise");
        fs::write(report::file(COUNTS), text + "\n").expect("the committed counts can be written");
        let mut region =
            String::from("| model | claim | explored | bound | secs |\n|---|---|---:|---|---:|\n");
        region.extend(self.rows.values().map(String::as_str));
        region.push_str(
            "\n| bug put back | how | found by | promise found | iteration |\n|---|---|---|---|---:|\n",
        );
        region.extend(self.twins.values().map(String::as_str));
        report::rewrite_readme("loom tables", &region);
    }
}
