//! What a subscriber holds of the router's memory while nothing happens.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::crowd::{Over, silent};
use crate::proc::resident_kib;
use crate::process::{Process, yaml};
use crate::report::{Bound, Report};

const SUBSCRIBERS: usize = 1_000;
const TARGET_KIB: f64 = 64.0;
/// How long memory may settle before it is read.
const SETTLE: Duration = Duration::from_millis(500);

pub(crate) async fn run(folder: &Path, report: &mut Report) -> io::Result<()> {
    for (over, name) in [(Over::Sse, "SSE"), (Over::Socket, "WebSocket")] {
        // A fresh process: what others left in its heap would hide what a subscriber takes.
        let yaml = yaml(&["http://127.0.0.1:9".to_owned()], "per_ip_connections: 0\n");
        let router = Process::start(&folder.join(name), &yaml)?;
        // One first, so that what is built once is not counted as the subscribers'.
        drop(silent(router.address, over, 1, "").await?);
        sleep(SETTLE).await;
        let before = resident_kib(router.pid())?;
        let held = silent(router.address, over, SUBSCRIBERS, "").await?;
        sleep(SETTLE).await;
        let after = resident_kib(router.pid())?;
        let each = after.saturating_sub(before) as f64 / held.len() as f64;
        let what = format!("memory per subscriber, {SUBSCRIBERS} idle, {name}");
        report.row("idle", &what, each, "KiB", Some(Bound::Most(TARGET_KIB)));
    }
    Ok(())
}
