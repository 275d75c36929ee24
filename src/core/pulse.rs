//! Whether bytes move at one endpoint: how many requests wait for its next byte, and since when
//! nothing has come. Written by every stream without a lock, read by `slots` when it chooses.
//!
//! A request whose *client* is slow waits for nobody here, so a stalled client never makes an
//! endpoint look wedged.

use core::time::Duration;

use super::sync::{AtomicU64, Ordering};
use super::time::Instant;

/// One endpoint's movement of bytes. Who is slow to write down an earlier time does not undo a later one.
#[derive(Debug)]
pub(super) struct Pulse {
    waiting: AtomicU64,
    moved_nanos: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { waiting: AtomicU64::new(0), moved_nanos: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// One more request waits for a byte. The first of them starts the silence at `now`, before it
    /// is counted, so that no reader sees it waiting since an earlier life.
    pub(super) fn wait(&self, now: Instant) {
        if self.waiting.load(Ordering::Acquire) == 0 {
            self.moved_nanos.fetch_max(now.as_nanos(), Ordering::AcqRel);
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// One request waits no longer.
    pub(super) fn stop_waiting(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// A byte came at `now`.
    pub(super) fn moved(&self, now: Instant) {
        self.moved_nanos.fetch_max(now.as_nanos(), Ordering::AcqRel);
    }

    /// Somebody waits and nothing has moved for `after`.
    pub(super) fn is_wedged(&self, now: Instant, after: Duration) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
            && now.since(Instant::from_nanos(self.moved_nanos.load(Ordering::Acquire))) >= after
    }
}
