//! The wall-clock labels a backend puts into its answers, as RFC 3339 and as Unix seconds.
//!
//! Labels only: nothing here is ever compared or waited for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment on the wall clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp(Duration);

impl Stamp {
    /// Now; the epoch if the clock stands before it.
    pub(super) fn now() -> Stamp {
        Stamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// This much later.
    pub(super) fn after(self, more: Duration) -> Stamp {
        Stamp(self.0 + more)
    }

    /// Whole seconds since the epoch.
    pub(super) fn unix(self) -> u64 {
        self.0.as_secs()
    }

    /// As `2026-01-31T12:00:00.123456Z`.
    pub(super) fn rfc3339(self) -> String {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let micros = self.0.subsec_micros();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Year, month and day of the Gregorian calendar, this many days after 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar_through_leap_days() {
        let text = |seconds| Stamp(Duration::from_secs(seconds)).rfc3339();
        assert_eq!(text(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(text(1_735_689_599), "2024-12-31T23:59:59.000000Z");
        assert_eq!(text(4_107_542_400), "2100-03-01T00:00:00.000000Z");
    }
}
