//! An answer on its way to the client: chunks as they come, with the slot, the usage picked out in
//! passing, and the end of the story, whichever it is.
//!
//! Owned by the client's connection: pulled when the client can take more (backpressure), dropped
//! when it leaves (which cancels upstream and gives the slot back). Keeps `answer-pure`: all bytes
//! come from one upstream answer; and `token-conservation`: usage is recorded once, in the same step
//! that gives the slot back.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, StatusCode};
use thiserror::Error;

use crate::core::breaker::Verdict;
use crate::core::ledger::{Row, Tokens};
use crate::core::names::EndpointName;
use crate::core::slots::Slot;
use crate::core::sync::Arc;
use crate::core::time::Instant;
use crate::ports::{BoxFuture, ByteStream, UpstreamError};
use crate::wire::errors::error_line;
use crate::wire::usage::{Framing, Tap};

use super::router::Router;
use super::story::Story;

/// What a client gets.
pub struct Answer {
    /// The endpoint's status.
    pub status: StatusCode,
    /// The endpoint's end-to-end headers.
    pub headers: HeaderMap,
    /// The bytes.
    pub body: AnswerBody,
}

/// The body broke where its protocol has no words for it: the connection has to be cut.
#[derive(Clone, Debug, Error)]
#[error("{endpoint} broke off in the middle of its answer: {why}")]
pub struct BrokeOff {
    /// Who.
    pub endpoint: EndpointName,
    /// How.
    pub why: String,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client has all of it.
    Answered,
    /// The endpoint failed on the way.
    Failed,
    /// The client left.
    Cancelled,
    /// It was an error answer of the endpoint's, passed on.
    Refused,
}

impl Outcome {
    /// `answered`, `failed`, `cancelled` or `refused`.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
        }
    }
}

/// The chunks of an answer. Ends after `None` or the first error.
pub struct AnswerBody {
    upstream: Option<ByteStream>,
    /// Came while the head was held back; goes first.
    first: Option<Bytes>,
    tap: Tap,
    framing: Framing,
    /// It is a stream of lines: an error can be said in it, and an end without the final line is one.
    streamed: bool,
    ticket: Option<Ticket>,
    silence: Silence,
}

/// What is given back when the answer ends.
struct Ticket {
    /// The request's name in logs.
    id: Arc<str>,
    router: Arc<Router>,
    slot: Slot,
    endpoint: EndpointName,
    on_end: Option<OnEnd>,
    /// Its place in the event log.
    story: Option<Story>,
}

/// Called once with how the answer ended.
pub type OnEnd = Box<dyn FnOnce(Outcome) + Send>;

/// The limit on how long the endpoint may stay silent between two chunks. Only the time in which the
/// client waits counts: a slow client does not make its endpoint look silent.
struct Silence {
    limit: Duration,
    since: Option<Instant>,
    alarm: Option<BoxFuture<'static, ()>>,
}

/// What [`AnswerBody`] is made of.
pub(super) struct Parts {
    pub(super) router: Arc<Router>,
    pub(super) slot: Slot,
    pub(super) endpoint: EndpointName,
    pub(super) upstream: ByteStream,
    pub(super) first: Bytes,
    pub(super) framing: Framing,
    pub(super) streamed: bool,
    pub(super) hide_usage: bool,
    pub(super) idle_timeout: Duration,
    pub(super) id: Arc<str>,
}

impl AnswerBody {
    pub(super) fn new(parts: Parts) -> AnswerBody {
        let Parts {
            router,
            slot,
            endpoint,
            upstream,
            first,
            framing,
            streamed,
            hide_usage,
            idle_timeout,
            id,
        } = parts;
        let mut tap = Tap::new(framing, hide_usage);
        let first = Some(tap.push(first)).filter(|bytes| !bytes.is_empty());
        AnswerBody {
            upstream: Some(upstream),
            first,
            tap,
            framing,
            streamed,
            ticket: Some(Ticket { id, router, slot, endpoint, on_end: None, story: None }),
            silence: Silence { limit: idle_timeout, since: None, alarm: None },
        }
    }

    /// Bytes that are all there, of an answer that holds no slot any more.
    pub(super) fn whole(bytes: Bytes) -> AnswerBody {
        AnswerBody {
            upstream: None,
            first: Some(bytes),
            tap: Tap::new(Framing::Json, false),
            framing: Framing::Json,
            streamed: false,
            ticket: None,
            silence: Silence { limit: Duration::MAX, since: None, alarm: None },
        }
    }

    /// `on_end` is called once, with how the answer ended.
    pub fn on_end(&mut self, on_end: OnEnd) {
        match &mut self.ticket {
            Some(ticket) => ticket.on_end = Some(on_end),
            None => on_end(Outcome::Refused),
        }
    }

    /// The request's place in the event log, to be ended with the answer.
    pub(super) fn carry(&mut self, story: Option<Story>) {
        match (&mut self.ticket, story) {
            (Some(ticket), story) => ticket.story = story,
            (None, Some(story)) => story.end(Outcome::Refused, None),
            (None, None) => {}
        }
    }

    /// Ends it all: the slot goes back with a verdict, the tokens go into the ledger, in one step.
    fn end(&mut self, outcome: Outcome) {
        self.upstream = None;
        self.silence.alarm = None;
        let Some(Ticket { router, slot, endpoint, on_end, story, .. }) = self.ticket.take() else { return };
        // The client may leave between the final line and the end of the body: it had everything.
        let outcome =
            if outcome == Outcome::Cancelled && self.tap.complete() { Outcome::Answered } else { outcome };
        let verdict = match outcome {
            Outcome::Answered => Verdict::Sound,
            Outcome::Failed => Verdict::Faulty,
            Outcome::Cancelled | Outcome::Refused => Verdict::Unknown,
        };
        let clock = &router.ports.clock;
        let tokens = self.tap.usage();
        let tokens = tokens.map(|usage| Tokens { input: usage.input_tokens, output: usage.output_tokens });
        let row = tokens.map(|tokens| Row {
            minute: clock.wall().minute(),
            endpoint,
            model: slot.model().clone(),
            tokens,
        });
        router.usage.settle(slot, verdict, clock.now(), row);
        if let Some(story) = story {
            story.end(outcome, tokens);
        }
        if let Some(on_end) = on_end {
            on_end(outcome);
        }
    }

    /// The endpoint failed on the way: say so in the protocol, or cut the connection.
    fn break_off(&mut self, why: String) -> Option<Result<Bytes, BrokeOff>> {
        let mid_line = self.tap.mid_line();
        self.break_off_at(mid_line, why)
    }

    /// As above; `mid_line` is where the bytes that the client has end, see `Tap::mid_line`.
    fn break_off_at(&mut self, mid_line: bool, why: String) -> Option<Result<Bytes, BrokeOff>> {
        let Ticket { id, endpoint, .. } = self.ticket.as_ref()?;
        let broke_off = BrokeOff { endpoint: endpoint.clone(), why };
        tracing::warn!(request_id = %id, error = %broke_off, "answer broken off");
        self.end(Outcome::Failed);
        if !self.streamed {
            return Some(Err(broke_off));
        }
        Some(Ok(error_line(self.framing, &broke_off.to_string(), mid_line)))
    }

    /// The endpoint's body ended.
    fn ended(&mut self) -> Option<Result<Bytes, BrokeOff>> {
        // A last line without its newline is a line, and may be the one that makes the message whole.
        let mid_line = self.tap.mid_line();
        let held = self.tap.finish();
        if !self.tap.complete() && !self.tap.failed() {
            return self.break_off_at(mid_line, "it ended before its message was whole".to_owned());
        }
        let outcome = if self.tap.failed() { Outcome::Failed } else { Outcome::Answered };
        self.end(outcome);
        (!held.is_empty()).then_some(Ok(held))
    }
}

impl Stream for AnswerBody {
    type Item = Result<Bytes, BrokeOff>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            let Some(upstream) = &mut this.upstream else { return Poll::Ready(None) };
            match upstream.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    this.silence.since = None;
                    if let Some(Ticket { router, slot, .. }) = &mut this.ticket {
                        slot.moved(router.ports.clock.now());
                    }
                    let passed_on = this.tap.push(chunk);
                    if !passed_on.is_empty() {
                        return Poll::Ready(Some(Ok(passed_on)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(this.break_off(error.to_string())),
                Poll::Ready(None) => return Poll::Ready(this.ended()),
                Poll::Pending => {
                    return if this.poll_silence(cx).is_ready() {
                        let why = format!("no byte for {} s", this.silence.limit.as_secs_f64());
                        Poll::Ready(this.break_off(UpstreamError::Broken(why).to_string()))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    }
}

impl AnswerBody {
    /// Ready once the endpoint has been silent for too long. One timer serves the whole answer: it
    /// is set again only when it rings early.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Ticket { router, slot, .. }) = &mut self.ticket else { return Poll::Pending };
        let clock = &router.ports.clock;
        let Silence { limit, since, alarm } = &mut self.silence;
        let since = *since.get_or_insert_with(|| {
            let now = clock.now();
            slot.wait(now);
            now
        });
        let deadline = since + *limit;
        loop {
            if alarm.get_or_insert_with(|| clock.sleep_until(deadline)).as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            *alarm = None;
            if clock.now() >= deadline {
                return Poll::Ready(());
            }
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}
