//! Slots and ledger at shutdown: the last flush comes after the last request has ended, and misses none.

use loom::future::block_on;
use loom::thread;
use loom_tests::explore::Model;

use super::common::{LIMITS, at, check, on, require, row, slot, slots};
use super::core::breaker::Verdict;
use super::core::invariants;
use super::core::ledger::{Ledger, Totals};
use super::core::sync::Arc;
use super::core::usage::Usage;

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "shutdown::last_flush",
        bound: None,
        claim: "a flush that starts when no request is in flight any more stores the last one's tokens",
        run: last_flush,
    },
    Model {
        name: "shutdown::flusher_is_cancelled",
        bound: Some(3),
        claim: "a periodic flush cut off in the middle puts its batch back for the last flush",
        run: flusher_is_cancelled,
    },
];

fn usage() -> Usage {
    let (slots, _) = slots(LIMITS, 1);
    Usage::new(slots, Arc::new(Ledger::new(Totals::new(), 0)))
}

fn last_flush() {
    let usage = usage();
    let ids = usage.slots().configure(LIMITS, &super::common::names(1));
    let request = slot(usage.slots().reserve(on(&ids), at(1), 0));
    let ends = thread::spawn({
        let usage = usage.clone();
        move || usage.settle(request, Verdict::Sound, at(2), Some(row(1, 10)))
    });
    drain(&usage);
    let flush = usage.ledger().take();
    require(flush.is_some(), "token-conservation", "the last flush came before the last row");
    flush.into_iter().for_each(|flush| flush.durable());
    stored(&usage, 10);
    ends.join().unwrap();
}

fn flusher_is_cancelled() {
    let usage = usage();
    let ids = usage.slots().configure(LIMITS, &super::common::names(1));
    usage.ledger().record(row(1, 5));
    let request = slot(usage.slots().reserve(on(&ids), at(1), 0));
    let ends = thread::spawn({
        let usage = usage.clone();
        move || usage.settle(request, Verdict::Sound, at(2), Some(row(1, 10)))
    });
    let flusher = thread::spawn({
        let usage = usage.clone();
        move || drop(usage.ledger().take())
    });
    drain(&usage);
    // The instance waits for the end of a task that it aborts.
    flusher.join().unwrap();
    while let Some(flush) = usage.ledger().take() {
        flush.durable();
    }
    stored(&usage, 15);
    ends.join().unwrap();
}

/// Waits until no request is in flight.
fn drain(usage: &Usage) {
    loop {
        let changed = usage.changed();
        if invariants::idle(&usage.snapshot().slots).is_ok() {
            return;
        }
        block_on(changed);
    }
}

/// The process ends here: whatever is not stored now is lost.
fn stored(usage: &Usage, tokens: u64) {
    let balance = usage.ledger().balance();
    check(invariants::ledger(&balance));
    require(balance.stored.output == tokens, "token-conservation", "a graceful stop has lost tokens");
}
