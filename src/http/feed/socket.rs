//! `GET /subscribe`: the feed over a WebSocket, one text message for each event. The client may change its
//! wishes on the way; anything else it says ends the connection with the reason.

use core::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tungstenite::Error as WsError;

use super::pump::{Ending, Pump, Turn};
use super::query::{BadQuery, Wish};

/// The longest message a client may send, in bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// What is read from the connection at a time: clients say little.
const READ_BUFFER: usize = 4 * 1024;

/// More than one piece, so that a piece is handed over whole and then written out.
const WRITE_BUFFER: usize = 64 * 1024;

/// How long the last words and the client's goodbye may take.
const GRACE: Duration = Duration::from_secs(10);

/// Close codes: RFC 6455's, and two of our own.
mod code {
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const PROTOCOL: u16 = 1002;
    pub(super) const UNSUPPORTED: u16 = 1003;
    pub(super) const NOT_TEXT: u16 = 1007;
    pub(super) const POLICY: u16 = 1008;
    pub(super) const TOO_BIG: u16 = 1009;
    pub(super) const INTERNAL: u16 = 1011;
    pub(super) const TOO_SLOW: u16 = 4008;
    pub(super) const GONE: u16 = 4010;
}

/// Why a connection is closed.
struct Goodbye {
    code: u16,
    reason: &'static str,
    /// The last message, if there is something to say.
    object: Option<Value>,
}

/// The connection of one subscriber.
pub(super) fn answer(upgrade: WebSocketUpgrade, pump: Pump) -> Response {
    upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .on_upgrade(|socket| serve(socket, pump))
}

async fn serve(mut socket: WebSocket, mut pump: Pump) {
    // The pump stays until the end: the server waits for it when it stops.
    if let Some(goodbye) = converse(&mut socket, &mut pump).await {
        let _ = timeout(GRACE, part(&mut socket, goodbye)).await;
    }
}

/// Writes and listens until one side has had enough; `None`: the client is gone.
async fn converse(socket: &mut WebSocket, pump: &mut Pump) -> Option<Goodbye> {
    loop {
        let messages = tokio::select! {
            heard = socket.recv() => match hear(heard?) {
                Ok(None) => continue,
                Ok(Some(wish)) => vec![text(&json!({ "options_updated": pump.wish(wish) }))],
                Err(goodbye) => return goodbye,
            },
            turn = pump.turn() => match turn {
                Turn::End(ending) => return Some(ending.into()),
                turn => messages(turn),
            },
        };
        match timeout(pump.stall(), write(socket, messages)).await {
            Ok(Ok(())) => pump.written(),
            Ok(Err(_)) => return None,
            Err(_) => return Some(pump.stalled().into()),
        }
    }
}

async fn write(socket: &mut WebSocket, messages: Vec<Message>) -> Result<(), axum::Error> {
    for message in messages {
        socket.feed(message).await?;
    }
    socket.flush().await
}

/// The last words, and then whatever the client still says until it has said goodbye too.
async fn part(socket: &mut WebSocket, goodbye: Goodbye) -> Result<(), axum::Error> {
    let mut last: Vec<Message> = goodbye.object.iter().map(text).collect();
    last.push(Message::Close(Some(CloseFrame { code: goodbye.code, reason: goodbye.reason.into() })));
    write(socket, last).await?;
    while let Some(Ok(_)) = socket.recv().await {}
    Ok(())
}

fn messages(turn: Turn) -> Vec<Message> {
    match turn {
        Turn::Events(events) => {
            let one = |given: super::pump::Given| {
                let mut frame = Vec::with_capacity(given.event.frame_len(given.seq, given.prev));
                given.event.frame(given.seq, given.prev, &mut frame);
                // A stored event is JSON and therefore UTF-8; a damaged one is not read at all.
                Message::text(String::from_utf8(frame).unwrap_or_default())
            };
            events.into_iter().map(one).collect()
        }
        Turn::Checkpoint(seq) => vec![text(&json!({ "checkpoint": seq }))],
        Turn::Silence => vec![Message::Ping(bytes::Bytes::new())],
        Turn::End(ending) => ending.object().iter().map(|(_, object)| text(object)).collect(),
    }
}

fn text(object: &Value) -> Message {
    Message::text(object.to_string())
}

/// What the client said: other wishes, nothing of interest, or something that ends the connection.
fn hear(heard: Result<Message, axum::Error>) -> Result<Option<Wish>, Option<Goodbye>> {
    let refused = |code, reason, why: String| {
        Err(Some(Goodbye { code, reason, object: Some(json!({ "error": why })) }))
    };
    match heard {
        Ok(Message::Text(text)) => match Wish::parse(&text) {
            Ok(wish) => Ok(Some(wish)),
            Err(bad @ BadQuery::NotJson(_)) => refused(code::NOT_TEXT, "not JSON", bad.to_string()),
            Err(bad) => refused(code::POLICY, "not understood", bad.to_string()),
        },
        Ok(Message::Binary(_)) => {
            let why = "binary messages are not taken: send JSON as text";
            refused(code::UNSUPPORTED, "binary", why.to_owned())
        }
        Ok(Message::Ping(_) | Message::Pong(_)) => Ok(None),
        // The answer to it is on its way already; what is left is to wait for the end.
        Ok(Message::Close(_)) => Err(None),
        Err(error) => match error.into_inner().downcast_ref::<WsError>() {
            Some(WsError::Capacity(_)) => {
                let why = format!("a message may have at most {MESSAGE_MAX} bytes");
                refused(code::TOO_BIG, "too long", why)
            }
            Some(WsError::Utf8(_)) => {
                refused(code::NOT_TEXT, "not UTF-8", "a text message is not valid UTF-8".to_owned())
            }
            Some(WsError::Protocol(error)) => {
                refused(code::PROTOCOL, "protocol error", format!("this is no WebSocket traffic: {error}"))
            }
            _ => Err(None),
        },
    }
}

impl From<Ending> for Goodbye {
    fn from(ending: Ending) -> Goodbye {
        let (code, reason) = match &ending {
            Ending::Stopping => (code::GOING_AWAY, "the server stops"),
            Ending::TooSlow { .. } => (code::TOO_SLOW, "ConsumerTooSlow"),
            Ending::Gone { .. } => (code::GONE, "Gone"),
            Ending::Failed { .. } => (code::INTERNAL, "the log cannot be read"),
        };
        Goodbye { code, reason, object: ending.object().map(|(_, object)| object) }
    }
}
