//! Token counts on their way to the store: recorded is stored plus waiting, at every instant.

use std::collections::BTreeMap;

use loom::sync::Mutex;
use loom::thread;
use loom_tests::explore::Model;

use super::common::{check, require, row};
use super::core::invariants;
use super::core::ledger::{Batch, Flush, Ledger, Totals};
use super::core::sync::Arc;

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "ledger::record_vs_take",
        bound: None,
        claim: "a row recorded while a batch is taken is in this batch or in the next",
        run: record_vs_take,
    },
    Model {
        name: "ledger::record_take_fail_stop",
        bound: None,
        claim: "records, a flush that fails and the last flush store every row once",
        run: record_take_fail_stop,
    },
    Model {
        name: "ledger::flushed_twice_at_once",
        bound: None,
        claim: "two flushes at once never hold, store or settle the same batch",
        run: flushed_twice_at_once,
    },
    Model {
        name: "ledger::lost_answer",
        bound: None,
        claim: "a batch that was stored without our learning of it comes again under its number and counts once",
        run: lost_answer,
    },
    Model {
        name: "ledger::balance_at_every_instant",
        bound: None,
        claim: "whoever looks at the books sees them balanced, whatever is under way",
        run: balance_at_every_instant,
    },
];

fn ledger() -> Arc<Ledger> {
    Arc::new(Ledger::new(Totals::new(), 0))
}

/// A store as `flow::flush` writes to one: it counts a batch number once.
#[derive(Clone)]
struct Store(std::sync::Arc<Mutex<BTreeMap<u64, u64>>>);

impl Store {
    fn new() -> Self {
        Store(std::sync::Arc::new(Mutex::new(BTreeMap::new())))
    }

    fn write(&self, batch: &Batch) {
        let tokens = batch.rows.iter().map(|row| row.tokens.output).sum();
        self.0.lock().unwrap().entry(batch.number).or_insert(tokens);
    }

    fn tokens(&self) -> u64 {
        self.0.lock().unwrap().values().sum()
    }
}

fn store(store: &Store, flush: Flush) {
    store.write(flush.batch());
    flush.durable();
}

fn store_all(ledger: &Arc<Ledger>, into: &Store) {
    while let Some(flush) = ledger.take() {
        store(into, flush);
    }
}

/// At the end of the story: nothing waits, and the store has exactly what was recorded.
fn settled(ledger: &Ledger, store: &Store, recorded: u64) {
    let balance = ledger.balance();
    check(invariants::ledger(&balance));
    require(balance.waiting.total() == 0, "token-conservation", "rows still wait after the last flush");
    require(balance.stored.output == recorded, "token-conservation", "the books have lost rows");
    let tokens = store.tokens();
    require(
        tokens == recorded,
        "token-conservation",
        &format!("{recorded} tokens recorded, the store has counted {tokens}"),
    );
}

fn record_vs_take() {
    let (ledger, into) = (ledger(), Store::new());
    ledger.record(row(1, 10));
    let records = [100, 1_000].map(|tokens| {
        let ledger = Arc::clone(&ledger);
        thread::spawn(move || ledger.record(row(1, tokens)))
    });
    store(&into, ledger.take().expect("a row waits"));
    for thread in records {
        thread.join().unwrap();
    }
    store_all(&ledger, &into);
    settled(&ledger, &into, 1_110);
}

fn record_take_fail_stop() {
    let (ledger, into) = (ledger(), Store::new());
    let records = [10, 100].map(|tokens| {
        let ledger = Arc::clone(&ledger);
        thread::spawn(move || ledger.record(row(1, tokens)))
    });
    // The store is down: whatever was taken is put back.
    drop(ledger.take());
    check(invariants::ledger(&ledger.balance()));
    for thread in records {
        thread.join().unwrap();
    }
    store_all(&ledger, &into);
    settled(&ledger, &into, 110);
}

fn flushed_twice_at_once() {
    let (ledger, into) = (ledger(), Store::new());
    ledger.record(row(1, 10));
    let flush = |ledger: &Arc<Ledger>, into: &Store| {
        if let Some(flush) = ledger.take() {
            store(into, flush);
        }
    };
    let other = thread::spawn({
        let (ledger, into) = (Arc::clone(&ledger), into.clone());
        move || flush(&ledger, &into)
    });
    let records = thread::spawn({
        let ledger = Arc::clone(&ledger);
        move || ledger.record(row(2, 100))
    });
    flush(&ledger, &into);
    other.join().unwrap();
    records.join().unwrap();
    store_all(&ledger, &into);
    settled(&ledger, &into, 110);
}

fn lost_answer() {
    let (ledger, into) = (ledger(), Store::new());
    ledger.record(row(1, 10));
    let records = thread::spawn({
        let ledger = Arc::clone(&ledger);
        move || ledger.record(row(1, 100))
    });
    let flush = ledger.take().expect("a row waits");
    into.write(flush.batch());
    // The store has it, but its answer does not reach us.
    drop(flush);
    records.join().unwrap();
    store_all(&ledger, &into);
    settled(&ledger, &into, 110);
}

fn balance_at_every_instant() {
    let ledger = ledger();
    ledger.record(row(1, 10));
    let records = thread::spawn({
        let ledger = Arc::clone(&ledger);
        move || ledger.record(row(2, 100))
    });
    let flushes = thread::spawn({
        let ledger = Arc::clone(&ledger);
        move || ledger.take().expect("a row waits").durable()
    });
    check(invariants::ledger(&ledger.balance()));
    records.join().unwrap();
    flushes.join().unwrap();
    let balance = ledger.balance();
    check(invariants::ledger(&balance));
    require(balance.recorded.output == 110, "token-conservation", "a row was not counted");
}
