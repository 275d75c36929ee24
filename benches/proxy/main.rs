//! The load bench: pointsman next to nginx as a plain proxy, on the same machine, in the same run.
//!
//! Three processes do the work, so that each one's CPU time is its own: this one starts the proxies and adds
//! up; it starts itself again as the backend (`backend`) and, for every window, as the load generator
//! (`load`). Windows of the proxies alternate, so that whatever else the machine does hits them alike.
//! `cargo bench --bench proxy -- --help` tells the options.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a bench measures by the system's clock, runs its own processes and talks to a terminal"
)]

mod backend;
mod client;
mod contender;
mod helper;
mod load;
mod median;
mod options;
mod proc;
mod report;
mod scratch;
mod traffic;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::contender::{Contender, Name, Setup};
use crate::helper::{Helper, INTERRUPTED, ROLE};
use crate::load::{Outcome, Spec};
use crate::options::{HELP, Options};
use crate::report::{Idle, Report, Window};
use crate::scratch::Scratch;
use crate::traffic::Load;

/// What a load process may take beyond its warm-up and window before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long opening all idle streams may take.
const OPENING_MAX: Duration = Duration::from_secs(60);
/// How long memory may settle before it is read.
const SETTLE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // How a test runner starts it; measuring is not its job.
        [] => {
            eprintln!("run me with `cargo bench --bench proxy`");
            Ok(0)
        }
        [ROLE, "backend", _] => backend::run().map(|()| 0),
        [ROLE, "load", spec] => {
            serde_json::from_str(spec).map_err(io::Error::from).and_then(|spec| load::run(&spec)).map(|()| 0)
        }
        _ => match Options::parse(&args) {
            Ok(Some(options)) => bench(&options),
            Ok(None) => {
                print!("{HELP}");
                Ok(0)
            }
            Err(message) => Err(io::Error::other(message)),
        },
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(errors) => {
            eprintln!("{errors} wrong answer(s)");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything and returns the number of wrong answers.
fn bench(options: &Options) -> io::Result<u64> {
    watch_signals();
    let scratch = Scratch::new("bench")?;
    let nginx = find_nginx();
    let backend = Helper::start("backend", "")?;
    let port = backend.line(PATIENCE)?.parse().map_err(io::Error::other)?;
    let setup = Setup {
        backend: SocketAddr::from(([127, 0, 0, 1], port)),
        router: std::path::absolute(&options.router)?,
        scratch: scratch.0.clone(),
        nginx,
    };
    let names = options.contenders.clone().unwrap_or_else(|| {
        let here = |name: &Name| *name != Name::Nginx || setup.nginx.is_some();
        Name::ALL.into_iter().filter(here).collect()
    });
    let mut report = Report::new(options, setup.nginx.as_deref())?;
    if !names.contains(&Name::Nginx) {
        println!("nginx is not part of this run, so there are no ratios\n");
    }
    if options.loads.iter().any(|load| *load != Load::Idle) {
        let contenders =
            names.iter().map(|name| Contender::start(*name, &setup)).collect::<io::Result<Vec<_>>>()?;
        for load in options.loads.iter().copied().filter(|load| *load != Load::Idle) {
            for round in 0..options.rounds {
                for contender in &contenders {
                    // Without a proxy there is no ratio to take: one window is enough.
                    if contender.name != Name::Direct || round == 0 {
                        let outcome = window(options, load, contender)?;
                        report.window(Window { load, name: contender.name, round, outcome })?;
                    }
                }
            }
        }
    }
    if options.loads.contains(&Load::Idle) {
        for name in names.into_iter().filter(|name| *name != Name::Direct) {
            // A fresh process: what earlier loads left in its heap would hide what a stream takes.
            report.idle(idle(options, &Contender::start(name, &setup)?)?)?;
        }
    }
    let (errors, first) = report.finish()?;
    if let Some(error) = first {
        eprintln!("first error: {error}");
    }
    Ok(errors)
}

fn window(options: &Options, load: Load, contender: &Contender) -> io::Result<Outcome> {
    let spec = Spec {
        addr: contender.addr,
        load,
        style: options.style,
        connections: load.connections(),
        warmup_ms: options.warmup.as_millis() as u64,
        window_ms: options.window.as_millis() as u64,
        pids: contender.pids.clone(),
    };
    let helper = Helper::start("load", &serde_json::to_string(&spec)?)?;
    let line = helper.line(options.warmup + options.window + PATIENCE)?;
    Ok(serde_json::from_str(&line)?)
}

/// Holds silent streams open through a proxy and reads its memory before and after.
fn idle(options: &Options, contender: &Contender) -> io::Result<Idle> {
    let spec = |load, connections| Spec {
        addr: contender.addr,
        load,
        style: options.style,
        connections,
        warmup_ms: 100,
        window_ms: 200,
        pids: Vec::new(),
    };
    let begin = |spec: Spec| Helper::start("load", &serde_json::to_string(&spec)?);
    // A few plain requests first, so that what is built once is not counted as the streams'.
    begin(spec(Load::Json, 4))?.line(PATIENCE)?;
    std::thread::sleep(SETTLE);
    let before_kib = contender.resident_kib()?;
    let holder = begin(spec(Load::Idle, options.streams))?;
    let outcome: Outcome = serde_json::from_str(&holder.line(OPENING_MAX)?)?;
    std::thread::sleep(SETTLE);
    let after_kib = contender.resident_kib()?;
    drop(holder);
    Ok(Idle { name: contender.name, streams: outcome.requests, before_kib, after_kib, error: outcome.error })
}

/// Turns a request to end into an error at the next wait, so that everything started is ended in order.
fn watch_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
            Ok::<(), io::Error>(())
        })
    });
}

fn find_nginx() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places.map(|place| place.join("nginx")).find(|program| program.is_file())
}
