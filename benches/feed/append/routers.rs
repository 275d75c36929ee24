//! Before two routers, one of which has the crowd of stalled subscribers. Half-way the crowd moves to the other, so
//! what sets the two processes apart cancels out.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{STALLED, nanos};
use crate::crowd::{self, Over, silent};
use crate::load;
use crate::made;
use crate::paired::{Pair, Paired, SAMPLES, turns};
use crate::process::{Process, backend, yaml};

/// Events that stand in the log before anybody comes: more than a connection holds.
const LOGGED: u64 = 2_000;
const DELIVERED: &str = "pointsman_events_delivered_total";
/// Until what a crowd did when it came is over, and everything is counted.
const CALM: Duration = Duration::from_secs(1);
/// How long an event may take until it is read.
const EVENT_MAX: Duration = Duration::from_secs(10);

/// The times of requests, and from their answers to their events, in so many pairs for each half.
pub(super) async fn measure(folder: &Path, pairs: usize) -> io::Result<[Paired; 2]> {
    let backend = backend(["m"])?;
    // Each event is a group of its own: no pause between groups that would hide what one takes. And nobody is cut
    // off, as a subscriber or as a connection.
    let more = "event_log: each\nper_ip_limit: 0\nper_ip_connections: 0\nsubscriber_stall_secs: 36000\n\
                idle_timeout_secs: 72000\n";
    let (mut routers, mut users) = (Vec::new(), Vec::new());
    for name in ["one", "other"] {
        let folder = folder.join(name);
        made::log(&folder, LOGGED).await?;
        let router = Process::start(&folder, &yaml(&[backend.endpoint()], more))?;
        users.push(User::open(router.address).await?);
        routers.push(router);
    }
    let mut paired: [Paired; 2] = Default::default();
    for (half, router) in routers.iter().enumerate() {
        let crowd = silent(router.address, Over::Sse, STALLED, "after=0").await?;
        sleep(CALM).await;
        let delivered = load::metric(router.address, DELIVERED).await?;
        for _ in 0..pairs {
            let mut pair: [Pair; 2] = Default::default();
            for stalled in turns() {
                let user = if stalled == 1 { half } else { 1 - half };
                let took_ns = users[user].ask().await?;
                for (pair, took_ns) in pair.iter_mut().zip(took_ns) {
                    pair[stalled].push(took_ns);
                }
            }
            for (paired, pair) in paired.iter_mut().zip(pair) {
                paired.push(half, pair);
            }
        }
        sleep(CALM).await;
        // Nobody else was given anything, or has left.
        let delivered = load::metric(router.address, DELIVERED).await? - delivered;
        let subscribers = load::metric(router.address, "pointsman_subscribers").await?;
        if (delivered, subscribers) != ((pairs * SAMPLES) as u64, STALLED as u64 + 1) {
            let why = format!("a crowd that stalls? {delivered} delivered to {subscribers} subscribers");
            return Err(io::Error::other(why));
        }
        drop(crowd);
    }
    Ok(paired)
}

/// Asks one thing after another and reads on the feed how each ended.
struct User {
    requests: TcpStream,
    request: Vec<u8>,
    feed: TcpStream,
    inbox: Vec<u8>,
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

    /// From a request to the end of its answer, and from there until the event that says so was on the disk and
    /// read, in nanoseconds.
    async fn ask(&mut self) -> io::Result<[u32; 2]> {
        let begun = Instant::now();
        let status = load::exchange(&mut self.requests, &self.request).await?;
        let answer_ns = nanos(begun);
        if status != 200 {
            return Err(io::Error::other(format!("a request is answered {status}")));
        }
        let answered = Instant::now();
        timeout(EVENT_MAX, self.event()).await??;
        Ok([answer_ns, nanos(answered)])
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
