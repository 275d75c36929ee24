//! One subscriber: what to write next, and when to give it up. Whoever writes asks, writes, and asks again.
//!
//! Asking for the next turn says that the one before has been taken: only then does the cursor move on
//! (`feed-exact`), and the time in between is the subscriber's own, by which it is judged. Nothing is queued
//! here: one step of the log is held, and the subscriber's next question is what makes the pump read on
//! (`feed-independent`). A subscriber that is cut off is told why, and the number to come again with
//! (`feed-explicit`). Called by `http::feed`, and by the simulator's subscribers.

use core::future::{pending, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use futures_util::future::{Either, select};

use crate::core::sync::Arc;
use crate::core::time::Instant;
use crate::core::timeline::Seq;
use crate::ports::{BoxFuture, Clock};
use crate::wire::event::Event;
use crate::wire::filter::Filter;

use super::follow::{FollowError, Reader, Step};
use super::pace::Pace;
use super::seats::Seat;

/// Bytes of events written at once, about.
const PIECE: usize = 16 * 1024;

/// After so long a silence the subscriber is told that somebody is still there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A subscriber for whom there was nothing is told how far that was, at most so often ...
const CHECKPOINT_GAP: Duration = Duration::from_secs(1);

/// ... or after so many events.
const CHECKPOINT_EVENTS: u64 = 4_096;

/// When a subscriber that was too slow should come again.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What to write next.
#[derive(Debug)]
pub enum Turn {
    /// These, at least one.
    Events(Vec<Given>),
    /// There is nothing for this subscriber up to here.
    Checkpoint(Seq),
    /// A sign of life.
    Silence,
    /// The last word.
    End(Ending),
}

/// An event for one subscriber.
#[derive(Debug)]
pub struct Given {
    /// Its number.
    pub seq: Seq,
    /// The one given before it.
    pub prev: Option<Seq>,
    /// The event.
    pub event: Arc<Event>,
}

/// Why a stream ends. `last_seq` is the last number on the stream, of an event or a checkpoint; if there was
/// none, where the subscriber began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server stops.
    Stopping,
    /// No piece was taken for too long, or the lag grew at too low a rate.
    TooSlow {
        /// The last number on the stream.
        last_seq: Seq,
        /// The newest event there is.
        tip: Seq,
        /// `stalled` or `lagging`.
        reason: &'static str,
    },
    /// What comes next is no longer kept.
    Gone {
        /// The last number on the stream.
        last_seq: Seq,
        /// The oldest event that is kept.
        floor: Seq,
    },
    /// The log cannot be read.
    Failed {
        /// The last number on the stream.
        last_seq: Seq,
        /// Why.
        error: FollowError,
    },
}

/// Which events a subscriber wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// By kind, endpoint and model.
    pub filter: Filter,
    /// Longer events, as JSON with their numbers, are left out like those that the filter does not want.
    pub message_bytes_max: usize,
}

impl Default for Wish {
    /// All of them.
    fn default() -> Wish {
        Wish { filter: Filter::default(), message_bytes_max: usize::MAX }
    }
}

/// What a pump is made of.
pub struct Parts {
    /// The cursor, at its beginning.
    pub reader: Reader,
    /// The bytes of a message; the reader has the filter already.
    pub wish: Wish,
    /// The subscriber's place among all of them.
    pub seat: Seat,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Completes when the server stops: the stream ends then.
    pub stopping: BoxFuture<'static, ()>,
    /// A turn that takes longer to be written is a stall.
    pub stall: Duration,
    /// Events per second below which a growing lag is too slow; 0 is no limit.
    pub min_rate: u32,
    /// The subscriber did not say a number, so it is told where it begins.
    pub greet: bool,
}

/// One subscriber.
pub struct Pump {
    reader: Reader,
    message_bytes_max: usize,
    seat: Seat,
    clock: Arc<dyn Clock>,
    /// Taken out once it has completed.
    stopping: Option<BoxFuture<'static, ()>>,
    stall: Duration,
    pace: Pace,
    greet: bool,
    /// Being written, with the moment it was handed out.
    handed: Option<(Instant, Handed)>,
    /// Found in how the subscriber took it.
    slow: Option<&'static str>,
    /// Events in hand: those up to the cursor are written.
    step: Option<Step>,
    /// The last number on the stream.
    told: Seq,
    /// When that was.
    told_at: Instant,
    /// When anything was written.
    spoke_at: Instant,
    /// Its last word was said.
    ended: bool,
}

/// What a turn in the subscriber's hands means once it is written.
#[derive(Clone, Copy, Debug)]
enum Handed {
    Events { last: Seq, count: u64 },
    Checkpoint(Seq),
    Silence,
}

impl Pump {
    /// A subscriber that has not been told anything yet.
    pub fn new(parts: Parts) -> Pump {
        let Parts { reader, wish, seat, clock, stopping, stall, min_rate, greet } = parts;
        let (now, cursor) = (clock.now(), reader.cursor());
        Pump {
            pace: Pace::new(min_rate, cursor, reader.lag()),
            reader,
            message_bytes_max: wish.message_bytes_max,
            seat,
            clock,
            stopping: Some(stopping),
            stall,
            greet,
            handed: None,
            slow: None,
            step: None,
            told: cursor,
            told_at: now,
            spoke_at: now,
            ended: false,
        }
    }

    /// Everything up to here was written, or not wanted.
    pub fn cursor(&self) -> Seq {
        self.reader.cursor()
    }

    /// How many events of the log are held for this subscriber, those that its filter left out included.
    pub fn in_hand(&self) -> u64 {
        self.step.as_ref().map_or(0, |step| step.end - self.reader.cursor())
    }

    /// The longest that a turn may take to be written.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// What to write next; the turn before has been written. Dropped before it completes, nothing is lost.
    pub async fn turn(&mut self) -> Turn {
        self.written();
        let turn = match self.slow {
            Some(reason) => Turn::End(self.too_slow(reason)),
            None => self.find().await,
        };
        let handed = match &turn {
            Turn::Events(events) => {
                let last = events.last().map_or(self.told, |given| given.seq);
                Handed::Events { last, count: events.len() as u64 }
            }
            Turn::Checkpoint(seq) => Handed::Checkpoint(*seq),
            Turn::Silence => Handed::Silence,
            Turn::End(ending) => {
                self.count(ending);
                return turn;
            }
        };
        self.handed = Some((self.clock.now(), handed));
        turn
    }

    /// The last turn has been written whole: its time is up, and the cursor moves on.
    pub fn written(&mut self) {
        let Some((at, handed)) = self.handed.take() else { return };
        let now = self.clock.now();
        self.spoke_at = now;
        match handed {
            Handed::Silence => {}
            Handed::Checkpoint(seq) => (self.told, self.told_at) = (seq, now),
            Handed::Events { last, count } => {
                (self.told, self.told_at) = (last, now);
                self.seat.delivered(count);
                if let Some(step) = self.step.take() {
                    let is_last = step.events.last().is_none_or(|(seq, _)| *seq <= last);
                    self.reader.wrote(&step, if is_last { step.end } else { last });
                    self.step = (!is_last).then_some(step);
                }
            }
        }
        let took = now.since(at);
        if took > self.stall {
            self.slow = Some("stalled");
        } else if self.pace.is_too_slow(took, self.reader.cursor(), self.reader.lag()) {
            self.slow = Some("lagging");
        }
    }

    /// The last turn could not be written in time. What was handed out stands before this ending on the
    /// stream, so whoever reads the one has read the other.
    pub fn stalled(&mut self) -> Ending {
        self.written();
        let ending = self.too_slow("stalled");
        self.count(&ending);
        ending
    }

    /// Wants other events from the cursor on; gives the number behind which this holds.
    pub fn wish(&mut self, wish: Wish) -> Seq {
        self.written();
        self.step = None;
        self.reader.set_filter(wish.filter);
        self.message_bytes_max = wish.message_bytes_max;
        // The answer to the wish tells the subscriber how far it has come, as a checkpoint does.
        (self.told, self.told_at) = (self.reader.cursor(), self.clock.now());
        self.told
    }

    fn too_slow(&self, reason: &'static str) -> Ending {
        Ending::TooSlow { last_seq: self.told, tip: self.tip(), reason }
    }

    fn tip(&self) -> Seq {
        self.reader.cursor() + self.reader.lag()
    }

    fn count(&mut self, ending: &Ending) {
        self.ended = true;
        let reason = match ending {
            Ending::Stopping => return,
            Ending::TooSlow { reason, .. } => reason,
            Ending::Gone { .. } => "gone",
            Ending::Failed { .. } => "failed",
        };
        self.seat.cut_off(reason);
        let (address, last_seq) = (self.seat.address(), self.told);
        tracing::info!(%address, last_seq, reason, "a subscriber was cut off");
    }

    async fn find(&mut self) -> Turn {
        loop {
            if self.stopping.is_none() {
                return Turn::End(Ending::Stopping);
            }
            if core::mem::take(&mut self.greet) {
                return Turn::Checkpoint(self.told);
            }
            let now = self.clock.now();
            let mut alarm = self.spoke_at + HEARTBEAT;
            if now >= alarm {
                return Turn::Silence;
            }
            if self.step.is_some() {
                match self.piece(now) {
                    Ok(events) => return Turn::Events(events),
                    Err(wait) => alarm = alarm.min(now + wait),
                }
            } else {
                let cursor = self.reader.cursor();
                let due = self.told_at + CHECKPOINT_GAP;
                if cursor - self.told >= CHECKPOINT_EVENTS || (cursor > self.told && now >= due) {
                    return Turn::Checkpoint(cursor);
                }
                if cursor > self.told {
                    alarm = alarm.min(due);
                }
            }
            let holds = self.step.is_some();
            let alarm = self.clock.sleep_until(alarm);
            let found = {
                let next = async { if holds { pending().await } else { self.reader.next().await } };
                let stopping = self.stopping.as_mut().expect("it was looked at above");
                // The first that is ready counts, in this order.
                match select(stopping, select(pin!(next), alarm)).await {
                    Either::Left(((), _)) => None,
                    Either::Right((Either::Left((found, _)), _)) => Some(found),
                    Either::Right((Either::Right(((), _)), _)) => continue,
                }
            };
            let Some(found) = found else {
                self.stopping = None;
                continue;
            };
            match found {
                Ok(step) => self.hold(step).await,
                Err(error) => return Turn::End(self.failed(error)),
            }
        }
    }

    /// Takes a step in hand, without what is too long for this subscriber.
    async fn hold(&mut self, mut step: Step) {
        let (max, mut prev) = (self.message_bytes_max, self.reader.given());
        step.events.retain(|(seq, event)| {
            let fits = event.frame_len(*seq, prev) <= max;
            if fits {
                prev = Some(*seq);
            }
            fits
        });
        if step.events.is_empty() {
            self.reader.wrote(&step, step.end);
            // A filter that nothing passes must not keep a thread for the whole log.
            let mut yielded = false;
            poll_fn(|cx| {
                if core::mem::replace(&mut yielded, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        } else {
            self.step = Some(step);
        }
    }

    /// The next events in hand, as many as are written at once and as the address's rate allows; else how
    /// long to wait for it.
    fn piece(&self, now: Instant) -> Result<Vec<Given>, Duration> {
        let (cursor, mut prev) = (self.reader.cursor(), self.reader.given());
        let mut bytes = 0;
        let mut events = Vec::new();
        for (seq, event) in self.step.iter().flat_map(|step| &step.events).filter(|(seq, _)| *seq > cursor) {
            bytes += event.frame_len(*seq, prev);
            if bytes > PIECE && !events.is_empty() {
                break;
            }
            events.push(Given { seq: *seq, prev: prev.replace(*seq), event: Arc::clone(event) });
        }
        let drawn = self.seat.draw(events.len(), now)?;
        events.truncate(drawn);
        Ok(events)
    }

    fn failed(&self, error: FollowError) -> Ending {
        match error {
            FollowError::Gone { floor } => Ending::Gone { last_seq: self.told, floor },
            error => Ending::Failed { last_seq: self.told, error },
        }
    }
}

impl Drop for Pump {
    /// A subscriber that never asked again, so that it could not be told: its connection was cut under it.
    fn drop(&mut self) {
        if let Some((at, _)) = self.handed
            && !self.ended
            && self.clock.now().since(at) > self.stall
        {
            self.count(&Ending::TooSlow { last_seq: self.told, tip: self.tip(), reason: "stalled" });
        }
    }
}
