//! `GET /subscribe`: the feed over a WebSocket, one message for each event: text, or binary where the client
//! asked for zstd. What is said about the stream is text always. The client may change its wishes on the
//! way; anything else it says ends the connection with the reason.

use std::pin::pin;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tungstenite::Error as WsError;

use crate::config::STALL_GRACE;
use crate::core::sync::Arc;
use crate::flow::pump::{Ending, Given, Pump, Turn, Wish};

use super::STOP_GRACE;
use super::ending::object;
use super::pack::Packer;
use super::query::{self, BadQuery};

/// The longest message a client may send, in bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// What is read from the connection at a time: clients say little.
const READ_BUFFER: usize = 4 * 1024;

/// More than one piece, so that a piece is handed over whole and then written out.
const WRITE_BUFFER: usize = 64 * 1024;

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

/// How a connection ends.
enum Parting {
    /// The client is gone, or takes nothing while the server stops.
    Gone,
    /// The client said goodbye, and waits for ours.
    Closed,
    /// We do, and say why.
    Goodbye(Goodbye),
}

/// Why a connection is closed.
struct Goodbye {
    code: u16,
    reason: &'static str,
    /// The last message, if there is something to say.
    object: Option<Value>,
}

/// The connection of one subscriber.
pub(super) fn answer(
    upgrade: WebSocketUpgrade,
    pump: Pump,
    packer: Option<Arc<Packer>>,
    stopping: watch::Receiver<bool>,
) -> Response {
    upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .on_upgrade(|socket| serve(socket, pump, packer, stopping))
}

/// `stopping` stays until the end: the server waits for it when it stops.
async fn serve(
    mut socket: WebSocket,
    mut pump: Pump,
    packer: Option<Arc<Packer>>,
    mut stopping: watch::Receiver<bool>,
) {
    let parting = converse(&mut socket, &mut pump, packer.as_deref(), &mut stopping).await;
    let grace = if *stopping.borrow() { STOP_GRACE } else { STALL_GRACE };
    let parted = async {
        match parting {
            Parting::Gone => Ok(()),
            Parting::Closed => hear_out(&mut socket).await,
            Parting::Goodbye(goodbye) => part(&mut socket, goodbye).await,
        }
    };
    // Who takes no goodbye gets none.
    let _ = timeout(grace, parted).await;
}

/// Writes and listens until one side has had enough.
async fn converse(
    socket: &mut WebSocket,
    pump: &mut Pump,
    packer: Option<&Packer>,
    stopping: &mut watch::Receiver<bool>,
) -> Parting {
    loop {
        let messages = match next(socket, pump).await {
            Ok(Next::Wish(wish)) => vec![text(&json!({ "options_updated": pump.wish(wish) }))],
            Ok(Next::Turn(Turn::End(ending))) => return Parting::Goodbye(ending.into()),
            Ok(Next::Turn(turn)) => messages(turn, packer),
            Err(parting) => return parting,
        };
        let written = tokio::select! {
            written = timeout(pump.stall(), write(socket, messages)) => written,
            () = stopped(stopping) => return Parting::Gone,
        };
        match written {
            Ok(Ok(())) => pump.written(),
            Ok(Err(_)) => return Parting::Gone,
            Err(_) => return Parting::Goodbye(pump.stalled().into()),
        }
    }
}

/// Completes when the server has stopped and a subscriber has had its time to take what is on its way.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await.map(drop);
    tokio::time::sleep(STOP_GRACE).await;
}

/// What is to be written next.
enum Next {
    Turn(Turn),
    /// The answer to other wishes.
    Wish(Wish),
}

/// The next turn, unless the client says something that matters first. One turn is waited for, however
/// much is said that does not: a turn that is begun may have the disk at work.
async fn next(socket: &mut WebSocket, pump: &mut Pump) -> Result<Next, Parting> {
    let mut turn = pin!(pump.turn());
    loop {
        tokio::select! {
            heard = socket.recv() => {
                if let Some(wish) = hear(heard.ok_or(Parting::Gone)?)? {
                    return Ok(Next::Wish(wish));
                }
            }
            turn = turn.as_mut() => return Ok(Next::Turn(turn)),
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
    hear_out(socket).await
}

/// Reading on is also what writes the answer to a client's goodbye.
async fn hear_out(socket: &mut WebSocket) -> Result<(), axum::Error> {
    while let Some(Ok(_)) = socket.recv().await {}
    Ok(())
}

fn messages(turn: Turn, packer: Option<&Packer>) -> Vec<Message> {
    match turn {
        Turn::Events(events) => events.iter().map(|given| message(given, packer)).collect(),
        Turn::Checkpoint(seq) => vec![text(&json!({ "checkpoint": seq }))],
        Turn::Silence => vec![Message::Ping(Bytes::new())],
        Turn::End(ending) => object(&ending).iter().map(|(_, object)| text(object)).collect(),
    }
}

fn message(given: &Given, packer: Option<&Packer>) -> Message {
    if let Some(packed) = packer.and_then(|packer| packer.message(given).ok()) {
        return Message::Binary(packed.into());
    }
    let mut frame = Vec::with_capacity(given.event.frame_len(given.seq, given.prev));
    given.event.frame(given.seq, given.prev, &mut frame);
    // A stored event is JSON and therefore UTF-8; a damaged one is not read at all.
    Message::text(String::from_utf8(frame).unwrap_or_default())
}

fn text(object: &Value) -> Message {
    Message::text(object.to_string())
}

/// What the client said: other wishes, nothing of interest, or something that ends the connection.
fn hear(heard: Result<Message, axum::Error>) -> Result<Option<Wish>, Parting> {
    let refused = |code, reason, why: String| {
        Err(Parting::Goodbye(Goodbye { code, reason, object: Some(json!({ "error": why })) }))
    };
    match heard {
        Ok(Message::Text(text)) => match query::wish(&text) {
            Ok(wish) => Ok(Some(wish)),
            Err(bad @ BadQuery::NotJson(_)) => refused(code::NOT_TEXT, "not JSON", bad.to_string()),
            Err(bad) => refused(code::POLICY, "not understood", bad.to_string()),
        },
        Ok(Message::Binary(_)) => {
            let why = "binary messages are not taken: send JSON as text";
            refused(code::UNSUPPORTED, "binary", why.to_owned())
        }
        Ok(Message::Ping(_) | Message::Pong(_)) => Ok(None),
        Ok(Message::Close(_)) => Err(Parting::Closed),
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
            _ => Err(Parting::Gone),
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
        Goodbye { code, reason, object: object(&ending).map(|(_, object)| object) }
    }
}
