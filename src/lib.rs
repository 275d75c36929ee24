//! A router in front of many LLM backends, whose every race has been looked for, found, and kept as a
//! test.
//!
//! This crate is *not* a model server, and not a load balancer for anything but LLM traffic. It is a
//! state machine ([`core`]) without clock, chance or runtime; the use cases over it ([`flow`]),
//! written against five traits ([`ports`]); and what production needs around that. Arrows point one
//! way: `http`, `adapters` -> [`flow`] -> [`core`]; [`flow`] -> [`ports`]; [`wire`] stands alone.
//!
//! - [`core`]: what the router remembers and decides.
//! - [`ports`]: the traits it needs from the world: time, chance, tasks, backends, a disk.
//! - [`flow`]: the use cases: route a request, refresh a listing, flush token counts.
//! - [`wire`]: bytes of Ollama's and OpenAI's protocols; no I/O.
//! - [`config`]: the configuration file, from text to values.
//! - `adapters`: the ports on tokio, reqwest and sled.
//! - `http`: routes, auth, metrics, connections.
//! - `pretend`: backends without models, for the demo, the tests and the benches.
//! - `feed`: a client of the router's events, for other programs and `pointsman tail`.
//! - `cli`: the command line.
//!
//! Without the default feature `server` only the first five are built, and nothing in the dependency
//! graph can open a socket or read a clock. The features `loom` and `shuttle` swap the locks of
//! [`core::sync`].
#![forbid(unsafe_code)]

#[cfg(all(feature = "server", any(feature = "loom", feature = "shuttle")))]
compile_error!("the features `loom` and `shuttle` are for models only: build with --no-default-features");

pub mod config;
pub mod core;
pub mod flow;
pub mod ports;
pub mod wire;

#[cfg(feature = "server")]
pub mod adapters;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod feed;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod pretend;
