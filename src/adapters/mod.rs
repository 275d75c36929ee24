//! The ports as production has them: tokio's clock and tasks, HTTP clients, sled; and an in-memory store.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clock, chance and tokio live out here"
)]

pub mod clock;
#[cfg(test)]
mod conformance;
pub mod entropy;
mod h1;
pub mod memory;
pub mod sled;
pub mod spawn;
pub mod upstream;
