//! What stalled subscribers cost everybody else: the time of requests before two routers, one of which has a
//! thousand subscribers that never read; and in this process, the time to hand an event in and to see it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman::core::timeline::{Bounds, Limits, Look, Timeline};
use pointsman::pretend::{Pretend, Profile};
use pointsman::wire::event::Event;
use tokio::time::sleep;

use crate::crowd::{Over, silent};
use crate::load::Load;
use crate::made;
use crate::median::median;
use crate::process::{Process, yaml};
use crate::report::{Bound, Report, quantile};

const STALLED: usize = 1_000;
const REQUESTS_PER_S: f64 = 1_000.0;
/// Events that stand in the log before anybody comes: more than a connection holds.
const LOGGED: u64 = 2_000;
const TARGET_PERCENT: f64 = 5.0;
const SETTLE: Duration = Duration::from_millis(300);
/// Events handed in per round, in this process.
const PUSHES: u64 = 100_000;
/// As much as a subscriber holds; see `flow::follow`.
const STEP: usize = 128;

pub(crate) async fn run(
    folder: &Path,
    window: Duration,
    rounds: usize,
    report: &mut Report,
) -> io::Result<()> {
    pointsman::adapters::upstream::install_tls();
    let backend = Pretend::start(Profile::ollama(["m"]).tokens(1), SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let more = "per_ip_limit: 0\nper_ip_connections: 0\nsubscriber_stall_secs: 3600\n";
    let mut routers = Vec::new();
    for name in ["alone", "stalled"] {
        let folder = folder.join(name);
        made::log(&folder, LOGGED).await?;
        routers.push(Process::start(&folder, &yaml(&[backend.endpoint()], more))?);
    }
    let held = silent(routers[1].address, Over::Sse, STALLED, "after=0").await?;
    let (mut p50, mut p99) = ([vec![], vec![]], [vec![], vec![]]);
    // Neighbours are compared, each of them first in every other round; many short ones, because a p99 is noisy.
    for round in 0..rounds * 4 {
        for which in [round % 2, 1 - round % 2] {
            let load = Load::start(routers[which].address, &["m".to_owned()], REQUESTS_PER_S, 16);
            sleep(SETTLE).await;
            load.took_us();
            sleep(window / 2).await;
            let mut took_us = load.took_us();
            p50[which].push(quantile(&mut took_us, 0.5) / 1e3);
            p99[which].push(quantile(&mut took_us, 0.99) / 1e3);
        }
    }
    drop(held);
    two(report, "a request's p50", "ms", p50, None);
    two(report, "a request's p99", "ms", p99, Some(Bound::Most(TARGET_PERCENT)));
    let (mut pushed, mut seen) = ([vec![], vec![]], [vec![], vec![]]);
    for round in 0..rounds * 2 {
        for which in [round % 2, 1 - round % 2] {
            let stalled = [0, STALLED][which];
            let (push, see) = tokio::task::spawn_blocking(move || in_process(stalled)).await?;
            pushed[which].push(push / 1e3);
            seen[which].push(see / 1e3);
        }
    }
    two(report, "p99 of a push, in process", "us", pushed, Some(Bound::Most(TARGET_PERCENT)));
    two(report, "p99 until it is seen, in process", "us", seen, Some(Bound::Most(TARGET_PERCENT)));
    Ok(())
}

/// Rows without and with stalled subscribers, and the difference.
fn two(report: &mut Report, what: &str, unit: &str, [alone, stalled]: [Vec<f64>; 2], target: Option<Bound>) {
    // Round by round, so that what else the machine did hits both sides of a ratio.
    let mut change: Vec<f64> =
        alone.iter().zip(&stalled).map(|(alone, stalled)| (stalled / alone - 1.0) * 100.0).collect();
    change.sort_by(f64::total_cmp);
    if let (Some(least), Some(most), Some(_)) = (change.first(), change.last(), target) {
        report.note(format!(
            "append: {what} changed by {least:.0} % to {most:.0} % over {} rounds",
            change.len()
        ));
    }
    report.row("append", &format!("{what}, nobody else"), median(alone), unit, None);
    report.row("append", &format!("{what}, {STALLED} stalled subscribers"), median(stalled), unit, None);
    report.row("append", &format!("{what}: change"), median(change), "%", target);
}

/// The p99 of a push and of the time until a reader has the event, in nanoseconds. A stalled subscriber has
/// read a step of the log, holds it, and never comes again.
fn in_process(stalled: usize) -> (f64, f64) {
    let limits = Limits { ring: 16_384, waiting: 65_536, ring_only: false };
    let timeline = Arc::new(Timeline::<Arc<Event>>::new(Bounds { floor: 1, tip: 0 }, limits));
    (0..STEP as u64).for_each(|seq| assert!(timeline.push(Arc::new(made::event(1, seq)))));
    let lost = |_| unreachable!("there is room");
    timeline.take(usize::MAX, lost).expect("they wait").durable();
    let held: Vec<_> = (0..stalled).map(|_| timeline.read(0, STEP)).collect();
    let (mut push_ns, mut see_ns) = (Vec::new(), Vec::new());
    for seq in 0..PUSHES {
        let event = Arc::new(made::event(1, seq));
        let after = timeline.bounds().tip;
        let moved = timeline.moved();
        let begun = Instant::now();
        timeline.push(event);
        push_ns.push(nanos(begun));
        timeline.take(usize::MAX, lost).expect("it waits").durable();
        futures_util::FutureExt::now_or_never(moved).expect("it has moved");
        assert!(matches!(timeline.read(after, STEP), Look::Events(_)));
        see_ns.push(nanos(begun));
    }
    drop(held);
    (quantile(&mut push_ns, 0.99), quantile(&mut see_ns, 0.99))
}

fn nanos(begun: Instant) -> u32 {
    begun.elapsed().as_nanos().try_into().unwrap_or(u32::MAX)
}
