//! The only file that names a mutex, an atomic or an `Arc`.
//!
//! Production and the simulator get std's, loom's models get loom's, shuttle's scenarios get
//! shuttle's, so that all of them run the same core. On top stands one type, [`Lock`]: a mutex
//! with a name and a rank. Debug builds check that locks are taken in rank order (an inversion
//! panics with both places); every build counts how often a named lock was contended and for how
//! long, which `/metrics` exports.
//!
//! What is read far more often than written (the fleet, the counts of a snapshot) stands behind a lock as
//! an `Arc` that readers copy. `cargo bench --bench hot -- 'read mostly'` puts a read-write lock beside it.
//!
//! The order, outermost first, is the order of [`Rank`]'s variants. No lock is held across an
//! await, and a panic while one is held does not poison it: critical sections leave their state
//! whole at every step that can panic.
#![allow(clippy::disallowed_types, reason = "this is the one file that may name them")]

use core::fmt;
use core::ops::{Deref, DerefMut};

pub use std::sync::{Arc, Weak};

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

#[cfg(feature = "loom")]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(super) use loom::sync::{Mutex, MutexGuard};
}

#[cfg(all(feature = "shuttle", not(feature = "loom")))]
mod imp {
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

pub(crate) use imp::{AtomicU64, Ordering};

/// The order in which locks may be taken: a thread that holds one may only take later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Which endpoints are configured.
    Fleet,
    /// Requests in flight, their queue and the breakers.
    Slots,
    /// Token counts waiting to be stored, and totals. Taken inside `Slots` so that a usage
    /// snapshot is one cut.
    Ledger,
    /// What was logged of one endpoint's listings.
    Told,
    /// One cell of the catalog.
    Catalog,
    /// Events waiting to be durable, and the newest that are.
    Timeline,
    /// Who follows the event log from where, or what one address may still be given.
    Subscribers,
    /// The wakers of one signal: innermost, so that anybody may notify.
    Signal,
}

const RANKS: [Rank; 8] = [
    Rank::Fleet,
    Rank::Slots,
    Rank::Ledger,
    Rank::Told,
    Rank::Catalog,
    Rank::Timeline,
    Rank::Subscribers,
    Rank::Signal,
];

impl Rank {
    /// The name used in metrics and in the panic message of an inversion.
    pub const fn name(self) -> &'static str {
        match self {
            Rank::Fleet => "fleet",
            Rank::Slots => "slots",
            Rank::Ledger => "ledger",
            Rank::Told => "told",
            Rank::Catalog => "catalog",
            Rank::Timeline => "timeline",
            Rank::Subscribers => "subscribers",
            Rank::Signal => "signal",
        }
    }
}

/// A mutex with a rank. Locking blocks the thread; sections are short and never await.
pub struct Lock<T> {
    rank: Rank,
    inner: imp::Mutex<T>,
}

impl<T> Lock<T> {
    /// A lock of this rank around `value`.
    pub fn new(rank: Rank, value: T) -> Self {
        Lock { rank, inner: imp::Mutex::new(value) }
    }

    /// Blocks until the lock is free.
    ///
    /// # Panics
    /// In debug builds, when this thread already holds a lock of the same or a later rank.
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        let held = order::Held::check(self.rank);
        Guard { inner: acquire(&self.inner, self.rank), _held: held }
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({})", self.rank.name())
    }
}

/// A held lock, given back when dropped.
pub struct Guard<'a, T> {
    inner: imp::MutexGuard<'a, T>,
    _held: order::Held,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
fn acquire<T>(mutex: &imp::Mutex<T>, rank: Rank) -> imp::MutexGuard<'_, T> {
    use std::sync::TryLockError;
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            contention::measured(rank, || mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
        }
    }
}

#[cfg(any(feature = "loom", feature = "shuttle"))]
fn acquire<T>(mutex: &imp::Mutex<T>, _rank: Rank) -> imp::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// How often, and for how long, threads waited for locks of one rank since the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contention {
    /// The rank's name.
    pub lock: &'static str,
    /// Acquisitions that found the lock taken.
    pub contended: u64,
    /// Nanoseconds spent waiting in those.
    pub waited_nanos: u64,
}

pub use contention::report as contention;

mod contention {
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    use super::Rank;
    use super::{Contention, RANKS};
    // Counters of the process, not state of the router: std's atomics in every build, so that
    // the models do not explore them.
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    static CONTENDED: [AtomicU64; RANKS.len()] = [const { AtomicU64::new(0) }; RANKS.len()];
    static WAITED: [AtomicU64; RANKS.len()] = [const { AtomicU64::new(0) }; RANKS.len()];

    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    #[expect(
        clippy::disallowed_types,
        clippy::disallowed_methods,
        reason = "measures the lock, decides nothing"
    )]
    pub(super) fn measured<R>(rank: Rank, wait: impl FnOnce() -> R) -> R {
        let began = std::time::Instant::now();
        let result = wait();
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        CONTENDED[rank as usize].fetch_add(1, Relaxed);
        WAITED[rank as usize].fetch_add(nanos, Relaxed);
        result
    }

    /// Contention by lock, in rank order. Counts the whole process; blocks nobody.
    pub fn report() -> [Contention; RANKS.len()] {
        RANKS.map(|rank| Contention {
            lock: rank.name(),
            contended: CONTENDED[rank as usize].load(Relaxed),
            waited_nanos: WAITED[rank as usize].load(Relaxed),
        })
    }
}

#[cfg(all(debug_assertions, not(any(feature = "loom", feature = "shuttle"))))]
mod order {
    //! What this thread holds. Under loom and shuttle many model threads share one real thread, so
    //! the check is left out there: a deadlock is what those two find by themselves.
    use super::Rank;
    use core::cell::RefCell;
    use core::panic::Location;

    std::thread_local! {
        static HELD: RefCell<Vec<(Rank, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
    }

    /// One entry of this thread's list, removed when dropped.
    pub(super) struct Held(Rank);

    impl Held {
        #[track_caller]
        pub(super) fn check(rank: Rank) -> Held {
            let here = Location::caller();
            HELD.with_borrow_mut(|held| {
                if let Some((outer, there)) = held.iter().find(|(outer, _)| *outer >= rank) {
                    panic!(
                        "lock order: `{}` taken at {here} while `{}` is held since {there}",
                        rank.name(),
                        outer.name()
                    );
                }
                held.push((rank, here));
            });
            Held(rank)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|(rank, _)| *rank == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(not(all(debug_assertions, not(any(feature = "loom", feature = "shuttle")))))]
mod order {
    use super::Rank;

    /// Nothing: release builds do not check the order.
    pub(super) struct Held;

    impl Held {
        pub(super) fn check(_rank: Rank) -> Held {
            Held
        }
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;

    #[test]
    fn locks_may_be_taken_in_rank_order() {
        let (outer, inner) = (Lock::new(Rank::Slots, 1), Lock::new(Rank::Ledger, 2));
        let a = outer.lock();
        let b = inner.lock();
        assert_eq!(*a + *b, 3);
    }

    #[test]
    #[cfg(debug_assertions)]
    fn an_inversion_panics_and_names_both_locks() {
        let (outer, inner) = (Lock::new(Rank::Slots, ()), Lock::new(Rank::Ledger, ()));
        let panic = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
            let _inner = inner.lock();
            let _outer = outer.lock();
        }));
        let message = *panic.expect_err("an inversion").downcast::<String>().expect("a message");
        assert!(
            message.contains("`slots` taken at") && message.contains("`ledger` is held since"),
            "{message}"
        );
        // The failed attempt left nothing behind: the right order still works on this thread.
        let _outer = outer.lock();
        let _inner = inner.lock();
    }

    #[test]
    fn a_panic_while_a_lock_is_held_does_not_poison_it() {
        let lock = Lock::new(Rank::Catalog, 7);
        let _ = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
            let _guard = lock.lock();
            panic!("in a critical section");
        }));
        assert_eq!(*lock.lock(), 7);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "contention takes a second thread and real time")]
    fn a_contended_acquisition_is_counted_under_its_name() {
        let of = |name| contention().into_iter().find(|c| c.lock == name).expect("a known name").contended;
        let lock = Arc::new(Lock::new(Rank::Fleet, ()));
        let before = of("fleet");
        let held = lock.lock();
        let other = std::thread::spawn({
            let lock = Arc::clone(&lock);
            move || drop(lock.lock())
        });
        std::thread::sleep(core::time::Duration::from_millis(20));
        drop(held);
        other.join().expect("the other thread ends");
        assert!(of("fleet") > before);
    }
}
