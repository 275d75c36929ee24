//! Token counts: the totals, and what is still to be stored.
//!
//! At every instant recorded = stored + waiting (`token-conservation`). A batch is taken out under
//! a number, and until the store has confirmed it, the same batch under the same number is what the
//! next flush gets, so that a store which has seen the number can refuse to count it again. The
//! minute of a row is its request's end, read from the wall clock before the lock is taken
//! (`token-minute`). Called by `usage` (record) and `flow::flush` (take, settle).

use std::collections::BTreeMap;

use core::ops::AddAssign;

use super::names::{EndpointName, ModelName};
use super::sync::{Arc, Lock, Rank};
use super::time::Minute;

/// Tokens of one or more requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompts.
    pub input: u64,
    /// Of the answers.
    pub output: u64,
}

impl Tokens {
    /// Both together.
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

impl AddAssign for Tokens {
    /// Saturates: a backend that reports absurd counts cannot stop the router.
    fn add_assign(&mut self, other: Tokens) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
    }
}

/// Tokens by endpoint and model.
pub type Totals = BTreeMap<(EndpointName, ModelName), Tokens>;

/// Tokens of one endpoint and model in one minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The wall-clock minute in which the requests ended.
    pub minute: Minute,
    /// Where they ran.
    pub endpoint: EndpointName,
    /// The model as tracked.
    pub model: ModelName,
    /// Their sum.
    pub tokens: Tokens,
}

/// Rows under one number, which the store counts once.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// Grows with every new batch; a retried batch keeps its number.
    pub number: u64,
    /// Sorted by minute, then endpoint, then model; one row each.
    pub rows: Vec<Row>,
}

/// The totals and the rows waiting to be stored.
#[derive(Debug)]
pub struct Ledger {
    state: Lock<State>,
}

#[derive(Debug)]
struct State {
    /// Everything ever recorded or loaded. Shared with snapshots, copied on the next write.
    totals: Arc<Totals>,
    /// Sum of what was recorded in this life.
    recorded: Tokens,
    /// Sum of the batches that were confirmed in this life.
    stored: Tokens,
    /// Rows in no batch yet.
    waiting: BTreeMap<(Minute, EndpointName, ModelName), Tokens>,
    /// The batch that is not confirmed yet.
    batch: Option<Arc<Batch>>,
    /// Somebody holds that batch.
    taken: bool,
    /// The number of the newest batch.
    newest: u64,
}

/// The books at one moment, for the check of `token-conservation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Recorded since the process began.
    pub recorded: Tokens,
    /// Of these, confirmed by the store.
    pub stored: Tokens,
    /// Of these, not yet confirmed.
    pub waiting: Tokens,
}

impl Ledger {
    /// A ledger that goes on from what the store holds: the totals, and the newest batch number it
    /// has seen.
    pub fn new(totals: Totals, newest_batch: u64) -> Self {
        let state = State {
            totals: Arc::new(totals),
            recorded: Tokens::default(),
            stored: Tokens::default(),
            waiting: BTreeMap::new(),
            batch: None,
            taken: false,
            newest: newest_batch,
        };
        Ledger { state: Lock::new(Rank::Ledger, state) }
    }

    /// Counts one request that ended in `row.minute`.
    pub fn record(&self, row: Row) {
        let Row { minute, endpoint, model, tokens } = row;
        let mut state = self.state.lock();
        state.recorded += tokens;
        let key = (endpoint, model);
        match Arc::make_mut(&mut state.totals).get_mut(&key) {
            Some(total) => *total += tokens,
            None => drop(Arc::make_mut(&mut state.totals).insert(key.clone(), tokens)),
        }
        let (endpoint, model) = key;
        *state.waiting.entry((minute, endpoint, model)).or_default() += tokens;
    }

    /// The batch to store next: the unconfirmed one if there is one, else a new one of all that
    /// waits. `None` when nothing waits or another flush holds the batch.
    pub fn take(self: &Arc<Self>) -> Option<Flush> {
        let mut state = self.state.lock();
        if state.taken {
            return None;
        }
        if state.batch.is_none() && !state.waiting.is_empty() {
            state.newest += 1;
            let row = |((minute, endpoint, model), tokens)| Row { minute, endpoint, model, tokens };
            let rows = core::mem::take(&mut state.waiting).into_iter().map(row).collect();
            state.batch = Some(Arc::new(Batch { number: state.newest, rows }));
        }
        let batch = Arc::clone(state.batch.as_ref()?);
        state.taken = true;
        Some(Flush { ledger: Arc::clone(self), batch, settled: false })
    }

    /// Tokens by endpoint and model, stored or not. Under the lock it copies one pointer.
    pub fn totals(&self) -> Arc<Totals> {
        Arc::clone(&self.state.lock().totals)
    }

    /// Brings older totals up to date, and says whether anything in them changed.
    pub(super) fn refresh(&self, totals: &mut Arc<Totals>) -> bool {
        let state = self.state.lock();
        let outdated = !Arc::ptr_eq(totals, &state.totals);
        if outdated {
            *totals = Arc::clone(&state.totals);
        }
        outdated
    }

    /// The books now.
    pub fn balance(&self) -> Balance {
        let state = self.state.lock();
        let mut waiting = Tokens::default();
        state.waiting.values().for_each(|tokens| waiting += *tokens);
        state.batch.iter().flat_map(|batch| &batch.rows).for_each(|row| waiting += row.tokens);
        Balance { recorded: state.recorded, stored: state.stored, waiting }
    }

    fn end_flush(&self, durable: bool) {
        let mut state = self.state.lock();
        state.taken = false;
        if durable {
            let batch = state.batch.take().expect("token-conservation: a flush ends once");
            batch.rows.iter().for_each(|row| state.stored += row.tokens);
        }
    }
}

/// A batch on its way to the store. Dropped unconfirmed, it stays the next batch, number and all.
#[derive(Debug)]
#[must_use = "a flush that is dropped stores nothing"]
pub struct Flush {
    ledger: Arc<Ledger>,
    batch: Arc<Batch>,
    settled: bool,
}

impl Flush {
    /// What to store.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The store has said that the batch is durable.
    pub fn durable(mut self) {
        self.settled = true;
        self.ledger.end_flush(true);
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if !self.settled {
            self.ledger.end_flush(false);
        }
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;

    fn row(minute: u64, input: u64) -> Row {
        let tokens = Tokens { input, output: 1 };
        Row { minute: Minute::new(minute), endpoint: "http://a".into(), model: "m".into(), tokens }
    }

    fn ledger() -> Arc<Ledger> {
        Arc::new(Ledger::new(Totals::new(), 0))
    }

    fn balanced(ledger: &Ledger) -> Balance {
        let balance = ledger.balance();
        let mut sum = balance.stored;
        sum += balance.waiting;
        assert_eq!(balance.recorded, sum);
        balance
    }

    #[test]
    fn requests_of_one_minute_share_a_row() {
        let ledger = ledger();
        for (minute, input) in [(7, 1), (8, 10), (7, 2)] {
            ledger.record(row(minute, input));
        }
        let flush = ledger.take().expect("rows wait");
        let sums: Vec<_> = flush.batch().rows.iter().map(|r| (r.minute.number(), r.tokens.input)).collect();
        assert_eq!(sums, [(7, 3), (8, 10)]);
        assert_eq!(ledger.totals().values().next().map(|t| t.total()), Some(16));
    }

    #[test]
    fn a_failed_flush_comes_again_under_its_number_and_later_rows_wait_behind() {
        let ledger = ledger();
        ledger.record(row(1, 5));
        drop(ledger.take().expect("rows wait"));
        ledger.record(row(1, 6));
        balanced(&ledger);
        let again = ledger.take().expect("the same batch");
        assert_eq!((again.batch().number, again.batch().rows.as_slice()), (1, &[row(1, 5)][..]));
        again.durable();
        let next = ledger.take().expect("the later rows");
        assert_eq!((next.batch().number, next.batch().rows.as_slice()), (2, &[row(1, 6)][..]));
        next.durable();
        let balance = balanced(&ledger);
        assert_eq!((balance.stored.input, balance.waiting), (11, Tokens::default()));
    }

    #[test]
    fn a_batch_is_held_by_one_flush_at_a_time() {
        let ledger = ledger();
        ledger.record(row(1, 5));
        let held = ledger.take().expect("rows wait");
        ledger.record(row(2, 5));
        assert!(ledger.take().is_none());
        held.durable();
        assert!(ledger.take().is_some());
    }

    #[test]
    fn totals_go_on_from_what_was_stored_and_a_snapshot_keeps_its_moment() {
        let history = Totals::from([(("http://a".into(), "m".into()), Tokens { input: 100, output: 0 })]);
        let ledger = Arc::new(Ledger::new(history, 41));
        let before = ledger.totals();
        ledger.record(row(1, 5));
        assert_eq!(before.values().next().map(|t| t.input), Some(100));
        assert_eq!(ledger.totals().values().next().map(|t| t.input), Some(105));
        assert_eq!(ledger.take().map(|flush| flush.batch().number), Some(42));
    }

    #[test]
    fn absurd_counts_saturate() {
        let ledger = ledger();
        ledger.record(row(1, u64::MAX));
        ledger.record(row(1, u64::MAX));
        assert_eq!(ledger.totals().values().next().map(|t| t.total()), Some(u64::MAX));
    }
}
