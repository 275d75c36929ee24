//! The command line. Exit codes: 0 clean, 1 a promise is broken (or what else the command looks for
//! was found), 2 usage.

use std::env::temp_dir;
use std::fs;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, id};

use clap::{Parser, Subcommand};

use crate::check::{self, COVERAGE_FROM, Order};
use crate::corpus::{self, Kept};
use crate::determinism;
use crate::plan::Plan;
use crate::replay;
use crate::scenario::{self, Scenario};
use crate::seeds::{self, Seeds};
use crate::shrink;
use crate::streams::Seed;
use crate::timeline;
use crate::zoo::{self, Detector, Status, Zoo};

#[derive(Parser)]
#[command(
    name = "sim",
    about = "Whole worlds of pointsman, each from one seed. A commit hash is accepted wherever a seed is."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lives through many seeds and reports every promise that breaks.
    Check {
        /// A..B, A..+N or one seed.
        #[arg(long, default_value = "0..20000")]
        seeds: Seeds,
        /// Threads.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// mixed, or one scenario.
        #[arg(long, default_value = "mixed", value_parser = scenario_named)]
        scenario: Chosen,
        /// Prints one JSON object instead.
        #[arg(long)]
        json: bool,
        /// Stops after so many violations.
        #[arg(long, default_value_t = 10)]
        stop_after: usize,
        /// Prints how often each fault and each point came up.
        #[arg(long)]
        coverage: bool,
        /// Writes what came of it into this file, between its two marks.
        #[arg(long)]
        record: Option<PathBuf>,
    },
    /// Lives through one seed again.
    Replay {
        #[arg(value_parser = seed_named)]
        seed: Seed,
        #[arg(long, default_value = "mixed", value_parser = scenario_named)]
        scenario: Chosen,
        /// Prints the timeline.
        #[arg(long)]
        trace: bool,
    },
    /// Runs each seed in two processes and compares; then sees whether a canary is noticed.
    Determinism {
        /// How many seeds, from 0 on.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
    },
    /// Makes a smaller world with the same violation and keeps it in corpus/.
    Shrink {
        #[arg(value_parser = seed_named)]
        seed: Seed,
        #[arg(long, default_value = "mixed", value_parser = scenario_named)]
        scenario: Chosen,
        /// Where it is kept.
        #[arg(long)]
        folder: Option<PathBuf>,
        /// The zoo's entry that is put back in this build.
        #[arg(long)]
        zoo: Option<String>,
        /// Prints one JSON object instead.
        #[arg(long)]
        json: bool,
    },
    /// Writes one self-contained page about a seed.
    Timeline {
        #[arg(value_parser = seed_named)]
        seed: Seed,
        #[arg(long, default_value = "mixed", value_parser = scenario_named)]
        scenario: Chosen,
        #[arg(long)]
        out: PathBuf,
    },
    /// Lives through every kept world again; one file if it is named.
    Corpus {
        file: Option<PathBuf>,
        /// Prints the timelines.
        #[arg(long)]
        trace: bool,
    },
    /// Puts known bugs back, one at a time, and sees whether they are caught.
    Zoo {
        /// All of them, unless some are named.
        ids: Vec<String>,
        /// Only by this detector.
        #[arg(long, value_parser = ["sim", "loom", "shuttle"])]
        by: Option<String>,
        /// Only this many of those the simulator looks for; which, is decided by `--turn`.
        #[arg(long)]
        part: Option<usize>,
        /// A number or a commit's hash.
        #[arg(long, default_value = "0", requires = "part", value_parser = seed_named)]
        turn: Seed,
        #[arg(long)]
        json: bool,
        /// Where copies are made and built; kept between runs.
        #[arg(long)]
        scratch: Option<PathBuf>,
        /// What builds them.
        #[arg(long, default_value = "cargo")]
        cargo: String,
    },
    /// Prints the hash of each seed; what `determinism` runs twice.
    #[command(hide = true)]
    Hashes {
        seeds: Seeds,
        #[arg(long)]
        canary: bool,
    },
}

/// `None` is mixed.
#[derive(Clone, Copy)]
struct Chosen(Option<Scenario>);

fn scenario_named(name: &str) -> Result<Chosen, String> {
    Scenario::find(name).map(Chosen).ok_or_else(|| format!("known scenarios: {}", Scenario::names()))
}

fn seed_named(text: &str) -> Result<Seed, String> {
    seeds::seed(text)
}

/// Does what the command line asks for.
pub(crate) fn run() -> ExitCode {
    let (text, ok) = match Arguments::parse().command {
        Command::Check { seeds, jobs, scenario: Chosen(scenario), json, stop_after, coverage, record } => {
            let report = check::check(Order { seeds, scenario, jobs, found_max: stop_after });
            // One scenario alone does not visit everything.
            let held = scenario.is_none() && report.seeds >= COVERAGE_FROM;
            let mut text = if json { format!("{:#}\n", report.json()) } else { report.text(held) };
            if coverage && !json {
                text.push_str(&report.coverage());
            }
            let recorded = record.map_or(Ok(()), |path| report.record(&path, seeds, jobs, held));
            if let Err(error) = &recorded {
                text.push_str(&format!("nothing is recorded: {error}\n"));
            }
            (text, report.is_clean(held) && recorded.is_ok())
        }
        Command::Replay { seed, scenario: Chosen(scenario), trace } => {
            again(&scenario::plan(seed, scenario), trace)
        }
        Command::Determinism { seeds } => {
            let canary = determinism::differing(0, determinism::CANARIES, true);
            match (determinism::differing(0, seeds, false), canary) {
                (Ok(differing), Ok(canary)) => {
                    let caught = canary.len();
                    let text = format!(
                        "{seeds} seeds in two processes: {} differ {differing:?}; the canary was caught in {caught} of {} worlds\n",
                        differing.len(),
                        determinism::CANARIES,
                    );
                    (text, differing.is_empty() && caught > 0)
                }
                (Err(error), _) | (_, Err(error)) => {
                    (format!("the seeds could not be run: {error}\n"), false)
                }
            }
        }
        Command::Shrink { seed, scenario: Chosen(scenario), folder, zoo, json } => {
            smaller(&scenario::plan(seed, scenario), folder, zoo, json)
        }
        Command::Timeline { seed, scenario: Chosen(scenario), out } => {
            let plan = scenario::plan(seed, scenario);
            let outcome = replay::replay(&plan);
            match fs::write(&out, timeline::page(&plan, &outcome)) {
                Ok(()) => (replay::summary(&plan, &outcome), outcome.violation.is_none()),
                Err(error) => (format!("the page cannot be written: {error}\n"), false),
            }
        }
        Command::Corpus { file, trace } => kept(file, trace),
        Command::Zoo { ids, by, part, turn, json, scratch, cargo } => {
            let scratch = scratch.unwrap_or_else(|| temp_dir().join("pointsman-zoo"));
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            let part = part.map(|count| (turn.0, count));
            let zoo = Zoo { root, scratch, cargo };
            let unknown = ids.iter().find(|id| !zoo.has(id));
            if let Some(unknown) = unknown {
                tell(&format!("there is no zoo/{unknown}.patch\n"));
                return ExitCode::from(2);
            }
            visit(&zoo, &ids, by.as_deref(), part, json)
        }
        Command::Hashes { seeds, canary } => {
            let mut text = String::new();
            for seed in (0..).map_while(|index| seeds.get(index)) {
                let noise = if canary { u64::from(id()) } else { 0 };
                text.push_str(&format!("{seed} {:016x}\n", determinism::hash(seed, noise)));
            }
            (text, true)
        }
    };
    tell(&text);
    if ok { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn again(plan: &Plan, trace: bool) -> (String, bool) {
    let outcome = replay::replay(plan);
    let mut text = String::new();
    if trace {
        outcome.lines.iter().for_each(|line| text.push_str(&format!("{}\n", replay::line(line))));
    }
    text.push_str(&replay::summary(plan, &outcome));
    (text, outcome.violation.is_none())
}

fn folder_of_the_corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn smaller(plan: &Plan, folder: Option<PathBuf>, zoo: Option<String>, json: bool) -> (String, bool) {
    let Some(shrunk) = shrink::shrink(plan) else {
        return ("this seed breaks no promise: there is nothing to shrink\n".to_owned(), true);
    };
    let figures = serde_json::json!({
        "promise": shrunk.promise, "events_before": shrunk.events_before, "events": shrunk.events,
        "tried": shrunk.tried, "seconds": shrunk.seconds,
    });
    let text = format!(
        "{} is broken: {}\n{} events before, {} now; {} requests, {} actions, {} faults are left; {} worlds tried in {:.1} s\n",
        shrunk.promise,
        shrunk.why,
        shrunk.events_before,
        shrunk.events,
        shrunk.plan.requests.len(),
        shrunk.plan.actions.len(),
        shrunk.plan.faults.0.len(),
        shrunk.tried,
        shrunk.seconds,
    );
    let kept = Kept { promise: shrunk.promise, why: shrunk.why, zoo, plan: shrunk.plan };
    match corpus::write(&folder.unwrap_or_else(folder_of_the_corpus), &kept) {
        Ok(_) if json => (format!("{figures}\n"), false),
        Ok(path) => (format!("{text}kept in {}\n", path.display()), false),
        Err(error) => (format!("{text}it cannot be kept: {error}\n"), false),
    }
}

fn kept(file: Option<PathBuf>, trace: bool) -> (String, bool) {
    let files = match file {
        Some(file) => Ok(vec![file]),
        None => corpus::files(&folder_of_the_corpus()),
    };
    let worlds =
        files.and_then(|files| files.iter().map(|file| corpus::read(file)).collect::<Result<Vec<_>, _>>());
    let worlds = match worlds {
        Ok(worlds) => worlds,
        Err(error) => return (format!("the corpus cannot be read: {error}\n"), false),
    };
    let (mut text, mut ok) = (format!("{} kept worlds\n", worlds.len()), true);
    for world in worlds {
        let (told, held) = again(&world.plan, trace);
        text.push_str(&told);
        ok &= held;
    }
    (text, ok)
}

/// The whole zoo and single entries are kept as results; a part of it, which a gate looks at, is not.
fn visit(
    zoo: &Zoo,
    ids: &[String],
    by: Option<&str>,
    part: Option<(u64, usize)>,
    json: bool,
) -> (String, bool) {
    let mut patches = match zoo.patches() {
        Ok(patches) => patches,
        Err(error) => return (format!("the zoo cannot be read: {error}\n"), false),
    };
    let name = |patch: &PathBuf| patch.file_stem().map(|name| name.to_string_lossy().into_owned());
    patches.retain(|patch| ids.is_empty() || name(patch).is_some_and(|name| ids.contains(&name)));
    if let Some((turn, count)) = part {
        patches = zoo::part_of(patches, turn, count);
    }
    let told = |entry: &zoo::Entry| {
        if !json {
            let zoo::Entry { id, detector, status, seeds_median, seeds_p95, .. } = entry;
            let (median, p95) = (seeds_median.unwrap_or(0), seeds_p95.unwrap_or(0));
            tell(&format!("{id:<34} {detector:<36} {:<14} median {median} p95 {p95}\n", status.name()));
        }
    };
    // The gate runs loom and shuttle as a whole anyway.
    let by = if part.is_some() { Some("sim") } else { by };
    let wanted = |detector: &Detector| by.is_none_or(|by| detector.to_string().starts_with(by));
    let visited = zoo.visit(&patches, wanted, told).and_then(|entries| {
        if part.is_none() {
            zoo.keep(&entries)?;
        }
        Ok(entries)
    });
    match visited {
        Ok(entries) => {
            let caught = entries.iter().filter(|entry| entry.status == Status::Caught).count();
            let text = match json {
                true => format!("{:#}\n", serde_json::json!(entries)),
                false => format!("{caught} of {} searches caught their bug\n", entries.len()),
            };
            (text, caught == entries.len() && caught > 0)
        }
        Err(why) => (format!("{why}\n"), false),
    }
}

fn tell(text: &str) {
    if let Err(error) = stdout().write_all(text.as_bytes()) {
        // A reader that has left (`| head`) is no error of ours, and there is nobody else to tell.
        let _ = writeln!(stderr(), "cannot print: {error}");
    }
}
