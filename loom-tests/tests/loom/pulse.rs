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
    Model {
        name: "pulse::silence_never_grows_backwards",
        bound: None,
        claim: "a stream that is slow to say when it began to wait does not undo a byte that came since",
        run: silence_never_grows_backwards,
    },
];

const WIDE: Limits = Limits { per_model: 4, queue_max: Some(0), ..LIMITS };

/// Idle since 0 s, wedged after 60 s of silence, and now it is 1,000 s.
///
/// The one who judges is the spawned thread and the one who writes is this one, on purpose: loom
/// remembers one last access per atomic, so a writer that reads first hides an earlier reader from it,
/// and the order in which the reader comes second would never be tried.
fn first_wait_is_not_wedged() {
    let (slots, ids) = slots(WIDE, 1);
    let mut stream = slot(slots.reserve(on(&ids), at(1_000), 0));
    let judge = thread::spawn(move || {
        let newcomer = slots.reserve(on(&ids), at(1_001), 0);
        require(
            matches!(newcomer, Reservation::Slot(_)),
            "answer-ends",
            "an endpoint that waits for its first byte since a second is taken for wedged",
        );
    });
    stream.wait(at(1_000));
    judge.join().unwrap();
}

fn two_streams_one_judge() {
    let (slots, ids) = slots(WIDE, 1);
    let mut one = slot(slots.reserve(on(&ids), at(1_000), 0));
    let mut other = slot(slots.reserve(on(&ids), at(1_000), 0));
    let judge = thread::spawn({
        let slots = Arc::clone(&slots);
        move || {
            require(
                !slots.snapshot().endpoints[0].wedged,
                "answer-ends",
                "a moving endpoint is taken for wedged",
            )
        }
    });
    let second = thread::spawn(move || {
        other.wait(at(1_000));
        other
    });
    one.wait(at(1_000));
    one.moved(at(1_001));
    drop((one, second.join().unwrap()));
    judge.join().unwrap();
    require(!slots.snapshot().endpoints[0].wedged, "answer-ends", "an idle endpoint is taken for wedged");
}

/// One stream read the clock at 1,000 s and was held up before it wrote that down; meanwhile another
/// has waited and got a byte at 1,100 s.
fn silence_never_grows_backwards() {
    let (slots, ids) = slots(WIDE, 1);
    let mut held_up = slot(slots.reserve(on(&ids), at(1_000), 0));
    let mut moving = slot(slots.reserve(on(&ids), at(1_100), 0));
    let moves = thread::spawn(move || {
        moving.wait(at(1_100));
        moving.moved(at(1_100));
        moving
    });
    held_up.wait(at(1_000));
    drop(moves.join().unwrap());
    let newcomer = slots.reserve(on(&ids), at(1_101), 0);
    require(
        matches!(newcomer, Reservation::Slot(_)),
        "answer-ends",
        "an endpoint that sent a byte a second ago is taken for wedged",
    );
    drop((newcomer, held_up));
}
