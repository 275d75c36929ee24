//! The event log's recent tail, and what stands before it on its way to the disk.
//!
//! One path leads in: an event is pushed (which never waits), taken in a batch by the one appender,
//! numbered behind the tip, and only when the store has said that it is durable does it enter the
//! ring and become visible (`feed-durable`). So the ring holds nothing that a crash could take back,
//! and evicting from it loses nothing; unless the ring is all there is by configuration, and then the floor says
//! what is gone. Nobody is handed events: each subscriber has a cursor of its own
//! and comes to read behind it (`feed-exact`), and an append touches no subscriber
//! (`feed-independent`). Who sleeps at the tip listens first, then reads again, then sleeps
//! (`feed-progress`); see [`super::signal`]. Called by `flow::log` (push, append, trim) and `flow::follow` (read).

use std::collections::VecDeque;

use super::signal::{Listener, Signal};
use super::sync::{Arc, Lock, Rank};

/// A position in a log; the first event, or record, ever has number 1.
pub type Seq = u64;

/// The log's tail in memory, before the log in the store. `E` is cheap to clone.
#[derive(Debug)]
pub struct Timeline<E> {
    limits: Limits,
    state: Lock<State<E>>,
    /// Notified when an event is pushed: for the appender.
    pushed: Signal,
    /// Notified when events became visible or were trimmed: for subscribers.
    moved: Signal,
}

/// How much of the log is held in memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Durable events in the ring, for subscribers who are nearly up to date.
    pub ring: usize,
    /// Events that wait to be made durable. What comes beyond is not logged, and counted.
    pub waiting: usize,
    /// There is nothing behind the ring: what it no longer holds is gone, and the floor follows it.
    pub ring_only: bool,
}

#[derive(Debug)]
struct State<E> {
    /// Pushed, not yet numbered.
    waiting: VecDeque<E>,
    /// Refused since the last batch was taken, for want of room.
    lost: u64,
    /// Refused for want of room since the beginning.
    lost_ever: u64,
    /// Nothing more is taken in.
    closed: bool,
    /// Numbered from `tip + 1`, not confirmed by the store yet.
    batch: Option<Arc<[E]>>,
    /// Somebody holds that batch.
    taken: bool,
    /// The newest durable events, the last of them numbered `tip`.
    ring: VecDeque<E>,
    /// The newest event that anybody may see.
    tip: Seq,
    /// The oldest event that is kept, here or in the store.
    floor: Seq,
}

/// What lies behind a cursor.
#[derive(Debug)]
pub enum Look<E> {
    /// The events `after + 1 ..`, at least one.
    Events(Vec<E>),
    /// The ring begins only at `ring`: read the log from the cursor up to there, and no further.
    Cold {
        /// The oldest number in the ring; `tip + 1` if it is empty.
        ring: Seq,
    },
    /// Nothing yet.
    AtTip,
    /// The next event is no longer kept.
    Trimmed {
        /// The oldest that is.
        floor: Seq,
    },
    /// There is no such number yet.
    Ahead {
        /// The newest there is.
        tip: Seq,
    },
}

/// What a log holds: `floor..=tip`. An empty one has `floor == tip + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest that is still there.
    pub floor: Seq,
    /// The newest, 0 before the first.
    pub tip: Seq,
}

impl<E: Clone> Timeline<E> {
    /// A timeline that goes on behind what the store holds.
    pub fn new(stored: Bounds, limits: Limits) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            lost: 0,
            lost_ever: 0,
            closed: false,
            batch: None,
            taken: false,
            ring: VecDeque::new(),
            tip: stored.tip,
            floor: stored.floor,
        };
        let state = Lock::new(Rank::Timeline, state);
        Timeline { limits, state, pushed: Signal::new(), moved: Signal::new() }
    }

    /// Hands an event in, to be seen once it is durable. Never waits: false if too many wait already, and
    /// then the event is only counted.
    pub fn push(&self, event: E) -> bool {
        {
            let mut state = self.state.lock();
            if state.closed {
                return false;
            }
            if state.waiting.len() >= self.limits.waiting {
                state.lost += 1;
                state.lost_ever += 1;
                return false;
            }
            state.waiting.push_back(event);
            if state.waiting.len() > 1 {
                // Whoever pushed the first has woken the appender, who takes all there is.
                return true;
            }
        }
        self.pushed.notify();
        true
    }

    /// Hands the last event in, for which there is always room. Whatever comes later is not logged.
    pub fn close(&self, last: E) {
        {
            let mut state = self.state.lock();
            if !core::mem::replace(&mut state.closed, true) {
                state.waiting.push_back(last);
            }
        }
        self.pushed.notify();
    }

    /// A future for the next push. Make it before [`Timeline::take`].
    pub fn pushed(&self) -> Listener {
        self.pushed.listen()
    }

    /// The batch to store next: the unconfirmed one if there is one, else the oldest that wait, at most
    /// `max`. `lost` makes the event that stands for so many which were refused behind them. `None` when
    /// nothing waits or somebody else holds the batch.
    pub fn take(self: &Arc<Self>, max: usize, lost: impl FnOnce(u64) -> E) -> Option<Append<E>> {
        let mut state = self.state.lock();
        if state.taken {
            return None;
        }
        if state.batch.is_none() {
            let count = state.waiting.len().min(max);
            let mut events: Vec<E> = state.waiting.drain(..count).collect();
            if state.waiting.is_empty() && state.lost > 0 {
                events.push(lost(core::mem::take(&mut state.lost)));
            }
            if events.is_empty() {
                return None;
            }
            state.batch = Some(events.into());
        }
        let events = Arc::clone(state.batch.as_ref()?);
        state.taken = true;
        Some(Append { timeline: Arc::clone(self), first: state.tip + 1, events, settled: false })
    }

    /// Up to `max` events behind `after`, without waiting.
    pub fn read(&self, after: Seq, max: usize) -> Look<E> {
        let state = self.state.lock();
        if after > state.tip {
            return Look::Ahead { tip: state.tip };
        }
        if after + 1 < state.floor {
            return Look::Trimmed { floor: state.floor };
        }
        if after == state.tip {
            return Look::AtTip;
        }
        let ring = state.tip + 1 - state.ring.len() as Seq;
        if after + 1 < ring {
            return Look::Cold { ring };
        }
        // An index into a deque that is in memory, so it fits.
        let from = (after + 1 - ring) as usize;
        Look::Events(state.ring.range(from..).take(max).cloned().collect())
    }

    /// A future for the next time that more can be seen, or less. Make it before [`Timeline::read`].
    pub fn moved(&self) -> Listener {
        self.moved.listen()
    }

    /// What can be seen now.
    pub fn bounds(&self) -> Bounds {
        let state = self.state.lock();
        Bounds { floor: state.floor, tip: state.tip }
    }

    /// How many events wait to become durable.
    pub fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.waiting.len() + state.batch.as_ref().map_or(0, |batch| batch.len())
    }

    /// How many events found no room so far.
    pub fn lost_ever(&self) -> u64 {
        self.state.lock().lost_ever
    }

    /// Gives up what is older than `floor`: whoever still wants it is told so. To be called *before* the store
    /// trims, so that no reader is sent to what is gone.
    pub fn trim(&self, floor: Seq) {
        {
            let mut state = self.state.lock();
            state.floor = state.floor.max(floor.min(state.tip + 1));
        }
        self.moved.notify();
    }

    fn end_append(&self, durable: bool) {
        // Freed only after the lock is given back: whoever pushes must not wait for it.
        let _evicted: Vec<E> = {
            let mut state = self.state.lock();
            state.taken = false;
            if !durable {
                return;
            }
            let batch = state.batch.take().expect("feed-durable: an append ends once");
            state.tip += batch.len() as Seq;
            state.ring.extend(batch.iter().cloned());
            let excess = state.ring.len().saturating_sub(self.limits.ring);
            let evicted = state.ring.drain(..excess).collect();
            if self.limits.ring_only {
                state.floor = state.floor.max(state.tip + 1 - state.ring.len() as Seq);
            }
            evicted
        };
        self.moved.notify();
    }
}

/// A batch on its way to the store. Dropped unconfirmed, it stays the next batch, under the same numbers.
#[derive(Debug)]
#[must_use = "an append that is dropped makes nothing visible"]
pub struct Append<E: Clone> {
    timeline: Arc<Timeline<E>>,
    first: Seq,
    events: Arc<[E]>,
    settled: bool,
}

impl<E: Clone> Append<E> {
    /// The number of the first event.
    pub fn first(&self) -> Seq {
        self.first
    }

    /// The events, in order.
    pub fn events(&self) -> &[E] {
        &self.events
    }

    /// The store has said that all of them are durable: now they can be seen.
    pub fn durable(mut self) {
        self.settled = true;
        self.timeline.end_append(true);
    }
}

impl<E: Clone> Drop for Append<E> {
    fn drop(&mut self) {
        if !self.settled {
            self.timeline.end_append(false);
        }
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;

    fn timeline(floor: Seq, tip: Seq, ring: usize) -> Arc<Timeline<u64>> {
        Arc::new(Timeline::new(Bounds { floor, tip }, Limits { ring, waiting: 4, ring_only: false }))
    }

    fn grow(timeline: &Arc<Timeline<u64>>, events: impl IntoIterator<Item = u64>) {
        events.into_iter().for_each(|event| assert!(timeline.push(event)));
        timeline.take(usize::MAX, |_| 0).expect("events wait").durable();
    }

    fn events(look: Look<u64>) -> Vec<u64> {
        match look {
            Look::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_visible_before_it_is_durable() {
        let timeline = timeline(1, 0, 8);
        timeline.push(7);
        let append = timeline.take(9, |_| 0).expect("it waits");
        assert!(matches!(timeline.read(0, 9), Look::AtTip));
        assert!(timeline.take(9, |_| 0).is_none(), "one appender at a time");
        drop(append);
        let again = timeline.take(9, |_| 0).expect("the same batch");
        assert_eq!((again.first(), again.events()), (1, &[7][..]));
        again.durable();
        assert_eq!(events(timeline.read(0, 9)), [7]);
    }

    #[test]
    fn a_cursor_reads_on_from_where_it_stands() {
        let timeline = timeline(3, 4, 3);
        grow(&timeline, [5, 6]);
        assert_eq!(events(timeline.read(4, 1)), [5]);
        assert_eq!(events(timeline.read(5, 9)), [6]);
        grow(&timeline, [7, 8]);
        assert!(matches!(timeline.read(4, 9), Look::Cold { ring: 6 }));
        assert_eq!(events(timeline.read(5, 9)), [6, 7, 8]);
        assert!(matches!(timeline.read(2, 9), Look::Cold { ring: 6 }));
        assert!(matches!(timeline.read(1, 9), Look::Trimmed { floor: 3 }));
        assert!(matches!(timeline.read(9, 9), Look::Ahead { tip: 8 }));
        timeline.trim(8);
        assert!(matches!(timeline.read(6, 9), Look::Trimmed { floor: 8 }));
        assert_eq!(events(timeline.read(7, 9)), [8]);
        timeline.trim(100);
        assert_eq!(timeline.bounds(), Bounds { floor: 9, tip: 8 });
    }

    #[test]
    fn with_nothing_behind_the_ring_the_floor_follows_it() {
        let limits = Limits { ring: 2, waiting: 4, ring_only: true };
        let timeline = Arc::new(Timeline::new(Bounds { floor: 11, tip: 10 }, limits));
        assert!(matches!(timeline.read(9, 9), Look::Trimmed { floor: 11 }));
        grow(&timeline, [11, 12]);
        assert_eq!(events(timeline.read(10, 9)), [11, 12]);
        grow(&timeline, [13]);
        assert!(matches!(timeline.read(10, 9), Look::Trimmed { floor: 12 }), "never a word about the disk");
        assert_eq!(events(timeline.read(11, 9)), [12, 13]);
        assert_eq!(timeline.bounds(), Bounds { floor: 12, tip: 13 });
    }

    #[test]
    fn what_finds_no_room_is_counted_and_said() {
        let timeline = timeline(1, 0, 8);
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|event| timeline.push(event)),
            [true, true, true, true, false, false]
        );
        timeline.take(3, |_| unreachable!("one still waits before them")).expect("three").durable();
        timeline.take(3, |lost| 100 + lost).expect("the rest").durable();
        assert_eq!(timeline.lost_ever(), 2);
        assert_eq!(events(timeline.read(0, 9)), [1, 2, 3, 4, 102]);
    }

    #[test]
    fn nothing_comes_after_the_last_event() {
        let timeline = timeline(1, 0, 8);
        timeline.push(1);
        timeline.close(2);
        assert!(!timeline.push(3));
        timeline.close(4);
        timeline.take(9, |_| unreachable!("what came too late is not lost")).expect("two wait").durable();
        assert_eq!(events(timeline.read(0, 9)), [1, 2]);
    }
}
