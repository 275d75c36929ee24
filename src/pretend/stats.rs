//! What a pretend backend has seen: the truth that a router's own books are checked against.
//!
//! A request to a model is *running* from the moment its body is read, waiting for a turn included, and
//! ends in exactly one of completed, cut or broken, however its task ends: `started = running + completed +
//! cut + broken`, always. The peak of running is what the router let through, whatever the backend's own limit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Distinct paths counted by name; further ones are counted together as `(other)`.
const PATHS_MAX: usize = 256;

/// Counts of one model's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelStats {
    /// Requests read and not yet ended.
    pub running: u64,
    /// The most that were running at one time.
    pub peak: u64,
    /// Requests read so far.
    pub started: u64,
    /// Requests whose last byte was handed to the system.
    pub completed: u64,
    /// Requests whose client left first.
    pub cut: u64,
    /// Requests this backend spoiled: a fault's doing, or its own stop.
    pub broken: u64,
    /// Input tokens of completed requests, as their answers report them.
    pub input_tokens: u64,
    /// Output tokens of completed requests, as their answers report them (or would, had usage been asked for).
    pub output_tokens: u64,
}

impl ModelStats {
    fn add(&mut self, other: &ModelStats) {
        self.running += other.running;
        self.peak = self.peak.max(other.peak);
        self.started += other.started;
        self.completed += other.completed;
        self.cut += other.cut;
        self.broken += other.broken;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
    }
}

/// One consistent look at a backend's counts. They outlive `stop` and `restart`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Every model that was asked for, under its listed name.
    pub models: BTreeMap<String, ModelStats>,
    /// Connections open now.
    pub connections_open: u64,
    /// Connections accepted so far.
    pub connections: u64,
    /// Requests of every kind, per path.
    pub paths: BTreeMap<String, u64>,
}

impl Stats {
    /// The counts of one model; zeroes if nobody asked for it.
    pub fn model(&self, name: &str) -> ModelStats {
        self.models.get(name).copied().unwrap_or_default()
    }

    /// The sum over the models; `peak` is the highest of theirs.
    pub fn total(&self) -> ModelStats {
        self.models.values().fold(ModelStats::default(), |mut sum, model| {
            sum.add(model);
            sum
        })
    }

    /// Requests to models running now.
    pub fn running(&self) -> u64 {
        self.total().running
    }

    /// Requests seen on one path.
    pub fn path(&self, path: &str) -> u64 {
        self.paths.get(path).copied().unwrap_or(0)
    }
}

/// The live counts. One short lock per event, never held across an await.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Stats>>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the counts.
    pub(super) fn stats(&self) -> Stats {
        self.lock().clone()
    }

    /// Counts a request for `path`.
    pub(super) fn path(&self, path: &str) {
        let paths = &mut self.lock().paths;
        if let Some(count) = paths.get_mut(path) {
            *count += 1;
        } else {
            let name = if paths.len() < PATHS_MAX { path } else { "(other)" };
            *paths.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connection(&self) -> OpenConnection {
        let mut stats = self.lock();
        stats.connections += 1;
        stats.connections_open += 1;
        OpenConnection(self.clone())
    }

    /// Counts a request to `model` as running until the guard ends it.
    pub(super) fn running(&self, model: &str) -> Running {
        let mut stats = self.lock();
        if !stats.models.contains_key(model) {
            stats.models.insert(model.to_owned(), ModelStats::default());
        }
        let counts = stats.models.get_mut(model).expect("inserted above");
        counts.started += 1;
        counts.running += 1;
        counts.peak = counts.peak.max(counts.running);
        Running { tally: self.clone(), model: model.to_owned(), end: End::Broken }
    }
}

/// Holds one connection in the count.
pub(super) struct OpenConnection(Tally);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.lock().connections_open -= 1;
    }
}

/// How a request to a model ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// The whole answer was sent, with these counts in it.
    Completed { input_tokens: u32, output_tokens: u32 },
    /// The client left.
    Cut,
    /// The backend's own doing. What a guard says if nobody told it better.
    Broken,
}

/// Holds one request in the count of running ones; dropping it ends the request.
pub(super) struct Running {
    tally: Tally,
    model: String,
    end: End,
}

impl Running {
    /// Ends the request in this way.
    pub(super) fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut stats = self.tally.lock();
        let counts = stats.models.get_mut(&self.model).expect("a running model has its counts");
        counts.running -= 1;
        match self.end {
            End::Completed { input_tokens, output_tokens } => {
                counts.completed += 1;
                counts.input_tokens += u64::from(input_tokens);
                counts.output_tokens += u64::from(output_tokens);
            }
            End::Cut => counts.cut += 1,
            End::Broken => counts.broken += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_ends_in_exactly_one_way() {
        let tally = Tally::default();
        let (a, b, c) = (tally.running("m"), tally.running("m"), tally.running("m"));
        assert_eq!(tally.stats().model("m").peak, 3);
        a.end(End::Completed { input_tokens: 2, output_tokens: 5 });
        b.end(End::Cut);
        drop(c);
        let counts = tally.stats().total();
        assert_eq!((counts.running, counts.completed, counts.cut, counts.broken), (0, 1, 1, 1));
        assert_eq!((counts.input_tokens, counts.output_tokens, counts.started), (2, 5, 3));
    }
}
