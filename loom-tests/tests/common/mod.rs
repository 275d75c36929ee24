//! What the models share: a small router's worth of slots, rows and checks.

use std::time::Duration;

use super::core::breaker::Settings;
use super::core::invariants::Broken;
use super::core::ledger::{Row, Tokens};
use super::core::names::{EndpointId, EndpointName};
use super::core::slots::{Candidate, Limits, Reservation, Slot, Slots, Ticket};
use super::core::sync::Arc;
use super::core::time::{Instant, Minute};

/// One slot per endpoint, four places in the queue, a breaker that opens at the second fault.
pub(crate) const LIMITS: Limits = Limits {
    per_model: 1,
    queue_max: Some(4),
    breaker: Settings { failures: 2, open_for: Duration::from_secs(10) },
    wedged_after: Duration::from_secs(60),
};

pub(crate) fn at(secs: u64) -> Instant {
    Instant::ORIGIN + Duration::from_secs(secs)
}

/// Slots over `endpoints` endpoints, all configured.
pub(crate) fn slots(limits: Limits, endpoints: usize) -> (Arc<Slots>, Vec<EndpointId>) {
    let slots = Arc::new(Slots::new(limits));
    let ids = slots.configure(limits, &names(endpoints));
    (slots, ids)
}

pub(crate) fn names(endpoints: usize) -> Vec<EndpointName> {
    ["http://a", "http://b", "http://c"][..endpoints].iter().map(|name| EndpointName::from(*name)).collect()
}

/// Candidates that all have the model loaded.
pub(crate) fn on(endpoints: &[EndpointId]) -> Vec<Candidate> {
    let candidate = |endpoint: &EndpointId| Candidate {
        endpoint: *endpoint,
        model: "m".into(),
        loaded: true,
        stale: false,
    };
    endpoints.iter().map(candidate).collect()
}

pub(crate) fn slot(reservation: Reservation) -> Slot {
    match reservation {
        Reservation::Slot(slot) => slot,
        other => panic!("expected a slot, got {other:?}"),
    }
}

#[allow(dead_code, reason = "only loom's models look at tickets from outside")]
pub(crate) fn ticket(reservation: Reservation) -> Ticket {
    match reservation {
        Reservation::Queued(ticket) => ticket,
        other => panic!("expected a ticket, got {other:?}"),
    }
}

/// A request's tokens: one of the prompt, `output` of the answer.
pub(crate) fn row(minute: u64, output: u64) -> Row {
    let tokens = Tokens { input: 1, output };
    Row { minute: Minute::new(minute), endpoint: "http://a".into(), model: "m".into(), tokens }
}

/// Panics with the promise that does not hold.
pub(crate) fn require(holds: bool, promise: &str, why: &str) {
    assert!(holds, "{promise} is broken: {why}");
}

/// The same for the checks of `core::invariants`.
pub(crate) fn check(result: Result<(), Broken>) {
    if let Err(broken) = result {
        panic!("{broken}");
    }
}
