//! Time as the operating system tells it.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is where the clock is read")]

use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::time::{Instant, Timestamp};
use crate::ports::{BoxFuture, Clock};

/// The system's clocks, with tokio's timers.
#[derive(Debug)]
pub struct SystemClock {
    origin: tokio::time::Instant,
}

impl SystemClock {
    /// A clock whose origin is now.
    pub fn new() -> Self {
        SystemClock { origin: tokio::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> Timestamp {
        // Before 1970 there is no label; a machine set that far back gets the epoch itself.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let since_origin = deadline.since(Instant::ORIGIN);
        // Deadlines no clock can hold ("never") are put off by thirty years at a time.
        const FAR: core::time::Duration = core::time::Duration::from_secs(30 * 365 * 24 * 3600);
        let at = self.origin.checked_add(since_origin.min(FAR)).unwrap_or(self.origin + FAR);
        Box::pin(tokio::time::sleep_until(at))
    }
}
