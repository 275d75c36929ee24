//! The promises as checks, one function each, called by every driver: tests, models, the simulator.
//!
//! A check takes a snapshot and answers with the promise it finds broken and a sentence why.

use core::fmt;

use super::ledger::Balance;
use super::slots::{Limits, Snapshot};

/// The promises that can be checked so far, by the names in which checks, metrics and messages speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// In flight = reserved - released, per endpoint and model.
    SlotConservation,
    /// No endpoint and model above its limit while requests can wait instead.
    SlotLimit,
    /// Recorded = stored + waiting.
    TokenConservation,
    /// Admitted = queued + in flight + finished.
    AdmittedAddsUp,
    /// Every request ends.
    AnswerEnds,
    /// A reader is given every event once, in order, whatever number or time it begins at.
    FeedExact,
    /// What was logged stays, under its number.
    FeedDurable,
}

impl Promise {
    /// The name, as in `slot-conservation`.
    pub const fn name(self) -> &'static str {
        match self {
            Promise::SlotConservation => "slot-conservation",
            Promise::SlotLimit => "slot-limit",
            Promise::TokenConservation => "token-conservation",
            Promise::AdmittedAddsUp => "admitted-adds-up",
            Promise::AnswerEnds => "answer-ends",
            Promise::FeedExact => "feed-exact",
            Promise::FeedDurable => "feed-durable",
        }
    }
}

/// A promise that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// What was seen instead.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is broken: {}", self.promise.name(), self.why)
    }
}

impl core::error::Error for Broken {}

fn require(holds: bool, promise: Promise, why: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { promise, why: why() }) }
}

/// At any moment: counts agree with each other, nothing is above its limit, every reservation is
/// somewhere. `limits` are those that were in force all the time.
pub fn slots(snapshot: &Snapshot, limits: &Limits) -> Result<(), Broken> {
    let mut in_flight = 0u64;
    for endpoint in &snapshot.endpoints {
        let sum: u32 = endpoint.in_flight.iter().map(|(_, count)| count).sum();
        in_flight += u64::from(sum);
        require(sum == endpoint.total, Promise::SlotConservation, || {
            format!("{}: the models' counts add up to {sum}, the total is {}", endpoint.name, endpoint.total)
        })?;
        for (model, count) in endpoint.in_flight.iter() {
            let allowed = limits.queue_max.is_none() || *count <= limits.per_model;
            require(allowed, Promise::SlotLimit, || {
                format!("{}: {count} in flight for {model}, the limit is {}", endpoint.name, limits.per_model)
            })?;
        }
    }
    let held = snapshot.queued as u64 + in_flight + snapshot.finished;
    require(held == snapshot.admitted, Promise::AdmittedAddsUp, || {
        format!(
            "{} admitted, but {} queued + {in_flight} in flight + {} finished",
            snapshot.admitted, snapshot.queued, snapshot.finished
        )
    })
}

/// After quiet: no slot is held and nobody waits.
pub fn idle(snapshot: &Snapshot) -> Result<(), Broken> {
    let held: u32 = snapshot.endpoints.iter().map(|endpoint| endpoint.total).sum();
    require(held == 0 && snapshot.queued == 0, Promise::SlotConservation, || {
        format!("{held} slots are still held and {} requests still wait", snapshot.queued)
    })
}

/// At any moment: no recorded token is neither stored nor waiting.
pub fn ledger(balance: &Balance) -> Result<(), Broken> {
    let mut sum = balance.stored;
    sum += balance.waiting;
    require(sum == balance.recorded, Promise::TokenConservation, || {
        format!("{:?} recorded, {:?} stored, {:?} waiting", balance.recorded, balance.stored, balance.waiting)
    })
}
