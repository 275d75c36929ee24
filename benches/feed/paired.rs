//! Two conditions compared in pairs of neighbouring windows, so that what else the machine did hits both sides
//! of a ratio; and how sure the comparison is.

use pointsman::adapters::entropy::SeededEntropy;
use pointsman::ports::Entropy as _;

use crate::median::median;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2_000;
/// The share of resamples that lies within the interval.
const CONFIDENCE: f64 = 0.95;

/// Pairs measured so far, in two halves: what is swapped between the halves cancels out.
#[derive(Default)]
pub(crate) struct Paired {
    without: Vec<f64>,
    with: Vec<f64>,
    /// Logarithms of the ratios.
    logs: [Vec<f64>; 2],
}

/// By how much a condition changes something, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) median: f64,
    /// Bounds of the bootstrap's 95% interval.
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Paired {
    /// One pair of this half.
    pub(crate) fn push(&mut self, half: usize, without: f64, with: f64) {
        self.without.push(without);
        self.with.push(with);
        self.logs[half].push((with / without).ln());
    }

    /// Pairs so far.
    pub(crate) fn len(&self) -> usize {
        self.with.len()
    }

    /// The medians of both sides.
    pub(crate) fn medians(&self) -> [f64; 2] {
        [median(self.without.clone()), median(self.with.clone())]
    }

    /// The median ratio, the halves with the same weight, and how far it may be off.
    pub(crate) fn change(&self) -> Change {
        let dice = SeededEntropy::new(1);
        let middle = |draw: &dyn Fn(&[f64]) -> Vec<f64>| {
            let halves = self.logs.iter().filter(|logs| !logs.is_empty());
            let medians: Vec<f64> = halves.map(|logs| median(draw(logs))).collect();
            percent(medians.iter().sum::<f64>() / medians.len() as f64)
        };
        let again = |logs: &[f64]| -> Vec<f64> {
            let one = |_| logs[(dice.next_u64() % logs.len() as u64) as usize];
            (0..logs.len()).map(one).collect()
        };
        let mut found: Vec<f64> = (0..RESAMPLES).map(|_| middle(&again)).collect();
        found.sort_by(f64::total_cmp);
        let outside = ((1.0 - CONFIDENCE) / 2.0 * RESAMPLES as f64) as usize;
        let (least, most) = (found[outside], found[RESAMPLES - 1 - outside]);
        Change { median: middle(&|logs| logs.to_vec()), least, most }
    }
}

fn percent(log: f64) -> f64 {
    (log.exp() - 1.0) * 100.0
}
