//! Whether bytes move, written without a lock: the only atomics of the core, so the only place where
//! loom's weak memory has a say.

use loom::thread;
use loom_tests::explore::Model;

use super::common::{LIMITS, at, on, require, slot, slots};
use super::core::slots::{Limits, Reservation};
use super::core::sync::Arc;

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "pulse::first_wait_is_not_wedged",
        bound: None,
        claim: "an endpoint that waits since this moment is not judged by the silence of its idle hours",
        run: first_wait_is_not_wedged,
    },
    Model {
        name: "pulse::two_streams_one_judge",
        bound: Some(3),
        claim: "two streams that begin and move together never make their endpoint look wedged",
        run: two_streams_one_judge,
    },
];

const WIDE: Limits = Limits { per_model: 4, queue_max: Some(0), ..LIMITS };

/// Idle since 0 s, wedged after 60 s of silence, and now it is 1,000 s.
fn first_wait_is_not_wedged() {
    let (slots, ids) = slots(WIDE, 1);
    let mut stream = slot(slots.reserve(on(&ids), at(1_000), 0));
    let streams = thread::spawn(move || {
        stream.wait(at(1_000));
        stream
    });
    let newcomer = slots.reserve(on(&ids), at(1_001), 0);
    require(
        matches!(newcomer, Reservation::Slot(_)),
        "answer-ends",
        "an endpoint that waits for its first byte since a second is taken for wedged",
    );
    drop(streams.join().unwrap());
}

fn two_streams_one_judge() {
    let (slots, ids) = slots(WIDE, 1);
    let mut one = slot(slots.reserve(on(&ids), at(1_000), 0));
    let mut other = slot(slots.reserve(on(&ids), at(1_000), 0));
    let first = thread::spawn(move || {
        one.wait(at(1_000));
        one.moved(at(1_001));
        one
    });
    let second = thread::spawn(move || {
        other.wait(at(1_000));
        other
    });
    let snapshot = slots.snapshot();
    require(!snapshot.endpoints[0].wedged, "answer-ends", "a moving endpoint is taken for wedged");
    let slots = Arc::clone(&slots);
    drop((first.join().unwrap(), second.join().unwrap()));
    require(!slots.snapshot().endpoints[0].wedged, "answer-ends", "an idle endpoint is taken for wedged");
}
