//! Known races, each put back by a patch, and the model or scenario that has to find it.

/// One bug and one detector that must find it.
#[derive(Debug)]
pub struct Entry<M: 'static> {
    /// The patch's name, also its file's.
    pub id: &'static str,
    /// The model expected to fail, as `file::function`, written down before the first run.
    pub detector: &'static str,
    /// The promise that breaks.
    pub promise: &'static str,
    /// What the failure's message must contain: one of these, divided by ` | `.
    pub shows: &'static str,
    /// Where the bug comes from.
    pub origin: &'static str,
    /// The detector's file, compiled over the patched source.
    pub models: &'static [M],
    /// Why the patch no longer applies, if it does not.
    pub stale: Option<&'static str>,
}

impl<M> Entry<M> {
    /// Whether this failure is the one that was expected.
    pub fn shown_by(&self, said: &str) -> bool {
        shown_by(self.shows, said)
    }
}

/// Whether `said` contains one of `shows`, which are divided by ` | `.
pub fn shown_by(shows: &str, said: &str) -> bool {
    shows.split(" | ").any(|shows| said.contains(shows))
}
