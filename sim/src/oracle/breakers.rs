//! What each endpoint's breaker must be, worked out a second time from what its calls came to: consecutive
//! faults open it, a sound answer starts the count anew, a pause later one probe decides, and its first byte
//! closes the breaker on trial. `breaker-honest`: the router's own breaker is the same after every step.
//!
//! Calls tell `Told` as it happens; the judgement waits for the step's end, when it is known whether a call
//! that was dropped was given up by the router or by a client that left.

use memchr::memmem;
use pointsman::core::breaker::Health;
use pointsman::core::slots::EndpointUse;

use crate::plan::Plan;
use crate::sometimes::Point;
use crate::world::{BreakerWatch, Ending, Instance, State};

use super::calls::Closed;
use super::{ANSWER_ENDS, BREAKER_HONEST, Judged};

/// What a call says about its endpoint, by the design's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Sound,
    Faulty,
    /// It was cancelled, or the endpoint was merely busy.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed {
        faults: u32,
    },
    /// Nobody may go in before.
    Open {
        until: u64,
    },
    /// One call at a time may go in, this one if there is one.
    HalfOpen {
        probe: Option<usize>,
    },
}

/// What happened to a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    Entered(usize),
    /// Bytes of a good answer came.
    Streams(usize),
    Left(usize, Closed),
}

/// One breaker, from outside.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    phase: Phase,
    /// Counts the changes of phase: who went in before the last one has no say.
    turn: u64,
    /// Calls inside, and the turn in which they went in; `None`: they were granted a slot before it.
    inside: Vec<(usize, Option<u64>)>,
    /// Slots that were granted before it opened and are not collected yet: these may still go in.
    granted_before: u32,
    /// A call went in after a pause that may have been granted its slot before: who is the probe?
    unsure: bool,
}

impl Default for Reference {
    fn default() -> Self {
        let phase = Phase::Closed { faults: 0 };
        Reference { phase, turn: 0, inside: Vec::new(), granted_before: 0, unsure: false }
    }
}

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
struct Rules {
    failures: u32,
    open_ns: u64,
}

impl Reference {
    /// Whether everybody is let in.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. }) && !self.unsure
    }

    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.turn += 1;
    }

    /// A call goes in; false if nobody may.
    fn enter(&mut self, call: usize, now: u64) -> bool {
        let shut = match self.phase {
            Phase::Closed { .. } => false,
            Phase::Open { until } => now < until,
            Phase::HalfOpen { probe } => probe.is_some(),
        };
        if shut {
            let let_in = self.granted_before > 0;
            self.granted_before = self.granted_before.saturating_sub(1);
            self.inside.push((call, None));
            return let_in;
        }
        if !matches!(self.phase, Phase::Closed { .. }) {
            self.unsure |= self.granted_before > 0;
            self.turn(Phase::HalfOpen { probe: Some(call) });
        }
        self.inside.push((call, Some(self.turn)));
        true
    }

    fn streams(&mut self, call: usize, rules: Rules) {
        if self.phase == (Phase::HalfOpen { probe: Some(call) }) {
            // On trial: one fault more opens it again.
            self.turn(Phase::Closed { faults: rules.failures.saturating_sub(1) });
            let turn = self.turn;
            self.inside.iter_mut().filter(|(inside, _)| *inside == call).for_each(|of| of.1 = Some(turn));
        }
    }

    fn leave(&mut self, call: usize, verdict: Verdict, now: u64, rules: Rules) {
        let Some(at) = self.inside.iter().position(|(inside, _)| *inside == call) else { return };
        if self.inside.swap_remove(at).1 != Some(self.turn) {
            return;
        }
        let opened = Phase::Open { until: now + rules.open_ns };
        match (self.phase, verdict) {
            (Phase::Closed { .. }, Verdict::Sound) => self.phase = Phase::Closed { faults: 0 },
            (Phase::Closed { faults }, Verdict::Faulty) if faults + 1 < rules.failures => {
                self.phase = Phase::Closed { faults: faults + 1 };
            }
            (_, Verdict::Faulty) => self.turn(opened),
            (Phase::HalfOpen { .. }, Verdict::Sound) => self.turn(Phase::Closed { faults: 0 }),
            (Phase::HalfOpen { .. }, Verdict::Nothing) => self.turn(Phase::HalfOpen { probe: None }),
            (_, Verdict::Sound | Verdict::Nothing) => {}
        }
    }

    /// Whether the router may say so at `now`. It learns that a pause is over with the next request only.
    fn allows(&self, health: Health, now: u64) -> bool {
        match (self.phase, health) {
            (Phase::Closed { .. }, Health::Closed)
            | (Phase::Open { .. }, Health::Open)
            | (Phase::HalfOpen { .. }, Health::HalfOpen) => true,
            (Phase::Open { until }, Health::HalfOpen) => now >= until,
            _ => self.unsure,
        }
    }
}

/// Whether the router may say of the breaker what it last said.
fn stands(watch: &BreakerWatch, now: u64, instance: usize, endpoint: usize) -> Judged {
    if watch.reference.allows(watch.health, now) {
        return Ok(());
    }
    let why = format!(
        "instance {instance} holds the breaker of endpoint {endpoint} to be {}, by its calls it is {:?}",
        watch.health.name(),
        watch.reference.phase
    );
    Err((BREAKER_HONEST, why))
}

/// At the end of a step: what its calls told.
pub(super) fn hear(state: &mut State, plan: &Plan, now: u64, instance: usize) -> Judged {
    let rules = Rules {
        failures: state.instances[instance].settings.breaker_failures,
        open_ns: plan.settings.breaker_open_ms * 1_000_000,
    };
    for told in core::mem::take(&mut state.instances[instance].told) {
        let (Told::Entered(id) | Told::Streams(id) | Told::Left(id, _)) = told;
        let endpoint = state.calls[id].endpoint;
        let verdict = match told {
            Told::Left(_, how) => verdict(state, plan, now, id, how)?,
            _ => Verdict::Nothing,
        };
        let reference = &mut state.instances[instance].breakers[endpoint].reference;
        match told {
            Told::Entered(_) => {
                if !reference.enter(id, now) {
                    let why = format!(
                        "instance {instance} sends call {id} to endpoint {endpoint}, whose breaker is {:?}",
                        reference.phase
                    );
                    return Err((BREAKER_HONEST, why));
                }
            }
            Told::Streams(_) => reference.streams(id, rules),
            Told::Left(..) => reference.leave(id, verdict, now, rules),
        }
    }
    Ok(())
}

/// Whether the router, which may say something else now than after the last step, has come to the same.
pub(super) fn judge(state: &mut State, now: u64, instance: usize, endpoints: &[EndpointUse]) -> Judged {
    for (number, used) in endpoints.iter().enumerate() {
        let endpoint = state.instances[instance].numbers[number];
        compare(state, now, instance, endpoint, used)?;
    }
    Ok(())
}

/// Whether it may still say what it said after the last step.
pub(super) fn still_stand(of: &Instance, now: u64, instance: usize) -> Judged {
    of.numbers.iter().try_for_each(|endpoint| stands(&of.breakers[*endpoint], now, instance, *endpoint))
}

fn compare(state: &mut State, now: u64, instance: usize, endpoint: usize, used: &EndpointUse) -> Judged {
    let uncollected = uncollected(state, instance, endpoint, used.total);
    let Instance { breakers, .. } = &mut state.instances[instance];
    let watch = &mut breakers[endpoint];
    let before = core::mem::replace(&mut watch.health, used.health);
    stands(watch, now, instance, endpoint)?;
    let reference = &mut watch.reference;
    let opened = before != Health::Open && used.health == Health::Open;
    reference.granted_before = if opened { uncollected } else { reference.granted_before.min(uncollected) };
    if before == Health::Closed && opened {
        state.reached(Point::BreakerOpened);
    } else if before != Health::Closed && used.health == Health::Closed {
        state.reached(Point::BreakerClosed);
    }
    Ok(())
}

/// Slots that were granted here to somebody who has not collected them.
fn uncollected(state: &State, instance: usize, endpoint: usize, total: u32) -> u32 {
    let running = &state.instances[instance].running_calls;
    let here = running.iter().filter(|call| state.calls[**call].endpoint == endpoint).count();
    total.saturating_sub(here as u32)
}

fn verdict(
    state: &State,
    plan: &Plan,
    now: u64,
    id: usize,
    how: Closed,
) -> Result<Verdict, (&'static str, String)> {
    let call = &state.calls[id];
    let nonsense = call.visible.starts_with(b"<") && call.taken > 0;
    let said_failed = memmem::find(&call.visible, b" ran out of memory").is_some();
    let had_everything = call.complete_at.is_some_and(|at| call.taken >= at);
    Ok(match how {
        Closed::Refused(429) => Verdict::Nothing,
        Closed::Refused(status) if status < 500 => Verdict::Sound,
        Closed::Refused(_) | Closed::Broken => Verdict::Faulty,
        Closed::Ended if nonsense || said_failed => Verdict::Faulty,
        Closed::Ended => Verdict::Sound,
        Closed::Dropped if nonsense => Verdict::Faulty,
        // It had everything, and did not wait for the connection to say so.
        Closed::Dropped if client_left(state, id) && had_everything => Verdict::Sound,
        Closed::Dropped if client_left(state, id) => Verdict::Nothing,
        Closed::Dropped if now >= gives_up_at(state, plan, id) => Verdict::Faulty,
        Closed::Dropped => {
            let why = format!("call {id} was given up before its time, and nobody had left");
            return Err((ANSWER_ENDS, why));
        }
    })
}

/// Whether the client of a dropped call is the reason: it left, or was cut off when its instance stopped.
fn client_left(state: &State, id: usize) -> bool {
    let Some(client) = state.calls[id].client.map(|client| &state.clients[client]) else { return false };
    let gone = matches!(client.ended, Some((_, Ending::Left | Ending::CutOff)));
    // One that is told of a break and leaves in the same step did not cause it.
    gone && !(client.error_said && client.calls.last() == Some(&id))
}

/// When the router may give up a call: no first byte, or too long a silence.
pub(super) fn gives_up_at(state: &State, plan: &Plan, id: usize) -> u64 {
    let call = &state.calls[id];
    if call.taken == 0 || call.status != Some(200) {
        call.opened + plan.settings.first_byte_timeout_ms * 1_000_000
    } else {
        call.taken_at + plan.settings.idle_timeout_ms * 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { failures: 3, open_ns: 10 };

    fn through(reference: &mut Reference, call: usize, verdict: Verdict, now: u64) {
        assert!(reference.enter(call, now), "call {call} is let in");
        reference.leave(call, verdict, now, RULES);
    }

    fn opened() -> Reference {
        let mut reference = Reference::default();
        (0..3).for_each(|call| through(&mut reference, call, Verdict::Faulty, 0));
        reference
    }

    #[test]
    fn only_faults_in_a_row_open_it() {
        let mut reference = Reference::default();
        let verdicts = [Verdict::Faulty, Verdict::Faulty, Verdict::Sound, Verdict::Faulty, Verdict::Nothing];
        verdicts.into_iter().enumerate().for_each(|(call, v)| through(&mut reference, call, v, 0));
        through(&mut reference, 5, Verdict::Faulty, 0);
        assert!(reference.allows(Health::Closed, 0) && !reference.allows(Health::Open, 0));
        through(&mut reference, 6, Verdict::Faulty, 0);
        assert!(reference.allows(Health::Open, 0) && !reference.allows(Health::Closed, 0));
    }

    #[test]
    fn a_pause_is_kept_and_then_one_probe_goes_in() {
        let mut reference = opened();
        assert!(!reference.clone().enter(3, 9));
        assert!(!reference.allows(Health::HalfOpen, 9) && reference.allows(Health::HalfOpen, 10));
        assert!(reference.enter(3, 10));
        assert!(!reference.clone().enter(4, 10));
        reference.leave(3, Verdict::Faulty, 11, RULES);
        assert!(!reference.clone().enter(4, 20) && reference.clone().enter(4, 21));
    }

    #[test]
    fn a_probe_closes_it_on_trial_and_who_went_in_before_has_no_say() {
        let mut reference = Reference::default();
        assert!(reference.enter(9, 0));
        (0..3).for_each(|call| through(&mut reference, call, Verdict::Faulty, 0));
        reference.leave(9, Verdict::Sound, 0, RULES);
        assert!(reference.allows(Health::Open, 0));
        assert!(reference.enter(3, 10));
        reference.streams(3, RULES);
        assert!(reference.allows(Health::Closed, 10));
        reference.leave(3, Verdict::Faulty, 12, RULES);
        assert!(reference.allows(Health::Open, 12));
    }

    #[test]
    fn a_slot_granted_before_it_opened_may_still_go_in() {
        let mut reference = opened();
        reference.granted_before = 1;
        assert!(reference.enter(3, 5));
        assert!(!reference.enter(4, 5));
    }
}
