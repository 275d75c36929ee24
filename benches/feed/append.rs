//! What stalled subscribers cost everybody else: the time of a request, and from its answer until its event was on
//! the disk and read; and in this process, without network and disk, the time to hand events in and until they can
//! be read.

mod in_process;
mod routers;

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::paired::Paired;
use crate::report::Report;

const STALLED: usize = 1_000;
const TARGET_PERCENT: f64 = 5.0;
/// Pairs for each round, in each half.
const PAIRS: usize = 100;

pub(crate) async fn run(folder: &Path, rounds: usize, report: &mut Report) -> io::Result<()> {
    let pairs = rounds * PAIRS;
    let [request, event] = routers::measure(folder, pairs).await?;
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        rows(report, &format!("{name} of a request"), "ms", &request, share, 1e6);
        rows(report, &format!("{name} from an answer to its event"), "ms", &event, share, 1e6);
    }
    let [push, see] = tokio::task::spawn_blocking(move || in_process::measure(pairs)).await?;
    let (pushes, sights) = (in_process::PUSHES, in_process::SIGHTS);
    rows(report, &format!("in process, p99 of {pushes} pushes"), "us", &push, 0.99, 1e3);
    rows(report, &format!("in process, p99 until {sights} are seen, in turn"), "us", &see, 0.99, 1e3);
    Ok(())
}

/// Rows without and with stalled subscribers, and the difference.
fn rows(report: &mut Report, what: &str, unit: &str, paired: &Paired, share: f64, unit_ns: f64) {
    let compared = paired.compare(share);
    report.row("append", &format!("{what}, nobody else"), compared.without / unit_ns, unit, None);
    report.row("append", &format!("{what}, {STALLED} stalled"), compared.with / unit_ns, unit, None);
    let change = compared.change;
    report.change("append", &format!("{what}: change"), change, TARGET_PERCENT);
    report.note(format!(
        "append: {what}: {:.2} % (95% interval {:.2} to {:.2} %), {} samples on each side",
        change.middle,
        change.least,
        change.most,
        paired.len()
    ));
}

/// What a sample took.
fn nanos(begun: Instant) -> u32 {
    begun.elapsed().as_nanos().try_into().unwrap_or(u32::MAX)
}
