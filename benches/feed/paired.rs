//! Two conditions measured in turns, so that what else the machine did hits both sides of a ratio; and how sure
//! the comparison is.

use std::iter::repeat_n;

use pointsman::adapters::entropy::SeededEntropy;
use pointsman::ports::Entropy as _;

use crate::report::quantile;

/// Samples of one condition before it is the other's turn, and turns of each in a pair.
const IN_A_TURN: usize = 10;
const TURNS: usize = 40;
/// Samples of each condition in a pair.
pub(crate) const SAMPLES: usize = IN_A_TURN * TURNS;
/// Resamples of the bootstrap.
const RESAMPLES: usize = 2_000;
/// The share of resamples that lies within the interval.
const CONFIDENCE: f64 = 0.95;

/// The order of one pair's samples: without the condition (0) and with it (1), each first in every other turn.
pub(crate) fn turns() -> impl Iterator<Item = usize> {
    (0..TURNS).flat_map(|turn| [turn % 2, 1 - turn % 2]).flat_map(|with| repeat_n(with, IN_A_TURN))
}

/// The samples of neighbouring turns, without the condition and with it.
pub(crate) type Pair = [Vec<u32>; 2];

/// Pairs measured so far, in two halves: what is swapped between the halves cancels out.
#[derive(Default)]
pub(crate) struct Paired {
    halves: [Vec<Pair>; 2],
}

/// What a condition changes, by one quantile of all samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    pub(crate) without: f64,
    pub(crate) with: f64,
    pub(crate) change: Change,
}

/// By how much, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) middle: f64,
    /// Bounds of the bootstrap's 95% interval.
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Paired {
    /// One pair of this half.
    pub(crate) fn push(&mut self, half: usize, pair: Pair) {
        self.halves[half].push(pair);
    }

    /// Samples of each condition so far.
    pub(crate) fn len(&self) -> usize {
        self.halves.iter().flatten().map(|[without, _]| without.len()).sum()
    }

    /// Compares the values below which this share of all samples lies. The ratio is the halves' geometric mean;
    /// how far it may be off is found by drawing whole pairs again, whose samples share what the machine did.
    pub(crate) fn compare(&self, share: f64) -> Compared {
        let halves = self.halves.each_ref().map(|pairs| [0, 1].map(|side| Side::new(pairs, side)));
        // With how often each pair of each half was drawn.
        let change = |drawn: &[Vec<usize>; 2]| {
            let logs = halves.iter().zip(drawn).map(|(sides, drawn)| {
                let [without, with] = sides.each_ref().map(|side| side.quantile(drawn, share));
                (with / without).ln()
            });
            ((logs.sum::<f64>() / 2.0).exp() - 1.0) * 100.0
        };
        let dice = SeededEntropy::new(1);
        let again = || {
            self.halves.each_ref().map(|pairs| {
                let mut drawn = vec![0; pairs.len()];
                pairs.iter().for_each(|_| drawn[(dice.next_u64() % pairs.len() as u64) as usize] += 1);
                drawn
            })
        };
        let mut found: Vec<f64> = (0..RESAMPLES).map(|_| change(&again())).collect();
        found.sort_by(f64::total_cmp);
        let outside = ((1.0 - CONFIDENCE) / 2.0 * RESAMPLES as f64) as usize;
        let (least, most) = (found[outside], found[RESAMPLES - 1 - outside]);
        let middle = change(&self.halves.each_ref().map(|pairs| vec![1; pairs.len()]));
        let [without, with] = [0, 1].map(|side| {
            let mut all: Vec<u32> =
                self.halves.iter().flatten().flat_map(|pair| &pair[side]).copied().collect();
            quantile(&mut all, share)
        });
        Compared { without, with, change: Change { middle, least, most } }
    }
}

/// One condition's samples in one half, largest first, each with the pair that it is of.
struct Side(Vec<(u32, usize)>);

impl Side {
    fn new(pairs: &[Pair], side: usize) -> Side {
        let mut all = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            all.extend(pair[side].iter().map(|value| (*value, index)));
        }
        all.sort_unstable_by(|one, other| other.cmp(one));
        Side(all)
    }

    /// The value below which this share of the samples lies, each counted as often as its pair was drawn. As many
    /// are drawn as there are, all of one size.
    fn quantile(&self, drawn: &[usize], share: f64) -> f64 {
        let all = self.0.len();
        let mut above = all - ((all as f64 * share) as usize).min(all.saturating_sub(1));
        for (value, pair) in &self.0 {
            above = above.saturating_sub(drawn[*pair]);
            if above == 0 {
                return f64::from(*value);
            }
        }
        0.0
    }
}
