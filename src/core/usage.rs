//! Slots and tokens together: the end of a request, and a snapshot, each as one step.
//!
//! A request's slot is given back and its tokens are counted in the same critical section, and a
//! snapshot reads both in one (`snapshot-whole`), so no reader ever sees a request gone whose tokens
//! are not there. The snapshot shares memory with the live state and is copied only when that is
//! written next, so no request waits for a reader. Called by `flow` (settle) and `http` (snapshot).

use super::breaker::Verdict;
use super::ledger::{Ledger, Row, Totals};
use super::signal::Listener;
use super::slots::{self, Slot, Slots};
use super::sync::Arc;
use super::time::Instant;

/// Slots and ledger as one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Usage {
    slots: Arc<Slots>,
    ledger: Arc<Ledger>,
}

/// Requests in flight and token totals at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Requests in flight, the queue and the breakers.
    pub slots: slots::Snapshot,
    /// Tokens by endpoint and model.
    pub tokens: Arc<Totals>,
}

impl Usage {
    /// Joins the two.
    pub fn new(slots: Arc<Slots>, ledger: Arc<Ledger>) -> Self {
        Usage { slots, ledger }
    }

    /// The slots.
    pub fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Ends a request: its slot is given back with `verdict`, and its tokens, if it has any, are
    /// recorded, in one step.
    pub fn settle(&self, slot: Slot, verdict: Verdict, now: Instant, tokens: Option<Row>) {
        slot.settle_with(verdict, now, || {
            if let Some(row) = tokens {
                self.ledger.record(row);
            }
        });
    }

    /// One consistent cut through slots and tokens.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.refresh(&mut snapshot);
        snapshot
    }

    /// Brings an older snapshot of the two up to date, and says whether anything in it changed: for whoever
    /// looks often.
    pub fn refresh(&self, snapshot: &mut Snapshot) -> bool {
        let Snapshot { slots, tokens } = snapshot;
        let (changed, counted) = self.slots.refresh_with(slots, || self.ledger.refresh(tokens));
        changed || counted
    }

    /// A future for the next change. Make it before taking the snapshot it is to follow.
    pub fn changed(&self) -> Listener {
        self.slots.changed()
    }
}
