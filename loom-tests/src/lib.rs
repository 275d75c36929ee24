//! The race verification of pointsman: loom and shuttle drive the production types of
//! `pointsman::core`, swapped onto their locks by a feature, never a copy of them.
//!
//! - [`zoo`]: known races, each a patch to the real code, and who has to find it.
//! - [`report`]: what a run leaves behind: lines, JSON lines, the table in the README.
//! - [`options`]: the command line and environment both runners share.
//! - `explore`: the runner around loom, which knows whether an exploration was complete.
//! - `portfolio`: the runner around shuttle: a portfolio of schedulers, kept schedules, replay.
//!
//! The models stand in `tests/loom`, the scenarios in `tests/shuttle`; the README is the manual.

pub mod options;
pub mod report;
pub mod zoo;

#[cfg(feature = "loom")]
pub mod explore;
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
pub mod portfolio;

#[cfg(all(feature = "loom", feature = "shuttle"))]
compile_error!("loom and shuttle each swap the router's locks: one feature at a time");
