//! What it costs the router to deliver an event to one subscriber: its CPU time with and without a crowd under
//! the same load, over the events that the crowd was given.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::crowd::{Crowd, Over};
use crate::load::Load;
use crate::median::median;
use crate::proc::cpu_us;
use crate::process::{Process, backend, yaml};
use crate::report::{Bound, Report};

const SUBSCRIBERS: usize = 200;
const REQUESTS_PER_S: f64 = 250.0;
const TARGET_US: f64 = 5.0;
const SETTLE: Duration = Duration::from_millis(400);

pub(crate) async fn run(
    folder: &Path,
    window: Duration,
    rounds: usize,
    report: &mut Report,
) -> io::Result<()> {
    let backend = backend(["m"])?;
    let more = "per_ip_limit: 0\nper_ip_connections: 0\n";
    let router = Process::start(folder, &yaml(&[backend.endpoint()], more))?;
    let load = Load::start(router.address, &["m".to_owned()], REQUESTS_PER_S, 8);
    let rows = [(Over::Sse, "SSE"), (Over::Socket, "WebSocket")];
    let (mut costs, mut rates) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..rounds {
        let (alone, requests, _) = measure(&router, &load, None, window).await?;
        let each = alone / requests;
        for (index, (over, _)) in rows.iter().enumerate() {
            let crowd = Crowd::open(router.address, *over, SUBSCRIBERS).await?;
            let (cpu, requests, events) = measure(&router, &load, Some(&crowd), window).await?;
            costs[index].push((cpu - each * requests) / events.max(1.0));
            rates[index].push(events / window.as_secs_f64());
        }
    }
    for (((_, name), costs), rates) in rows.iter().zip(costs).zip(rates) {
        let what = format!("router's CPU per frame, {SUBSCRIBERS} subscribers, {name}");
        report.row("frames", &what, median(costs), "us", Some(Bound::Most(TARGET_US)));
        report.row("frames", &format!("delivered meanwhile, {name}"), median(rates), "frames/s", None);
    }
    Ok(())
}

/// CPU time in microseconds, requests and events delivered in one window.
async fn measure(
    router: &Process,
    load: &Load,
    crowd: Option<&Crowd>,
    window: Duration,
) -> io::Result<(f64, f64, f64)> {
    sleep(SETTLE).await;
    let look = || {
        let cpu = cpu_us(&[router.pid()])?;
        Ok::<_, io::Error>((cpu, load.answered(), crowd.map_or(0, Crowd::events)))
    };
    let before = look()?;
    sleep(window).await;
    let after = look()?;
    let events = (after.2 - before.2) as f64;
    Ok(((after.0 - before.0) as f64, (after.1 - before.1).max(1) as f64, events))
}
