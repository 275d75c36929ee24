//! Slots without a queue: choosing, reserving and giving back, from several threads at once.

use loom::thread;
use loom_tests::explore::Model;

use super::common::{LIMITS, at, check, names, on, require, slot, slots};
use super::core::breaker::Verdict;
use super::core::invariants;
use super::core::slots::{Limits, Reservation};
use super::core::sync::Arc;

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "slots::last_slot",
        bound: None,
        claim: "of three requests that see one free slot, one gets it and the others are told the queue is full",
        run: last_slot,
    },
    Model {
        name: "slots::two_endpoints",
        bound: None,
        claim: "two requests with two endpoints to choose from never meet on one of them",
        run: two_endpoints,
    },
    Model {
        name: "slots::reserve_release_cancel",
        bound: None,
        claim: "a reservation, a release and a cancellation at the same time leave every count right",
        run: reserve_release_cancel,
    },
    Model {
        name: "slots::reload_vs_release",
        bound: None,
        claim: "a reload that drops or keeps an endpoint loses none of its requests in flight",
        run: reload_vs_release,
    },
];

const NO_QUEUE: Limits = Limits { queue_max: Some(0), ..LIMITS };

fn last_slot() {
    let (slots, ids) = slots(NO_QUEUE, 1);
    let reserve = move |slots: &Arc<_>| {
        let reserved: Reservation = super::core::slots::Slots::reserve(slots, on(&ids), at(1), 0);
        match reserved {
            Reservation::Slot(slot) => Some(slot),
            Reservation::QueueFull { .. } => None,
            other => panic!("neither a slot nor a full queue: {other:?}"),
        }
    };
    let others = [(); 2].map(|()| {
        let (slots, reserve) = (Arc::clone(&slots), reserve.clone());
        thread::spawn(move || reserve(&slots))
    });
    let mut got = vec![reserve(&slots)];
    got.extend(others.map(|other| other.join().unwrap()));
    check(invariants::slots(&slots.snapshot(), &NO_QUEUE));
    let slots_given = got.iter().flatten().count();
    require(slots_given == 1, "slot-limit", &format!("one slot was free, {slots_given} requests got it"));
    drop(got);
    check(invariants::idle(&slots.snapshot()));
}

fn two_endpoints() {
    let (slots, ids) = slots(NO_QUEUE, 2);
    let other = thread::spawn({
        let (slots, ids) = (Arc::clone(&slots), ids.clone());
        move || slot(slots.reserve(on(&ids), at(1), 0))
    });
    let mine = slot(slots.reserve(on(&ids), at(1), 0));
    let theirs = other.join().unwrap();
    require(mine.endpoint() != theirs.endpoint(), "slot-limit", "both requests were sent to one endpoint");
    check(invariants::slots(&slots.snapshot(), &NO_QUEUE));
}

fn reserve_release_cancel() {
    let limits = Limits { per_model: 2, ..NO_QUEUE };
    let (slots, ids) = slots(limits, 1);
    let released = slot(slots.reserve(on(&ids), at(1), 0));
    let cancelled = slot(slots.reserve(on(&ids), at(1), 0));
    let release = thread::spawn(move || released.settle(Verdict::Sound, at(2)));
    let cancel = thread::spawn(move || drop(cancelled));
    let reserved = slots.reserve(on(&ids), at(2), 0);
    check(invariants::slots(&slots.snapshot(), &limits));
    drop(reserved);
    release.join().unwrap();
    cancel.join().unwrap();
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &limits));
    check(invariants::idle(&snapshot));
}

fn reload_vs_release() {
    let limits = Limits { per_model: 2, ..NO_QUEUE };
    let (slots, ids) = slots(limits, 2);
    let running = slot(slots.reserve(on(&ids[..1]), at(1), 0));
    let reload = thread::spawn({
        let slots = Arc::clone(&slots);
        move || {
            drop(slots.configure(limits, &names(2)[1..]));
            slots.configure(limits, &names(2))
        }
    });
    running.settle(Verdict::Sound, at(2));
    let again = reload.join().unwrap();
    require(again == ids, "slot-conservation", "an endpoint came back under another number");
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &limits));
    check(invariants::idle(&snapshot));
}
