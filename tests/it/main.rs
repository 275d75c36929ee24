//! The real binary, real sockets, and clients nobody here wrote. Backends are the pretend ones, in
//! this process; everything listens on loopback.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a real process lives in real time")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test says what broke by panicking")]

mod audit;
mod bad_input;
mod choice;
mod clients;
mod demo;
mod feed;
mod feed_client;
mod feed_crash;
mod feed_edges;
mod feed_follow;
mod feed_none;
mod feed_socket;
mod house;
mod kinds;
mod life;
mod proxying;
mod router;
mod storm;

use pointsman::pretend::{Pretend, Profile};

/// A pretend backend on a free port of the loopback.
fn pretend(profile: Profile) -> Pretend {
    pointsman::adapters::upstream::install_tls();
    Pretend::start(profile, std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

fn chat(model: &str) -> serde_json::Value {
    serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "one two three" }] })
}
