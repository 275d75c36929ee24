//! Reading the event log: from where a reader wants to begin, through the log on disk, into the ring, and
//! on with whatever comes.
//!
//! A [`Reader`] is one cursor with one owner. It is given the events behind the cursor, says when they are
//! written, and only then moves on (`feed-exact`). There is no second source that could run ahead: replay
//! and live are the same read, from disk where the ring no longer reaches. What is no longer kept is said
//! (`feed-explicit`), never skipped. Called by `http` and by the simulator's readers.

use thiserror::Error;

use crate::core::sync::Arc;
use crate::core::time::Timestamp;
use crate::core::timeline::{Bounds, Look, Seq};
use crate::ports::StoreError;
use crate::wire::dates;
use crate::wire::event::Event;
use crate::wire::filter::Filter;

use super::log::Record;
use super::router::Router;

/// Events looked at in one step: the longest that one reader keeps a thread, and what one holds in memory.
const STEP: usize = 128;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest event that is kept.
    Kept,
    /// Behind this number: an event's, or 0, which is the place before the first event ever.
    After(Seq),
    /// With the first event later than this, by the clock that labelled it.
    Since(Timestamp),
    /// With what comes from now on.
    Live,
}

/// Why nothing can be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FollowError {
    /// It is configured so.
    #[error("the event log is off: set `event_log` in the configuration to turn it on")]
    Off,
    /// Events that should come next are no longer kept.
    #[error("events before {floor} are no longer kept: begin with after={}, or with after=0 for all there are", floor.saturating_sub(1))]
    Gone {
        /// The oldest that is kept.
        floor: Seq,
    },
    /// Nobody was ever given this number.
    #[error("there is no event {after} yet, the newest is {tip}: a number comes from an event of this log")]
    Future {
        /// What was asked for.
        after: Seq,
        /// The newest there is.
        tip: Seq,
    },
    /// No event can be later than this time yet.
    #[error(
        "{} lies in the future, this router has come to {}: leave `after` out for what comes from now on",
        dates::millis_to_rfc3339(.time.as_millis()), dates::millis_to_rfc3339(.now.as_millis())
    )]
    NotYet {
        /// What was asked for.
        time: Timestamp,
        /// Later than every event, too.
        now: Timestamp,
    },
    /// The store failed.
    #[error("the event log cannot be read at the moment: {0}")]
    Store(#[from] StoreError),
}

/// One cursor over the log.
pub struct Reader {
    router: Arc<Router>,
    filter: Filter,
    /// Everything up to here was looked at, and what passed the filter was written.
    cursor: Seq,
    /// The last event that was written.
    given: Option<Seq>,
}

/// What lies behind a cursor: the events that passed the filter, and how far was looked.
#[derive(Debug)]
pub struct Step {
    /// With their numbers, in order.
    pub events: Vec<(Seq, Arc<Event>)>,
    /// The last number looked at.
    pub end: Seq,
}

impl Router {
    /// A reader of the log.
    pub async fn follow(&self, begin: Begin, filter: Filter) -> Result<Reader, FollowError> {
        if !self.log.is_on() {
            return Err(FollowError::Off);
        }
        let bounds = self.log.bounds();
        let cursor = match begin {
            Begin::Live => bounds.tip,
            Begin::Kept => bounds.floor - 1,
            Begin::After(after) if after > bounds.tip => {
                return Err(FollowError::Future { after, tip: bounds.tip });
            }
            Begin::After(after) if after + 1 < bounds.floor => {
                return Err(FollowError::Gone { floor: bounds.floor });
            }
            Begin::After(after) => after,
            Begin::Since(time) => self.before(bounds, time).await?,
        };
        Ok(Reader { router: self.arc(), filter, cursor, given: None })
    }

    /// The position before the first event later than `time`.
    async fn before(&self, bounds: Bounds, time: Timestamp) -> Result<Seq, FollowError> {
        let gone = || FollowError::Gone { floor: self.log.bounds().floor };
        // A clock that was set back labels what comes now with times that are gone already.
        let now = self.ports.clock.wall().max(Timestamp::from_millis(self.log.latest_ms()));
        if time > now {
            return Err(FollowError::NotYet { time, now });
        }
        if self.log.latest_ms() <= time.as_millis() {
            // Nothing is known yet of what was given up before this start.
            return if bounds.tip > 0 && self.log.latest_ms() == 0 { Err(gone()) } else { Ok(bounds.tip) };
        }
        let store = self.ports.store.as_ref();
        let first = self.log.first_after(store, bounds, time.as_millis()).await?;
        // Everything before it must be known to be earlier: what was given up may not have been.
        if first > 1
            && self.log.latest_with(store, first - 1).await?.is_none_or(|before| before > time.as_millis())
        {
            return Err(gone());
        }
        Ok(first - 1)
    }
}

impl Reader {
    /// The next step, waiting until there is one. Asked again before [`Reader::wrote`], it is the same.
    pub async fn next(&mut self) -> Result<Step, FollowError> {
        loop {
            let timeline = self.router.log.timeline();
            // Listening comes first: what becomes visible after the look completes it.
            let moved = timeline.moved();
            match timeline.read(self.cursor, STEP) {
                Look::Events(events) => return Ok(self.step(events)),
                Look::Cold { ring } => return self.cold(ring).await,
                Look::AtTip => moved.await,
                Look::Trimmed { floor } => return Err(FollowError::Gone { floor }),
                Look::Ahead { tip } => return Err(FollowError::Future { after: self.cursor, tip }),
            }
        }
    }

    /// From the disk, up to where the ring began when it was looked at.
    async fn cold(&mut self, ring: Seq) -> Result<Step, FollowError> {
        let count = (ring - 1 - self.cursor).min(STEP as u64) as usize;
        let log = &self.router.log;
        let Some(store) = log.stored(self.router.ports.store.as_ref()) else {
            return Err(FollowError::Gone { floor: log.bounds().floor });
        };
        let records = match store.read(self.cursor + 1, count).await {
            Ok(records) => records,
            Err(StoreError::Trimmed { floor }) => return Err(FollowError::Gone { floor }),
            Err(error) => return Err(error.into()),
        };
        if records.is_empty() {
            let why = format!("event {} is missing", self.cursor + 1);
            return Err(FollowError::Store(StoreError::Corrupt(why)));
        }
        let event = |record| Record::decode(record).map(|record| Arc::new(record.event));
        let events = records.iter().map(event).collect::<Result<Vec<_>, _>>()?;
        Ok(self.step(events))
    }

    fn step(&self, events: Vec<Arc<Event>>) -> Step {
        let end = self.cursor + events.len() as Seq;
        let numbered = (self.cursor + 1..).zip(events);
        Step { events: numbered.filter(|(_, event)| self.filter.matches(event)).collect(), end }
    }

    /// Everything up to `seq` is written, or not wanted: the next step begins behind it.
    pub fn wrote(&mut self, step: &Step, seq: Seq) {
        debug_assert!(self.cursor <= seq && seq <= step.end, "feed-exact: a cursor moves on, step by step");
        self.cursor = seq;
        let given = step.events.iter().rev().find(|(event, _)| *event <= seq);
        self.given = given.map_or(self.given, |(event, _)| Some(*event));
    }

    /// Wants other events from here on. The cursor stays where it is.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// Everything up to here was looked at: who resumes behind it misses nothing.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// The last event that was written, if any was.
    pub fn given(&self) -> Option<Seq> {
        self.given
    }

    /// How many events lie behind the cursor.
    pub fn lag(&self) -> u64 {
        self.router.log.bounds().tip.saturating_sub(self.cursor)
    }
}
