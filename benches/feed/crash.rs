//! The feed's promise against a real process that is killed: whoever comes again with the last number is given
//! the rest of the log, once and in order, filtered as asked.
//!
//! Subscribers with filters and beginnings of their own follow a router under load; it is killed with `kill -9`
//! and started again on the same data. In the end what each was given, over all its connections, is held
//! against one unfiltered read of the log. Run by the bench and, in a short form, by the tests.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman::adapters::entropy::SeededEntropy;
use pointsman::ports::Entropy as _;
use pointsman::pretend::Pretend;
use pointsman::wire::event::Event;
use pointsman::wire::filter::{Filter, Pattern};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::load::{Load, tip};
use super::process::{Process, backend, yaml};
use super::subscriber::{Asks, Given, Subscriber, event, hash};

/// How long subscribers may take to come to the tip.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// How long the log may take to come to rest after the load.
const REST: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) subscribers: usize,
    pub(crate) models: usize,
    pub(crate) events_per_s: f64,
    pub(crate) connections: usize,
    pub(crate) length: Duration,
    pub(crate) kills: u32,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// In the log at the end.
    pub(crate) events: u64,
    /// Requests answered.
    pub(crate) answered: u64,
    /// Events that subscribers were given.
    pub(crate) frames: u64,
    pub(crate) checkpoints: u64,
    /// Connections that subscribers made.
    pub(crate) connections: u64,
    /// Subscribers that were told they are too slow.
    pub(crate) cut_off: u64,
    /// For each restart: from the new process's first word until every subscriber had come to the tip it
    /// began with.
    pub(crate) caught_up: Vec<Duration>,
    /// The same after the end of the load.
    pub(crate) caught_up_at_last: Duration,
    /// What must not be, in words; the first few.
    pub(crate) mismatches: Vec<String>,
}

/// Does it.
pub(crate) async fn run(plan: &Plan, folder: &Path) -> io::Result<Outcome> {
    let dice = SeededEntropy::new(plan.seed);
    let models: Vec<String> = (0..plan.models).map(|index| format!("m{index:02}")).collect();
    let backends = [backend(models.clone())?, backend(models.clone())?];
    let endpoints: Vec<_> = backends.iter().map(Pretend::endpoint).collect();
    let more = "per_ip_limit: 0\nper_ip_connections: 0\nsubscriber_stall_secs: 60\nevent_ring: 4096\n";
    let mut router = Process::start(folder, &yaml(&endpoints, more))?;
    let address = router.address;
    let load = Load::start(address, &models, plan.events_per_s / 2.0, plan.connections);
    // Something to begin in the middle of.
    sleep(plan.length / 15).await;
    let tip_before = tip(address).await?;
    let mut tasks = JoinSet::new();
    let mut subscribers = Vec::new();
    for index in 0..plan.subscribers {
        let (filter, asks) = draw(index, &dice, tip_before, &models, &endpoints);
        let subscriber = Subscriber::new(address, asks);
        let running = Arc::clone(&subscriber);
        tasks.spawn(async move { running.run().await });
        subscribers.push((filter, subscriber));
    }
    let mut outcome = Outcome::default();
    for _ in 0..plan.kills {
        sleep(plan.length.mul_f64(share(&dice, 0.8, 1.2)) / (plan.kills + 1)).await;
        let restart = router.kill()?;
        sleep(Duration::from_millis(500).mul_f64(share(&dice, 0.0, 1.0))).await;
        router = tokio::task::spawn_blocking(restart).await??;
        let begun = Instant::now();
        let tip = tip(address).await?;
        outcome.caught_up.push(reach(tip, &subscribers, begun).await);
    }
    sleep(plan.length / (plan.kills + 1)).await;
    outcome.answered = load.answered();
    drop(load);
    let begun = Instant::now();
    let mut tip_at_last = tip(address).await?;
    loop {
        sleep(REST).await;
        let now = tip(address).await?;
        if std::mem::replace(&mut tip_at_last, now) == now {
            break;
        }
    }
    outcome.caught_up_at_last = reach(tip_at_last, &subscribers, begun).await;
    drop(tasks);
    let log = reference(address, tip_at_last).await?;
    outcome.events = log.len() as u64;
    for (index, (filter, subscriber)) in subscribers.iter().enumerate() {
        let (given, cursor) = (subscriber.take(), subscriber.cursor());
        outcome.frames += given.events.len() as u64;
        outcome.checkpoints += given.checkpoints;
        outcome.connections += given.connections;
        outcome.cut_off += given.cut_off;
        let wrong = compare(&log, filter, &given, cursor);
        let asks = &subscriber.asks;
        outcome.mismatches.extend(wrong.map(|why| format!("subscriber {index} ({asks:?}): {why}")));
    }
    Ok(outcome)
}

/// Until everybody has looked at everything up to `tip`, or too much time went by, which the comparison finds.
async fn reach(tip: u64, subscribers: &[(Filter, Arc<Subscriber>)], begun: Instant) -> Duration {
    while subscribers.iter().any(|(_, subscriber)| subscriber.cursor() < tip)
        && begun.elapsed() < CATCH_UP_MAX
    {
        sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// One subscriber's wishes: most want one or two models, some only the ends of requests or one endpoint, few all.
fn draw(
    index: usize,
    dice: &SeededEntropy,
    tip: u64,
    models: &[String],
    endpoints: &[String],
) -> (Filter, Asks) {
    let below = |most: usize| (dice.next_u64() % most as u64) as usize;
    let mut wish = vec![];
    // Which of the kinds of subscribers it is goes by its number: every run has all of them.
    match index % 50 {
        0 => {}
        1 => wish.push(("endpoints", endpoints[below(endpoints.len())].clone())),
        2 => wish.push(("kinds", "instance.*".to_owned())),
        3 => wish.push(("models", "nobody".to_owned())),
        _ => {
            for _ in 0..=below(2) {
                wish.push(("models", models[below(models.len())].clone()));
            }
            if below(3) == 0 {
                wish.push((
                    "kinds",
                    ["request.started", "request.finished", "request.*"][below(3)].to_owned(),
                ));
            }
        }
    }
    let mut filter = Filter::default();
    let mut query = String::new();
    for (name, text) in wish {
        query.push_str(&format!("&{name}={text}"));
        let list = match name {
            "kinds" => &mut filter.kinds,
            "endpoints" => &mut filter.endpoints,
            _ => &mut filter.models,
        };
        list.push(Pattern::try_from(text).expect("these patterns are well formed"));
    }
    let after = match below(5) {
        0 => None,
        1 => Some(0),
        _ => Some(below(tip as usize + 1) as u64),
    };
    let leave_every = if below(2) == 0 { 0 } else { 200 + below(2_000) as u64 };
    (filter, Asks { after, filter: query, socket: below(4) == 0, leave_every, seed: dice.next_u64() })
}

fn share(dice: &SeededEntropy, least: f64, most: f64) -> f64 {
    least + (most - least) * (dice.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Every event of the log, as one read over one connection gives it.
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) hash: u64,
    pub(crate) event: Event,
}

/// Reads the whole log up to `tip` and sees that no number is missing.
async fn reference(address: SocketAddr, tip: u64) -> io::Result<Vec<Entry>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /api/events?after=0 HTTP/1.0\r\nhost: x\r\n\r\n").await?;
    let (mut inbox, mut log) = (Vec::with_capacity(1 << 20), Vec::<Entry>::new());
    while (log.len() as u64) < tip {
        if stream.read_buf(&mut inbox).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut used = 0;
        while let Some(length) = memchr::memmem::find(&inbox[used..], b"\n\n") {
            let frame = &inbox[used..used + length];
            used += length + 2;
            let Some(at) = memchr::memmem::find(frame, b"data: {\"seq\":") else { continue };
            let json = &frame[at + "data: ".len()..];
            let expected = log.len() as u64 + 1;
            match event(json) {
                Some((seq, prev, rest)) if seq == expected && prev == log.last().map(|last| last.seq) => {
                    let event = Event::parse(Bytes::copy_from_slice(json)).map_err(io::Error::other)?;
                    log.push(Entry { seq, hash: hash(rest), event });
                }
                _ => {
                    let json = String::from_utf8_lossy(json);
                    return Err(io::Error::other(format!("event {expected} should be here: {json}")));
                }
            }
        }
        inbox.drain(..used);
    }
    Ok(log)
}

/// What is wrong with what a subscriber was given, if anything is.
pub(crate) fn compare(log: &[Entry], filter: &Filter, given: &Given, cursor: u64) -> Option<String> {
    if let Some(wrong) = given.wrong.first() {
        return Some(wrong.clone());
    }
    let tip = log.last().map_or(0, |last| last.seq);
    if cursor < tip {
        return Some(format!("it came to {cursor} of {tip}"));
    }
    let Some(begin) = given.begin else { return Some("it never began".to_owned()) };
    let wanted = log.iter().filter(|entry| entry.seq > begin && filter.matches(&entry.event));
    let mut wanted = wanted.map(|entry| (entry.seq, entry.hash));
    let mut given = given.events.iter().copied().filter(|(seq, _)| *seq <= tip);
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return None,
            (wanted, given) if wanted == given => {}
            (wanted, given) => return Some(format!("it was given {given:?}, not {wanted:?}")),
        }
    }
}
