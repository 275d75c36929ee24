//! Idle connections by authority, the one used last first.
//!
//! One shelf per thread that serves requests: a connection goes back to where its wake-ups are heard.

use core::cell::Cell;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::connection::Connection;

/// Idle connections kept per authority and thread.
const IDLE_MAX: usize = 256;

/// Shelves; threads beyond that share one.
const SHELVES: usize = 32;

type Shelf = BTreeMap<String, Vec<(Connection, Instant)>>;

#[derive(Debug)]
pub(super) struct Pool {
    idle_max: Duration,
    shelves: [Mutex<Shelf>; SHELVES],
}

thread_local! {
    static SHELF: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHELVES)
    };
}

impl Pool {
    /// Keeps connections that were idle for less than `idle_max`.
    pub(super) fn new(idle_max: Duration) -> Self {
        Pool { idle_max, shelves: std::array::from_fn(|_| Mutex::default()) }
    }

    /// An idle connection that is still good.
    pub(super) fn take(&self, authority: &str) -> Option<Connection> {
        let mut shelf = self.shelf();
        let idle = shelf.get_mut(authority)?;
        while let Some((connection, since)) = idle.pop() {
            if since.elapsed() >= self.idle_max {
                // The ones beneath have been idle for even longer.
                idle.clear();
                return None;
            }
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, authority: &str, connection: Connection) {
        let mut shelf = self.shelf();
        let idle = match shelf.get_mut(authority) {
            Some(idle) => idle,
            None => shelf.entry(authority.to_owned()).or_default(),
        };
        if idle.len() < IDLE_MAX {
            idle.push((connection, Instant::now()));
        }
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelves[SHELF.get()].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
