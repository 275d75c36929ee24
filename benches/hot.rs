//! What pointsman adds to a request, part by part: the choice, the slot, the catalog, the tokens, the bytes.
//!
//! `cargo bench --bench hot`; a name after `--` picks some. Times are of one operation, or of one chunk. Where
//! several threads work, each does its share of the operations, and the time is wall time divided by all of
//! them: what one operation costs the router, not what one caller waits.

#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a bench measures by the system's clock, with threads of its own, against std's locks"
)]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant as Watch};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pointsman::core::breaker::{Settings, Verdict};
use pointsman::core::catalog::{Ages, Cell, Look};
use pointsman::core::ledger::{Ledger, Row, Tokens, Totals};
use pointsman::core::names::{EndpointId, EndpointName, ModelName};
use pointsman::core::policy::{Standing, choose};
use pointsman::core::slots::{Candidate, Limits, Reservation, Slots};
use pointsman::core::sync::{Arc, Lock, Rank};
use pointsman::core::time::{Instant, Minute};
use pointsman::core::usage::Usage;
use pointsman::wire::request::{Ask, Shape};
use pointsman::wire::usage::{Framing, Tap};

const NOW: Instant = Instant::from_nanos(1_000_000_000);
const LIMITS: Limits = Limits {
    per_model: 64,
    queue_max: Some(1000),
    breaker: Settings { failures: 3, open_for: Duration::from_secs(10) },
    wedged_after: Duration::from_secs(300),
};
const TOKENS: Tokens = Tokens { input: 26, output: 298 };

criterion_main!(hot);
criterion_group! {
    name = hot;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(30);
    targets = policy, slots, snapshot, catalog, ledger, tap, ask, read_mostly, lock
}

/// A fleet in which every endpoint serves the one model.
struct Fleet {
    usage: Usage,
    names: Vec<EndpointName>,
    candidates: Vec<Candidate>,
}

impl Fleet {
    fn new(endpoints: usize) -> Self {
        let names: Vec<EndpointName> =
            (0..endpoints).map(|n| EndpointName::from(&*format!("http://10.0.0.{n}:11434"))).collect();
        let slots = Arc::new(Slots::new(LIMITS));
        let model = model();
        let candidate = |(n, endpoint): (usize, EndpointId)| {
            let loaded = n % 2 == 0;
            Candidate { endpoint, model: model.clone(), loaded, stale: n % 3 == 0 }
        };
        let candidates = slots.configure(LIMITS, &names).into_iter().enumerate().map(candidate).collect();
        let usage = Usage::new(slots, Arc::new(Ledger::new(Totals::new(), 0)));
        Fleet { usage, names, candidates }
    }

    /// One request as far as the core sees it.
    fn request(&self, candidates: Vec<Candidate>, dice: u64) {
        let Reservation::Slot(slot) = self.usage.slots().reserve(candidates, NOW, dice) else {
            unreachable!("there are more slots than threads");
        };
        let row = self.row(slot.endpoint());
        self.usage.settle(slot, Verdict::Sound, NOW, Some(row));
    }

    fn row(&self, endpoint: EndpointId) -> Row {
        row(&self.names[endpoint.index()], &self.candidates[0].model)
    }
}

fn model() -> ModelName {
    ModelName::from("llama3:8b")
}

fn row(endpoint: &EndpointName, model: &ModelName) -> Row {
    Row { minute: Minute::new(1), endpoint: endpoint.clone(), model: model.clone(), tokens: TOKENS }
}

fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy::choose");
    for endpoints in [3u32, 30, 300] {
        let standings: Vec<Standing> = (0..endpoints)
            .map(|n| Standing {
                admitted: n % 10 != 9,
                loaded: n % 3 == 0,
                stale: n % 2 == 0,
                in_flight: n % 5,
                total: n % 7,
            })
            .collect();
        let mut dice = 0;
        group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
            b.iter(|| {
                dice += 1;
                choose(black_box(&standings), 4, dice)
            });
        });
    }
}

/// Reserve and settle with tokens, on three candidates.
fn slots(c: &mut Criterion) {
    let mut group = c.benchmark_group("slots reserve+settle");
    let fleet = Fleet::new(3);
    group.bench_function("1 thread", |b| {
        b.iter_batched(
            || fleet.candidates.clone(),
            |candidates| fleet.request(candidates, 7),
            BatchSize::SmallInput,
        );
    });
    for threads in [2u64, 8] {
        group.bench_function(format!("{threads} threads"), |b| {
            b.iter_custom(|iters| {
                shared(threads, iters, |dice| fleet.request(fleet.candidates.clone(), dice))
            });
        });
    }
}

/// Wall time of `iters` operations on so many threads that start together.
fn shared(threads: u64, iters: u64, operation: impl Fn(u64) + Sync) -> Duration {
    let share = iters.div_ceil(threads);
    let start = std::sync::Barrier::new(usize::try_from(threads + 1).expect("a handful of threads"));
    let wall = thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                start.wait();
                (0..share).for_each(&operation);
            });
        }
        start.wait();
        Watch::now()
    })
    .elapsed();
    wall.mul_f64(iters as f64 / (share * threads) as f64)
}

/// A usage snapshot of 30 endpoints and 300 rows of tokens, alone and while another thread's requests write to
/// both; and what the snapshots cost those requests.
fn snapshot(c: &mut Criterion) {
    let mut group = c.benchmark_group("usage snapshot");
    let fleet = Fleet::new(30);
    for n in 0..300usize {
        let model = ModelName::from(&*format!("model-{n}"));
        fleet.usage.ledger().record(row(&fleet.names[n % fleet.names.len()], &model));
    }
    let request = |dice| fleet.request(fleet.candidates.clone(), dice);
    let snapshot = || drop(black_box(fleet.usage.snapshot()));
    group.bench_function("idle", |b| b.iter(snapshot));
    group.bench_function("while requests run", |b| beside(request, || b.iter(snapshot)));
    group.bench_function("request of 30 candidates", |b| b.iter(|| request(7)));
    group.bench_function("request after a snapshot was taken and kept", |b| {
        b.iter_batched(|| fleet.usage.snapshot(), |kept| (request(7), kept), BatchSize::PerIteration);
    });
    group.bench_function("request while snapshots are taken", |b| {
        beside(|_| snapshot(), || b.iter(|| request(7)))
    });
}

/// Runs `foreground` while another thread repeats `background`.
fn beside(background: impl Fn(u64) + Sync, foreground: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| (0u64..).take_while(|_| !stop.load(Relaxed)).for_each(&background));
        foreground();
        stop.store(true, Relaxed);
    });
}

fn catalog(c: &mut Criterion) {
    let cell = Cell::new(Ages::AVAILABLE);
    if let Look::Pending { refresh: Some(refresh), .. } = cell.look(NOW) {
        refresh.settle(NOW, Ok(vec!["llama3:8b".to_owned()]));
    }
    assert!(matches!(cell.look(NOW), Look::Known { refresh: None, .. }));
    c.bench_function("catalog look, hit", |b| b.iter(|| black_box(cell.look(NOW))));
}

fn ledger(c: &mut Criterion) {
    let ledger = Ledger::new(Totals::new(), 0);
    let model = model();
    let rows: Vec<Row> =
        (0..300).map(|n| row(&EndpointName::from(&*format!("http://10.0.0.{n}:11434")), &model)).collect();
    rows.iter().for_each(|row| ledger.record(row.clone()));
    let mut next = rows.iter().cycle();
    c.bench_function("ledger record, 300 rows", |b| {
        b.iter_batched(
            || next.next().expect("a cycle").clone(),
            |row| ledger.record(row),
            BatchSize::SmallInput,
        );
    });
}

/// One token of an OpenAI-style stream, 200 bytes with its blank line.
const SSE: &str = concat!(
    r#"data: {"id":"chatcmpl-7Qq2kX0bV9mA","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o","#,
    r#""choices":[{"index":0,"delta":{"content":" switch"},"logprobs":null,"finish_reason":null}]}"#,
    "\n\n"
);
/// One token of an Ollama stream, 200 bytes with its line end.
const NDJSON: &str = concat!(
    r#"{"model":"llama3:8b-instruct-q4_K_M","created_at":"2026-01-02T03:04:05.678901234Z","#,
    r#""message":{"role":"assistant","content":" switches, and then waits for t","thinking":"","images":null},"done":false}"#,
    "\n"
);

fn tap(c: &mut Criterion) {
    let mut group = c.benchmark_group("tap push");
    for (name, framing, token) in [("SSE", Framing::Sse, SSE), ("NDJSON", Framing::Ndjson, NDJSON)] {
        assert_eq!(token.len(), 200, "{name}");
        for (events, chunk) in [(1, Bytes::from(token)), (64, Bytes::from(token.repeat(64)))] {
            group.throughput(Throughput::Bytes(chunk.len() as u64));
            for (hide, said) in [(false, ""), (true, ", usage hidden")] {
                let mut tap = Tap::new(framing, hide);
                group.bench_function(format!("{name} x{events}{said}"), |b| {
                    b.iter(|| black_box(tap.push(black_box(&chunk).clone())));
                });
            }
        }
    }
}

/// A chat request of 400 bytes.
fn ask(c: &mut Criterion) {
    let head = r#"{"model":"gpt-4o","stream":true,"temperature":0.7,"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":""#;
    let tail = r#""}]}"#;
    let question = "Why do trains need a pointsman? ".repeat(20);
    let body = Bytes::from(format!("{head}{}{tail}", &question[..400 - head.len() - tail.len()]));
    assert_eq!(body.len(), 400);
    let mut group = c.benchmark_group("request body, 400 bytes");
    group.throughput(Throughput::Bytes(400));
    group.bench_function("parse", |b| b.iter(|| Ask::parse(Shape::OpenAiChat, black_box(&body))));
    let ask = Ask::parse(Shape::OpenAiChat, &body).expect("a good body");
    group.bench_function("rewrite, asking for usage", |b| {
        b.iter(|| ask.rewrite(black_box(&body), None, true));
    });
}

/// What every request reads and a reload replaces: a pointer that is copied under the lock, so that nobody
/// reads under it. A read-write lock in its place lets readers in together, for a section that is over
/// before the second arrives; both move the same cache line between cores.
fn read_mostly(c: &mut Criterion) {
    let mut group = c.benchmark_group("read mostly");
    let (ours, shared_lock) = (Lock::new(Rank::Fleet, Arc::new(0u64)), RwLock::new(Arc::new(0u64)));
    let under_lock = |_| drop(black_box(Arc::clone(&ours.lock())));
    let under_rwlock = |_| {
        let held = shared_lock.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        drop(black_box(Arc::clone(&held)));
    };
    for threads in [1u64, 2, 8] {
        group.bench_function(format!("copied under a Lock, {threads} threads"), |b| {
            b.iter_custom(|iters| shared(threads, iters, under_lock));
        });
        group.bench_function(format!("copied under a RwLock, {threads} threads"), |b| {
            b.iter_custom(|iters| shared(threads, iters, under_rwlock));
        });
    }
}

/// The ranked lock next to the std mutex inside it.
fn lock(c: &mut Criterion) {
    let mut group = c.benchmark_group("lock, uncontended");
    let (ours, std) = (Lock::new(Rank::Slots, 0u64), Mutex::new(0u64));
    group.bench_function("core::sync::Lock", |b| b.iter(|| *black_box(&ours).lock() += 1));
    group.bench_function("std::sync::Mutex", |b| {
        b.iter(|| *black_box(&std).lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += 1);
    });
}
