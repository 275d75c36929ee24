//! Dates as the two families write them: Ollama RFC 3339, OpenAI seconds since 1970. Only what the
//! unions of `listing` and the readers of the event log need: years 1970 to 9999, no leap seconds, no clock.

/// 9999-12-31T23:59:59Z; RFC 3339 has no later year.
const SECONDS_MAX: u64 = 253_402_300_799;
const DAY: u64 = 86_400;

/// RFC 3339 in UTC. Seconds past the year 9999 come out as 1970, like any other nonsense.
pub(super) fn to_rfc3339(unix_seconds: u64) -> String {
    let seconds = if unix_seconds > SECONDS_MAX { 0 } else { unix_seconds };
    let (mut day, of_day) = (seconds / DAY, seconds % DAY);
    let mut year = 1970;
    while day >= days_in_year(year) {
        day -= days_in_year(year);
        year += 1;
    }
    let mut month = 1;
    while day >= days_in_month(year, month) {
        day -= days_in_month(year, month);
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

/// Seconds since 1970 of an RFC 3339 time, its fraction cut off. `None` if it is not one, or is earlier.
pub(super) fn from_rfc3339(text: &str) -> Option<u64> {
    Some(millis_from_rfc3339(text)? / 1000)
}

/// A time in Unix milliseconds, to the millisecond.
pub fn millis_to_rfc3339(unix_millis: u64) -> String {
    let seconds = to_rfc3339(unix_millis / 1000);
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), unix_millis % 1000)
}

/// Milliseconds since 1970 of an RFC 3339 time, finer digits cut off. `None` if it is not one, or is earlier.
pub fn millis_from_rfc3339(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, len: usize| {
        let digits = bytes.get(from..from + len)?;
        digits.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
    };
    let mark = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|b| wanted.contains(b));
    if !(mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt ") && mark(13, b":") && mark(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let sane = year >= 1970 && (1..=12).contains(&month) && hour < 24 && minute < 60 && second <= 60;
    if !sane || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    let mut zone = 19;
    let mut millis = 0;
    if mark(zone, b".") {
        let digits = bytes[20..].iter().take_while(|b| b.is_ascii_digit()).count();
        zone += 1 + digits;
        let place = |at: usize| if at < digits { u64::from(bytes[20 + at] - b'0') } else { 0 };
        millis = place(0) * 100 + place(1) * 10 + place(2);
    }
    let days = (1970..year).map(days_in_year).sum::<u64>()
        + (1..month).map(|m| days_in_month(year, m)).sum::<u64>()
        + day
        - 1;
    let local = days * DAY + hour * 3600 + minute * 60 + second;
    if mark(zone, b"Zz") {
        return (zone + 1 == bytes.len()).then_some(local * 1000 + millis);
    }
    let offset = number(zone + 1, 2)? * 3600 + number(zone + 4, 2)? * 60;
    if !mark(zone + 3, b":") || zone + 6 != bytes.len() {
        return None;
    }
    let seconds = match bytes[zone] {
        b'+' => local.checked_sub(offset)?,
        b'-' => local + offset,
        _ => return None,
    };
    Some(seconds * 1000 + millis)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_and_read() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (SECONDS_MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(to_rfc3339(seconds), text);
            assert_eq!(from_rfc3339(text), Some(seconds));
        }
        assert_eq!(to_rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn offsets_and_fractions_are_understood() {
        assert_eq!(from_rfc3339("2023-11-14T14:13:20.123456789-08:00"), Some(1_700_000_000));
        assert_eq!(from_rfc3339("2023-11-15T03:43:20+05:30"), Some(1_700_000_000));
        for bad in [
            "",
            "0001-01-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2023-11-14T14:13:20",
            "1970-01-01T00:00:00+01:00",
        ] {
            assert_eq!(from_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_fraction_counts_in_milliseconds() {
        for (text, millis) in [
            ("1970-01-01T00:00:01Z", 1_000),
            ("1970-01-01T00:00:01.5Z", 1_500),
            ("1970-01-01T00:00:01.0429Z", 1_042),
            ("1970-01-01T01:00:01.007+01:00", 1_007),
        ] {
            assert_eq!(millis_from_rfc3339(text), Some(millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in 0..=SECONDS_MAX) {
            prop_assert_eq!(from_rfc3339(&to_rfc3339(seconds)), Some(seconds));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*|[0-9T:.Z+-]{0,30}", tail in "\\PC{0,9}") {
            from_rfc3339(&text);
            from_rfc3339(&format!("2023-11-14T14:13:20{tail}"));
        }
    }
}
