//! Who subscribes: how many there may be, how much each address is given, and what all of them were.
//!
//! A [`Seat`] is one subscriber's place, given back when it is dropped. All seats of one address share one
//! token bucket; it outlives the last of them until it would be full again, so coming again is no way round
//! the rate. No address ever waits for another (`feed-independent`). No clock: time comes in as an argument.
//! Called by `http::feed` and [`super::pump`].

use std::collections::{BTreeMap, BTreeSet};

use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;

use thiserror::Error;

use crate::config::Config;
use crate::core::sync::{Arc, AtomicU64, Lock, Ordering, Rank};
use crate::core::time::Instant;

/// A client that finds its address's bucket empty waits for so much of a second's events, or for one: few
/// wake-ups, and small pieces.
const SHARES: f64 = 20.0;

/// All seats that are taken, and how it went for those who had one.
#[derive(Debug)]
pub struct Seats {
    taken: Lock<Taken>,
    /// Events written, to all of them.
    delivered: AtomicU64,
    /// Nanoseconds that subscribers waited for their addresses' rates, all together.
    held_nanos: AtomicU64,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: BTreeMap<IpAddr, Place>,
    /// Subscribers that were cut off, by reason.
    cut_off: BTreeMap<&'static str, u64>,
    /// Addresses whose last seat was given back, by when their buckets are full again.
    left: BTreeSet<(Instant, IpAddr)>,
}

/// What the subscribers at one address have together.
#[derive(Debug)]
struct Place {
    connected: usize,
    share: Arc<Share>,
}

/// What one address may be given.
#[derive(Debug)]
struct Share {
    bucket: Lock<Bucket>,
    /// When the bucket is full again, in the clock's nanoseconds: to be read while other locks of its rank are
    /// held. Exact once nobody draws any more.
    full_at: AtomicU64,
}

impl Share {
    /// Does something with the bucket.
    fn with<T>(&self, change: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut bucket = self.bucket.lock();
        let result = change(&mut bucket);
        self.full_at.store(bucket.full_at().as_nanos(), Ordering::Relaxed);
        result
    }

    fn full_at(&self) -> Instant {
        Instant::from_nanos(self.full_at.load(Ordering::Relaxed))
    }
}

/// Why there is no seat.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoSeat {
    /// Nobody else can be taken.
    #[error(
        "{max} subscribers are connected, which is the most; `subscribers_max` in the configuration sets the limit"
    )]
    Full {
        /// `subscribers_max`.
        max: usize,
    },
    /// This address has had its share.
    #[error(
        "{max} subscribers are connected from {address}, which is the most for one address; `per_ip_connections` in the configuration sets the limit"
    )]
    Address {
        /// The address; of IPv6 the network.
        address: IpAddr,
        /// `per_ip_connections`.
        max: usize,
    },
}

impl Default for Seats {
    fn default() -> Seats {
        Seats::new()
    }
}

impl NoSeat {
    /// The reason's name in the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            NoSeat::Full { .. } => "full",
            NoSeat::Address { .. } => "address",
        }
    }
}

impl Taken {
    /// Forgets whose bucket is full again and who has not come back.
    fn forget(&mut self, now: Instant) {
        while let Some(&(at, address)) = self.left.first()
            && at <= now
        {
            self.left.pop_first();
            self.forget_if_full(address, now);
        }
    }

    fn forget_if_full(&mut self, address: IpAddr, now: Instant) {
        let is_done = |place: &Place| place.connected == 0 && place.share.full_at() <= now;
        if self.by_address.get(&address).is_some_and(is_done) {
            self.by_address.remove(&address);
        }
    }
}

impl Seats {
    /// All of them free.
    pub fn new() -> Seats {
        let taken = Lock::new(Rank::Subscribers, Taken::default());
        Seats { taken, delivered: AtomicU64::new(0), held_nanos: AtomicU64::new(0) }
    }

    /// How many subscribers are connected.
    pub fn taken(&self) -> usize {
        self.taken.lock().total
    }

    /// How many events were written to subscribers.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// How many subscribers were cut off, by reason: `stalled`, `lagging`, `gone`, `failed`.
    pub fn cut_off(&self) -> BTreeMap<&'static str, u64> {
        self.taken.lock().cut_off.clone()
    }

    /// How long subscribers waited for their addresses' rates so far, all together.
    pub fn held(&self) -> Duration {
        Duration::from_nanos(self.held_nanos.load(Ordering::Relaxed))
    }

    /// A seat for a subscriber at this address. From now on the address has the rate of this configuration.
    ///
    /// # Errors
    ///
    /// When so many are taken as `config` allows.
    pub fn take(self: &Arc<Self>, address: IpAddr, config: &Config, now: Instant) -> Result<Seat, NoSeat> {
        let address = site(address);
        let is_full = |count: usize, max: usize| max > 0 && count >= max;
        let share = {
            let mut taken = self.taken.lock();
            taken.forget(now);
            if is_full(taken.total, config.subscribers_max) {
                return Err(NoSeat::Full { max: config.subscribers_max });
            }
            let here = taken.by_address.get(&address).map_or(0, |place| place.connected);
            if is_full(here, config.per_ip_connections) {
                return Err(NoSeat::Address { address, max: config.per_ip_connections });
            }
            taken.total += 1;
            let place = taken.by_address.entry(address).or_insert_with(|| {
                let bucket = Lock::new(Rank::Subscribers, Bucket::new(config.per_ip_limit, now));
                Place { connected: 0, share: Arc::new(Share { bucket, full_at: AtomicU64::new(0) }) }
            });
            place.connected += 1;
            Arc::clone(&place.share)
        };
        share.with(|bucket| bucket.set_rate(config.per_ip_limit, now));
        Ok(Seat { seats: Arc::clone(self), address, share, waits_since: AtomicU64::new(0) })
    }
}

/// One subscriber's seat.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
    share: Arc<Share>,
    /// One more than the nanoseconds of the clock when it was last told to wait; 0: it does not wait.
    waits_since: AtomicU64,
}

impl Seat {
    /// The address it was taken for: of IPv6 the network.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// So many events were written to it.
    pub(super) fn delivered(&self, count: u64) {
        self.seats.delivered.fetch_add(count, Ordering::Relaxed);
    }

    /// It was cut off for this reason.
    pub(super) fn cut_off(&self, reason: &'static str) {
        *self.seats.taken.lock().cut_off.entry(reason).or_default() += 1;
    }

    /// Leave to write up to `wanted` events, at least one; else how long to wait before asking again.
    pub(super) fn draw(&self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        let drawn = self.share.with(|bucket| bucket.draw(wanted, now));
        let waits = if drawn.is_ok() { 0 } else { now.as_nanos() + 1 };
        let waited = self.waits_since.swap(waits, Ordering::Relaxed);
        if waited > 0 {
            let nanos = (now.as_nanos() + 1).saturating_sub(waited);
            self.seats.held_nanos.fetch_add(nanos, Ordering::Relaxed);
        }
        drawn
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.total -= 1;
        if let Some(place) = taken.by_address.get_mut(&self.address) {
            place.connected -= 1;
            if place.connected == 0 {
                let full_at = place.share.full_at();
                taken.left.insert((full_at, self.address));
                // What was never drawn from needs no time.
                taken.forget(Instant::from_nanos(0));
            }
        }
    }
}

/// Events that may be written: as many as come in a second are saved up.
#[derive(Debug)]
struct Bucket {
    /// Events per second; 0 is no limit.
    rate: u32,
    events: f64,
    /// When `events` was right.
    at: Instant,
}

impl Bucket {
    fn new(rate: u32, now: Instant) -> Bucket {
        Bucket { rate, events: f64::from(rate), at: now }
    }

    fn refill(&mut self, now: Instant) {
        let rate = f64::from(self.rate);
        self.events = (self.events + rate * now.since(self.at).as_secs_f64()).min(rate);
        self.at = self.at.max(now);
    }

    /// Another rate from now on. What is saved up stays, as far as the new rate would have saved it up.
    fn set_rate(&mut self, rate: u32, now: Instant) {
        self.refill(now);
        let most = f64::from(rate);
        self.events = if self.rate == 0 { most } else { self.events.min(most) };
        self.rate = rate;
    }

    /// When a second's events are saved up again; the beginning of time if they are.
    fn full_at(&self) -> Instant {
        let missing = f64::from(self.rate) - self.events;
        if self.rate == 0 || missing <= 0.0 {
            return Instant::from_nanos(0);
        }
        // Rounding may make it a nanosecond early: an event's fraction, and no more.
        self.at + Duration::from_secs_f64(missing / f64::from(self.rate))
    }

    fn draw(&mut self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        if self.rate == 0 {
            return Ok(wanted);
        }
        self.refill(now);
        let rate = f64::from(self.rate);
        if self.events >= 1.0 {
            // Not more than there are, so it fits.
            let drawn = wanted.min(self.events as usize);
            self.events -= drawn as f64;
            return Ok(drawn);
        }
        let share = (rate / SHARES).min(wanted as f64).max(1.0);
        // A moment more, so that rounding never says "at once" and then that there is nothing.
        Err(Duration::from_secs_f64((share - self.events) / rate) + Duration::from_nanos(1))
    }
}

/// What counts as one address: of IPv6 the /64 network, which is what one site has.
pub fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_gives_a_second_at_once_and_then_the_rate() {
        let mut bucket = Bucket::new(100, at(0));
        assert_eq!(bucket.draw(80, at(0)), Ok(80));
        assert_eq!(bucket.draw(80, at(0)), Ok(20));
        let moment = Duration::from_nanos(1);
        assert_eq!(
            bucket.draw(80, at(0)),
            Err(Duration::from_millis(50) + moment),
            "a twentieth of a second's"
        );
        assert_eq!(bucket.draw(1, at(0)), Err(Duration::from_millis(10) + moment));
        assert_eq!(bucket.draw(80, at(50)), Ok(5));
        assert_eq!(bucket.draw(500, at(60_000)), Ok(100), "no more than a second is saved up");
    }

    #[test]
    fn a_rate_of_one_is_one_event_a_second_and_none_is_no_limit() {
        let mut bucket = Bucket::new(1, at(0));
        let mut drawn = 0;
        for millis in 0..=9_000 {
            drawn += bucket.draw(512, at(millis)).unwrap_or(0);
        }
        assert_eq!(drawn, 10);
        assert_eq!(Bucket::new(0, at(0)).draw(512, at(0)), Ok(512));
    }

    #[test]
    fn who_was_told_to_wait_finds_an_event_after_that_time() {
        for rate in [1, 3, 7, 19, 5_000, 999_983] {
            let mut bucket = Bucket::new(rate, at(0));
            let mut now = at(0);
            while bucket.draw(1, now).is_ok() {}
            for _ in 0..100 {
                let wait = bucket.draw(3, now).unwrap_err();
                now = now + wait;
                assert!(bucket.draw(3, now).is_ok(), "{rate}");
                while bucket.draw(1, now).is_ok() {}
            }
        }
    }

    #[test]
    fn seats_are_counted_in_total_and_by_address_and_given_back() {
        let seats = Arc::new(Seats::new());
        let config = Config { subscribers_max: 3, per_ip_connections: 2, ..Config::default() };
        let take = |text: &str| seats.take(address(text), &config, at(0));
        let first = take("10.0.0.1").unwrap();
        let _second = take("::ffff:10.0.0.1").unwrap();
        assert_eq!(take("10.0.0.1").unwrap_err(), NoSeat::Address { address: address("10.0.0.1"), max: 2 });
        let third = take("10.0.0.2").unwrap();
        assert_eq!(take("10.0.0.3").unwrap_err(), NoSeat::Full { max: 3 });
        drop(first);
        let _fourth = take("10.0.0.1").unwrap();
        drop(third);
        assert_eq!(seats.taken(), 2);
        assert_eq!(seats.taken.lock().by_address.len(), 1, "an address without subscribers is forgotten");
    }

    #[test]
    fn coming_again_gives_an_address_no_more_than_its_rate() {
        let seats = Arc::new(Seats::new());
        let config = Config { per_ip_limit: 100, ..Config::default() };
        let mut drawn = 0;
        for millis in 0..=3_000 {
            let seat = seats.take(address("10.0.0.1"), &config, at(millis)).unwrap();
            drawn += seat.draw(512, at(millis)).unwrap_or(0);
        }
        // The last event's time may be a rounding away.
        assert!((399..=400).contains(&drawn), "a second's at once, and then the rate: {drawn}");
        assert_eq!(seats.taken(), 0);
    }

    #[test]
    fn an_address_that_left_is_forgotten_once_its_bucket_is_full_again() {
        let seats = Arc::new(Seats::new());
        let config = Config { per_ip_limit: 100, ..Config::default() };
        let take = |text: &str, millis| seats.take(address(text), &config, at(millis)).unwrap();
        let known = || seats.taken.lock().by_address.len();
        for host in 0..50 {
            take(&format!("10.0.0.{host}"), 0).draw(100, at(0)).unwrap();
        }
        assert_eq!(known(), 50);
        let back = take("10.0.0.7", 500);
        assert_eq!((known(), seats.taken.lock().left.len()), (50, 50));
        assert_eq!(back.draw(100, at(500)), Ok(50));
        drop(take("10.0.1.0", 1_001));
        assert_eq!(known(), 1, "only who has come back");
        drop(back);
        drop(take("10.0.1.0", 1_499));
        assert_eq!(known(), 1, "not full yet");
        drop(take("10.0.1.0", 1_501));
        assert_eq!((known(), seats.taken.lock().left.len()), (0, 0));
    }

    #[test]
    fn a_rate_holds_for_an_address_from_its_next_subscriber_on() {
        let seats = Arc::new(Seats::new());
        let take = |per_ip_limit, millis| {
            let config = Config { per_ip_limit, ..Config::default() };
            seats.take(address("10.0.0.1"), &config, at(millis)).unwrap()
        };
        let first = take(0, 0);
        assert_eq!(first.draw(512, at(0)), Ok(512));
        let _second = take(10, 0);
        assert_eq!(first.draw(512, at(0)), Ok(10), "as if it had always been so");
        assert!(first.draw(1, at(0)).is_err());
        let _third = take(100, 500);
        assert_eq!(first.draw(512, at(500)), Ok(5), "what was saved up stays");
        assert_eq!(first.draw(512, at(1_000)), Ok(50));
        let _fourth = take(0, 1_000);
        assert_eq!(first.draw(512, at(1_000)), Ok(512));
    }

    #[test]
    fn time_spent_waiting_for_the_rate_is_added_up() {
        let seats = Arc::new(Seats::new());
        let config = Config { per_ip_limit: 10, ..Config::default() };
        let take = || seats.take(address("10.0.0.1"), &config, at(0)).unwrap();
        let (one, two) = (take(), take());
        assert_eq!(one.draw(10, at(0)), Ok(10));
        assert!(one.draw(1, at(0)).is_err() && two.draw(1, at(20)).is_err());
        assert!(one.draw(1, at(50)).is_err());
        assert_eq!(seats.held(), Duration::from_millis(50));
        assert!(one.draw(1, at(101)).is_ok() && two.draw(1, at(220)).is_ok());
        assert_eq!(seats.held(), Duration::from_millis(101 + 200));
        assert!(one.draw(1, at(9_000)).is_ok(), "what it did meanwhile was no waiting");
        assert_eq!(seats.held(), Duration::from_millis(301));
    }

    #[test]
    fn an_ipv6_network_is_one_address_with_one_bucket() {
        let seats = Arc::new(Seats::new());
        let config = Config { per_ip_limit: 2, ..Config::default() };
        let take = |text: &str| seats.take(address(text), &config, at(0)).unwrap();
        let (one, two, other) = (take("2001:db8::1"), take("2001:db8::ffff:1"), take("2001:db8:0:1::1"));
        assert_eq!((one.draw(1, at(0)), two.draw(5, at(0))), (Ok(1), Ok(1)));
        assert!(one.draw(1, at(0)).is_err() && two.draw(1, at(0)).is_err());
        assert_eq!(other.draw(5, at(0)), Ok(2), "another network has its own");
    }

    #[test]
    fn nought_is_no_limit() {
        let seats = Arc::new(Seats::new());
        let config = Config { subscribers_max: 0, per_ip_connections: 0, ..Config::default() };
        let all: Vec<_> = (0..50).map(|_| seats.take(address("::1"), &config, at(0)).unwrap()).collect();
        assert_eq!(seats.taken(), all.len());
    }
}
