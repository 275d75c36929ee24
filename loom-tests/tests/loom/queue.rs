//! The queue: a freed slot is handed to who waits, whatever that one is doing at the moment.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use loom::future::block_on;
use loom::thread;
use loom_tests::explore::Model;

use super::common::{LIMITS, at, check, on, require, slot, slots, ticket};
use super::core::breaker::Verdict;
use super::core::invariants;
use super::core::slots::{Limits, Reservation};

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "queue::waiter_wakes",
        bound: None,
        claim: "who waits for a slot wakes when it is freed, however close the two come",
        run: waiter_wakes,
    },
    Model {
        name: "queue::freed_vs_timeout",
        bound: None,
        claim: "a slot freed in the moment in which the waiter gives up is neither lost nor leaked",
        run: freed_vs_timeout,
    },
    Model {
        name: "queue::leaver_passes_it_on",
        bound: None,
        claim: "a slot handed to a waiter that leaves goes on to the next in the queue",
        run: leaver_passes_it_on,
    },
    Model {
        name: "queue::newcomer_waits_behind",
        bound: None,
        claim: "a newcomer never gets the slot that was freed for one who waits",
        run: newcomer_waits_behind,
    },
    Model {
        name: "queue::two_freed_two_wait",
        bound: Some(3),
        claim: "two slots freed at once reach two waiters, one each",
        run: two_freed_two_wait,
    },
    Model {
        name: "queue::first_goes_elsewhere",
        bound: None,
        claim: "a freed slot that the first in the queue does not take, being better off elsewhere, is the next one's",
        run: first_goes_elsewhere,
    },
];

fn waiter_wakes() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(1), 0));
    let mut waiting = ticket(slots.reserve(on(&ids), at(1), 0));
    let waiter = thread::spawn(move || drop(block_on(waiting.granted())));
    held.settle(Verdict::Sound, at(2));
    waiter.join().unwrap();
    check(invariants::idle(&slots.snapshot()));
}

fn freed_vs_timeout() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(1), 0));
    let mut waiting = ticket(slots.reserve(on(&ids), at(1), 0));
    let waiter = thread::spawn(move || {
        // One poll of the wait, then its timer rings.
        let mut context = Context::from_waker(Waker::noop());
        let granted = pin!(waiting.granted()).poll(&mut context).is_ready();
        if !granted {
            drop(waiting.leave());
        }
    });
    held.settle(Verdict::Sound, at(2));
    waiter.join().unwrap();
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &LIMITS));
    check(invariants::idle(&snapshot));
    require(snapshot.handed_over == 0, "slot-conservation", "a slot is handed to a ticket that is gone");
}

fn leaver_passes_it_on() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(1), 0));
    let leaving = ticket(slots.reserve(on(&ids), at(1), 0));
    let mut staying = ticket(slots.reserve(on(&ids), at(1), 0));
    let leaver = thread::spawn(move || drop(leaving));
    let stays = thread::spawn(move || drop(block_on(staying.granted())));
    held.settle(Verdict::Sound, at(2));
    leaver.join().unwrap();
    stays.join().unwrap();
    check(invariants::idle(&slots.snapshot()));
}

fn newcomer_waits_behind() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(1), 0));
    let mut waiting = ticket(slots.reserve(on(&ids), at(1), 0));
    let release = thread::spawn(move || held.settle(Verdict::Sound, at(2)));
    let newcomer = slots.reserve(on(&ids), at(2), 0);
    let overtook = matches!(newcomer, Reservation::Slot(_));
    require(!overtook, "answer-ends", "a newcomer overtook who waited: under load that one waits for ever");
    release.join().unwrap();
    drop(block_on(waiting.granted()));
    drop(newcomer);
    check(invariants::idle(&slots.snapshot()));
}

fn two_freed_two_wait() {
    let limits = Limits { per_model: 2, ..LIMITS };
    let (slots, ids) = slots(limits, 1);
    let held = [(); 2].map(|()| slot(slots.reserve(on(&ids), at(1), 0)));
    let waiting = [(); 2].map(|()| ticket(slots.reserve(on(&ids), at(1), 0)));
    let [first, second] = held;
    let release = thread::spawn(move || first.settle(Verdict::Sound, at(2)));
    let [mut one, mut other] = waiting;
    let waiter = thread::spawn(move || block_on(one.granted()));
    drop(second);
    let got = (block_on(other.granted()), waiter.join().unwrap());
    release.join().unwrap();
    check(invariants::slots(&slots.snapshot(), &limits));
    drop(got);
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &limits));
    check(invariants::idle(&snapshot));
    require(snapshot.admitted == 4, "admitted-adds-up", "four were admitted");
}

/// The first in the queue would rather go to the second endpoint, whose breaker lets it try when the slot at
/// the first endpoint is freed.
fn first_goes_elsewhere() {
    let (slots, ids) = slots(LIMITS, 2);
    for _ in 0..2 {
        slot(slots.reserve(on(&ids[1..]), at(1), 0)).settle(Verdict::Faulty, at(1));
    }
    let held = slot(slots.reserve(on(&ids[..1]), at(2), 0));
    let mut either = on(&ids);
    either[0].loaded = false;
    let mut first = ticket(slots.reserve(either, at(2), 0));
    let mut second = ticket(slots.reserve(on(&ids[..1]), at(2), 0));
    let waiter = thread::spawn(move || block_on(second.granted()));
    held.settle(Verdict::Sound, at(20));
    let got = (block_on(first.granted()), waiter.join().unwrap());
    check(invariants::slots(&slots.snapshot(), &LIMITS));
    drop(got);
    check(invariants::idle(&slots.snapshot()));
}
