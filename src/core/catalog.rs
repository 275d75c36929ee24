//! What one endpoint said about one concern (the models it serves, or those it has loaded), and
//! how long that may be believed.
//!
//! A [`Cell`] is one endpoint's answer to one question, so an error in one concern cannot touch
//! another (`catalog-isolation`). Ages are monotonic and counted from the *start* of the fetch
//! (`catalog-age`). One [`Refresh`] permit exists at a time (`catalog-single-flight`); it belongs to
//! a task of its own, so no waiter's departure ends it. An invalidation moves the generation, and
//! a permit of an older generation stores nothing. Called by `flow::refresh`.

use core::time::Duration;

use super::signal::Signal;
use super::sync::{Arc, Lock, Rank};
use super::time::Instant;

/// How long a value or an error is believed.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Below this age a value is served as it is.
    pub fresh: Duration,
    /// From `fresh` to this age a value is served while it is refreshed behind; from here on never.
    pub expiry: Duration,
    /// For this long after an error nobody asks again.
    pub error_quiet: Duration,
    /// From `error_quiet` to this age the error is answered while a probe runs behind; from here
    /// on the next caller waits for a fetch.
    pub error_expiry: Duration,
}

impl Ages {
    /// For the models an endpoint serves (the seed router's 300 s and 600 s).
    pub const AVAILABLE: Ages = Ages {
        fresh: Duration::from_secs(300),
        expiry: Duration::from_secs(600),
        error_quiet: Duration::from_secs(30),
        error_expiry: Duration::from_secs(300),
    };

    /// For the models an endpoint has in memory (the seed router's 10 s and 60 s).
    pub const LOADED: Ages =
        Ages { fresh: Duration::from_secs(10), expiry: Duration::from_secs(60), ..Ages::AVAILABLE };
}

/// One endpoint's answer to one question. Clones are handles to the same cell.
#[derive(Debug)]
pub struct Cell<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    ages: Ages,
    state: Lock<State<T>>,
    /// Notified whenever a flight ends or the generation moves.
    changed: Signal,
}

#[derive(Debug)]
struct State<T> {
    /// The newest good answer and when its fetch began.
    value: Option<(Arc<T>, Instant)>,
    /// The newest error since the last good answer, and when it was known.
    error: Option<(Arc<str>, Instant)>,
    /// Moves with every invalidation.
    generation: u64,
    /// The number of the fetch under way.
    flight: Option<u64>,
    /// Numbers fetches.
    flights: u64,
}

/// What a cell knows now. Where a [`Refresh`] comes with it, the caller must start it, in a task of
/// its own.
#[derive(Debug)]
pub enum Look<T> {
    /// A value that may be served.
    Known {
        /// The answer.
        value: Arc<T>,
        /// How old it is.
        age: Duration,
        /// A fetch to run behind.
        refresh: Option<Refresh<T>>,
    },
    /// The endpoint failed recently and has nothing to offer.
    Failed {
        /// The failure, as a sentence.
        reason: Arc<str>,
        /// A fetch to run behind.
        refresh: Option<Refresh<T>>,
    },
    /// Nothing is known: wait for the flight to end, then look again.
    Pending {
        /// Completes when the flight ends.
        wait: Wait<T>,
        /// The flight itself, for whoever came first.
        refresh: Option<Refresh<T>>,
    },
}

impl<T> Clone for Cell<T> {
    fn clone(&self) -> Self {
        Cell { inner: Arc::clone(&self.inner) }
    }
}

impl<T> Cell<T> {
    /// A cell that knows nothing yet.
    pub fn new(ages: Ages) -> Self {
        let state = State { value: None, error: None, generation: 0, flight: None, flights: 0 };
        Cell {
            inner: Arc::new(Inner { ages, state: Lock::new(Rank::Catalog, state), changed: Signal::new() }),
        }
    }

    /// How long its answers are believed.
    pub fn ages(&self) -> &Ages {
        &self.inner.ages
    }

    /// What is known at `now`, deciding in the same step who refreshes. Does not wait.
    pub fn look(&self, now: Instant) -> Look<T> {
        let ages = &self.inner.ages;
        let mut state = self.inner.state.lock();
        let error_age = state.error.as_ref().map(|(_, at)| now.since(*at));
        let may_ask = error_age.is_none_or(|age| age >= ages.error_quiet);

        if let Some((value, began)) = &state.value {
            let age = now.since(*began);
            if age < ages.expiry {
                let value = Arc::clone(value);
                let due = age >= ages.fresh && may_ask;
                let refresh = if due { self.depart(&mut state, now) } else { None };
                return Look::Known { value, age, refresh };
            }
        }
        match (&state.error, error_age) {
            (Some((reason, _)), Some(age)) if age < ages.error_expiry => {
                let reason = Arc::clone(reason);
                let refresh = if may_ask { self.depart(&mut state, now) } else { None };
                Look::Failed { reason, refresh }
            }
            _ => {
                let refresh = self.depart(&mut state, now);
                let flight = state.flight.expect("a flight is under way or has just departed");
                Look::Pending { wait: Wait { cell: self.clone(), flight }, refresh }
            }
        }
    }

    /// Forgets value and error. A fetch that is under way now will store nothing.
    pub fn invalidate(&self) {
        {
            let mut state = self.inner.state.lock();
            state.generation += 1;
            state.value = None;
            state.error = None;
        }
        self.inner.changed.notify();
    }

    /// A flight to wait for, because what is known is older than `age` and somebody has a reason to
    /// doubt it (a model that is not in the listing may have just been pulled). `None`: what is known
    /// is younger than that, or an error is still quiet.
    pub fn renew(&self, now: Instant, age: Duration) -> Option<(Wait<T>, Option<Refresh<T>>)> {
        let mut state = self.inner.state.lock();
        let young = state.value.as_ref().is_some_and(|(_, began)| now.since(*began) < age);
        let quiet = state.error.as_ref().is_some_and(|(_, at)| now.since(*at) < self.inner.ages.error_quiet);
        if young || quiet {
            return None;
        }
        let refresh = self.depart(&mut state, now);
        let flight = state.flight?;
        Some((Wait { cell: self.clone(), flight }, refresh))
    }

    /// The value if it may still be served at `now`; never starts a fetch.
    pub fn peek(&self, now: Instant) -> Option<Arc<T>> {
        let state = self.inner.state.lock();
        let (value, began) = state.value.as_ref()?;
        (now.since(*began) < self.inner.ages.expiry).then(|| Arc::clone(value))
    }

    /// The newest good answer, however old; never starts a fetch.
    pub fn last(&self) -> Option<Arc<T>> {
        self.inner.state.lock().value.as_ref().map(|(value, _)| Arc::clone(value))
    }

    /// Whether the last fetch that ended brought an answer; true before the first.
    pub fn answered(&self) -> bool {
        self.inner.state.lock().error.is_none()
    }

    /// The newest error since the last good answer, if it has not expired at `now`.
    pub fn error(&self, now: Instant) -> Option<Arc<str>> {
        let state = self.inner.state.lock();
        let (reason, at) = state.error.as_ref()?;
        (now.since(*at) < self.inner.ages.error_expiry).then(|| Arc::clone(reason))
    }

    /// A permit for the next fetch, unless one is under way.
    fn depart(&self, state: &mut State<T>, now: Instant) -> Option<Refresh<T>> {
        if state.flight.is_some() {
            return None;
        }
        state.flights += 1;
        state.flight = Some(state.flights);
        Some(Refresh { cell: self.clone(), generation: state.generation, began: now, landed: false })
    }
}

/// The permit to fetch, of which a cell gives out one at a time. Settle it with what came back;
/// dropped unsettled it counts as never begun, and the next caller gets a new one.
#[derive(Debug)]
#[must_use = "a refresh that is dropped fetches nothing"]
pub struct Refresh<T> {
    cell: Cell<T>,
    generation: u64,
    began: Instant,
    landed: bool,
}

impl<T> Refresh<T> {
    /// Stores the result at `now`, unless an invalidation came after this permit was given. A new value is
    /// returned too.
    pub fn settle(mut self, now: Instant, result: Result<T, Arc<str>>) -> Option<Arc<T>> {
        self.land(Some((now, result)))
    }

    /// Completes once an invalidation has made this fetch pointless: drop it then.
    pub async fn superseded(&self) {
        let inner = Arc::clone(&self.cell.inner);
        let generation = self.generation;
        loop {
            let changed = inner.changed.listen();
            if inner.state.lock().generation != generation {
                return;
            }
            changed.await;
        }
    }

    fn land(&mut self, result: Option<(Instant, Result<T, Arc<str>>)>) -> Option<Arc<T>> {
        self.landed = true;
        let mut renewed = None;
        {
            let mut state = self.cell.inner.state.lock();
            state.flight = None;
            if state.generation == self.generation {
                match result {
                    Some((_, Ok(value))) => {
                        let value = Arc::new(value);
                        state.value = Some((Arc::clone(&value), self.began));
                        state.error = None;
                        renewed = Some(value);
                    }
                    Some((now, Err(reason))) => state.error = Some((reason, now)),
                    None => {}
                }
            }
        }
        self.cell.inner.changed.notify();
        renewed
    }
}

impl<T> Drop for Refresh<T> {
    fn drop(&mut self) {
        if !self.landed {
            self.land(None);
        }
    }
}

/// Somebody waiting for a flight. Dropping it does nothing to the flight.
#[derive(Debug)]
pub struct Wait<T> {
    cell: Cell<T>,
    flight: u64,
}

impl<T> Wait<T> {
    /// Completes when the flight has ended, well or badly; look again then.
    pub async fn ended(self) {
        let inner = &self.cell.inner;
        loop {
            let changed = inner.changed.listen();
            if inner.state.lock().flight != Some(self.flight) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;
    use core::future::Future;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    const AGES: Ages = Ages {
        fresh: Duration::from_secs(10),
        expiry: Duration::from_secs(60),
        error_quiet: Duration::from_secs(30),
        error_expiry: Duration::from_secs(300),
    };

    fn at(secs: u64) -> Instant {
        Instant::ORIGIN + Duration::from_secs(secs)
    }

    fn permit<T: core::fmt::Debug>(look: Look<T>) -> Refresh<T> {
        match look {
            Look::Known { refresh, .. } | Look::Failed { refresh, .. } | Look::Pending { refresh, .. } => {
                refresh.expect("a permit")
            }
        }
    }

    fn poll_once(future: impl Future<Output = ()>) -> Poll<()> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn filled(now: Instant, value: u32) -> Cell<u32> {
        let cell = Cell::new(AGES);
        permit(cell.look(now)).settle(now, Ok(value));
        cell
    }

    #[test]
    fn a_value_is_fresh_then_stale_then_gone() {
        let cell = filled(at(0), 7);
        assert!(matches!(cell.look(at(9)), Look::Known { refresh: None, .. }));
        assert!(matches!(cell.look(at(10)), Look::Known { refresh: Some(_), .. }));
        assert!(matches!(cell.look(at(59)), Look::Known { .. }));
        assert!(matches!(cell.look(at(60)), Look::Pending { refresh: Some(_), .. }));
        assert_eq!(cell.peek(at(59)).as_deref(), Some(&7));
        assert_eq!(cell.peek(at(60)), None);
    }

    #[test]
    fn an_age_counts_from_the_start_of_the_fetch() {
        let cell = Cell::new(AGES);
        permit(cell.look(at(0))).settle(at(9), Ok(1));
        assert!(matches!(cell.look(at(10)), Look::Known { refresh: Some(_), .. }));
    }

    #[test]
    fn one_permit_exists_at_a_time() {
        let cell = Cell::<u32>::new(AGES);
        let first = permit(cell.look(at(0)));
        assert!(matches!(cell.look(at(0)), Look::Pending { refresh: None, .. }));
        drop(first);
        assert!(matches!(cell.look(at(0)), Look::Pending { refresh: Some(_), .. }));
    }

    #[test]
    fn a_waiter_that_leaves_does_not_end_the_flight() {
        let cell = Cell::<u32>::new(AGES);
        let flight = permit(cell.look(at(0)));
        let Look::Pending { wait: leaving, .. } = cell.look(at(0)) else { panic!("pending") };
        let Look::Pending { wait: staying, .. } = cell.look(at(0)) else { panic!("pending") };
        let mut staying = Box::pin(staying.ended());
        assert_eq!(poll_once(leaving.ended()), Poll::Pending);
        assert_eq!(poll_once(staying.as_mut()), Poll::Pending);
        flight.settle(at(1), Ok(3));
        assert_eq!(poll_once(staying.as_mut()), Poll::Ready(()));
        assert_eq!(cell.peek(at(1)).as_deref(), Some(&3));
    }

    #[test]
    fn a_late_answer_does_not_undo_an_invalidation() {
        let cell = filled(at(0), 1);
        let late = permit(cell.look(at(10)));
        cell.invalidate();
        assert_eq!(poll_once(late.superseded()), Poll::Ready(()));
        late.settle(at(11), Ok(2));
        assert_eq!(cell.peek(at(11)), None);
        permit(cell.look(at(11))).settle(at(12), Ok(3));
        assert_eq!(cell.peek(at(12)).as_deref(), Some(&3));
    }

    #[test]
    fn only_an_answer_that_is_stored_is_handed_back() {
        let cell = filled(at(0), 1);
        assert_eq!(permit(cell.look(at(10))).settle(at(11), Ok(2)).as_deref(), Some(&2));
        assert_eq!(permit(cell.look(at(20))).settle(at(21), Err("refused".into())), None);
        let late = permit(cell.look(at(59)));
        cell.invalidate();
        assert_eq!(late.settle(at(60), Ok(3)), None, "it is not what is known");
    }

    #[test]
    fn an_error_is_quiet_then_probed_then_forgotten() {
        let cell = Cell::<u32>::new(AGES);
        permit(cell.look(at(0))).settle(at(0), Err("refused".into()));
        assert!(matches!(cell.look(at(29)), Look::Failed { refresh: None, .. }));
        assert!(matches!(cell.look(at(30)), Look::Failed { refresh: Some(_), .. }));
        assert!(matches!(cell.look(at(299)), Look::Failed { .. }));
        assert!(matches!(cell.look(at(300)), Look::Pending { refresh: Some(_), .. }));
    }

    #[test]
    fn a_failed_refresh_leaves_the_value_until_it_expires_and_does_not_hammer() {
        let cell = filled(at(0), 1);
        permit(cell.look(at(10))).settle(at(11), Err("busy".into()));
        assert!(matches!(cell.look(at(12)), Look::Known { refresh: None, .. }));
        assert!(matches!(cell.look(at(41)), Look::Known { refresh: Some(_), .. }));
        assert!(matches!(cell.look(at(61)), Look::Failed { .. }));
    }

    #[test]
    fn doubt_refetches_what_is_not_young_and_joins_a_flight_under_way() {
        let cell = filled(at(0), 1);
        assert!(cell.renew(at(4), Duration::from_secs(5)).is_none());
        let (_, refresh) = cell.renew(at(5), Duration::from_secs(5)).expect("old enough to doubt");
        let (_, second) = cell.renew(at(5), Duration::from_secs(5)).expect("the same flight");
        assert!(second.is_none());
        refresh.expect("the first gets the permit").settle(at(6), Ok(2));
        assert_eq!(cell.peek(at(6)).as_deref(), Some(&2));
    }

    #[test]
    fn a_good_answer_ends_the_error() {
        let cell = Cell::<u32>::new(AGES);
        permit(cell.look(at(0))).settle(at(0), Err("refused".into()));
        permit(cell.look(at(31))).settle(at(31), Ok(5));
        assert!(matches!(cell.look(at(32)), Look::Known { .. }));
        assert_eq!(cell.error(at(32)), None);
    }
}
