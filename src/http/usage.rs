//! What is counted: requests in flight, tokens, metrics.

use std::convert::Infallible;

use core::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::core::usage::Snapshot;

use super::app::App;
use super::reply;

/// The shortest pause between two snapshots on one stream: under load there are thousands of
/// changes a second, and each snapshot shows only the newest.
const GAP: Duration = Duration::from_millis(20);

/// How often a stream without changes says that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) async fn usage(State(app): State<App>) -> Response {
    reply::json(StatusCode::OK, usage_json(&app.router.usage().snapshot()))
}

/// The same object whenever it changes. The newest snapshot is taken when the client can take it: a
/// slow client skips old ones and always gets the last.
pub(super) async fn stream(State(app): State<App>) -> Response {
    let watcher = Watcher { stopping: app.stopping(), app, shown: Vec::new() };
    let events = stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((Ok::<_, Infallible>(event), watcher))
    });
    let mut response = Response::new(Body::from_stream(events));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// One client of the stream.
struct Watcher {
    app: App,
    stopping: watch::Receiver<bool>,
    /// What it was shown last.
    shown: Vec<u8>,
}

impl Watcher {
    /// The next event; `None` when the server stops.
    async fn next(&mut self) -> Option<Bytes> {
        let heartbeat = tokio::time::Instant::now() + HEARTBEAT;
        loop {
            // Listening begins before the snapshot is taken, so that no change falls between the two.
            let changed = self.app.router.usage().changed();
            let newest = usage_json(&self.app.router.usage().snapshot());
            if newest != self.shown {
                self.shown = newest;
                return Some([b"data: ", &self.shown[..], b"\n\n"].concat().into());
            }
            tokio::select! {
                // The guard it gives is let go at once: it cannot be kept across an await.
                _ = async { self.stopping.wait_for(|stopping| *stopping).await.map(drop) } => return None,
                () = changed => tokio::time::sleep(GAP).await,
                () = tokio::time::sleep_until(heartbeat) => return Some(Bytes::from_static(b": still here\n\n")),
            }
        }
    }
}

pub(super) async fn token_counts(State(app): State<App>) -> Response {
    let totals = app.router.usage().snapshot().tokens;
    let mut total = 0u64;
    let mut breakdown = Vec::with_capacity(totals.len());
    for ((endpoint, model), tokens) in totals.iter() {
        total = total.saturating_add(tokens.total());
        breakdown.push(json!({
            "endpoint": endpoint.as_str(),
            "model": model.as_str(),
            "input_tokens": tokens.input,
            "output_tokens": tokens.output,
            "total_tokens": tokens.total(),
        }));
    }
    reply::value(StatusCode::OK, &json!({ "total_tokens": total, "breakdown": breakdown }))
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let mut response = Response::new(Body::from(app.metrics.encode()));
    let openmetrics = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, openmetrics);
    response
}

/// The object of `/api/usage`.
fn usage_json(snapshot: &Snapshot) -> Vec<u8> {
    let mut usage = Map::new();
    for endpoint in &snapshot.slots.endpoints {
        let counts: Map<String, Value> = endpoint
            .in_flight
            .iter()
            .map(|(model, count)| (model.to_string(), Value::from(*count)))
            .collect();
        if !counts.is_empty() {
            usage.insert(endpoint.name.to_string(), Value::Object(counts));
        }
    }
    let mut tokens = Map::new();
    for ((endpoint, model), total) in snapshot.tokens.iter() {
        let of_endpoint = tokens.entry(endpoint.as_str()).or_insert_with(|| Value::Object(Map::new()));
        of_endpoint[model.as_str()] = Value::from(total.total());
    }
    json!({ "usage_counts": usage, "token_usage_counts": tokens }).to_string().into_bytes()
}
