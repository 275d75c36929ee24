//! Which seeds a command is about: `A..B`, `A..+N`, or one, each of them a number or a commit's hash, whole or
//! its first seven digits or more. Anything else is a slip of the hand, not a seed.

use core::str::FromStr;

use crate::streams::Seed;

/// `count` seeds from `first` on; they wrap at the end of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Seeds {
    /// The seed at `index`, if there is one.
    pub(crate) fn get(self, index: u64) -> Option<u64> {
        (index < self.count).then(|| self.first.wrapping_add(index))
    }
}

/// Digits of a commit's hash: as short as Git writes it, as long as it is (SHA-1 or SHA-256).
const HASH_DIGITS: core::ops::RangeInclusive<usize> = 7..=64;

/// One seed: a number, or a commit's hash.
pub(crate) fn seed(text: &str) -> Result<Seed, String> {
    let is_hash = HASH_DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text.parse::<u64>() {
        Ok(_) => Ok(Seed::from_text(text)),
        Err(_) if is_hash => Ok(Seed::from_text(text)),
        Err(_) => Err(format!("'{text}' is neither a number nor a commit's hash of at least 7 digits")),
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seed = |text: &str| seed(text).map(|seed| seed.0);
        let Some((first, rest)) = text.split_once("..") else {
            return Ok(Seeds { first: seed(text)?, count: 1 });
        };
        let first = seed(first)?;
        let count = match rest.strip_prefix('+') {
            Some(count) => count.parse().map_err(|_| format!("'{count}' is not a number of seeds"))?,
            None => seed(rest)?.checked_sub(first).ok_or("the range ends before it begins")?,
        };
        if count == 0 { Err("the range is empty".to_owned()) } else { Ok(Seeds { first, count }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_counts_and_commits_are_understood() {
        let parse = |text: &str| text.parse::<Seeds>();
        assert_eq!(parse("3..7"), Ok(Seeds { first: 3, count: 4 }));
        assert_eq!(parse("3..+7"), Ok(Seeds { first: 3, count: 7 }));
        assert_eq!(parse("3"), Ok(Seeds { first: 3, count: 1 }));
        let hash = Seed::from_text("067cdf641a").0;
        assert_eq!(parse("067cdf641a..+20000"), Ok(Seeds { first: hash, count: 20_000 }));
        for bad in
            ["", "7..3", "3..3", "3..+x", "a b", "..5", "HEAD", "deadbe", "067cdf641x", "12x..+5", "-1"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
