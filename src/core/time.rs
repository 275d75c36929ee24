//! The two kinds of time, which nobody may confuse.
//!
//! [`Instant`] is monotonic: it measures ages, leases and deadlines and never steps back
//! (promise `catalog-age`). [`Timestamp`] is the wall clock: it labels what people read
//! (promise `token-minute`) and may step in either direction at any moment.
//! Neither can be turned into the other, and neither reads a clock: time always arrives as an argument.

use core::fmt;
use core::ops::Add;
use core::time::Duration;

/// A point on a monotonic clock, in nanoseconds since an origin that only its `Clock` knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ORIGIN: Instant = Instant(0);

    /// The point `nanos` nanoseconds after the origin (584 years fit).
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when `earlier` lies ahead.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of the clock, so that "never" can be written as a huge duration.
    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:?}", Duration::from_nanos(self.0))
    }
}

/// A wall-clock label: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The label `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Timestamp(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The minute this label falls in.
    pub const fn minute(self) -> Minute {
        Minute(self.0 / 60_000)
    }
}

/// A wall-clock minute: whole minutes since the Unix epoch, the bucket of one token row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Minute(u64);

impl Minute {
    /// The minute with this number, counted from the Unix epoch.
    pub const fn new(minutes: u64) -> Self {
        Minute(minutes)
    }

    /// Minutes since the Unix epoch.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Seconds since the Unix epoch at which this minute begins.
    pub const fn unix_seconds(self) -> u64 {
        self.0 * 60
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_zero_when_the_earlier_point_lies_ahead() {
        let (early, late) = (Instant::from_nanos(5), Instant::from_nanos(9));
        assert_eq!(late.since(early), Duration::from_nanos(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }

    #[test]
    fn adding_for_ever_saturates() {
        assert_eq!(Instant::from_nanos(1) + Duration::MAX, Instant::from_nanos(u64::MAX));
    }

    #[test]
    fn a_minute_holds_its_whole_sixty_seconds() {
        assert_eq!(Timestamp::from_millis(119_999).minute(), Minute::new(1));
        assert_eq!(Timestamp::from_millis(120_000).minute(), Minute::new(2));
        assert_eq!(Minute::new(2).unix_seconds(), 120);
    }
}
