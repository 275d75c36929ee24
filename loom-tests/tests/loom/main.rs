//! Loom explores the core: one file per component. Each file is compiled over the production types and,
//! for every bug in the zoo that it has to find, over a copy with that bug put back.

use std::process::ExitCode;

use loom_tests::explore::{Model, Suite};
use pointsman::core;

mod breaker;
mod catalog;
#[path = "../common/mod.rs"]
mod common;
mod ledger;
mod pulse;
mod queue;
mod shutdown;
mod signal;
mod slots;
mod timeline;
mod usage;

type Item = Model;

mod zoo {
    include!(concat!(env!("OUT_DIR"), "/zoo.rs"));
}

const SUITE: Suite = Suite {
    models: &[
        signal::ALL,
        slots::ALL,
        queue::ALL,
        breaker::ALL,
        pulse::ALL,
        catalog::ALL,
        ledger::ALL,
        usage::ALL,
        shutdown::ALL,
        timeline::ALL,
    ],
    variants: &[catalog::VARIANTS, usage::VARIANTS],
    zoo: zoo::ZOO,
};

fn main() -> ExitCode {
    SUITE.main()
}
