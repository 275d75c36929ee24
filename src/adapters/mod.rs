//! The ports as production has them: tokio's clock and tasks, reqwest, sled; and an in-memory store.

pub mod clock;
#[cfg(test)]
mod conformance;
pub mod entropy;
pub mod memory;
pub mod sled;
pub mod spawn;
pub mod upstream;
