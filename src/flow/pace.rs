//! Whether a subscriber is too slow: a judgement over the time that it takes, not over what anybody else does.
//!
//! Fed with each piece a subscriber has taken and how long it took. Time spent in the rate limiter, on the
//! disk or at the tip is not the subscriber's and is never passed in, so being rate-limited is not being
//! slow. No clock; called by [`super::pump`].

use core::time::Duration;

use crate::core::timeline::Seq;

/// The subscriber's own time over which a rate is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// So many poor windows in a row are too many.
const WINDOWS: u32 = 3;

/// One subscriber's pace.
#[derive(Debug)]
pub(super) struct Pace {
    /// Events per second; 0 forgives everything.
    min_rate: u32,
    /// Of the present window.
    spent: Duration,
    /// Where the window began.
    cursor: Seq,
    /// How far the subscriber was behind there.
    lag: u64,
    /// Poor windows in a row.
    poor: u32,
}

impl Pace {
    /// A subscriber that begins here, so far behind.
    pub(super) fn new(min_rate: u32, cursor: Seq, lag: u64) -> Pace {
        Pace { min_rate, spent: Duration::ZERO, cursor, lag, poor: 0 }
    }

    /// It took `took` to get to `cursor` and is `lag` events behind the tip now. True if it is too slow: three
    /// windows in a row its lag grew while it took fewer events per second than the least.
    pub(super) fn is_too_slow(&mut self, took: Duration, cursor: Seq, lag: u64) -> bool {
        self.spent = self.spent.saturating_add(took);
        if lag == 0 {
            *self = Pace::new(self.min_rate, cursor, lag);
            return false;
        }
        if self.spent < WINDOW {
            return false;
        }
        let least = f64::from(self.min_rate) * self.spent.as_secs_f64();
        let is_poor = lag > self.lag && ((cursor - self.cursor) as f64) < least;
        // One long silence is as many windows as fit into it.
        let windows = (self.spent.as_secs() / WINDOW.as_secs()).try_into().unwrap_or(u32::MAX);
        let poor = if is_poor { self.poor.saturating_add(windows) } else { 0 };
        *self = Pace { poor, ..Pace::new(self.min_rate, cursor, lag) };
        poor >= WINDOWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn three_windows_of_growing_lag_at_a_poor_rate_are_too_slow() {
        let mut pace = Pace::new(10, 0, 100);
        assert!(!pace.is_too_slow(TEN, 50, 200));
        assert!(!pace.is_too_slow(TEN, 99, 300));
        assert!(pace.is_too_slow(TEN, 150, 400));
    }

    #[test]
    fn a_window_without_growth_or_with_a_fair_rate_forgives_the_ones_before() {
        for (cursor, lag) in [(120, 300), (250, 400)] {
            let mut pace = Pace::new(10, 0, 100);
            assert!(!pace.is_too_slow(TEN, 50, 200));
            assert!(!pace.is_too_slow(TEN, 100, 300));
            assert!(!pace.is_too_slow(TEN, cursor, lag), "forgiven");
            assert!(!pace.is_too_slow(TEN, cursor + 50, 500));
            assert!(!pace.is_too_slow(TEN, cursor + 100, 600));
            assert!(pace.is_too_slow(TEN, cursor + 150, 700));
        }
    }

    #[test]
    fn who_reaches_the_tip_begins_anew() {
        let mut pace = Pace::new(10, 0, 100);
        assert!(!pace.is_too_slow(2 * TEN, 50, 200));
        assert!(!pace.is_too_slow(TEN / 2, 60, 0));
        assert!(!pace.is_too_slow(TEN, 70, 100));
        assert!(!pace.is_too_slow(TEN, 80, 200));
        assert!(pace.is_too_slow(TEN, 90, 300));
    }

    #[test]
    fn a_subscriber_that_takes_at_once_has_no_time_to_be_slow() {
        let mut pace = Pace::new(10, 0, 0);
        // A limiter lets one event through each second; the subscriber takes a millisecond for it.
        for second in 1..100_000 {
            assert!(!pace.is_too_slow(Duration::from_millis(1), second, second * 100));
        }
    }

    #[test]
    fn a_long_silence_is_many_windows_and_no_least_rate_is_no_judgement() {
        assert!(Pace::new(10, 0, 1).is_too_slow(3 * TEN, 100, 2));
        assert!(!Pace::new(0, 0, 1).is_too_slow(30 * TEN, 0, 2));
    }
}
