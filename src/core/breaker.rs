//! One endpoint's health, judged by the requests it was given: closed, open, half-open.
//!
//! A plain state machine without a lock: `slots` owns one per endpoint and drives it under its own
//! lock, so that "choose, reserve, take the probe" is one step. Every change of state starts a new
//! generation; a verdict carries the generation of its [`Pass`], and a superseded one decides
//! nothing, so a probe that was overtaken can never close the breaker.

use core::time::Duration;

use super::time::Instant;

/// When the breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Consecutive faults that open it; at least 1.
    pub failures: u32,
    /// How long it stays open before one request may probe.
    pub open_for: Duration,
}

/// What one request said about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answered. 4xx answers are sound: they are the client's mistake.
    Sound,
    /// It could not be reached, answered 5xx, broke off, or stayed silent past a timeout.
    Faulty,
    /// The request tells nothing: it was cancelled, or the endpoint was merely busy (429).
    Unknown,
}

/// A request's leave to go to the endpoint, to be handed back with a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pass {
    generation: u64,
}

/// Closed lets everybody in; open nobody; half-open one probe at a time.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { faults: u32 },
    Open { until: Instant },
    HalfOpen { probing: bool },
}

/// The state as metrics and `/api/config` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Requests go through.
    Closed,
    /// No request goes through.
    Open,
    /// One request at a time goes through, to see.
    HalfOpen,
}

impl Health {
    /// `closed`, `open` or `half-open`.
    pub const fn name(self) -> &'static str {
        match self {
            Health::Closed => "closed",
            Health::Open => "open",
            Health::HalfOpen => "half-open",
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker { state: State::Closed { faults: 0 }, generation: 0 }
    }
}

impl Breaker {
    /// Whether a request may go through at `now`.
    pub fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::HalfOpen { probing } => !probing,
        }
    }

    /// When an open breaker will let its next probe in.
    pub fn opens_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// The state at `now`; an open breaker whose time is over counts as half-open.
    pub fn health(&self, now: Instant) -> Health {
        match self.state {
            State::Closed { .. } => Health::Closed,
            State::Open { until } if now < until => Health::Open,
            State::Open { .. } | State::HalfOpen { .. } => Health::HalfOpen,
        }
    }

    /// Lets one request through. Open -> HalfOpen when its time is over; in half-open this is the probe.
    ///
    /// # Panics
    /// If [`admits`](Self::admits) is false at `now`: the caller decides under one lock.
    pub fn enter(&mut self, now: Instant) -> Pass {
        assert!(self.admits(now), "a request enters only where the breaker admits it");
        match self.state {
            State::Closed { .. } => {}
            State::Open { .. } | State::HalfOpen { .. } => self.turn(State::HalfOpen { probing: true }),
        }
        Pass { generation: self.generation }
    }

    /// The first byte of a good answer arrived. A probe closes the breaker here, on trial: one more
    /// fault opens it again until a request has ended well. Returns the pass to go on with.
    pub fn first_byte(&mut self, pass: Pass, settings: &Settings) -> Pass {
        if self.is_probe(pass) {
            self.turn(State::Closed { faults: settings.failures.saturating_sub(1) });
            return Pass { generation: self.generation };
        }
        pass
    }

    /// Hands the pass back. Closed -> (Closed | Open); HalfOpen -> (Closed | Open | HalfOpen).
    pub fn leave(&mut self, pass: Pass, verdict: Verdict, now: Instant, settings: &Settings) {
        if pass.generation != self.generation {
            return;
        }
        let opened = State::Open { until: now + settings.open_for };
        match (self.state, verdict) {
            (State::Closed { .. }, Verdict::Sound) => self.state = State::Closed { faults: 0 },
            (State::Closed { faults }, Verdict::Faulty) if faults + 1 >= settings.failures => {
                self.turn(opened)
            }
            (State::Closed { faults }, Verdict::Faulty) => self.state = State::Closed { faults: faults + 1 },
            (State::HalfOpen { .. }, Verdict::Sound) => self.turn(State::Closed { faults: 0 }),
            (State::HalfOpen { .. }, Verdict::Faulty) => self.turn(opened),
            (State::HalfOpen { .. }, Verdict::Unknown) => self.turn(State::HalfOpen { probing: false }),
            (State::Open { .. }, _) | (State::Closed { .. }, Verdict::Unknown) => {}
        }
    }

    fn is_probe(&self, pass: Pass) -> bool {
        self.state == State::HalfOpen { probing: true } && pass.generation == self.generation
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { failures: 3, open_for: Duration::from_secs(10) };

    fn at(secs: u64) -> Instant {
        Instant::ORIGIN + Duration::from_secs(secs)
    }

    fn request(breaker: &mut Breaker, now: Instant, verdict: Verdict) {
        let pass = breaker.enter(now);
        breaker.leave(pass, verdict, now, &SETTINGS);
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            request(&mut breaker, at(0), Verdict::Faulty);
        }
        breaker
    }

    #[test]
    fn consecutive_faults_open_it_and_a_sound_answer_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        for verdict in [Verdict::Faulty, Verdict::Faulty, Verdict::Sound, Verdict::Faulty, Verdict::Faulty] {
            request(&mut breaker, at(0), verdict);
        }
        assert!(breaker.admits(at(0)));
        request(&mut breaker, at(0), Verdict::Faulty);
        assert_eq!(breaker.health(at(0)), Health::Open);
        assert_eq!(breaker.opens_until(), Some(at(10)));
    }

    #[test]
    fn a_cancelled_request_counts_neither_way() {
        let mut breaker = Breaker::default();
        for verdict in [Verdict::Faulty, Verdict::Faulty, Verdict::Unknown, Verdict::Faulty] {
            request(&mut breaker, at(0), verdict);
        }
        assert_eq!(breaker.health(at(0)), Health::Open);
    }

    #[test]
    fn half_open_admits_one_probe_at_a_time() {
        let mut breaker = opened();
        assert!(!breaker.admits(at(9)));
        let _probe = breaker.enter(at(10));
        assert!(!breaker.admits(at(11)));
    }

    #[test]
    fn a_probe_that_was_cancelled_leaves_room_for_the_next() {
        let mut breaker = opened();
        request(&mut breaker, at(10), Verdict::Unknown);
        assert_eq!(breaker.health(at(10)), Health::HalfOpen);
        assert!(breaker.admits(at(10)));
    }

    #[test]
    fn a_superseded_probe_decides_nothing() {
        let mut breaker = opened();
        let first = breaker.enter(at(10));
        breaker.leave(first, Verdict::Unknown, at(10), &SETTINGS);
        let second = breaker.enter(at(11));
        // The first answers late; were it believed, it would close the breaker under the second.
        breaker.leave(first, Verdict::Sound, at(12), &SETTINGS);
        assert_eq!(breaker.first_byte(first, &SETTINGS), first);
        assert_eq!(breaker.health(at(12)), Health::HalfOpen);
        breaker.leave(second, Verdict::Faulty, at(13), &SETTINGS);
        assert_eq!(breaker.health(at(13)), Health::Open);
    }

    #[test]
    fn a_success_from_before_it_opened_does_not_close_it() {
        let mut breaker = Breaker::default();
        let slow = breaker.enter(at(0));
        for _ in 0..3 {
            request(&mut breaker, at(1), Verdict::Faulty);
        }
        breaker.leave(slow, Verdict::Sound, at(2), &SETTINGS);
        assert_eq!(breaker.health(at(2)), Health::Open);
    }

    #[test]
    fn a_probe_that_breaks_off_mid_stream_opens_it_again_at_once() {
        let mut breaker = opened();
        let probe = breaker.enter(at(10));
        let pass = breaker.first_byte(probe, &SETTINGS);
        assert_eq!(breaker.health(at(10)), Health::Closed);
        breaker.leave(pass, Verdict::Faulty, at(11), &SETTINGS);
        assert_eq!(breaker.health(at(11)), Health::Open);
    }
}
