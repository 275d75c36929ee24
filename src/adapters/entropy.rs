//! Chance for production: one seeded stream per user of it, seeded from the operating system.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::core::sync::{Lock, Rank};
use crate::ports::Entropy;

/// A SplitMix64 stream (Steele, Lea and Flood, 2014): even, fast, not for secrets.
#[derive(Debug)]
pub struct SeededEntropy {
    state: Lock<u64>,
}

impl SeededEntropy {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        SeededEntropy { state: Lock::new(Rank::Signal, seed) }
    }

    /// A stream nobody can repeat, seeded by the operating system.
    #[expect(clippy::disallowed_types, reason = "std's only door to the system's randomness")]
    pub fn from_system() -> Self {
        Self::new(RandomState::new().build_hasher().finish())
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        let mut state = self.state.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_its_stream() {
        let draw = |seed| {
            let stream = SeededEntropy::new(seed);
            [stream.next_u64(), stream.next_u64()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_first_values_of_seed_zero_are_those_of_the_published_generator() {
        let stream = SeededEntropy::new(0);
        assert_eq!(stream.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(stream.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }
}
