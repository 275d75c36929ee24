//! Whole worlds of pointsman from one seed: several instances built from the production `core`, `flow`
//! and `wire`, on virtual time, with faulty endpoints, connections, disks and clocks, and an oracle
//! that judges every promise from outside. See README.md for how to use it.

mod check;
mod cli;
mod client;
mod corpus;
mod determinism;
mod disk;
mod executor;
mod faults;
mod instance;
mod net;
mod operator;
mod oracle;
mod panics;
mod plan;
mod ports;
mod replay;
mod run;
mod scenario;
mod script;
mod seeds;
mod shared;
mod shrink;
mod sometimes;
mod store;
mod streams;
mod subscriber;
mod timeline;
mod trace;
mod world;
mod zoo;

use std::process::ExitCode;

/// A world is mostly small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    panics::keep();
    cli::run()
}
