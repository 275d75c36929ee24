//! The world as a router in a scenario sees it: scripted ports, all of whose chance comes from the
//! scheduler, so that one schedule is one story.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use shuttle::future::yield_now;
use shuttle::rand::{RngCore, thread_rng};

use super::common::require;
use super::core::time::{Instant, Timestamp};
use super::ports::{
    Bounds, BoxFuture, Clock, Entropy, Revision, Seq, Spawn, Store, StoreError, Task, Upstream,
    UpstreamError, UpstreamRequest, UpstreamResponse, Versioned,
};

/// A number below `n`, from the scheduler's own stream, so that a replay draws the same.
pub(crate) fn dice(n: u64) -> u64 {
    thread_rng().next_u64() % n
}

pub(crate) async fn pause(times: u64) {
    for _ in 0..times {
        yield_now().await;
    }
}

/// Tokens each answer costs: as the backends say in their last line.
pub(crate) const TOKENS: u64 = 8;

/// Time that passes only for who sleeps. Short sleeps end after a few turns of the others; sleeps of
/// [`NEVER`] or more never do, so that a request which nobody ends is found as a deadlock.
#[derive(Default)]
pub(crate) struct VirtualClock(AtomicU64);

const NEVER: Duration = Duration::from_secs(60);

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(SeqCst))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(SeqCst) / 1_000_000)
    }

    fn sleep_until(&self, _deadline: Instant) -> BoxFuture<'static, ()> {
        unreachable!("the clock is asked through `SharedClock`")
    }
}

impl VirtualClock {
    /// A minute passes at once, whoever waits for whatever.
    pub(crate) fn a_minute_passes(&self) {
        self.0.fetch_add(60_000_000_000, SeqCst);
    }
}

/// The clock, shared with those who sleep by it.
#[derive(Clone, Default)]
pub(crate) struct SharedClock(pub(crate) Arc<VirtualClock>);

impl Clock for SharedClock {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn wall(&self) -> Timestamp {
        self.0.wall()
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let duration = deadline.since(self.now());
        if duration >= NEVER {
            return Box::pin(std::future::pending());
        }
        let clock = Arc::clone(&self.0);
        Box::pin(async move {
            pause(2 + duration.as_secs()).await;
            clock.0.fetch_max(deadline.as_nanos(), SeqCst);
        })
    }
}

/// Chance out of the scheduler's stream.
pub(crate) struct Dice;

impl Entropy for Dice {
    fn next_u64(&self) -> u64 {
        thread_rng().next_u64()
    }
}

/// Tasks of shuttle's executor.
pub(crate) struct ShuttleSpawn;

impl Spawn for ShuttleSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        let handle = shuttle::future::spawn(task).abort_handle();
        Task::new(move || handle.abort())
    }
}

/// What a backend does with a request for inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Answers whole, always.
    Sound,
    /// Answers whole, or refuses the connection, or says 500, or breaks off in the middle.
    Moody,
    /// Never answers a request for inference.
    Silent,
}

/// The backends, which count for themselves what they are asked.
pub(crate) struct Backends {
    pub(crate) conduct: Conduct,
    /// The most requests for inference one backend may be given at a time.
    pub(crate) limit: u32,
    serving: [Arc<AtomicU32>; 2],
    listing: [Arc<AtomicU32>; 4],
    /// Answers whose last line was handed over.
    pub(crate) finished: Arc<AtomicU32>,
    /// By minute on the wall: how many answers were let go of.
    pub(crate) ends: Arc<Mutex<BTreeMap<u64, u64>>>,
    clock: SharedClock,
    requests: AtomicU32,
}

impl Backends {
    pub(crate) fn new(conduct: Conduct, limit: u32, clock: SharedClock) -> Backends {
        Backends {
            conduct,
            limit,
            serving: Default::default(),
            listing: Default::default(),
            finished: Arc::default(),
            ends: Arc::default(),
            clock,
            requests: AtomicU32::new(0),
        }
    }

    /// Nobody is served any more.
    pub(crate) fn idle(&self) {
        let serving: u32 = self.serving.iter().map(|count| count.load(SeqCst)).sum();
        require(serving == 0, "answer-ends", &format!("{serving} requests run on that nobody waits for"));
    }
}

/// One request as the backend counts it, until it is answered or cancelled.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn enter(count: &Arc<AtomicU32>, limit: u32, promise: &str, what: &str) -> Counted {
        let now = count.fetch_add(1, SeqCst) + 1;
        require(
            now <= limit,
            promise,
            &format!("{now} {what} at one endpoint at a time, the limit is {limit}"),
        );
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// An answer that the router holds; says in which minute it let go of it.
struct Held {
    clock: SharedClock,
    ends: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let minute = self.clock.wall().minute().number();
        *self.ends.lock().expect("not poisoned").entry(minute).or_default() += 1;
    }
}

fn answer(
    status: StatusCode,
    kind: &'static str,
    chunks: Vec<Result<Bytes, UpstreamError>>,
) -> UpstreamResponse {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    UpstreamResponse { status, headers, body: Box::pin(futures_util::stream::iter(chunks)) }
}

fn json(text: &'static str) -> UpstreamResponse {
    answer(StatusCode::OK, "application/json", vec![Ok(Bytes::from_static(text.as_bytes()))])
}

impl Upstream for Backends {
    fn send(&self, request: UpstreamRequest) -> BoxFuture<'_, Result<UpstreamResponse, UpstreamError>> {
        let backend = usize::from(request.url.contains("//b"));
        Box::pin(async move {
            if request.url.ends_with("/api/tags") || request.url.ends_with("/api/ps") {
                let concern = backend * 2 + usize::from(request.url.ends_with("/api/ps"));
                let listing = &self.listing[concern];
                let counted = Counted::enter(listing, 1, "catalog-single-flight", "fetches of one listing");
                pause(1 + dice(2)).await;
                drop(counted);
                // Only the first backend has the model in memory; the second says so with an error.
                return Ok(match concern {
                    0..=2 => json(r#"{"models":[{"name":"m:latest","model":"m:latest"}]}"#),
                    _ => answer(StatusCode::INTERNAL_SERVER_ERROR, "application/json", Vec::new()),
                });
            }
            let serving = &self.serving[backend];
            let counted = Counted::enter(serving, self.limit, "slot-limit", "requests for inference");
            pause(1).await;
            let mood = match self.conduct {
                Conduct::Sound => 0,
                Conduct::Moody => dice(6),
                Conduct::Silent => std::future::pending().await,
            };
            match mood {
                4 => return Err(UpstreamError::Connect("refused".to_owned())),
                5 => return Ok(answer(StatusCode::INTERNAL_SERVER_ERROR, "application/json", Vec::new())),
                _ => {}
            }
            let number = self.requests.fetch_add(1, SeqCst);
            let line = format!(
                "{{\"model\":\"m\",\"message\":{{\"role\":\"assistant\",\"content\":\"<{number}>\"}},\"done\":false}}\n"
            );
            let last = format!(
                "{{\"model\":\"m\",\"message\":{{\"role\":\"assistant\",\"content\":\"<{number}>\"}},\"done\":true,\
                 \"done_reason\":\"stop\",\"prompt_eval_count\":3,\"eval_count\":5}}\n"
            );
            let (breaks_off, finished) = (mood == 3, Arc::clone(&self.finished));
            let lines: Vec<String> = vec![line.clone(), line, last];
            let held = Held { clock: self.clock.clone(), ends: Arc::clone(&self.ends) };
            let body = futures_util::stream::iter(lines.into_iter().enumerate()).then(move |(at, line)| {
                let (finished, _held) = (Arc::clone(&finished), (&counted, &held));
                async move {
                    yield_now().await;
                    if breaks_off && at == 1 {
                        return Err(UpstreamError::Broken("reset by peer".to_owned()));
                    }
                    if at == 2 {
                        finished.fetch_add(1, SeqCst);
                    }
                    Ok(Bytes::from(line))
                }
            });
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
            Ok(UpstreamResponse { status: StatusCode::OK, headers, body: Box::pin(body) })
        })
    }
}

/// A store in memory whose writes may fail before they are done, or after, which looks the same.
#[derive(Default)]
pub(crate) struct MemoryStore {
    pub(crate) log: Mutex<Vec<Bytes>>,
    map: Mutex<BTreeMap<String, Versioned>>,
    revisions: AtomicU64,
    /// How many of the next writes may fail.
    pub(crate) faults: AtomicU32,
}

impl MemoryStore {
    /// Tokens by minute, read off the keys and values as they stand.
    pub(crate) fn minutes(&self) -> BTreeMap<u64, u64> {
        let map = self.map.lock().expect("not poisoned");
        let rows = map.iter().filter(|(key, _)| key.starts_with("tokens/"));
        let mut minutes = BTreeMap::new();
        for (key, stored) in rows {
            let minute = key.rsplit('/').next().and_then(|minute| minute.parse().ok()).expect("a minute");
            let value: serde_json::Value = serde_json::from_slice(&stored.value).expect("it is JSON");
            let of = |row: &serde_json::Value, name: &str| row[name].as_u64().expect("a number");
            let tokens = |row| of(row, "input_tokens") + of(row, "output_tokens");
            let sum: u64 = value["rows"].as_array().expect("rows").iter().map(tokens).sum();
            *minutes.entry(minute).or_default() += sum;
        }
        minutes
    }
}

impl Store for MemoryStore {
    fn append(&self, at: Seq, records: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            yield_now().await;
            let faulty = self.faults.load(SeqCst) > 0 && dice(2) == 0;
            let luck = if faulty { dice(2) } else { 2 };
            {
                let mut log = self.log.lock().expect("not poisoned");
                if at != log.len() as Seq + 1 {
                    return Err(StoreError::Conflict);
                }
                if luck > 0 {
                    log.extend(records);
                }
            }
            yield_now().await;
            if faulty {
                self.faults.fetch_sub(1, SeqCst);
                return Err(StoreError::Unavailable("the disk did not answer".to_owned()));
            }
            Ok(())
        })
    }

    fn read(&self, from: Seq, max: usize) -> BoxFuture<'_, Result<Vec<Bytes>, StoreError>> {
        Box::pin(async move {
            yield_now().await;
            let log = self.log.lock().expect("not poisoned");
            Ok(log.iter().skip(from as usize - 1).take(max).cloned().collect())
        })
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, StoreError>> {
        Box::pin(async move {
            yield_now().await;
            Ok(Bounds { floor: 1, tip: self.log.lock().expect("not poisoned").len() as Seq })
        })
    }

    fn trim(&self, _floor: Seq) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!("no event is old enough")
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            yield_now().await;
            Ok(self.map.lock().expect("not poisoned").get(key).cloned())
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, StoreError>> {
        Box::pin(async move {
            yield_now().await;
            let faulty = self.faults.load(SeqCst) > 0 && dice(2) == 0;
            let luck = if faulty { dice(2) } else { 2 };
            let written = {
                let mut map = self.map.lock().expect("not poisoned");
                if map.get(key).map(|versioned| versioned.revision) != expected {
                    return Err(StoreError::Conflict);
                }
                let revision = self.revisions.fetch_add(1, SeqCst) + 1;
                if luck > 0 {
                    map.insert(key.to_owned(), Versioned { revision, value });
                }
                revision
            };
            yield_now().await;
            if faulty {
                self.faults.fetch_sub(1, SeqCst);
                return Err(StoreError::Unavailable("the disk did not answer".to_owned()));
            }
            Ok(written)
        })
    }

    fn delete<'a>(&'a self, _key: &'a str, _expected: Revision) -> BoxFuture<'a, Result<(), StoreError>> {
        unreachable!("token counts are not deleted")
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Versioned)>, StoreError>> {
        Box::pin(async move {
            let map = self.map.lock().expect("not poisoned");
            let matches = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
            let found = map.iter().filter(|(key, _)| matches(key)).take(max);
            Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
        })
    }
}
