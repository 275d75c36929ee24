//! What an endpoint said about itself: one fetch at a time, nothing older over anything newer, an error
//! in one concern never in the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use loom::future::block_on;
use loom::thread;
use loom_tests::explore::{Model, Variant};

use super::common::{at, require};
use super::core::catalog::{Ages, Cell, Look, Refresh, Wait};

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "catalog::stampede",
        bound: None,
        claim: "of two who find the cell empty one fetches, and both end with its answer",
        run: stampede,
    },
    Model {
        name: "catalog::waiter_leaves",
        bound: None,
        claim: "a waiter that leaves neither ends the fetch nor starts a second one",
        run: waiter_leaves,
    },
    Model {
        name: "catalog::late_fetch_vs_invalidation",
        bound: None,
        claim: "an answer that was under way when the cell was invalidated is not believed",
        run: late_fetch_vs_invalidation,
    },
    Model {
        name: "catalog::old_fetch_vs_new",
        bound: None,
        claim: "a slow fetch from before an invalidation neither overwrites the newer one nor flies beside it",
        run: old_fetch_vs_new,
    },
    Model {
        name: "catalog::abandoned_refresh",
        bound: None,
        claim: "a fetch that is dropped wakes who waits for it, and that one may fetch itself",
        run: abandoned_refresh,
    },
    Model {
        name: "catalog::error_keeps_value",
        bound: None,
        claim: "a failed refresh leaves the value in place for whoever reads it meanwhile",
        run: error_keeps_value,
    },
    Model {
        name: "catalog::concerns_apart",
        bound: None,
        claim: "an error about what is loaded is never answered to who asks what is available",
        run: || concerns_apart([Cell::new(AGES), Cell::new(AGES)]),
    },
    Model {
        name: "catalog::superseded_fetch_ends",
        bound: None,
        claim: "a fetch learns of an invalidation that comes at any moment, and gives up",
        run: superseded_fetch_ends,
    },
];

pub(crate) const VARIANTS: &[Variant] = &[Variant {
    id: "shared-error-cache",
    of: "catalog::concerns_apart",
    promise: "catalog-isolation",
    origin: "seed router, race_condition_fixes.md, section 1: one _error_cache for both listings",
    run: || {
        let both = Cell::new(AGES);
        concerns_apart([both.clone(), both]);
    },
}];

const AGES: Ages = Ages {
    fresh: Duration::from_secs(10),
    expiry: Duration::from_secs(60),
    error_quiet: Duration::from_secs(30),
    error_expiry: Duration::from_secs(300),
};

/// How many fetches are in the air, counted by the backend and not by the cell.
#[derive(Clone, Default)]
struct Backend(Arc<AtomicU32>);

impl Backend {
    /// One fetch, with a moment in the middle at which others may run.
    fn fetch(&self, refresh: Refresh<u32>, now: u64, value: u32) {
        require(
            self.0.fetch_add(1, SeqCst) == 0,
            "catalog-single-flight",
            "two fetches are in the air at once",
        );
        thread::yield_now();
        self.0.fetch_sub(1, SeqCst);
        refresh.settle(at(now), Ok(value));
    }
}

fn pending(cell: &Cell<u32>, now: u64) -> (Wait<u32>, Option<Refresh<u32>>) {
    match cell.look(at(now)) {
        Look::Pending { wait, refresh } => (wait, refresh),
        other => panic!("nothing is known yet, but: {other:?}"),
    }
}

fn permit(cell: &Cell<u32>, now: u64) -> Refresh<u32> {
    match cell.look(at(now)) {
        Look::Known { refresh, .. } | Look::Failed { refresh, .. } | Look::Pending { refresh, .. } => {
            refresh.expect("nobody fetches yet")
        }
    }
}

/// A caller as `flow::refresh` is one, except that it runs a fetch it owes itself.
fn ask(cell: &Cell<u32>, backend: &Backend, now: u64, value: u32) -> u32 {
    loop {
        match cell.look(at(now)) {
            Look::Known { value, .. } => return *value,
            Look::Failed { reason, .. } => panic!("nobody failed, but: {reason}"),
            Look::Pending { wait, refresh } => {
                if let Some(refresh) = refresh {
                    backend.fetch(refresh, now, value);
                }
                block_on(wait.ended());
            }
        }
    }
}

fn stampede() {
    let (cell, backend) = (Cell::new(AGES), Backend::default());
    let other = thread::spawn({
        let (cell, backend) = (cell.clone(), backend.clone());
        move || ask(&cell, &backend, 1, 7)
    });
    let mine = ask(&cell, &backend, 1, 7);
    require(mine == 7 && other.join().unwrap() == 7, "catalog-single-flight", "an answer got lost");
}

fn waiter_leaves() {
    let (cell, backend) = (Cell::new(AGES), Backend::default());
    let flight = permit(&cell, 1);
    let (leaving, _) = pending(&cell, 1);
    let fetches = thread::spawn({
        let backend = backend.clone();
        move || backend.fetch(flight, 1, 7)
    });
    let leaves = thread::spawn(move || drop(leaving));
    let got = ask(&cell, &backend, 1, 8);
    require(got == 7, "catalog-single-flight", "the fetch under way was given up");
    leaves.join().unwrap();
    fetches.join().unwrap();
}

fn late_fetch_vs_invalidation() {
    let cell = Cell::new(AGES);
    let late = permit(&cell, 1);
    let lands = thread::spawn(move || late.settle(at(2), Ok(1)));
    cell.invalidate();
    lands.join().unwrap();
    require(cell.peek(at(2)).is_none(), "catalog-age", "what was fetched before the invalidation is served");
}

fn old_fetch_vs_new() {
    let (cell, backend) = (Cell::new(AGES), Backend::default());
    let old = permit(&cell, 1);
    let slow = thread::spawn({
        let backend = backend.clone();
        move || backend.fetch(old, 2, 1)
    });
    cell.invalidate();
    let got = ask(&cell, &backend, 2, 2);
    slow.join().unwrap();
    require(got == 2, "catalog-age", "who asked after the invalidation got what was fetched before");
    require(
        cell.peek(at(2)).as_deref() == Some(&2),
        "catalog-age",
        "the older fetch overwrote the newer one",
    );
}

fn abandoned_refresh() {
    let (cell, backend) = (Cell::new(AGES), Backend::default());
    let abandoned = permit(&cell, 1);
    let drops = thread::spawn(move || drop(abandoned));
    let got = ask(&cell, &backend, 1, 7);
    drops.join().unwrap();
    require(got == 7, "catalog-single-flight", "nobody fetched");
}

fn error_keeps_value() {
    let cell = Cell::new(AGES);
    permit(&cell, 0).settle(at(0), Ok(7));
    let behind = permit(&cell, 11);
    let fails = thread::spawn(move || behind.settle(at(12), Err("refused".into())));
    let look = cell.look(at(12));
    require(
        matches!(&look, Look::Known { value, .. } if **value == 7),
        "catalog-isolation",
        "a failed refresh took away a value that has not expired",
    );
    drop(look);
    fails.join().unwrap();
    require(cell.peek(at(12)).is_some(), "catalog-isolation", "a failed refresh took the value with it");
}

/// One endpoint's two cells, as the fleet makes them: [available, loaded].
fn concerns_apart([available, loaded]: [Cell<u32>; 2]) {
    let failing = permit(&loaded, 1);
    let fails = thread::spawn(move || failing.settle(at(1), Err("/api/ps answered 500".into())));
    let look = available.look(at(1));
    require(
        !matches!(look, Look::Failed { .. }),
        "catalog-isolation",
        "who asks for the models available is told why the loaded ones are unknown",
    );
    if let Look::Pending { refresh: Some(refresh), .. } = look {
        refresh.settle(at(1), Ok(7));
    }
    let about_loaded = loaded.look(at(1));
    require(
        !matches!(about_loaded, Look::Known { .. }),
        "catalog-isolation",
        "the answer of one is given for the other",
    );
    drop(about_loaded);
    fails.join().unwrap();
    require(
        loaded.error(at(1)).is_some(),
        "catalog-isolation",
        "one concern's answer took the other's error away",
    );
    require(available.error(at(1)).is_none(), "catalog-isolation", "the other concern's error stayed");
    require(available.peek(at(1)).is_some(), "catalog-isolation", "the other concern's error hid the answer");
}

fn superseded_fetch_ends() {
    let cell = Cell::<u32>::new(AGES);
    let old = permit(&cell, 1);
    let fetching = thread::spawn(move || block_on(old.superseded()));
    cell.invalidate();
    fetching.join().unwrap();
    require(cell.peek(at(1)).is_none(), "catalog-age", "a superseded fetch stored something");
}
