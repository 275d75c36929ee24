//! The one lock of the simulator. A world lives on one thread, so it is never contended; it is here
//! because the ports must be `Send` and `Sync`.
//!
//! Rule: nobody drops a future, wakes a task or calls the router while holding it, because each of
//! these may come back here.

#![allow(
    clippy::disallowed_types,
    reason = "a world is no part of the state that loom explores, and core's lock has no rank for it"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A value that everybody in one world may change.
#[derive(Debug, Default)]
pub(crate) struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Shared(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
