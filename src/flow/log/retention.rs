//! What the event log no longer keeps: events are given up by their number and by their age.
//!
//! Readers learn the new floor before the store trims, so that none is sent to what is gone (`feed-explicit`), and
//! what is stored and not seen yet stays. One task of the router does it, every now and then.

use core::convert::Infallible;
use core::time::Duration;

use crate::core::sync::Ordering;
use crate::core::timeline::{Bounds, Seq};
use crate::ports::StoreError;

use super::{EventLog, Record, Router, StoredLog};

/// How often the log is looked at for events that are too old or too many.
const RETENTION: Duration = Duration::from_secs(30);

/// Records read at once to find old ones behind one that a clock dated ahead, and how often in one go.
const LOOK_PAGE: usize = 1_024;
const LOOK_PAGES: usize = 64;

impl EventLog {
    /// The first of `bounds` that is not to be given up for its age: what happened at `until_ms` or before is too
    /// old, now it is `now_ms`.
    ///
    /// The latest time tells, as for readers, unless it lies ahead of the clock: then some event was dated while
    /// the clock was wrong, and those behind it go by their own dates. Nothing goes before its time unless a
    /// clock was wrong in both directions; once the clock has caught up, what was logged meanwhile stays for up to
    /// twice its time.
    async fn first_young(
        &self,
        stored: StoredLog<'_>,
        bounds: Bounds,
        until_ms: u64,
        now_ms: u64,
    ) -> Result<Seq, StoreError> {
        let store = stored.store;
        let mut floor = self.first_after(store, bounds, until_ms).await?;
        if self.first_after(store, bounds, now_ms).await? > floor {
            return Ok(floor);
        }
        let mut next = floor.max(self.looked.load(Ordering::Relaxed) + 1);
        for _ in 0..LOOK_PAGES {
            // What the store holds behind the tip is about to be seen: it must not go before.
            let left = usize::try_from((bounds.tip + 1).saturating_sub(next)).unwrap_or(usize::MAX);
            if left == 0 {
                break;
            }
            let records = match stored.read(next, LOOK_PAGE.min(left)).await {
                Ok(records) if records.is_empty() => break,
                Ok(records) => records,
                Err(StoreError::Trimmed { .. }) => break,
                Err(error) => return Err(error),
            };
            for record in &records {
                let time_ms = Record::decode(record)?.event.time_ms;
                if time_ms <= until_ms {
                    floor = next + 1;
                } else if time_ms <= now_ms {
                    return Ok(floor);
                }
                self.looked.store(next, Ordering::Relaxed);
                next += 1;
            }
        }
        Ok(floor)
    }

    /// Events below `floor` are given up: first told, then trimmed. If the store fails, the next call tries again.
    async fn give_up(
        &self,
        floor: Seq,
        trim: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        if floor <= self.trimmed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.timeline.trim(floor);
        tracing::debug!(floor, "old events are given up");
        trim.await?;
        self.trimmed.store(floor, Ordering::Relaxed);
        Ok(())
    }
}

impl Router {
    /// Trims the log every now and then, for ever.
    pub(in crate::flow) async fn keep_log_short(&self) -> Infallible {
        loop {
            self.ports.clock.sleep(RETENTION).await;
            if let Err(error) = self.trim_log().await {
                tracing::warn!(%error, "old events could not be removed; tried again later");
            }
        }
    }

    /// Gives up events that are too old or too many. Readers learn the new floor before the store trims.
    pub async fn trim_log(&self) -> Result<(), StoreError> {
        if !self.log.is_on() {
            return Ok(());
        }
        let (store, config) = (self.ports.store.as_ref(), self.fleet().config.clone());
        // What is not stored leaves with the ring, whatever its age.
        let Some(stored) = self.log.stored(store) else { return Ok(()) };
        let bounds = self.log.bounds();
        let by_size = (bounds.tip + 1).saturating_sub(config.event_log_max_events);
        let max_age_ms = u64::try_from(config.event_log_max_age.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.ports.clock.wall().as_millis();
        let by_age = match now_ms.checked_sub(max_age_ms) {
            Some(until_ms) => self.log.first_young(stored, bounds, until_ms, now_ms).await?,
            None => bounds.floor,
        };
        let floor = by_size.max(by_age).max(bounds.floor);
        self.log.give_up(floor, stored.trim(floor)).await
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::super::tests::{log, open};
    use super::*;
    use crate::adapters::memory::MemoryStore;
    use crate::config::EventLogMode;
    use crate::ports::Store;
    use crate::wire::event::{Event, Fields, Kind};

    #[tokio::test]
    async fn an_event_dated_ahead_keeps_nothing_beyond_its_age() {
        let store = MemoryStore::new();
        let life = open(EventLogMode::Group, &store).await;
        log(&life, &store, [10, 20, 1_000_000, 30, 40, 1_000_001, 50, 60]).await;
        let young = async |life: &EventLog, until_ms, now_ms| {
            life.first_young(life.stored(&store).expect("it is stored"), life.bounds(), until_ms, now_ms)
                .await
        };
        for (until_ms, now_ms, first) in [(5, 60, 1), (10, 60, 2), (20, 60, 3), (30, 60, 5), (45, 70, 6)] {
            assert_eq!(young(&life, until_ms, now_ms).await, Ok(first), "{until_ms} of {now_ms}");
            let anew = open(EventLogMode::Group, &store).await;
            assert_eq!(
                young(&anew, until_ms, now_ms).await,
                Ok(first),
                "{until_ms} of {now_ms}, after a start"
            );
        }
        assert_eq!(young(&life, 60, 70).await, Ok(9), "all of them are old");
        // The clock was set back: nobody knows how old they are.
        assert_eq!(young(&open(EventLogMode::Group, &store).await, 1, 9).await, Ok(1));
        // And readers find times as ever.
        assert_eq!(life.first_after(&store, life.bounds(), 20).await, Ok(3));
    }

    #[tokio::test]
    async fn what_is_stored_and_not_seen_yet_is_not_given_up() {
        let store = MemoryStore::new();
        let life = open(EventLogMode::Group, &store).await;
        log(&life, &store, [10, 1_000_000]).await;
        // Its append has reached the store, and not come back yet.
        let old = Event::new(Kind::ConfigReloaded, Fields { time_ms: 20, ..Fields::default() });
        store.append(3, vec![Record::encode(1_000_000, &old)]).await.unwrap();
        let stored = life.stored(&store).expect("it is stored");
        assert_eq!(life.first_young(stored, life.bounds(), 30, 60).await, Ok(2));
    }

    #[tokio::test]
    async fn a_trim_that_failed_is_tried_again() {
        let store = MemoryStore::new();
        let life = open(EventLogMode::Group, &store).await;
        log(&life, &store, 1..=9).await;
        let told = |life: &EventLog| life.bounds().floor;
        let failed = life.give_up(5, async { Err(StoreError::Unavailable("full".to_owned())) }).await;
        assert_eq!((failed.is_err(), told(&life), store.bounds().await.unwrap().floor), (true, 5, 1));
        assert_eq!(life.give_up(5, store.trim(5)).await, Ok(()));
        assert_eq!((told(&life), store.bounds().await.unwrap().floor), (5, 5));
    }
}
