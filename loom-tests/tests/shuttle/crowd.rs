//! The core's components with a crowd around each: what loom explores with three threads, here with
//! five to fourteen tasks.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{Either, select};
use loom_tests::portfolio::Scenario;
use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::rand::{RngCore, thread_rng};

use super::common::{LIMITS, at, check, on, require, row, slot, slots};
use super::core::breaker::Verdict;
use super::core::catalog::{Ages, Cell, Look, Refresh};
use super::core::invariants;
use super::core::ledger::{Batch, Ledger, Totals};
use super::core::names::EndpointId;
use super::core::slots::{Limits, Reservation, Slot, Slots};
use super::core::sync::Arc as CoreArc;
use super::core::usage::Usage;

pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "crowd::slots",
        tasks: 14,
        claim: "twelve requests over three endpoints, some leaving early: no endpoint above its limit, no slot left",
        run: slots_in_a_crowd,
    },
    Scenario {
        name: "crowd::catalog",
        tasks: 11,
        claim: "askers, leavers and invalidations: one fetch at a time, nobody gets what was invalidated before he asked",
        run: catalog_in_a_crowd,
    },
    Scenario {
        name: "crowd::ledger",
        tasks: 11,
        claim: "recorders and flushes over a store that fails and loses answers: every token is stored once",
        run: ledger_in_a_crowd,
    },
    Scenario {
        name: "crowd::usage",
        tasks: 10,
        claim: "requests end while others look: every snapshot is one cut, the last published one is the last",
        run: usage_in_a_crowd,
    },
    Scenario {
        name: "crowd::breaker",
        tasks: 9,
        claim: "eight callers before a half-open breaker: never two probes at once",
        run: breaker_in_a_crowd,
    },
];

/// A number below `n`, from the scheduler's own stream, so that a replay draws the same.
fn dice(n: u64) -> u64 {
    thread_rng().next_u64() % n
}

async fn pause(times: u64) {
    for _ in 0..times {
        yield_now().await;
    }
}

fn join_all<T>(tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    tasks.into_iter().map(|task| block_on(task).expect("nobody aborts it")).collect()
}

/// How many requests each endpoint serves, as the endpoint itself counts them.
#[derive(Default)]
struct Load([AtomicU32; 3]);

impl Load {
    /// Serves one request in `slot`, then gives the slot back one way or the other.
    async fn serve(&self, slot: Slot, (limit, promise): (u32, &str), verdict: Option<Verdict>, now: u64) {
        let load = &self.0[slot.endpoint().index()];
        let serving = load.fetch_add(1, SeqCst) + 1;
        require(serving <= limit, promise, &format!("an endpoint serves {serving} requests at once"));
        pause(dice(3)).await;
        load.fetch_sub(1, SeqCst);
        match verdict {
            Some(verdict) => slot.settle(verdict, at(now)),
            None => drop(slot),
        }
    }
}

fn slots_in_a_crowd() {
    const LIMIT: u32 = 2;
    const AT_MOST: (u32, &str) = (LIMIT, "slot-limit");
    let limits = Limits { per_model: LIMIT, ..LIMITS };
    let (slots, ids) = slots(limits, 3);
    let load = Arc::new(Load::default());
    let request = |slots: CoreArc<Slots>, ids: Vec<EndpointId>, load: Arc<Load>| async move {
        let verdict = (dice(2) == 0).then_some(Verdict::Sound);
        match slots.reserve(on(&ids), at(1), dice(u64::MAX)) {
            Reservation::Slot(slot) => load.serve(slot, AT_MOST, verdict, 2).await,
            Reservation::Queued(mut ticket) => match dice(4) {
                0 => {
                    pause(dice(3)).await;
                    drop(ticket);
                }
                1 => {
                    let patience = pin!(pause(dice(4)));
                    let granted = match select(pin!(ticket.granted()), patience).await {
                        Either::Left((slot, _)) => Some(slot),
                        Either::Right(_) => None,
                    };
                    if let Some(slot) = granted.or_else(|| ticket.leave()) {
                        load.serve(slot, AT_MOST, verdict, 2).await;
                    }
                }
                _ => {
                    let slot = ticket.granted().await;
                    load.serve(slot, AT_MOST, verdict, 2).await;
                }
            },
            Reservation::QueueFull { .. } => {}
            Reservation::Unhealthy { .. } => panic!("every endpoint is healthy"),
        }
    };
    let tasks: Vec<_> =
        (0..12).map(|_| spawn(request(CoreArc::clone(&slots), ids.clone(), Arc::clone(&load)))).collect();
    let watcher = spawn({
        let slots = CoreArc::clone(&slots);
        async move {
            for _ in 0..3 {
                let snapshot = slots.snapshot();
                check(invariants::slots(&snapshot, &limits));
                // Whoever waits here can use any endpoint, and a freed slot is handed on as it is freed.
                let free = snapshot.endpoints.iter().any(|endpoint| endpoint.total < LIMIT);
                require(snapshot.queued == 0 || !free, "answer-ends", "somebody waits while a slot is free");
                yield_now().await;
            }
        }
    });
    join_all(tasks);
    join_all(vec![watcher]);
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &limits));
    check(invariants::idle(&snapshot));
    require(snapshot.handed_over == 0, "slot-conservation", "a slot is handed to nobody");
}

const AGES: Ages = Ages {
    fresh: Duration::from_secs(10),
    expiry: Duration::from_secs(60),
    error_quiet: Duration::from_secs(30),
    error_expiry: Duration::from_secs(300),
};

/// An endpoint whose models change: each answer is the version at the moment it was written.
#[derive(Default)]
struct Listing {
    version: AtomicU32,
    /// The newest version of which the cell has been told to forget what came before.
    told: AtomicU32,
    fetching: AtomicU32,
}

impl Listing {
    async fn fetch(self: Arc<Self>, refresh: Refresh<u32>) {
        let others = self.fetching.fetch_add(1, SeqCst);
        require(others == 0, "catalog-single-flight", "two fetches are in the air at once");
        let answer = self.version.load(SeqCst);
        let superseded = {
            let way_back = pin!(pause(1 + dice(3)));
            matches!(select(way_back, pin!(refresh.superseded())).await, Either::Right(_))
        };
        self.fetching.fetch_sub(1, SeqCst);
        match (superseded, dice(4)) {
            (false, 1..) => drop(refresh.settle(at(1), Ok(answer))),
            // Given up: told to, or cancelled with its runtime.
            _ => drop(refresh),
        }
    }
}

async fn ask(cell: Cell<u32>, listing: Arc<Listing>) -> u32 {
    loop {
        match cell.look(at(1)) {
            Look::Known { value, .. } => return *value,
            Look::Failed { reason, .. } => panic!("nobody failed, but: {reason}"),
            Look::Pending { wait, refresh } => {
                if let Some(refresh) = refresh {
                    drop(spawn(Arc::clone(&listing).fetch(refresh)));
                }
                wait.ended().await;
            }
        }
    }
}

fn catalog_in_a_crowd() {
    let (cell, listing) = (Cell::new(AGES), Arc::new(Listing::default()));
    let mut tasks: Vec<_> = (0..6)
        .map(|_| {
            let (cell, listing) = (cell.clone(), Arc::clone(&listing));
            spawn(async move {
                pause(dice(3)).await;
                let told = listing.told.load(SeqCst);
                let got = ask(cell, listing).await;
                require(got >= told, "catalog-age", &format!("got version {got} after {told} was announced"));
            })
        })
        .collect();
    tasks.extend((0..2).map(|_| {
        let (cell, listing) = (cell.clone(), Arc::clone(&listing));
        spawn(async move {
            let patience = pin!(pause(dice(3)));
            // Leaves without an answer as often as not.
            drop(select(pin!(ask(cell, listing)), patience).await);
        })
    }));
    tasks.extend((0..2).map(|_| {
        let (cell, listing) = (cell.clone(), Arc::clone(&listing));
        spawn(async move {
            pause(dice(3)).await;
            let version = listing.version.fetch_add(1, SeqCst) + 1;
            cell.invalidate();
            listing.told.fetch_max(version, SeqCst);
        })
    }));
    join_all(tasks);
}

/// A store that may fail before it writes, or after, which looks the same from outside.
#[derive(Default)]
struct Store(Mutex<BTreeMap<u64, u64>>);

impl Store {
    async fn write(&self, batch: &Batch) -> Result<(), ()> {
        yield_now().await;
        let luck = dice(4);
        if luck != 0 {
            let tokens = batch.rows.iter().map(|row| row.tokens.output).sum();
            self.0.lock().expect("not poisoned").entry(batch.number).or_insert(tokens);
        }
        yield_now().await;
        if luck > 1 { Ok(()) } else { Err(()) }
    }

    fn tokens(&self) -> u64 {
        self.0.lock().expect("not poisoned").values().sum()
    }
}

fn ledger_in_a_crowd() {
    let (ledger, store) = (CoreArc::new(Ledger::new(Totals::new(), 0)), Arc::new(Store::default()));
    let mut tasks: Vec<_> = (0..6)
        .map(|task| {
            let ledger = CoreArc::clone(&ledger);
            spawn(async move {
                ledger.record(row(task % 2, 10));
                yield_now().await;
                ledger.record(row(1, 1));
            })
        })
        .collect();
    tasks.extend((0..3).map(|_| {
        let (ledger, store) = (CoreArc::clone(&ledger), Arc::clone(&store));
        spawn(async move {
            for _ in 0..2 {
                if let Some(flush) = ledger.take()
                    && store.write(flush.batch()).await.is_ok()
                {
                    flush.durable();
                }
                yield_now().await;
            }
        })
    }));
    tasks.push(spawn({
        let ledger = CoreArc::clone(&ledger);
        async move {
            for _ in 0..4 {
                check(invariants::ledger(&ledger.balance()));
                yield_now().await;
            }
        }
    }));
    join_all(tasks);
    block_on(async {
        while let Some(flush) = ledger.take() {
            if store.write(flush.batch()).await.is_ok() {
                flush.durable();
            }
        }
    });
    let balance = ledger.balance();
    check(invariants::ledger(&balance));
    let tokens = store.tokens();
    require(
        balance.waiting.total() == 0 && balance.stored.output == 66 && tokens == 66,
        "token-conservation",
        &format!("66 tokens recorded, the store has {tokens}, {balance:?}"),
    );
}

fn usage_in_a_crowd() {
    const REQUESTS: u32 = 6;
    let limits = Limits { per_model: REQUESTS, ..LIMITS };
    let (slots, ids) = slots(limits, 1);
    let held: Vec<Slot> = (0..REQUESTS).map(|_| slot(slots.reserve(on(&ids), at(1), 0))).collect();
    let usage = Usage::new(slots, CoreArc::new(Ledger::new(Totals::new(), 0)));
    let see = move |usage: &Usage| {
        let snapshot = usage.snapshot();
        check(invariants::slots(&snapshot.slots, &limits));
        let in_flight: u32 = snapshot.slots.endpoints.iter().map(|endpoint| endpoint.total).sum();
        let tokens: u64 = snapshot.tokens.values().map(|tokens| tokens.output).sum();
        let whole = u64::from(in_flight) * 10 + tokens == u64::from(REQUESTS) * 10;
        require(whole, "snapshot-whole", &format!("{in_flight} in flight together with {tokens} tokens"));
        in_flight
    };
    let mut tasks: Vec<_> = held
        .into_iter()
        .map(|request| {
            let usage = usage.clone();
            spawn(async move {
                pause(dice(3)).await;
                usage.settle(request, Verdict::Sound, at(2), Some(row(1, 10)));
            })
        })
        .collect();
    tasks.extend((0..2).map(|_| {
        let usage = usage.clone();
        spawn(async move {
            for _ in 0..3 {
                see(&usage);
                yield_now().await;
            }
        })
    }));
    // The publisher, which ends only by having seen the last change; then the last flush.
    tasks.push(spawn({
        let usage = usage.clone();
        async move {
            loop {
                let changed = usage.changed();
                if see(&usage) == 0 {
                    break;
                }
                changed.await;
            }
            while let Some(flush) = usage.ledger().take() {
                flush.durable();
            }
            let stored = usage.ledger().balance().stored.output;
            require(
                stored == 60,
                "token-conservation",
                &format!("60 tokens, the last flush stored {stored}"),
            );
        }
    }));
    join_all(tasks);
}

fn breaker_in_a_crowd() {
    let limits = Limits { per_model: 8, queue_max: Some(0), ..LIMITS };
    let (slots, ids) = slots(limits, 1);
    for _ in 0..2 {
        slot(slots.reserve(on(&ids), at(1), 0)).settle(Verdict::Faulty, at(1));
    }
    let (load, now) = (Arc::new(Load::default()), Arc::new(AtomicU64::new(11)));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (slots, ids) = (CoreArc::clone(&slots), ids.clone());
            let (load, now) = (Arc::clone(&load), Arc::clone(&now));
            spawn(async move {
                pause(dice(3)).await;
                let began = now.load(SeqCst);
                if let Reservation::Slot(slot) = slots.reserve(on(&ids), at(began), 0) {
                    // Nobody answers well, so the breaker never closes and every one of these is a probe.
                    let verdict = (dice(2) == 0).then_some(Verdict::Faulty);
                    let ends = began + dice(2) * 11;
                    load.serve(slot, (1, "breaker-honest"), verdict, ends).await;
                    now.fetch_max(ends + 11, SeqCst);
                }
            })
        })
        .collect();
    join_all(tasks);
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &limits));
    check(invariants::idle(&snapshot));
}
