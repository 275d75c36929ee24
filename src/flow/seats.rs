//! Who subscribes: how many there may be, how much each address is given, and what all of them were.
//!
//! A [`Seat`] is one subscriber's place, given back when it is dropped. All seats of one address share one
//! token bucket, which is forgotten with the last of them; no address ever waits for another
//! (`feed-independent`). No clock: time comes in as an argument. Called by `http::feed` and [`super::pump`].

use std::collections::BTreeMap;

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
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: BTreeMap<IpAddr, Place>,
    /// Subscribers that were cut off, by reason.
    cut_off: BTreeMap<&'static str, u64>,
}

/// What the subscribers at one address have together.
#[derive(Debug)]
struct Place {
    connected: usize,
    bucket: Arc<Lock<Bucket>>,
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

impl Seats {
    /// All of them free.
    pub fn new() -> Seats {
        Seats { taken: Lock::new(Rank::Subscribers, Taken::default()), delivered: AtomicU64::new(0) }
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

    /// A seat for a subscriber at this address.
    ///
    /// # Errors
    ///
    /// When so many are taken as `config` allows.
    pub fn take(self: &Arc<Self>, address: IpAddr, config: &Config, now: Instant) -> Result<Seat, NoSeat> {
        let address = network(address);
        let is_full = |count: usize, max: usize| max > 0 && count >= max;
        let mut taken = self.taken.lock();
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
            Place { connected: 0, bucket: Arc::new(bucket) }
        });
        place.connected += 1;
        let bucket = Arc::clone(&place.bucket);
        Ok(Seat { seats: Arc::clone(self), address, bucket })
    }
}

/// One subscriber's seat.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
    bucket: Arc<Lock<Bucket>>,
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
        self.bucket.lock().draw(wanted, now)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.total -= 1;
        if let Some(place) = taken.by_address.get_mut(&self.address) {
            place.connected -= 1;
            if place.connected == 0 {
                taken.by_address.remove(&self.address);
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

    fn draw(&mut self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        if self.rate == 0 {
            return Ok(wanted);
        }
        let rate = f64::from(self.rate);
        self.events = (self.events + rate * now.since(self.at).as_secs_f64()).min(rate);
        self.at = self.at.max(now);
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
fn network(address: IpAddr) -> IpAddr {
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
