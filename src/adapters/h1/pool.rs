//! Idle connections by authority, the one used last first.
//!
//! One shelf per thread that serves requests, so that they seldom meet; a thread whose own is empty looks on the
//! others before anybody connects, because requests move between threads.
//! A sweep closes what has been idle for too long or was closed by the endpoint, so that neither an
//! endpoint that went away nor one that left the configuration keeps sockets open.

use core::cell::Cell;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::Instant;

use super::connection::Connection;

/// Idle connections kept per authority and thread.
const IDLE_MAX: usize = 128;

/// Between two sweeps.
const SWEEP: Duration = Duration::from_secs(5);

/// Shelves; threads beyond that share one.
const SHELVES: usize = 32;

type Shelf = BTreeMap<String, Vec<(Connection, Instant)>>;

#[derive(Debug)]
pub(super) struct Pool {
    idle_max: Duration,
    shelves: [Mutex<Shelf>; SHELVES],
}

/// Closes idle connections from time to time, for as long as somebody holds the pool.
pub(super) async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match pool.upgrade() {
            Some(pool) => pool.close_idle(),
            None => return,
        }
    }
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
        let own = SHELF.get();
        (0..SHELVES).find_map(|next| self.take_from((own + next) % SHELVES, authority))
    }

    fn take_from(&self, shelf: usize, authority: &str) -> Option<Connection> {
        let mut shelf = self.shelf(shelf);
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
        let mut shelf = self.shelf(SHELF.get());
        let idle = match shelf.get_mut(authority) {
            Some(idle) => idle,
            None => shelf.entry(authority.to_owned()).or_default(),
        };
        if idle.len() < IDLE_MAX {
            idle.push((connection, Instant::now()));
        }
    }

    pub(super) fn close_idle(&self) {
        for shelf in 0..SHELVES {
            self.shelf(shelf).retain(|_, idle| {
                idle.retain(|(connection, since)| since.elapsed() < self.idle_max && connection.is_quiet());
                !idle.is_empty()
            });
        }
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        let count = |shelf: &Mutex<Shelf>| shelf.lock().unwrap().values().map(Vec::len).sum::<usize>();
        self.shelves.iter().map(count).sum()
    }

    fn shelf(&self, shelf: usize) -> MutexGuard<'_, Shelf> {
        self.shelves[shelf].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
