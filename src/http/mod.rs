//! The server: routes, auth, metrics, connections. Bytes come in here, meaning is read by `wire`,
//! decisions are made by `flow` and `core`; this room only speaks HTTP.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clock, chance and tokio live out here"
)]

mod app;
mod auth;
mod body;
mod feed;
mod inference;
mod lobby;
mod metrics;
mod overview;
mod peer;
mod reply;
mod request_id;
pub mod server;
mod usage;

pub use app::App;
