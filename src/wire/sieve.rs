//! Takes usage events out of an SSE stream when the router asked for them and the client did not.
//! Complete events go on at once and uncopied; only the trailing incomplete one is held, and no longer
//! than [`EVENT_MAX`] bytes: a longer one is no usage report and goes on as it comes. Called by `usage`,
//! with the event ends and verdicts that `lines` finds.

use std::ops::Range;

use bytes::Bytes;

use super::lines::Lines;

/// The longest event, in bytes, that is ever held back, and so the longest that can be taken out.
pub(super) const EVENT_MAX: usize = 64 * 1024;

/// The bytes held back; see the file's head.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    /// The incomplete event, when it may still turn out to be a usage report.
    held: Vec<u8>,
    /// The last byte passed on is inside an event.
    mid_event: bool,
}

impl Sieve {
    /// Whether the bytes passed on so far end inside an event.
    pub(super) fn mid_event(&self) -> bool {
        self.mid_event
    }

    /// Reads a chunk through `lines`; returns what may go on now.
    pub(super) fn push(&mut self, lines: &mut Lines, chunk: Bytes) -> Bytes {
        let mut done = 0;
        let mut dropped: Vec<Range<usize>> = Vec::new();
        lines.read(&chunk, |end, usage_only| {
            if usage_only {
                dropped.push(done..end);
            }
            done = end;
        });
        if done > 0 {
            self.mid_event = false;
        }
        // The first event of this chunk may have begun in an earlier one.
        if dropped.first().is_some_and(|first| first.start == 0) {
            self.held.clear();
        }
        let passing = lines.open_len() > EVENT_MAX;
        let end = if passing { chunk.len() } else { done };
        let held_goes = !self.held.is_empty() && end > 0;
        let out = if !held_goes && dropped.is_empty() {
            chunk.slice(..end)
        } else {
            let mut out = Vec::with_capacity(self.held.len() + end);
            if held_goes {
                out.append(&mut self.held);
            }
            let mut at = 0;
            for gap in dropped {
                out.extend_from_slice(&chunk[at..gap.start]);
                at = gap.end;
            }
            out.extend_from_slice(&chunk[at..end]);
            Bytes::from(out)
        };
        self.held.extend_from_slice(&chunk[end..]);
        self.mid_event |= passing;
        out
    }

    /// The stream ended: returns what was held, unless it is a usage report whose blank line is missing.
    pub(super) fn finish(&mut self, lines: &mut Lines) -> Bytes {
        lines.end();
        let held = std::mem::take(&mut self.held);
        if lines.usage_only() {
            return Bytes::new();
        }
        self.mid_event |= !held.is_empty();
        Bytes::from(held)
    }
}
