//! Shuttle runs what loom explores with many tasks instead of three, and whole requests through
//! `pointsman::flow` over scripted ports. Each file is compiled over the production types and, for
//! every bug in the zoo that it has to find, over a copy with that bug put back.

use std::process::ExitCode;

use loom_tests::portfolio::{Scenario, Suite};
use pointsman::{config, core, flow, ports, wire};

#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod routing;
mod world;

type Item = Scenario;

mod zoo {
    include!(concat!(env!("OUT_DIR"), "/zoo.rs"));
}

const SUITE: Suite = Suite { scenarios: &[crowd::ALL, routing::ALL], zoo: zoo::ZOO };

fn main() -> ExitCode {
    SUITE.main()
}
