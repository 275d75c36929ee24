//! What the router remembers and decides. No tokio, no I/O, no clock, no chance of its own: time and
//! dice arrive as arguments, and every lock and atomic comes from [`sync`], so that loom, shuttle,
//! the simulator and production run the very same code.

pub mod breaker;
pub mod catalog;
pub mod invariants;
pub mod ledger;
pub mod names;
pub mod policy;
mod pulse;
pub mod signal;
pub mod slots;
pub mod sync;
pub mod time;
pub mod timeline;
pub mod usage;

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod slots_tests;
