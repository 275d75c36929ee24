//! The event log on its way to the disk: what happened is handed in by whoever saw it, made durable in
//! groups by one task, and trimmed by another (see `retention`).
//!
//! An event is visible once it is durable, and then for good (`feed-durable`). A group whose append failed
//! without a word whether it was carried out is tried again under the same numbers; a store that already
//! has them says so. Beside each event the log keeps the latest time seen so far: wall clocks step back, that
//! time does not, so positions can be found by time. Read by `flow::follow`.
//!
//! With `event_log: none` the ring is all there is, and only the numbers are durable; see [`super::numbers`].

mod retention;

use std::collections::VecDeque;

use core::convert::Infallible;
use core::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::config::EventLogMode;
use crate::core::sync::{Arc, AtomicU64, Lock, Ordering, Rank};
use crate::core::timeline::{Append, Bounds, Limits, Seq, Timeline};
use crate::ports::{Store, StoreError};
use crate::wire::event::{BadEvent, Event, Fields, Kind};

use super::numbers::{self, StoredLog};
use super::router::Router;

/// Events made durable at once, at most: bounds what one append copies.
const GROUP_MAX: usize = 4_096;

/// From one group to the next that is not full: a group costs a flush and some wake-ups, however small it is.
/// Events that come after a quiet time are made durable at once.
const GROUP_GAP: Duration = Duration::from_millis(50);

/// Events that wait for the disk, at most: a few seconds of a busy router.
pub(super) const WAITING_MAX: usize = 65_536;

/// Pause after the store failed.
const RETRY: Duration = Duration::from_millis(500);

/// Bytes before the JSON of a stored record: the latest time up to and with it, little-endian.
const HEAD: usize = 8;

/// The events of one router.
#[derive(Debug)]
pub struct EventLog {
    mode: EventLogMode,
    timeline: Arc<Timeline<Arc<Event>>>,
    /// The latest time of all events that are durable, in Unix milliseconds. Written by the appender only.
    latest_ms: AtomicU64,
    /// Groups that could not be made durable when it was tried.
    failed: AtomicU64,
    /// Events that are taken to the disk, or past it, at once.
    group: usize,
    home: Home,
    /// The floor that the store is known to have. Written by whoever trims only.
    trimmed: AtomicU64,
    /// How far trimming looked for old events behind one that a clock dated ahead. Written by it only.
    looked: AtomicU64,
}

/// Where events are kept.
#[derive(Debug)]
enum Home {
    /// In the store, under numbers so far ahead of the store's own.
    Store { offset: u64 },
    /// In the ring, and nowhere else.
    Ring {
        /// As many as the ring holds: that many numbers are leased at a time, too.
        size: usize,
        /// Numbers up to here may be used. Written by the appender only.
        leased: AtomicU64,
        /// The latest time up to and with each of the newest events.
        times: Lock<Times>,
    },
}

/// What a record's head says in the store, for events that have no record.
#[derive(Debug, Default)]
struct Times {
    latest_ms: VecDeque<u64>,
    tip: Seq,
}

impl Times {
    fn get(&self, seq: Seq) -> Option<u64> {
        let back = usize::try_from(self.tip.checked_sub(seq)?).ok()?;
        self.latest_ms.get(self.latest_ms.len().checked_sub(back + 1)?).copied()
    }

    /// One more than `size` stay: for the oldest event in the ring it must be known what came before.
    fn push(&mut self, latest_ms: u64, size: usize) {
        self.latest_ms.push_back(latest_ms);
        self.tip += 1;
        if self.latest_ms.len() > size + 1 {
            self.latest_ms.pop_front();
        }
    }
}

/// One stored record.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The latest time of all events up to this one, in Unix milliseconds.
    pub(super) latest_ms: u64,
    /// The event.
    pub(super) event: Event,
}

impl Record {
    fn encode(latest_ms: u64, event: &Event) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD + event.json.len());
        bytes.put_u64_le(latest_ms);
        bytes.put_slice(&event.json);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Record, StoreError> {
        let damaged = |error: BadEvent| StoreError::Corrupt(error.to_string());
        let head = bytes.first_chunk::<HEAD>();
        let head =
            head.ok_or_else(|| StoreError::Corrupt("a record of the event log is cut off".to_owned()))?;
        let event = Event::parse(bytes.slice(HEAD..)).map_err(damaged)?;
        Ok(Record { latest_ms: u64::from_le_bytes(*head), event })
    }
}

/// The record with this number; `None` if it is not kept.
async fn record(store: StoredLog<'_>, seq: Seq) -> Result<Option<Record>, StoreError> {
    match store.read(seq, 1).await {
        Ok(records) => records.first().map(Record::decode).transpose(),
        Err(StoreError::Trimmed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sees to it that events get numbers behind `used` only, before a router starts on this store: others may have
/// been given those up to there, by a store that is gone.
pub async fn go_on_behind(store: &dyn Store, used: Seq) -> Result<(), StoreError> {
    if numbers::newest(store).await? < used {
        numbers::lease(store, used).await?;
    }
    Ok(())
}

impl EventLog {
    /// The log that goes on behind what the store holds.
    pub(super) async fn open(
        mode: EventLogMode,
        ring: usize,
        store: &dyn Store,
    ) -> Result<EventLog, StoreError> {
        let mut bounds = Bounds { floor: 1, tip: 0 };
        let mut latest_ms = 0;
        let mut home = Home::Store { offset: 0 };
        match mode {
            EventLogMode::Off => {}
            EventLogMode::Group | EventLogMode::Each => {
                let stored = numbers::resume(store).await?.stored(store);
                home = Home::Store { offset: stored.offset };
                bounds = stored.bounds().await?;
                if bounds.tip >= bounds.floor {
                    latest_ms = record(stored, bounds.tip).await?.map_or(0, |record| record.latest_ms);
                }
            }
            EventLogMode::None => {
                let tip = numbers::newest(store).await?;
                bounds = Bounds { floor: tip + 1, tip };
                let times = Times { tip, ..Times::default() };
                let times = Lock::new(Rank::Timeline, times);
                home = Home::Ring { size: ring, leased: AtomicU64::new(tip), times };
            }
        }
        let group = match mode {
            EventLogMode::Each => 1,
            // So that whoever keeps up sees each before it leaves the ring.
            EventLogMode::None => GROUP_MAX.min(ring / 2),
            EventLogMode::Group | EventLogMode::Off => GROUP_MAX,
        };
        let limits = Limits { ring, waiting: WAITING_MAX, ring_only: mode == EventLogMode::None };
        let timeline = Arc::new(Timeline::new(bounds, limits));
        Ok(EventLog {
            mode,
            timeline,
            latest_ms: AtomicU64::new(latest_ms),
            failed: AtomicU64::new(0),
            group,
            home,
            trimmed: AtomicU64::new(bounds.floor),
            looked: AtomicU64::new(0),
        })
    }

    /// The log as it is stored; `None` if it is not.
    pub(super) fn stored<'s>(&self, store: &'s dyn Store) -> Option<StoredLog<'s>> {
        match self.home {
            Home::Store { offset } => Some(StoredLog { store, offset }),
            Home::Ring { .. } => None,
        }
    }

    /// The latest time up to and with this event, in Unix milliseconds; `None` if it is not kept.
    pub(super) async fn latest_with(&self, store: &dyn Store, seq: Seq) -> Result<Option<u64>, StoreError> {
        match &self.home {
            Home::Store { offset } => {
                let record = record(StoredLog { store, offset: *offset }, seq).await?;
                Ok(record.map(|record| record.latest_ms))
            }
            Home::Ring { times, .. } => Ok(times.lock().get(seq)),
        }
    }

    /// The first of `bounds` whose latest time is past `time_ms`; `tip + 1` if none is. Exact however wall
    /// clocks stepped, because the latest time never falls.
    pub(super) async fn first_after(
        &self,
        store: &dyn Store,
        bounds: Bounds,
        time_ms: u64,
    ) -> Result<Seq, StoreError> {
        let (mut low, mut high) = (bounds.floor, bounds.tip + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.latest_with(store, middle).await? {
                Some(latest_ms) if latest_ms > time_ms => high = middle,
                // Not kept any more: whatever is sought lies behind it.
                _ => low = middle + 1,
            }
        }
        Ok(low)
    }

    /// Whether anything is logged at all.
    pub fn is_on(&self) -> bool {
        self.mode != EventLogMode::Off
    }

    /// Floor and tip now.
    pub fn bounds(&self) -> Bounds {
        self.timeline.bounds()
    }

    /// The latest time of all events so far, in Unix milliseconds; 0 before the first.
    pub(super) fn latest_ms(&self) -> u64 {
        self.latest_ms.load(Ordering::Relaxed)
    }

    /// Events that are not durable yet.
    pub fn waiting(&self) -> usize {
        self.timeline.waiting()
    }

    /// Events that found no room so far.
    pub fn lost(&self) -> u64 {
        self.timeline.lost_ever()
    }

    /// Attempts to make events durable that failed so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn timeline(&self) -> &Timeline<Arc<Event>> {
        &self.timeline
    }

    /// Makes the next group durable and says how many events it had: 0 if nothing waits. On an error it stays,
    /// numbers and all.
    async fn append(&self, store: &dyn Store, now_ms: u64) -> Result<usize, StoreError> {
        let Some(append) = self.timeline.take(self.group, |lost| Arc::new(lost_events(lost, now_ms))) else {
            return Ok(0);
        };
        let mut latest_ms = self.latest_ms.load(Ordering::Relaxed);
        let mut time = |event: &Arc<Event>| {
            latest_ms = latest_ms.max(event.time_ms);
            latest_ms
        };
        match &self.home {
            Home::Store { offset } => {
                let record = |event| Record::encode(time(event), event);
                let records = append.events().iter().map(record).collect();
                let store = StoredLog { store, offset: *offset };
                match store.append(append.first(), records).await {
                    Ok(()) => {}
                    Err(StoreError::Conflict) => carried_out(store, &append).await?,
                    Err(error) => return Err(error),
                }
            }
            Home::Ring { size, leased, times } => {
                lease(store, leased, append.first() + append.events().len() as Seq - 1, *size).await?;
                let mut times = times.lock();
                append.events().iter().for_each(|event| times.push(time(event), *size));
            }
        }
        self.latest_ms.store(latest_ms, Ordering::Relaxed);
        let count = append.events().len();
        append.durable();
        Ok(count)
    }
}

/// Numbers up to `last` are about to be used: before they are, it must be durable that they may have been.
async fn lease(store: &dyn Store, leased: &AtomicU64, last: Seq, size: usize) -> Result<(), StoreError> {
    if last > leased.load(Ordering::Relaxed) {
        let up_to = last + size as Seq;
        numbers::lease(store, up_to).await?;
        leased.store(up_to, Ordering::Relaxed);
    }
    Ok(())
}

/// The store has other numbers than we thought: it must be that an append which seemed to fail was carried
/// out, since nobody else appends.
async fn carried_out(store: StoredLog<'_>, append: &Append<Arc<Event>>) -> Result<(), StoreError> {
    let tip = store.bounds().await?.tip;
    if tip + 1 == append.first() + append.events().len() as Seq { Ok(()) } else { Err(StoreError::Conflict) }
}

fn lost_events(lost: u64, now_ms: u64) -> Event {
    Event::new(Kind::LogLost, Fields { time_ms: now_ms, events: Some(lost), ..Fields::default() })
}

impl Router {
    /// The events.
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// Logs that something happened now. Never waits.
    pub(super) fn note(&self, kind: Kind, fields: Fields<'_>) {
        if self.log.is_on() {
            let fields = Fields { time_ms: self.ports.clock.wall().as_millis(), ..fields };
            self.log.timeline.push(Arc::new(Event::new(kind, fields)));
        }
    }

    /// Logs that the router begins: the first event of its life.
    pub(super) fn begin_log(&self) {
        self.note(Kind::InstanceJoined, self.books());
    }

    /// Logs that the router ends in order, and whether its last token counts could not be stored; nothing
    /// that happens later is logged.
    pub(super) fn close_log(&self, failed: Option<&StoreError>) {
        let time_ms = self.ports.clock.wall().as_millis();
        let reason = failed.map(|error| error.to_string().into());
        let slots = self.usage.slots().snapshot();
        let in_flight = slots.endpoints.iter().map(|endpoint| u64::from(endpoint.total)).sum();
        let fields = Fields {
            time_ms,
            reason,
            admitted: Some(slots.admitted),
            finished: Some(slots.finished),
            in_flight: Some(in_flight),
            queued: Some(slots.queued as u64),
            ..self.books()
        };
        let left = Event::new(Kind::InstanceLeft, fields);
        self.log.timeline.close(Arc::new(left));
    }

    /// What `flow::audit` compares one life's events with.
    fn books(&self) -> Fields<'static> {
        let totals = self.usage.ledger().totals();
        let total = totals.values().fold(0, |sum: u64, tokens| sum.saturating_add(tokens.total()));
        Fields { total_tokens: Some(total), ..Fields::default() }
    }

    /// Makes events durable as they come, for ever.
    pub(super) async fn keep_log(&self) -> Infallible {
        loop {
            let pushed = self.log.timeline.pushed();
            match self.append_events().await {
                Ok(0) => pushed.await,
                // What comes meanwhile shares the next group.
                Ok(count) if count < self.log.group => self.ports.clock.sleep(GROUP_GAP).await,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "events could not be logged; they are kept and tried again");
                    self.ports.clock.sleep(RETRY).await;
                }
            }
        }
    }

    async fn append_events(&self) -> Result<usize, StoreError> {
        let appended = self.log.append(self.ports.store.as_ref(), self.ports.clock.wall().as_millis()).await;
        if appended.is_err() {
            self.log.failed.fetch_add(1, Ordering::Relaxed);
        }
        appended
    }

    /// Makes everything durable that was handed in; tries for at most `patience`.
    pub async fn append_all(&self, patience: Duration) -> Result<(), StoreError> {
        if !self.log.is_on() {
            return Ok(());
        }
        let deadline = self.ports.clock.now() + patience;
        loop {
            match self.append_events().await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if self.ports.clock.now() >= deadline => return Err(error),
                Err(_) => self.ports.clock.sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;
    use crate::adapters::memory::MemoryStore;

    pub(super) async fn open(mode: EventLogMode, store: &MemoryStore) -> EventLog {
        EventLog::open(mode, 16, store).await.expect("memory does not fail")
    }

    /// Logs an event at each time, one group each.
    pub(super) async fn log(log: &EventLog, store: &MemoryStore, times: impl IntoIterator<Item = u64>) {
        for time_ms in times {
            let fields = Fields { time_ms, ..Fields::default() };
            log.timeline.push(Arc::new(Event::new(Kind::ConfigReloaded, fields)));
            assert_eq!(log.append(store, 0).await, Ok(1));
        }
    }

    #[tokio::test]
    async fn whatever_mode_comes_next_goes_on_behind_every_number_that_was_seen() {
        let store = MemoryStore::new();
        let mut seen = 0;
        use EventLogMode::{Each, Group, None as Ring, Off};
        for mode in [Ring, Ring, Group, Each, Ring, Off, Group, Ring, Ring, Each] {
            let life = open(mode, &store).await;
            if mode == Off {
                continue;
            }
            let bounds = life.bounds();
            assert!(bounds.tip >= seen, "{mode:?} goes on behind {bounds:?}, {seen} was seen");
            assert!(mode != Ring || bounds.floor == bounds.tip + 1, "{bounds:?}");
            log(&life, &store, 0..40).await;
            assert_eq!(life.bounds().tip, bounds.tip + 40);
            seen = bounds.tip + 40;
        }
    }

    #[tokio::test]
    async fn stored_events_keep_their_numbers_and_go_once_there_are_others_behind_them() {
        let store = MemoryStore::new();
        log(&open(EventLogMode::Group, &store).await, &store, 1..=3).await;
        assert_eq!(open(EventLogMode::Group, &store).await.bounds(), Bounds { floor: 1, tip: 3 });
        log(&open(EventLogMode::None, &store).await, &store, [4]).await;
        let again = open(EventLogMode::Group, &store).await;
        let Bounds { floor, tip } = again.bounds();
        assert_eq!((floor, tip > 3), (tip + 1, true));
        log(&again, &store, [5, 6]).await;
        let bounds = Bounds { floor, tip: tip + 2 };
        assert_eq!(open(EventLogMode::Group, &store).await.bounds(), bounds);
        assert_eq!(again.latest_with(&store, bounds.tip).await, Ok(Some(6)));
        assert_eq!(again.first_after(&store, bounds, 5).await, Ok(bounds.tip));
    }

    #[tokio::test]
    async fn a_log_that_cannot_keep_up_says_how_many_events_are_missing() {
        let store = MemoryStore::new();
        let life = open(EventLogMode::Group, &store).await;
        let event = || Arc::new(Event::new(Kind::ConfigReloaded, Fields { time_ms: 5, ..Fields::default() }));
        let taken = (0..WAITING_MAX + 3).filter(|_| life.timeline.push(event())).count();
        while life.append(&store, 7).await != Ok(0) {}
        let bounds = life.bounds();
        assert_eq!((taken, bounds.tip), (WAITING_MAX, WAITING_MAX as Seq + 1));
        let records = store.read(bounds.tip, 1).await.unwrap();
        let lost = Record::decode(&records[0]).unwrap().event;
        let fields = lost.fields().unwrap();
        assert_eq!((&*fields.kind, fields.events, fields.time_ms), ("log.lost", Some(3), 7));
    }

    #[tokio::test]
    async fn numbers_that_a_lost_store_may_have_used_are_skipped_once() {
        for mode in [EventLogMode::Group, EventLogMode::None] {
            let store = MemoryStore::new();
            go_on_behind(&store, 1_000).await.unwrap();
            let life = open(mode, &store).await;
            assert_eq!(life.bounds(), Bounds { floor: 1_001, tip: 1_000 }, "{mode:?}");
            log(&life, &store, 1..=3).await;
            go_on_behind(&store, 1_000).await.unwrap();
            let again = open(mode, &store).await.bounds();
            assert!(again.tip >= 1_003 && (mode == EventLogMode::None || again.floor == 1_001), "{again:?}");
        }
    }

    #[tokio::test]
    async fn a_time_is_found_in_the_ring_though_the_clock_stepped_back() {
        let store = MemoryStore::new();
        let life = open(EventLogMode::None, &store).await;
        log(&life, &store, [10, 30, 20, 40]).await;
        assert_eq!(life.first_after(&store, life.bounds(), 10).await, Ok(2));
        assert_eq!(life.first_after(&store, life.bounds(), 30).await, Ok(4));
        log(&life, &store, [5; 16]).await;
        assert_eq!(life.bounds(), Bounds { floor: 5, tip: 20 });
        assert_eq!(life.latest_with(&store, 4).await, Ok(Some(40)), "what came before the ring is known");
        assert_eq!(life.latest_with(&store, 3).await, Ok(None));
    }
}
