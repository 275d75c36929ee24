//! Whether memory stays flat: the resident memory of a router over one hour's traffic, replayed as fast as the
//! machine takes it, before subscribers that keep up, that read slowly, and that leave and come back.
//!
//! The configuration is the default, but for free slots and for a retention that the hour reaches before the
//! warm-up is over (it is looked at every 30 s of real time); each subscriber comes from an address of its own, so the default rates hold for each. A
//! simulated minute is so many requests; after each, memory is read.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use memchr::memmem;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::crowd::{Over, open};
use crate::load::{Load, get, metric};
use crate::median::median;
use crate::proc::resident_kib;
use crate::process::{Process, backend, yaml};
use crate::report::{Bound, Report};

const MINUTES: usize = 60;
const WARM_UP: usize = 10;
const SECS: f64 = 60.0;
const REQUESTS_PER_S: f64 = 100.0;
/// Two events for each request: the default, 1,000,000, is more than an hour has.
const KEPT_EVENTS: f64 = 100_000.0;
/// The least that the configuration takes.
const KEPT_MIN: f64 = 1_000.0;
/// What fills in the hour's first minutes must not be taken for growth in a shorter try.
const RING: f64 = 16_384.0;
const SUBSCRIBERS: u32 = 200;
const MODELS: u32 = 20;
const CONNECTIONS: usize = 16;
const TARGET_PERCENT: f64 = 5.0;
const LOOK: Duration = Duration::from_millis(10);
/// A load that gets no further for so long has broken.
const STILL_MAX: Duration = Duration::from_secs(30);
/// Pause before a subscriber connects again.
const PAUSE: Duration = Duration::from_millis(50);
const CHUNK: usize = 16 * 1024;

/// What a subscriber does.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Takes what comes of one model.
    Keeps,
    /// Takes a chunk of everything and then a break, and falls behind for it.
    Slow,
    /// Takes a few chunks, leaves, and comes back behind its last number.
    Leaves,
}

/// What the crowd did, all together.
#[derive(Default)]
struct Tally {
    connections: AtomicU64,
    bytes: AtomicU64,
    /// Times that a number was no longer kept.
    gone: AtomicU64,
}

/// `secs`: how long a simulated minute's traffic is; the whole hour has 60.
pub(crate) async fn run(folder: &Path, secs: Option<f64>, report: &mut Report) -> io::Result<()> {
    let scale = secs.unwrap_or(SECS) / SECS;
    let each = (REQUESTS_PER_S * SECS * scale).ceil() as u64;
    let kept = (KEPT_EVENTS * scale).max(KEPT_MIN) as u64;
    let ring =
        if scale < 1.0 { format!("event_ring: {:.0}\n", (RING * scale).max(16.0)) } else { String::new() };
    let models: Vec<String> = (0..MODELS).map(|index| format!("m{index:02}")).collect();
    let backend = backend(models.clone())?;
    let more = format!("event_log_max_events: {kept}\n{ring}");
    let router = Process::start(folder, &yaml(&[backend.endpoint()], &more))?;
    let (mut crowd, tally) = (JoinSet::new(), Arc::new(Tally::default()));
    for index in 0..SUBSCRIBERS {
        crowd.spawn(subscriber(router.address, index, Arc::clone(&tally)));
    }
    let begun = Instant::now();
    let load = Load::start(router.address, &models, 1e6, CONNECTIONS);
    let mut resident = Vec::with_capacity(MINUTES);
    for minute in 1..=MINUTES as u64 {
        let (mut still, mut answered) = (Instant::now(), load.answered());
        while load.answered() < minute * each {
            sleep(LOOK).await;
            load.took_us();
            let now = load.answered();
            if std::mem::replace(&mut answered, now) != now {
                still = Instant::now();
            } else if still.elapsed() > STILL_MAX {
                return Err(io::Error::other(format!("the load stands still in simulated minute {minute}")));
            }
        }
        resident.push(resident_kib(router.pid())? as f64 / 1024.0);
    }
    let took = begun.elapsed();
    let (requests, failed) = (load.answered(), load.failed());
    drop(load);
    crowd.shutdown().await;
    let (_, bounds) = get(router.address, "/api/events/bounds").await?;
    let bounds: serde_json::Value = serde_json::from_slice(&bounds)?;
    let delivered = metric(router.address, "pointsman_events_delivered_total").await?;
    let is_whole = scale >= 1.0;
    rows(report, &resident, is_whole);
    let trimmed = bounds["floor"].as_f64().unwrap_or_default() - 1.0;
    report.row("hour", "requests that failed", failed as f64, "", Some(Bound::Most(0.0)));
    report.row("hour", "events given up to retention", trimmed, "", is_whole.then_some(Bound::Least(1.0)));
    let [connections, gone, bytes] =
        [&tally.connections, &tally.gone, &tally.bytes].map(|counter| counter.load(Relaxed));
    report.note(format!(
        "hour: {requests} requests in {:.0} s, {kept} events kept; {SUBSCRIBERS} subscribers were given {} events \
         ({:.0} MiB) over {connections} connections, and told {gone} times that something is no longer kept",
        took.as_secs_f64(),
        delivered,
        bytes as f64 / f64::from(1 << 20),
    ));
    let series: Vec<_> = resident.iter().map(|mib| format!("{mib:.0}")).collect();
    report.note(format!("hour: MiB after each simulated minute: {}", series.join(" ")));
    Ok(())
}

fn rows(report: &mut Report, resident: &[f64], is_whole: bool) {
    let after = |minute: usize| resident[minute - 1];
    report.row("hour", &format!("resident after {WARM_UP} simulated minutes"), after(WARM_UP), "MiB", None);
    report.row("hour", "resident at the end", after(MINUTES), "MiB", None);
    let slope = slope(&resident[WARM_UP..]) * MINUTES as f64;
    report.row("hour", "slope by least squares, warm-up left out", slope, "MiB/h", None);
    let quarter = median(resident[MINUTES / 4..MINUTES / 2].to_vec());
    let half = median(resident[MINUTES / 2..].to_vec());
    let target = is_whole.then_some(Bound::Most(TARGET_PERCENT));
    let what = "the last half's median over the second quarter's";
    report.row("hour", what, (half / quarter - 1.0) * 100.0, "%", target);
    if !is_whole {
        report.note("hour: less than the whole hour, so growth is not judged".to_owned());
    }
}

/// By how much the values grow from one to the next.
fn slope(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for (index, value) in values.iter().enumerate() {
        let x = index as f64 - middle;
        above += x * (value - mean);
        below += x * x;
    }
    above / below
}

/// Follows for ever.
async fn subscriber(router: SocketAddr, index: u32, tally: Arc<Tally>) {
    let manner = [Manner::Slow, Manner::Leaves, Manner::Keeps, Manner::Keeps][index as usize % 4];
    let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + index);
    let mut last = None;
    loop {
        // Whatever ended a connection, the next begins behind what was read.
        let _ = follow(router, from, manner, index, &mut last, &tally).await;
        sleep(PAUSE).await;
    }
}

/// One connection.
async fn follow(
    router: SocketAddr,
    from: Ipv4Addr,
    manner: Manner,
    index: u32,
    last: &mut Option<u64>,
    tally: &Tally,
) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream: TcpStream = socket.connect(router).await?;
    let filter = match manner {
        Manner::Keeps => format!("&models=m{:02}", index / 4 % MODELS),
        Manner::Leaves => "&kinds=request.finished".to_owned(),
        Manner::Slow => String::new(),
    };
    let (status, mut inbox) =
        open(&mut stream, Over::Sse, &format!("after={}{filter}", last.unwrap_or(0))).await?;
    tally.connections.fetch_add(1, Relaxed);
    if status != 200 {
        // What it has read last is no longer kept: all that is.
        tally.gone.fetch_add(u64::from(status == 410), Relaxed);
        *last = None;
        return Ok(());
    }
    let mut chunks = 0_u32;
    loop {
        inbox.reserve(CHUNK);
        let read = stream.read_buf(&mut inbox).await?;
        if read == 0 {
            return Ok(());
        }
        tally.bytes.fetch_add(read as u64, Relaxed);
        chunks += 1;
        // A frame that is not whole stays for the next chunk.
        if let Some(end) = memmem::rfind(&inbox, b"\n\n") {
            *last = number(&inbox[..end]).or(*last);
            inbox.drain(..end + 1);
        }
        match manner {
            Manner::Keeps => {}
            Manner::Slow => sleep(Duration::from_millis(50 + 10 * u64::from(index % 16))).await,
            Manner::Leaves if chunks > 20 + index => return Ok(()),
            Manner::Leaves => {}
        }
    }
}

/// The last number in these frames. One that is told that something is gone has its last number as well.
fn number(frames: &[u8]) -> Option<u64> {
    let at = memmem::rfind(frames, b"id: ")? + "id: ".len();
    let digits = frames[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&frames[at..at + digits]).ok()?.parse().ok()
}
