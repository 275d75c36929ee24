//! What stalled subscribers cost everybody else: the time of requests before two routers, one of which has a
//! thousand subscribers that never read, in short windows that take turns. Half-way the crowd moves to the other
//! router, so what sets the two processes apart cancels out. And in this process, the time to hand events in
//! and until they can be read, a thousand at a time: one takes less than the clock can tell.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use pointsman::core::timeline::{Bounds, Limits, Look, Timeline};
use pointsman::wire::event::Event;
use tokio::time::sleep;

use crate::crowd::{Over, silent};
use crate::load::Load;
use crate::made;
use crate::paired::Paired;
use crate::process::{Process, backend, yaml};
use crate::report::{Report, quantile};

const STALLED: usize = 1_000;
const REQUESTS_PER_S: f64 = 3_000.0;
/// Events that stand in the log before anybody comes: more than a connection holds.
const LOGGED: u64 = 2_000;
const TARGET_PERCENT: f64 = 5.0;
/// Pairs of windows for each round, in each half.
const PAIRS: usize = 20;
/// A window is this part of `--secs`.
const WINDOWS: u32 = 8;
/// From the first request to the first that counts.
const SETTLE: Duration = Duration::from_millis(100);
/// Until what a crowd did when it came or went is over.
const CALM: Duration = Duration::from_secs(1);
/// Events handed in between two looks at the clock.
const BATCH: usize = 1_000;
/// Batches in a window of this process: so many that a p99 is not one odd batch, in a tenth of a second or so.
const PUSHES: usize = 2_000;
const SIGHTS: usize = 300;
/// As much as a subscriber holds; see `flow::follow`.
const STEP: usize = 128;

pub(crate) async fn run(
    folder: &Path,
    window: Duration,
    rounds: usize,
    report: &mut Report,
) -> io::Result<()> {
    let backend = backend(["m"])?;
    let more = "per_ip_limit: 0\nper_ip_connections: 0\nsubscriber_stall_secs: 3600\n";
    let (mut routers, mut loads) = (Vec::new(), Vec::new());
    for name in ["one", "other"] {
        let folder = folder.join(name);
        made::log(&folder, LOGGED).await?;
        let router = Process::start(&folder, &yaml(&[backend.endpoint()], more))?;
        let load = Load::start(router.address, &["m".to_owned()], REQUESTS_PER_S, 16);
        load.rest(true);
        routers.push(router);
        loads.push(load);
    }
    let (mut p50, mut p99) = (Paired::default(), Paired::default());
    for (half, router) in routers.iter().enumerate() {
        let held = silent(router.address, Over::Sse, STALLED, "after=0").await?;
        sleep(CALM).await;
        for pair in 0..rounds * PAIRS {
            let mut took_us = [vec![], vec![]];
            // Each is first in every other pair.
            for stalled in [pair % 2, 1 - pair % 2] {
                let which = if stalled == 1 { half } else { 1 - half };
                took_us[stalled] = measure(&loads[which], window / WINDOWS).await?;
            }
            let mut push = |paired: &mut Paired, share: f64| {
                let [without, with] = took_us.each_mut().map(|took_us| quantile(took_us, share) / 1e3);
                paired.push(half, without, with);
            };
            push(&mut p50, 0.5);
            push(&mut p99, 0.99);
        }
        drop(held);
        sleep(CALM).await;
    }
    drop(loads);
    rows(report, "a request's p50", "ms", &p50);
    rows(report, "a request's p99", "ms", &p99);
    let (push, see) = tokio::task::spawn_blocking(move || in_process(2 * rounds * PAIRS)).await?;
    rows(report, &format!("in process, p99 of {BATCH} pushes, each"), "us", &push);
    rows(report, &format!("in process, p99 until {BATCH} are seen, each"), "us", &see);
    Ok(())
}

/// What each answer took in one window, in microseconds.
async fn measure(load: &Load, window: Duration) -> io::Result<Vec<u32>> {
    load.rest(false);
    sleep(SETTLE).await;
    load.took_us();
    sleep(window).await;
    let took_us = load.took_us();
    load.rest(true);
    if took_us.is_empty() {
        Err(io::Error::other("no request was answered in a window"))
    } else {
        Ok(took_us)
    }
}

/// Rows without and with stalled subscribers, and the difference.
fn rows(report: &mut Report, what: &str, unit: &str, paired: &Paired) {
    let [without, with] = paired.medians();
    report.row("append", &format!("{what}, nobody else"), without, unit, None);
    report.row("append", &format!("{what}, {STALLED} stalled"), with, unit, None);
    let change = paired.change();
    report.change("append", &format!("{what}: change"), change, TARGET_PERCENT);
    report.note(format!(
        "append: {what}: {:.2} % (95% interval {:.2} to {:.2} %) over {} pairs of windows",
        change.median,
        change.least,
        change.most,
        paired.len()
    ));
}

/// The p99 of batches of pushes, and of batches of events that are pushed, made durable and read; for each event,
/// in microseconds. A stalled subscriber has read a step of the log, holds it, and never comes again.
fn in_process(pairs: usize) -> (Paired, Paired) {
    let limits = Limits { ring: 16_384, waiting: 65_536, ring_only: false };
    let timeline = Arc::new(Timeline::<Arc<Event>>::new(Bounds { floor: 1, tip: 0 }, limits));
    let settle =
        || timeline.take(usize::MAX, |_| unreachable!("there is room")).expect("they wait").durable();
    let batch: Vec<_> = (0..BATCH as u64).map(|seq| Arc::new(made::event(1, seq))).collect();
    batch.iter().for_each(|event| assert!(timeline.push(Arc::clone(event))));
    settle();
    let push = |events: Vec<Arc<Event>>| {
        let begun = Instant::now();
        for event in events {
            black_box(timeline.push(event));
        }
        let took = nanos(begun);
        settle();
        took
    };
    let see = |events: Vec<Arc<Event>>| {
        let begun = Instant::now();
        for event in events {
            let (after, moved) = (timeline.bounds().tip, timeline.moved());
            timeline.push(event);
            settle();
            moved.now_or_never().expect("it has moved");
            assert!(matches!(black_box(timeline.read(after, STEP)), Look::Events(_)));
        }
        nanos(begun)
    };
    let p99_us = |stalled: usize, batches: usize, work: &dyn Fn(Vec<Arc<Event>>) -> u32| {
        let behind = timeline.bounds().tip - STEP as u64;
        let held: Vec<_> = (0..stalled * STALLED).map(|_| timeline.read(behind, STEP)).collect();
        let mut took_ns: Vec<u32> = (0..batches).map(|_| work(batch.clone())).collect();
        drop(held);
        quantile(&mut took_ns, 0.99) / BATCH as f64 / 1e3
    };
    let measure = |batches: usize, work: &dyn Fn(Vec<Arc<Event>>) -> u32| {
        let mut paired = Paired::default();
        for pair in 0..pairs {
            let mut p99 = [0.0; 2];
            for stalled in [pair % 2, 1 - pair % 2] {
                p99[stalled] = p99_us(stalled, batches, work);
            }
            paired.push(0, p99[0], p99[1]);
        }
        paired
    };
    (measure(PUSHES, &push), measure(SIGHTS, &see))
}

fn nanos(begun: Instant) -> u32 {
    begun.elapsed().as_nanos().try_into().unwrap_or(u32::MAX)
}
