//! Claims about slots, tickets and usage, and a property over random histories.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use proptest::prelude::*;

use super::breaker::{Health, Settings, Verdict};
use super::invariants;
use super::ledger::{Ledger, Row, Tokens, Totals};
use super::names::{EndpointId, EndpointName};
use super::slots::{Candidate, Limits, Reservation, Slot, Slots, Ticket};
use super::sync::Arc;
use super::time::{Instant, Minute};
use super::usage::Usage;

const LIMITS: Limits = Limits {
    per_model: 1,
    queue_max: Some(3),
    breaker: Settings { failures: 2, open_for: Duration::from_secs(10) },
    wedged_after: Duration::from_secs(60),
};

fn at(secs: u64) -> Instant {
    Instant::ORIGIN + Duration::from_secs(secs)
}

fn slots(limits: Limits, endpoints: usize) -> (Arc<Slots>, Vec<EndpointId>) {
    let names: Vec<EndpointName> =
        (0..endpoints).map(|n| EndpointName::from(format!("http://{n}").as_str())).collect();
    let slots = Arc::new(Slots::new(limits));
    let ids = slots.configure(limits, &names);
    (slots, ids)
}

fn on(endpoints: &[EndpointId]) -> Vec<Candidate> {
    let candidate = |endpoint: &EndpointId| Candidate {
        endpoint: *endpoint,
        model: "m".into(),
        loaded: true,
        stale: false,
    };
    endpoints.iter().map(candidate).collect()
}

fn slot(reservation: Reservation) -> Slot {
    match reservation {
        Reservation::Slot(slot) => slot,
        other => panic!("expected a slot, got {other:?}"),
    }
}

fn ticket(reservation: Reservation) -> Ticket {
    match reservation {
        Reservation::Queued(ticket) => ticket,
        other => panic!("expected a ticket, got {other:?}"),
    }
}

fn granted(ticket: &mut Ticket) -> Option<Slot> {
    match pin!(ticket.granted()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(slot) => Some(slot),
        Poll::Pending => None,
    }
}

#[test]
fn a_slot_comes_back_on_settle_on_drop_and_on_panic() {
    let (slots, ids) = slots(LIMITS, 1);
    slot(slots.reserve(on(&ids), at(0), 0)).settle(Verdict::Sound, at(1));
    drop(slot(slots.reserve(on(&ids), at(0), 0)));
    let held = slot(slots.reserve(on(&ids), at(0), 0));
    let _ = std::panic::catch_unwind(core::panic::AssertUnwindSafe(move || {
        let _held = held;
        panic!("in the handler");
    }));
    invariants::idle(&slots.snapshot()).unwrap();
    assert_eq!(slots.snapshot().finished, 3);
}

#[test]
fn the_queue_is_served_first_come_first_served_and_a_newcomer_does_not_overtake() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(0), 0));
    let mut first = ticket(slots.reserve(on(&ids), at(0), 0));
    let mut second = ticket(slots.reserve(on(&ids), at(0), 0));
    assert!(granted(&mut first).is_none() && granted(&mut second).is_none());
    held.settle(Verdict::Sound, at(1));
    let mut newcomer = ticket(slots.reserve(on(&ids), at(1), 0));
    let served = granted(&mut first).expect("the freed slot");
    assert!(granted(&mut second).is_none() && granted(&mut newcomer).is_none());
    drop(served);
    assert!(granted(&mut second).is_some());
}

#[test]
fn a_full_queue_turns_away_and_counts_nothing() {
    let (slots, ids) = slots(LIMITS, 1);
    let _held = slot(slots.reserve(on(&ids), at(0), 0));
    let _waiting: Vec<_> = (0..3).map(|_| ticket(slots.reserve(on(&ids), at(0), 0))).collect();
    let turned_away = slots.reserve(on(&ids), at(0), 0);
    assert!(matches!(turned_away, Reservation::QueueFull { waiting: 3 }), "{turned_away:?}");
    invariants::slots(&slots.snapshot(), &LIMITS).unwrap();
}

#[test]
fn without_a_queue_the_least_used_endpoint_is_overloaded_as_in_the_seed_router() {
    let limits = Limits { queue_max: None, ..LIMITS };
    let (slots, ids) = slots(limits, 2);
    let held: Vec<_> = (0..6).map(|dice| slot(slots.reserve(on(&ids), at(0), dice))).collect();
    let counts: Vec<u32> = slots.snapshot().endpoints.iter().map(|endpoint| endpoint.total).collect();
    assert_eq!((held.len(), counts), (6, vec![3, 3]));
}

#[test]
fn a_slot_granted_to_a_ticket_that_leaves_goes_to_the_next() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(0), 0));
    let leaving = ticket(slots.reserve(on(&ids), at(0), 0));
    let mut next = ticket(slots.reserve(on(&ids), at(0), 0));
    drop(held);
    assert_eq!(slots.snapshot().handed_over, 1);
    drop(leaving);
    assert!(granted(&mut next).is_some());
    drop(next);
    invariants::idle(&slots.snapshot()).unwrap();
}

#[test]
fn a_ticket_that_times_out_at_the_last_moment_keeps_its_slot() {
    let (slots, ids) = slots(LIMITS, 1);
    let held = slot(slots.reserve(on(&ids), at(0), 0));
    let late = ticket(slots.reserve(on(&ids), at(0), 0));
    drop(held);
    assert!(late.leave().is_some());
    invariants::idle(&slots.snapshot()).unwrap();
}

#[test]
fn a_reload_keeps_counts_and_an_endpoint_that_comes_back_keeps_its_number() {
    let (slots, ids) = slots(LIMITS, 2);
    let held = slot(slots.reserve(on(&ids[..1]), at(0), 0));
    slots.configure(LIMITS, &["http://1".into()]);
    assert!(matches!(slots.reserve(on(&ids[..1]), at(0), 0), Reservation::Unhealthy { .. }));
    assert_eq!(slots.snapshot().endpoints[0].total, 1);
    assert_eq!(slots.configure(LIMITS, &["http://0".into()]), [ids[0]]);
    drop(held);
    invariants::idle(&slots.snapshot()).unwrap();
}

#[test]
fn faults_open_the_breaker_and_an_open_endpoint_names_its_time() {
    let (slots, ids) = slots(LIMITS, 1);
    for _ in 0..2 {
        slot(slots.reserve(on(&ids), at(0), 0)).settle(Verdict::Faulty, at(5));
    }
    let refused = slots.reserve(on(&ids), at(6), 0);
    assert!(matches!(refused, Reservation::Unhealthy { retry_at: Some(t) } if t == at(15)), "{refused:?}");
    let mut probe = slot(slots.reserve(on(&ids), at(15), 0));
    let second = slots.reserve(on(&ids), at(15), 0);
    assert!(matches!(second, Reservation::Unhealthy { .. }), "a herd follows the probe: {second:?}");
    probe.first_byte(at(16));
    assert_eq!(slots.snapshot().endpoints[0].health, Health::Closed);
    probe.settle(Verdict::Sound, at(17));
}

#[test]
fn who_waits_is_served_when_a_probe_closes_the_breaker() {
    let limits = Limits { per_model: 2, breaker: Settings { failures: 1, ..LIMITS.breaker }, ..LIMITS };
    let (slots, ids) = slots(limits, 1);
    let [a, b] = [0, 1].map(|dice| slot(slots.reserve(on(&ids), at(0), dice)));
    let mut waiting = ticket(slots.reserve(on(&ids), at(0), 0));
    a.settle(Verdict::Faulty, at(1));
    b.settle(Verdict::Sound, at(1));
    assert!(granted(&mut waiting).is_none());
    slots.recheck(at(11));
    let mut probe = granted(&mut waiting).expect("the probe");
    probe.first_byte(at(12));
    drop(slot(slots.reserve(on(&ids), at(12), 0)));
}

#[test]
fn an_endpoint_where_requests_wait_and_no_byte_moves_is_wedged_until_one_does() {
    let limits = Limits { per_model: 4, ..LIMITS };
    let (slots, ids) = slots(limits, 1);
    let mut stuck = slot(slots.reserve(on(&ids), at(0), 0));
    stuck.wait(at(0));
    drop(slot(slots.reserve(on(&ids), at(59), 0)));
    assert!(matches!(slots.reserve(on(&ids), at(60), 0), Reservation::Unhealthy { .. }));
    stuck.moved(at(61));
    drop(slot(slots.reserve(on(&ids), at(61), 0)));
    // The client reads slowly: nobody waits for the endpoint, however long it takes.
    drop(slot(slots.reserve(on(&ids), at(999), 0)));
}

#[test]
fn a_finished_request_and_its_tokens_appear_in_one_step() {
    let (slots, ids) = slots(LIMITS, 1);
    let usage = Usage::new(slots, Arc::new(Ledger::new(Totals::new(), 0)));
    let held = slot(usage.slots().reserve(on(&ids), at(0), 0));
    let before = usage.snapshot();
    let tokens = Tokens { input: 2, output: 3 };
    let row = Row { minute: Minute::new(1), endpoint: "http://0".into(), model: "m".into(), tokens };
    usage.settle(held, Verdict::Sound, at(1), Some(row));
    let after = usage.snapshot();
    assert_eq!((before.slots.endpoints[0].total, before.tokens.len()), (1, 0));
    assert_eq!((after.slots.endpoints[0].total, after.tokens.len()), (0, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Reserve { endpoints: Vec<bool>, dice: u64 },
    Settle { which: usize, verdict: Verdict },
    Drop { which: usize },
    Collect { which: usize },
    Leave { which: usize },
    FirstByte { which: usize },
    Pass { secs: u64 },
    Recheck,
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![Just(Verdict::Sound), Just(Verdict::Faulty), Just(Verdict::Unknown)];
    prop_oneof![
        4 => (prop::collection::vec(any::<bool>(), 3), any::<u64>())
            .prop_map(|(endpoints, dice)| Step::Reserve { endpoints, dice }),
        2 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Step::Settle { which, verdict }),
        1 => any::<usize>().prop_map(|which| Step::Drop { which }),
        2 => any::<usize>().prop_map(|which| Step::Collect { which }),
        1 => any::<usize>().prop_map(|which| Step::Leave { which }),
        1 => any::<usize>().prop_map(|which| Step::FirstByte { which }),
        1 => (0u64..20).prop_map(|secs| Step::Pass { secs }),
        1 => Just(Step::Recheck),
    ]
}

proptest! {
    #[test]
    fn every_history_keeps_the_promises_and_ends_idle(
        per_model in 1u32..3,
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let limits = Limits { per_model, ..LIMITS };
        let (slots, ids) = slots(limits, 3);
        let (mut held, mut waiting, mut now) = (Vec::new(), Vec::new(), at(0));
        for step in steps {
            match step {
                Step::Reserve { endpoints, dice } => {
                    let chosen: Vec<_> =
                        ids.iter().zip(endpoints).filter(|(_, wanted)| *wanted).map(|(id, _)| *id).collect();
                    match slots.reserve(on(&chosen), now, dice) {
                        Reservation::Slot(slot) => held.push(slot),
                        Reservation::Queued(ticket) => waiting.push(ticket),
                        Reservation::QueueFull { .. } | Reservation::Unhealthy { .. } => {}
                    }
                }
                Step::Settle { which, verdict } if !held.is_empty() => {
                    held.swap_remove(which % held.len()).settle(verdict, now);
                }
                Step::Drop { which } if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                Step::FirstByte { which } if !held.is_empty() => {
                    let at = which % held.len();
                    held[at].first_byte(now);
                }
                Step::Collect { which } if !waiting.is_empty() => {
                    let at = which % waiting.len();
                    if let Some(slot) = granted(&mut waiting[at]) {
                        held.push(slot);
                        drop(waiting.swap_remove(at));
                    }
                }
                Step::Leave { which } if !waiting.is_empty() => {
                    let at = which % waiting.len();
                    held.extend(waiting.swap_remove(at).leave());
                }
                Step::Pass { secs } => now = now + Duration::from_secs(secs),
                Step::Recheck => slots.recheck(now),
                _ => {}
            }
            prop_assert_eq!(invariants::slots(&slots.snapshot(), &limits), Ok(()));
        }
        held.clear();
        waiting.clear();
        prop_assert_eq!(invariants::idle(&slots.snapshot()), Ok(()));
        prop_assert_eq!(invariants::slots(&slots.snapshot(), &limits), Ok(()));
    }
}
