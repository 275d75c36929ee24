//! Endpoint health through the slots: one probe at a time, and only the newest has a say.

use loom::thread;
use loom_tests::explore::Model;

use super::common::{LIMITS, at, check, on, require, slot, slots};
use super::core::breaker::{Health, Verdict};
use super::core::invariants;
use super::core::names::EndpointId;
use super::core::slots::{Limits, Reservation, Slots};
use super::core::sync::Arc;

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "breaker::probe_vs_callers",
        bound: None,
        claim: "when the pause is over, of three callers one is the probe and the others are turned away",
        run: probe_vs_callers,
    },
    Model {
        name: "breaker::old_success_vs_probe",
        bound: None,
        claim: "an answer from before the breaker opened does not close it under the probe",
        run: old_success_vs_probe,
    },
    Model {
        name: "breaker::first_byte_vs_caller_vs_fault",
        bound: None,
        claim: "a probe's first byte lets callers in, and its break-off closes the door again at once",
        run: first_byte_vs_caller_vs_fault,
    },
];

const WIDE: Limits = Limits { per_model: 4, queue_max: Some(0), ..LIMITS };

fn health(slots: &Slots) -> Health {
    slots.snapshot().endpoints[0].health
}

/// Two faults open it at 1 s; its pause is over at 11 s.
fn opened(slots: &Arc<Slots>, ids: &[EndpointId]) {
    for _ in 0..2 {
        slot(slots.reserve(on(ids), at(1), 0)).settle(Verdict::Faulty, at(1));
    }
}

fn reserve(slots: &Arc<Slots>, ids: &[EndpointId], secs: u64) -> Reservation {
    slots.reserve(on(ids), at(secs), 0)
}

fn probe_vs_callers() {
    let (slots, ids) = slots(WIDE, 1);
    opened(&slots, &ids);
    let others = [(); 2].map(|()| {
        let (slots, ids) = (Arc::clone(&slots), ids.clone());
        thread::spawn(move || reserve(&slots, &ids, 11))
    });
    let mut got = vec![reserve(&slots, &ids, 11)];
    got.extend(others.map(|other| other.join().unwrap()));
    let probes = got.iter().filter(|got| matches!(got, Reservation::Slot(_))).count();
    require(probes == 1, "breaker-honest", &format!("{probes} requests probe at once"));
    require(health(&slots) == Health::HalfOpen, "breaker-honest", "nobody has answered yet");
    drop(got);
    check(invariants::idle(&slots.snapshot()));
}

fn old_success_vs_probe() {
    let (slots, ids) = slots(WIDE, 1);
    let old = slot(reserve(&slots, &ids, 0));
    opened(&slots, &ids);
    let probe = slot(reserve(&slots, &ids, 11));
    let late = thread::spawn(move || old.settle(Verdict::Sound, at(12)));
    probe.settle(Verdict::Faulty, at(12));
    late.join().unwrap();
    require(
        health(&slots) == Health::Open,
        "breaker-honest",
        "the probe failed, and yet the breaker is not open",
    );
    check(invariants::idle(&slots.snapshot()));
}

fn first_byte_vs_caller_vs_fault() {
    let (slots, ids) = slots(WIDE, 1);
    opened(&slots, &ids);
    let mut probe = slot(reserve(&slots, &ids, 11));
    let streams = thread::spawn(move || {
        probe.first_byte(at(12));
        probe.settle(Verdict::Faulty, at(12));
    });
    let caller = reserve(&slots, &ids, 12);
    if let Reservation::Slot(slot) = caller {
        // It came in while the probe's stream ran, so whatever it says now decides nothing.
        slot.settle(Verdict::Unknown, at(12));
    }
    streams.join().unwrap();
    require(
        health(&slots) == Health::Open,
        "breaker-honest",
        "a probe that broke off left the breaker closed",
    );
    let snapshot = slots.snapshot();
    check(invariants::slots(&snapshot, &WIDE));
    check(invariants::idle(&snapshot));
}
