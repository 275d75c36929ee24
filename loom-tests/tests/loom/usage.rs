//! Slots and tokens together: a request ends in one step, and a snapshot sees the whole of it or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use loom::future::block_on;
use loom::thread;
use loom_tests::explore::{Model, Variant};

use super::common::{LIMITS, at, check, on, require, row, slot, slots};
use super::core::breaker::Verdict;
use super::core::invariants;
use super::core::ledger::{Ledger, Totals};
use super::core::slots::Slot;
use super::core::usage::{Snapshot, Usage};

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "usage::one_cut",
        bound: None,
        claim: "no snapshot shows a request gone whose tokens are not there, or tokens of one still in flight",
        run: one_cut,
    },
    Model {
        name: "usage::last_published_is_last",
        bound: Some(3),
        claim: "a publisher that follows the changes ends with the state in which all ended",
        run: last_published_is_last,
    },
    Model {
        name: "usage::snapshot_vs_reserve",
        bound: None,
        claim: "a snapshot taken during a reservation adds up, and keeps its moment afterwards",
        run: snapshot_vs_reserve,
    },
    Model {
        name: "usage::minute_of_the_end",
        bound: None,
        claim: "a row's minute is the one in which its request ended, however long the lock is waited for",
        run: || minute_of_the_end(settle_as_the_router_does),
    },
];

pub(crate) const VARIANTS: &[Variant] = &[Variant {
    id: "timestamp-under-contended-lock",
    of: "usage::minute_of_the_end",
    promise: "token-minute",
    origin: "seed router, race_condition_fixes.md, section 2",
    run: || minute_of_the_end(settle_and_then_look_at_the_clock),
}];

fn usage(requests: usize) -> (Usage, Vec<Slot>) {
    let (slots, ids) = slots(LIMITS, requests);
    let held = (0..requests).map(|_| slot(slots.reserve(on(&ids), at(1), 0))).collect();
    (Usage::new(slots, super::core::sync::Arc::new(Ledger::new(Totals::new(), 0))), held)
}

fn in_flight(snapshot: &Snapshot) -> u32 {
    snapshot.slots.endpoints.iter().map(|endpoint| endpoint.total).sum()
}

fn tokens(snapshot: &Snapshot) -> u64 {
    snapshot.tokens.values().map(|tokens| tokens.output).sum()
}

fn one_cut() {
    let (usage, held) = usage(2);
    let ends: Vec<_> = held
        .into_iter()
        .map(|request| {
            let usage = usage.clone();
            thread::spawn(move || usage.settle(request, Verdict::Sound, at(2), Some(row(1, 5))))
        })
        .collect();
    let seen = usage.snapshot();
    check(invariants::slots(&seen.slots, &LIMITS));
    let whole = u64::from(in_flight(&seen)) * 5 + tokens(&seen) == 10;
    let why = format!("{} in flight together with {} tokens", in_flight(&seen), tokens(&seen));
    require(whole, "snapshot-whole", &why);
    for thread in ends {
        thread.join().unwrap();
    }
    let last = usage.snapshot();
    require((in_flight(&last), tokens(&last)) == (0, 10), "snapshot-whole", "the end was not seen");
}

fn last_published_is_last() {
    let (usage, held) = usage(2);
    let ends: Vec<_> = held
        .into_iter()
        .map(|request| {
            let usage = usage.clone();
            thread::spawn(move || usage.settle(request, Verdict::Sound, at(2), Some(row(1, 10))))
        })
        .collect();
    // Ends only by having seen the last state; asleep for ever if its change was announced too early.
    let published = loop {
        let changed = usage.changed();
        let snapshot = usage.snapshot();
        if in_flight(&snapshot) == 0 {
            break snapshot;
        }
        block_on(changed);
    };
    require(tokens(&published) == 20, "snapshot-whole", "the last snapshot lacks tokens");
    for thread in ends {
        thread.join().unwrap();
    }
}

fn snapshot_vs_reserve() {
    let (usage, mut held) = usage(1);
    let before = usage.snapshot();
    let request = held.pop().expect("one request");
    let endpoint = request.endpoint();
    let other = thread::spawn({
        let usage = usage.clone();
        move || {
            request.settle(Verdict::Sound, at(2));
            slot(usage.slots().reserve(on(&[endpoint]), at(2), 0))
        }
    });
    let during = usage.snapshot();
    check(invariants::slots(&during.slots, &LIMITS));
    let (admitted, seen) = (during.slots.admitted, in_flight(&during));
    drop(other.join().unwrap());
    require(in_flight(&during) == seen && during.slots.admitted == admitted, "snapshot-whole", "it moved on");
    require(in_flight(&before) == 1, "snapshot-whole", "a snapshot of earlier shows what came later");
}

/// The minute on the wall.
#[derive(Clone)]
struct Wall(Arc<AtomicU64>);

impl Wall {
    fn minute(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// As `flow::answer` ends a request: the clock is read first, then the lock is taken.
fn settle_as_the_router_does(usage: &Usage, request: Slot, wall: &Wall) {
    let ended = wall.minute();
    usage.settle(request, Verdict::Sound, at(2), Some(row(ended, 10)));
}

/// As the seed router did before its mending: first through the lock, then to the clock.
fn settle_and_then_look_at_the_clock(usage: &Usage, request: Slot, wall: &Wall) {
    request.settle(Verdict::Sound, at(2));
    usage.ledger().record(row(wall.minute(), 10));
}

/// A request ends in minute 7, while somebody else holds the lock and the minute passes.
fn minute_of_the_end(settle: fn(&Usage, Slot, &Wall)) {
    let (usage, mut held) = usage(1);
    let wall = Wall(Arc::new(AtomicU64::new(7)));
    let request = held.pop().expect("one request");
    let passes = thread::spawn({
        let (usage, wall) = (usage.clone(), wall.clone());
        move || {
            drop(usage.snapshot());
            wall.0.store(8, SeqCst);
        }
    });
    // Both stand before the lock now; no switch of threads lies between the end and this line.
    let ended = wall.minute();
    settle(&usage, request, &wall);
    passes.join().unwrap();
    let flush = usage.ledger().take().expect("a row waits");
    let minute = flush.batch().rows[0].minute.number();
    require(
        minute == ended,
        "token-minute",
        &format!("it ended in minute {ended} and was counted in {minute}"),
    );
    flush.durable();
}
