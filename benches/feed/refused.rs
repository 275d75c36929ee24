//! One address that wants far more subscriptions than it may have: everybody is answered, the router stays
//! small, and requests go on.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::crowd::{Over, open};
use crate::load::Load;
use crate::proc::resident_kib;
use crate::process::{Process, backend, yaml};
use crate::report::{Bound, Report, quantile};

const ATTEMPTS: usize = 10_000;
/// Attempts under way at a time.
const AT_ONCE: usize = 200;
/// The default of `per_ip_connections`.
const ALLOWED: usize = 1_000;
const REQUESTS_PER_S: f64 = 50.0;
const LOOK: Duration = Duration::from_millis(20);

pub(crate) async fn run(folder: &Path, report: &mut Report) -> io::Result<()> {
    let backend = backend(["m"])?;
    let router = Process::start(folder, &yaml(&[backend.endpoint()], ""))?;
    let load = Load::start(router.address, &["m".to_owned()], REQUESTS_PER_S, 2);
    sleep(Duration::from_millis(500)).await;
    let before_kib = resident_kib(router.pid())?;
    let (answered, begun) = (load.answered(), Instant::now());
    load.took_us();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, address) = (Arc::clone(&next), router.address);
        tasks.spawn(async move {
            let (mut held, mut refused, mut odd) = (Vec::new(), 0, 0);
            while next.fetch_add(1, Relaxed) < ATTEMPTS {
                let attempt = async {
                    let mut stream = TcpStream::connect(address).await?;
                    let (status, _) = open(&mut stream, Over::Sse, "").await?;
                    Ok::<_, io::Error>((status, stream))
                };
                match attempt.await {
                    Ok((200, stream)) => held.push(stream),
                    Ok((429, _)) => refused += 1,
                    _ => odd += 1,
                }
            }
            (held, refused, odd)
        });
    }
    let (mut held, mut refused, mut odd) = (Vec::new(), 0, 0);
    let (mut most_kib, mut most_files) = (0, 0);
    while !tasks.is_empty() {
        most_kib = most_kib.max(resident_kib(router.pid())?);
        most_files = most_files.max(std::fs::read_dir(format!("/proc/{}/fd", router.pid()))?.count());
        sleep(LOOK).await;
        while let Some(done) = tasks.try_join_next() {
            let (streams, no, other) = done?;
            held.extend(streams);
            refused += no;
            odd += other;
        }
    }
    let took = begun.elapsed();
    let served = load.answered() - answered;
    let p99_ms = quantile(&mut load.took_us(), 0.99) / 1e3;
    let (given, grown) = (held.len() as f64, most_kib.saturating_sub(before_kib) as f64 / 1024.0);
    report.row("refused", &format!("of {ATTEMPTS} attempts, answered 200"), given, "", None);
    report.row("refused", "answered 429", f64::from(refused), "", None);
    report.row("refused", "answered otherwise, or not at all", f64::from(odd), "", Some(Bound::Most(0.0)));
    let most = Bound::Most((ALLOWED + 2 * AT_ONCE) as f64);
    report.row("refused", "most open files of the router", most_files as f64, "", Some(most));
    let most = Bound::Most(ALLOWED as f64 * 64.0 / 1024.0);
    report.row("refused", "memory grown by at most", grown, "MiB", Some(most));
    let failed = load.failed() as f64;
    report.row("refused", "requests served meanwhile", served as f64, "", Some(Bound::Least(1.0)));
    report.row("refused", "of which failed", failed, "", Some(Bound::Most(0.0)));
    report.row("refused", "their p99", p99_ms, "ms", None);
    report.note(format!("refused: all attempts took {:.1} s", took.as_secs_f64()));
    Ok(())
}
