//! Chance by name: every user and every fault draws from a stream of its own.
//!
//! A stream is derived from the seed, a name and the numbers of whom it concerns, never from another
//! stream. So one more draw here, or one client less, shifts nothing elsewhere; `shrink` relies on it.

use core::time::Duration;

/// The number a whole world grows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u64);

impl Seed {
    /// A decimal number as it is; anything else, which is a commit's hash (see `seeds`), by its hash.
    pub(crate) fn from_text(text: &str) -> Seed {
        Seed(text.parse().unwrap_or_else(|_| finish(absorb(BASIS, text.as_bytes()))))
    }

    /// The stream called `name`.
    pub(crate) fn stream(self, name: &str) -> Stream {
        self.stream_of(name, &[])
    }

    /// The stream called `name` of whatever `numbers` identify.
    pub(crate) fn stream_of(self, name: &str, numbers: &[u64]) -> Stream {
        let mut state = absorb(absorb(BASIS, &self.0.to_le_bytes()), name.as_bytes());
        for number in numbers {
            state = absorb_number(state, *number);
        }
        Stream { state: finish(state) }
    }
}

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;
/// The prime to the power of each index.
const POWERS: [u64; 9] = {
    let mut powers = [1; 9];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = PRIME.wrapping_mul(powers[at - 1]);
        at += 1;
    }
    powers
};

/// FNV-1a, eight bits at a time.
fn absorb(mut state: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        state = (state ^ u64::from(*byte)).wrapping_mul(PRIME);
    }
    state
}

/// The same of a number's eight bytes, the lowest first. Most numbers are small: the zeros behind them
/// multiply only, and do so at once.
fn absorb_number(state: u64, number: u64) -> u64 {
    let zeros = number.leading_zeros() as usize / 8;
    absorb(state, &number.to_le_bytes()[..8 - zeros]).wrapping_mul(POWERS[zeros])
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
pub(crate) const fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One named stream: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    state: u64,
}

impl Stream {
    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finish(self.state)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // Multiply-shift; its bias is below 2^-40 for the small bounds used here.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1,000 cases.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// One of `choices`, which is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A span of time from `low` to `high` milliseconds, to the microsecond.
    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.within(low * 1_000, high * 1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(mut stream: Stream) -> Vec<u64> {
        (0..4).map(|_| stream.next_u64()).collect()
    }

    #[test]
    fn a_stream_depends_on_seed_name_and_numbers_and_on_nothing_else() {
        let seed = Seed(7);
        assert_eq!(draws(seed.stream_of("refuse", &[1, 2])), draws(seed.stream_of("refuse", &[1, 2])));
        let others = [
            seed.stream_of("refuse", &[2, 1]),
            seed.stream_of("refuse", &[1]),
            seed.stream_of("delay", &[1, 2]),
            Seed(8).stream_of("refuse", &[1, 2]),
        ];
        for other in others {
            assert_ne!(draws(seed.stream_of("refuse", &[1, 2])), draws(other));
        }
    }

    #[test]
    fn a_number_is_absorbed_as_its_bytes_are() {
        for number in [0, 1, 0xff, 0x100, 0x00ff_ff00, 1 << 55, 1 << 56, u64::MAX] {
            assert_eq!(absorb_number(BASIS, number), absorb(BASIS, &number.to_le_bytes()), "{number}");
        }
    }

    #[test]
    fn a_draw_from_one_stream_does_not_shift_another() {
        let seed = Seed(3);
        let (mut a, b) = (seed.stream("a"), seed.stream("b"));
        a.next_u64();
        assert_eq!(draws(b), draws(seed.stream("b")));
    }

    #[test]
    fn numbers_stay_within_their_bounds_and_reach_both_ends() {
        let mut stream = Seed(1).stream("bounds");
        let seen: Vec<u64> = (0..200).map(|_| stream.within(3, 6)).collect();
        assert_eq!((seen.iter().min(), seen.iter().max()), (Some(&3), Some(&6)));
    }

    #[test]
    fn a_commit_hash_is_a_seed() {
        assert_eq!(Seed::from_text("42"), Seed(42));
        let hash = "067cdf641a2a4f1bb1f3f5e7a8f2ec8f6a9c1d55";
        assert_eq!(Seed::from_text(hash), Seed::from_text(hash));
        assert_ne!(Seed::from_text(hash), Seed::from_text(&hash[1..]));
    }
}
