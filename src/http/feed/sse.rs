//! `GET /api/events`: the feed as server-sent events. The body is pulled: the connection asks for more once
//! it has room, and that question is what moves the cursor.

use std::convert::Infallible;
use std::io::Write as _;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;

use crate::flow::pump::{Ending, Pump, RETRY_AFTER, Turn};
use crate::wire::event::push_number;

use super::ending::object;
use super::leash::Leash;

static X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The stream of one subscriber, on a connection that is cut by `leash` if nothing is taken from it any more.
/// `stopping` stays until the end: the server waits for it when it stops.
pub(super) fn answer(pump: Pump, leash: Leash, stopping: watch::Receiver<bool>) -> Response {
    let frames = stream::unfold(Some((pump, leash, stopping)), |open| async move {
        let (mut pump, leash, stopping) = open?;
        leash.taken();
        let turn = pump.turn().await;
        leash.handed();
        let goes_on = !matches!(turn, Turn::End(_));
        Some((Ok::<_, Infallible>(frame(&turn)?), goes_on.then_some((pump, leash, stopping))))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect events otherwise.
    headers.insert(X_ACCEL_BUFFERING.clone(), HeaderValue::from_static("no"));
    response
}

/// The bytes of a turn; `None` ends the stream without a word.
fn frame(turn: &Turn) -> Option<Bytes> {
    let mut out = Vec::new();
    match turn {
        Turn::Events(events) => {
            let bytes: usize = events.iter().map(|given| given.event.frame_len(given.seq, given.prev)).sum();
            out.reserve(bytes + 40 * events.len());
            for given in events {
                out.extend_from_slice(b"id: ");
                push_number(given.seq, &mut out);
                out.extend_from_slice(b"\ndata: ");
                given.event.frame(given.seq, given.prev, &mut out);
                out.extend_from_slice(b"\n\n");
            }
        }
        Turn::Checkpoint(seq) => {
            let written = write!(out, "event: checkpoint\nid: {seq}\ndata: {{\"checkpoint\":{seq}}}\n\n");
            written.expect("a vector takes everything");
        }
        Turn::Silence => out.extend_from_slice(b": still here\n\n"),
        Turn::End(ending) => {
            let (seq, object) = object(ending)?;
            if matches!(ending, Ending::TooSlow { .. }) {
                let retry = writeln!(out, "retry: {}", RETRY_AFTER.as_millis());
                retry.expect("a vector takes everything");
            }
            let written = write!(out, "event: error\nid: {seq}\ndata: {object}\n\n");
            written.expect("a vector takes everything");
        }
    }
    Some(out.into())
}
