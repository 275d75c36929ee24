//! The feed bench: what a subscriber costs, what it costs others, and that it is given what it asked for.
//!
//! Each part starts a router process of its own on loopback, with pretend backends and readers in this process.
//! CPU time and memory are the router's. Needs room for some 3,000 open files.
//! `cargo bench --bench feed -- --help` tells the options.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a bench measures by the system's clock, runs its own processes and talks to a terminal"
)]

mod append;
mod crash;
mod crowd;
mod frames;
mod hour;
mod idle;
mod load;
mod made;
#[path = "../proxy/median.rs"]
mod median;
mod paired;
#[path = "../proxy/proc.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod proc;
mod process;
mod refused;
mod replay;
mod report;
#[path = "../proxy/scratch.rs"]
mod scratch;
mod subscriber;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::report::{Bound, Report};
use crate::scratch::Scratch;

const HELP: &str = "\
What subscribers to events cost, against the targets.

cargo bench --bench feed -- [OPTIONS] [PARTS]

  --secs S        length of a measured window in seconds; `crash` runs ten times as long, and `hour` has so
                  much traffic in each of its 60 minutes (all of it unless said). Not for `append`
  --rounds N      windows for each condition, interleaved; `append` has 200 pairs of 400 requests each for every one
  --seed N        of the subscribers of `crash`; without it, another every time
  --record FILE   put what is printed into this document, between its marker lines

Parts, all unless some are named: frames, append, replay, idle, refused, hour, crash.

`append` has those with and without stalled subscribers take turns of ten requests, compares the p99s of all and
judges by the whole 95% interval of their ratio: `not resolved` says that it lies on both sides of the target,
and asks for more rounds.

`hour` replays 360,000 requests, 100 for each second of an hour, as fast as the machine takes them (minutes, not
an hour), before 200 subscribers of whom a quarter is slow and a quarter leaves and comes back. The log keeps
100,000 events, which the ninth simulated minute reaches. Memory is flat if the median of the last half is at
most 5% above that of the second quarter. With --secs it is a try that judges no growth.
";

const PARTS: [&str; 7] = ["frames", "append", "replay", "idle", "refused", "hour", "crash"];

/// What to run.
struct Options {
    window: Duration,
    /// `--secs`, if it was given.
    secs: Option<f64>,
    rounds: usize,
    seed: u64,
    record: Option<PathBuf>,
    parts: Vec<String>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() {
        // How a test runner starts it; measuring is not its job.
        eprintln!("run me with `cargo bench --bench feed`");
        return ExitCode::SUCCESS;
    }
    let options = match parse(&args) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("bench: {why}");
            return ExitCode::FAILURE;
        }
    };
    match bench(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: a subscriber was given something else than it should");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[String]) -> Result<Option<Options>, String> {
    let seed = u64::from(std::process::id());
    let mut options = Options {
        window: Duration::from_secs(3),
        secs: None,
        rounds: 3,
        seed,
        record: None,
        parts: Vec::new(),
    };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{arg} needs a value"));
        let odd = |text: &str| format!("{arg} does not take {text}");
        match arg.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--help" | "-h" => return Ok(None),
            "--secs" => {
                let text = value()?;
                let secs = text.parse().ok().filter(|secs| (0.5..=60.0).contains(secs));
                let secs: f64 = secs.ok_or_else(|| odd(text))?;
                (options.window, options.secs) = (Duration::from_secs_f64(secs), Some(secs));
            }
            "--rounds" => {
                let text = value()?;
                options.rounds =
                    text.parse().ok().filter(|rounds| (1..=100).contains(rounds)).ok_or_else(|| odd(text))?;
            }
            "--seed" => {
                let text = value()?;
                options.seed = text.parse().map_err(|_| odd(text))?;
            }
            "--record" => options.record = Some(PathBuf::from(value()?)),
            part if PARTS.contains(&part) => options.parts.push(part.to_owned()),
            _ => return Err(format!("there is no option or part {arg}")),
        }
    }
    Ok(Some(options))
}

/// Runs the parts. False if a subscriber was given something wrong.
fn bench(options: &Options) -> io::Result<bool> {
    let scratch = Scratch::new("feed-bench")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::new(options.record.clone(), options.window, options.rounds);
    let mut is_right = true;
    for part in PARTS {
        if !options.parts.is_empty() && !options.parts.iter().any(|named| named == part) {
            continue;
        }
        eprintln!("{part} ...");
        let folder = scratch.0.join(part);
        let (window, rounds) = (options.window, options.rounds);
        match part {
            "frames" => runtime.block_on(frames::run(&folder, window, rounds, &mut report))?,
            "append" => runtime.block_on(append::run(&folder, rounds, &mut report))?,
            "replay" => runtime.block_on(replay::run(&folder, rounds, &mut report))?,
            "idle" => runtime.block_on(idle::run(&folder, &mut report))?,
            "hour" => runtime.block_on(hour::run(&folder, options.secs, &mut report))?,
            "refused" => runtime.block_on(refused::run(&folder, &mut report))?,
            _ => is_right &= runtime.block_on(crash_part(&folder, options, &mut report))?,
        }
    }
    report.finish(is_right)?;
    Ok(is_right)
}

async fn crash_part(folder: &Path, options: &Options, report: &mut Report) -> io::Result<bool> {
    let plan = crash::Plan {
        seed: options.seed,
        subscribers: 200,
        models: 40,
        events_per_s: 5_000.0,
        connections: 64,
        length: options.window * 10,
        kills: 2,
    };
    let outcome = crash::run(&plan, folder).await?;
    let crash::Outcome { events, answered, frames, checkpoints, connections, cut_off, .. } = outcome;
    report.note(format!(
        "crash: seed {}, {} subscribers, {:.0} s; {answered} answers, {events} events; {frames} frames and {checkpoints} \
         checkpoints over {connections} connections; {cut_off} times too slow",
        plan.seed,
        plan.subscribers,
        plan.length.as_secs_f64(),
    ));
    for (index, caught_up) in outcome.caught_up.iter().enumerate() {
        let what = format!("everybody at the tip again after kill -9, {}", index + 1);
        report.row("crash", &what, caught_up.as_secs_f64(), "s", None);
    }
    let caught_up = outcome.caught_up_at_last.as_secs_f64();
    report.row("crash", "everybody at the tip after the load", caught_up, "s", None);
    let wrong = outcome.mismatches.len();
    report.row("crash", "subscribers not given their log exactly", wrong as f64, "", Some(Bound::Most(0.0)));
    for mismatch in outcome.mismatches.iter().take(10) {
        eprintln!("{mismatch}");
    }
    Ok(wrong == 0)
}
