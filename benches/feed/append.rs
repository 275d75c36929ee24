//! What stalled subscribers cost everybody else: the time of requests before two routers, one of which has a
//! thousand subscribers that never read, and the time from an answer until its event was on the disk and read, in
//! short windows that take turns. Half-way the crowd moves to the other router, so what sets the two processes
//! apart cancels out. And in this process, the time to hand events in and until they can be read, a thousand at a
//! time: one takes less than the clock can tell; and of whole groups on their way through the store.

use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use memchr::memmem;
use pointsman::adapters::sled::SledStore;
use pointsman::core::timeline::{Bounds, Limits, Look, Timeline};
use pointsman::ports::Store as _;
use pointsman::wire::event::Event;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::crowd::{self, Over, silent};
use crate::load;
use crate::made;
use crate::paired::Paired;
use crate::process::{Process, backend, yaml};
use crate::report::{Report, quantile};

const STALLED: usize = 1_000;
/// Events that stand in the log before anybody comes: more than a connection holds.
const LOGGED: u64 = 2_000;
const TARGET_PERCENT: f64 = 5.0;
/// Pairs of windows for each round, in each half.
const PAIRS: usize = 20;
/// Requests in a window, one after the other: so many that a p99 is not the slowest.
const REQUESTS: usize = 400;
/// Until what a crowd did when it came or went is over.
const CALM: Duration = Duration::from_secs(1);
/// How long an event may take until it is read.
const EVENT_MAX: Duration = Duration::from_secs(10);
/// Events handed in between two looks at the clock.
const BATCH: usize = 1_000;
/// Batches in a window of this process: so many that a p99 is not one odd batch, in a tenth of a second or so.
const PUSHES: usize = 2_000;
const SIGHTS: usize = 300;
/// Events in a group that is stored, as many as 5,000 in a second make, and groups in a window.
const GROUP: usize = 250;
const GROUPS: usize = 200;
/// As much as a subscriber holds; see `flow::follow`.
const STEP: usize = 128;

pub(crate) async fn run(folder: &Path, rounds: usize, report: &mut Report) -> io::Result<()> {
    let backend = backend(["m"])?;
    // Each event is a group of its own: no pause between groups that would hide what one takes.
    let more = "event_log: each\nper_ip_limit: 0\nper_ip_connections: 0\nsubscriber_stall_secs: 3600\n";
    let (mut routers, mut users) = (Vec::new(), Vec::new());
    for name in ["one", "other"] {
        let folder = folder.join(name);
        made::log(&folder, LOGGED).await?;
        let router = Process::start(&folder, &yaml(&[backend.endpoint()], more))?;
        users.push(User::open(router.address).await?);
        routers.push(router);
    }
    let mut paired: [[Paired; 2]; 2] = Default::default();
    for (half, router) in routers.iter().enumerate() {
        let held = silent(router.address, Over::Sse, STALLED, "after=0").await?;
        sleep(CALM).await;
        for pair in 0..rounds * PAIRS {
            let mut took = [const { Took { answer_us: vec![], event_us: vec![] } }; 2];
            // Each is first in every other pair.
            for stalled in [pair % 2, 1 - pair % 2] {
                let which = if stalled == 1 { half } else { 1 - half };
                took[stalled] = users[which].window().await?;
            }
            for (share, paired) in [0.5, 0.99].into_iter().zip(&mut paired) {
                let mut push = |paired: &mut Paired, times: fn(&mut Took) -> &mut [u32]| {
                    let [without, with] = took.each_mut().map(|took| quantile(times(took), share) / 1e3);
                    paired.push(half, without, with);
                };
                push(&mut paired[0], |took| &mut took.answer_us);
                push(&mut paired[1], |took| &mut took.event_us);
            }
        }
        drop(held);
        sleep(CALM).await;
    }
    for (share, paired) in ["p50", "p99"].into_iter().zip(&paired) {
        rows(report, &format!("{share} of a request"), "ms", &paired[0]);
        rows(report, &format!("{share} from an answer to its event"), "ms", &paired[1]);
    }
    let pairs = 2 * rounds * PAIRS;
    let (push, see) = tokio::task::spawn_blocking(move || in_process(pairs)).await?;
    rows(report, &format!("in process, p99 of {BATCH} pushes, each"), "us", &push);
    rows(report, &format!("in process, p99 until {BATCH} are seen, each"), "us", &see);
    let group = to_the_store(&folder.join("store"), pairs).await?;
    rows(report, &format!("p99 of a group of {GROUP}, stored and seen"), "ms", &group);
    Ok(())
}

/// Asks one thing after another and reads on the feed how each ended.
struct User {
    requests: TcpStream,
    request: Vec<u8>,
    feed: TcpStream,
    inbox: Vec<u8>,
}

/// Times of one window.
struct Took {
    /// From a request to the end of its answer.
    answer_us: Vec<u32>,
    /// From there until the event that says so was on the disk and read.
    event_us: Vec<u32>,
}

impl User {
    async fn open(address: SocketAddr) -> io::Result<User> {
        let requests = TcpStream::connect(address).await?;
        requests.set_nodelay(true)?;
        let mut feed = TcpStream::connect(address).await?;
        let (status, inbox) = crowd::open(&mut feed, Over::Sse, "kinds=request.finished").await?;
        crowd::expect(status, Over::Sse)?;
        Ok(User { requests, request: load::request(address, "m"), feed, inbox })
    }

    async fn window(&mut self) -> io::Result<Took> {
        let mut took = Took { answer_us: Vec::new(), event_us: Vec::new() };
        for _ in 0..REQUESTS {
            let begun = Instant::now();
            let status = load::exchange(&mut self.requests, &self.request).await?;
            took.answer_us.push(micros(begun));
            if status != 200 {
                return Err(io::Error::other(format!("a request is answered {status}")));
            }
            let answered = Instant::now();
            timeout(EVENT_MAX, self.event()).await??;
            took.event_us.push(micros(answered));
        }
        Ok(took)
    }

    /// Waits for the next event. There is never more than one.
    async fn event(&mut self) -> io::Result<()> {
        loop {
            if let Some(at) = memmem::find(&self.inbox, crowd::BEGIN)
                && let Some(end) = memmem::find(&self.inbox[at..], b"\n\n")
            {
                self.inbox.drain(..at + end);
                return Ok(());
            }
            if self.feed.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
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

fn timeline() -> Arc<Timeline<Arc<Event>>> {
    let limits = Limits { ring: 16_384, waiting: 65_536, ring_only: false };
    Arc::new(Timeline::new(Bounds { floor: 1, tip: 0 }, limits))
}

/// What so many stalled subscribers hold: each has read a step of the log, and never comes again.
fn hold(timeline: &Timeline<Arc<Event>>, count: usize) -> Vec<Look<Arc<Event>>> {
    let behind = timeline.bounds().tip - STEP as u64;
    (0..count).map(|_| timeline.read(behind, STEP)).collect()
}

/// The p99 of batches of pushes, and of batches of events that are pushed, made durable and read; for each event,
/// in microseconds.
fn in_process(pairs: usize) -> (Paired, Paired) {
    let timeline = timeline();
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
        let held = hold(&timeline, stalled * STALLED);
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

/// The p99 of groups of events that are handed in, appended to a store, and read.
async fn to_the_store(folder: &Path, pairs: usize) -> io::Result<Paired> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.to_owned();
    let opened = tokio::task::spawn_blocking(move || SledStore::open(&folder).map_err(io::Error::other));
    let store = opened.await??;
    let timeline = timeline();
    let group: Vec<_> = (0..GROUP as u64).map(|seq| Arc::new(made::event(1, seq))).collect();
    let append = async || {
        let (begun, after) = (Instant::now(), timeline.bounds().tip);
        let moved = timeline.moved();
        for event in &group {
            timeline.push(Arc::clone(event));
        }
        let append = timeline.take(usize::MAX, |_| unreachable!("there is room")).expect("they wait");
        let records = append.events().iter().map(|event| made::encode(1, event)).collect();
        store.append(append.first(), records).await.map_err(io::Error::other)?;
        append.durable();
        moved.await;
        assert!(matches!(black_box(timeline.read(after, STEP)), Look::Events(_)));
        io::Result::Ok(micros(begun))
    };
    let mut paired = Paired::default();
    for pair in 0..pairs {
        let mut p99_ms = [0.0; 2];
        for stalled in [pair % 2, 1 - pair % 2] {
            // Something to hold.
            append().await?;
            let held = hold(&timeline, stalled * STALLED);
            let mut took_us = Vec::with_capacity(GROUPS);
            for _ in 0..GROUPS {
                took_us.push(append().await?);
            }
            drop(held);
            p99_ms[stalled] = quantile(&mut took_us, 0.99) / 1e3;
            // What is kept is no more than a window's.
            let floor = timeline.bounds().tip;
            timeline.trim(floor);
            store.trim(floor).await.map_err(io::Error::other)?;
        }
        paired.push(0, p99_ms[0], p99_ms[1]);
    }
    // Its last flush blocks.
    tokio::task::spawn_blocking(move || drop(store)).await?;
    Ok(paired)
}

fn micros(begun: Instant) -> u32 {
    begun.elapsed().as_micros().try_into().unwrap_or(u32::MAX)
}

fn nanos(begun: Instant) -> u32 {
    begun.elapsed().as_nanos().try_into().unwrap_or(u32::MAX)
}
