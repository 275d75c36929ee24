//! A smaller world with the same violation: takes clients, actions and faults out of a plan, as many
//! at a time as possible, for as long as the same promise still breaks.
//!
//! Works because streams are derived by name: one client less does not change what happens to the
//! others, only who is picked when.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "how long shrinking may take is told by a real clock; no world sees it"
)]

use core::time::Duration;
use std::time::Instant;

use crate::plan::{Call, Plan};
use crate::run;

/// Shrinking ends after this time with what it has.
const PATIENCE: Duration = Duration::from_secs(20);

/// So many seeds are tried for each smaller plan: few while there is much to take out, more each time
/// nothing smaller was found.
const LUCK: [u64; 3] = [8, 64, 512];

/// What shrinking came to.
#[derive(Debug)]
pub(crate) struct Shrunk {
    pub(crate) plan: Plan,
    pub(crate) promise: String,
    pub(crate) why: String,
    pub(crate) events_before: u64,
    pub(crate) events: u64,
    /// Plans that were lived through.
    pub(crate) tried: u64,
    pub(crate) seconds: f64,
    /// Seeds tried for each smaller plan, for now.
    luck: u64,
    /// When to end.
    until: Instant,
}

/// Shrinks a plan that breaks a promise; `None` if it breaks none.
pub(crate) fn shrink(plan: &Plan) -> Option<Shrunk> {
    let first = run::run(plan, false);
    let violation = first.violation?;
    let mut shrunk = Shrunk {
        plan: plan.clone(),
        promise: violation.promise,
        why: violation.why,
        events_before: first.events,
        events: first.events,
        tried: 1,
        seconds: 0.0,
        luck: 0,
        until: Instant::now() + PATIENCE,
    };
    let began = Instant::now();
    for luck in LUCK {
        shrunk.luck = luck;
        while !shrunk.is_late() && shrunk.round() {}
    }
    shrunk.seconds = began.elapsed().as_secs_f64();
    Some(shrunk)
}

impl Shrunk {
    /// Tries everything once; tells whether the world has become smaller.
    fn round(&mut self) -> bool {
        let before = self.events;
        self.take_out(|plan| plan.requests.len(), |plan, from, to| drop(plan.requests.drain(from..to)));
        self.take_out(|plan| plan.actions.len(), |plan, from, to| drop(plan.actions.drain(from..to)));
        self.take_out(|plan| plan.faults.0.len(), |plan, from, to| drop(plan.faults.0.drain(from..to)));
        self.take_out(|plan| plan.subscribers.len(), |plan, from, to| drop(plan.subscribers.drain(from..to)));
        self.fewer_instances();
        self.fewer_endpoints();
        self.fewer_models();
        self.each(|plan| plan.endpoints.len(), PLAINER_ENDPOINTS);
        self.each(|plan| plan.requests.len(), PLAINER_REQUESTS);
        self.each(|plan| plan.subscribers.len(), PLAINER_SUBSCRIBERS);
        self.each(|plan| plan.faults.0.len(), &[|plan, at| plan.faults.0[at].1 = 1_000]);
        self.each(|_| 1, PLAINER_WORLDS);
        self.events < before
    }

    /// Keeps `plan` if it breaks the same promise with no more events, by its own seed or by one of the
    /// next: with a part less in it, the same seed often schedules the rest past the bug.
    fn keep(&mut self, plan: Plan) -> bool {
        (0..self.luck).any(|more| {
            !self.is_late() && self.keep_as_it_is(Plan { seed: plan.seed.wrapping_add(more), ..plan.clone() })
        })
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    fn keep_as_it_is(&mut self, plan: Plan) -> bool {
        self.tried += 1;
        let outcome = run::run(&plan, false);
        let Some(violation) = outcome.violation.filter(|violation| violation.promise == self.promise) else {
            return false;
        };
        if outcome.events > self.events {
            return false;
        }
        self.plan = plan;
        self.why = violation.why;
        self.events = outcome.events;
        true
    }

    /// Takes runs of elements out: halves first, then ever smaller ones.
    fn take_out(&mut self, len: fn(&Plan) -> usize, take: fn(&mut Plan, usize, usize)) {
        let mut run = len(&self.plan).div_ceil(2);
        while run > 0 {
            let mut from = 0;
            while from < len(&self.plan) {
                if self.is_late() {
                    return;
                }
                let mut smaller = self.plan.clone();
                take(&mut smaller, from, (from + run).min(len(&self.plan)));
                if !self.keep(smaller) {
                    from += run;
                }
            }
            run /= 2;
        }
    }

    /// Takes instances out, with everything that concerns them; or sends their clients to the first one.
    fn fewer_instances(&mut self) {
        for gone in (0..self.plan.instances.len()).rev() {
            if self.plan.instances.len() == 1 || self.is_late() {
                return;
            }
            let mut without = self.plan.clone();
            without.requests.retain(|request| request.instance != gone);
            without.subscribers.retain(|subscriber| subscriber.instance != gone);
            let mut moved = self.plan.clone();
            moved.subscribers.iter_mut().for_each(|subscriber| {
                subscriber.instance = if subscriber.instance == gone { 0 } else { subscriber.instance };
            });
            moved.requests.iter_mut().for_each(|request| {
                request.instance = if request.instance == gone { 0 } else { request.instance };
            });
            for mut plan in [without, moved] {
                plan.instances.remove(gone);
                plan.actions.retain_mut(|action| match action.what.instance() {
                    Some(instance) if *instance == gone => false,
                    Some(instance) => {
                        *instance -= usize::from(*instance > gone);
                        true
                    }
                    None => true,
                });
                for request in &mut plan.requests {
                    request.instance -= usize::from(request.instance > gone);
                }
                for subscriber in &mut plan.subscribers {
                    subscriber.instance -= usize::from(subscriber.instance > gone);
                }
                if self.keep(plan) {
                    break;
                }
            }
        }
    }

    /// Takes endpoints out of configurations; they stay in the world, where nobody asks them.
    fn fewer_endpoints(&mut self) {
        for instance in 0..self.plan.instances.len() {
            for at in (0..self.plan.instances[instance].endpoints.len()).rev() {
                let mut plan = self.plan.clone();
                if plan.instances[instance].endpoints.len() == 1 || self.is_late() {
                    break;
                }
                plan.instances[instance].endpoints.remove(at);
                self.keep(plan);
            }
        }
    }

    /// Takes models out of endpoints: whoever is there when everything heals asks for each of them.
    fn fewer_models(&mut self) {
        for endpoint in 0..self.plan.endpoints.len() {
            for model in 0..self.plan.endpoints[endpoint].models.len() {
                let mut plan = self.plan.clone();
                // Who asks for a model that is nowhere is rightly told so: that would be another world.
                if plan.requests.iter().any(|request| request.model == model) {
                    continue;
                }
                plan.endpoints[endpoint].models[model] = (false, false);
                if self.is_late() {
                    return;
                }
                if plan != self.plan {
                    self.keep(plan);
                }
            }
        }
    }

    /// Tries each change at each of `len` places.
    fn each(&mut self, len: fn(&Plan) -> usize, changes: &[Change]) {
        for at in 0..len(&self.plan) {
            for change in changes {
                let mut plan = self.plan.clone();
                change(&mut plan, at);
                if self.is_late() {
                    return;
                }
                if plan != self.plan {
                    self.keep(plan);
                }
            }
        }
    }
}

/// Makes one part of a plan plainer: the one with this number.
type Change = fn(&mut Plan, usize);

/// Endpoints that take no time.
const PLAINER_ENDPOINTS: &[Change] = &[
    |plan, at| plan.endpoints[at].listing_ms = (0, 0),
    |plan, at| plan.endpoints[at].first_token_ms = (0, 0),
    |plan, at| plan.endpoints[at].gap_ms = (0, 0),
    |plan, at| plan.endpoints[at].load_ms = 0,
];

/// Clients that want less, and wait for nothing.
const PLAINER_REQUESTS: &[Change] = &[
    |plan, at| plan.requests[at].tokens = 1,
    |plan, at| plan.requests[at].tokens = plan.requests[at].tokens.div_ceil(2),
    |plan, at| plan.requests[at].stream = false,
    |plan, at| plan.requests[at].call = Call::OpenAiEmbedding,
    |plan, at| plan.requests[at].rests_us = 0,
    |plan, at| plan.requests[at].leaves_after_us = None,
    |plan, at| plan.requests[at].leaves_after_chunks = None,
    |plan, at| plan.requests[at].leaves_after_us = plan.requests[at].leaves_after_us.map(|after| after / 2),
];

/// Subscribers that want everything and stay.
const PLAINER_SUBSCRIBERS: &[Change] = &[
    |plan, at| plan.subscribers[at].rests_us = 0,
    |plan, at| plan.subscribers[at].at_us /= 2,
    |plan, at| plan.subscribers[at].leaves_after = None,
    |plan, at| plan.subscribers[at].cut_after = None,
    |plan, at| plan.subscribers[at].changes_after = None,
    |plan, at| plan.subscribers[at].over_socket = false,
    |plan, at| plan.subscribers[at].message_bytes_max = None,
];

/// Worlds in which less goes on by itself, and that end sooner.
const PLAINER_WORLDS: &[Change] = &[
    |plan, _| plan.settings.queue = false,
    |plan, _| plan.settings.attempts_max = 1,
    |plan, _| plan.settings.flush_interval_ms = 60_000,
    |plan, _| plan.settings.breaker_failures = 1,
    |plan, _| {
        let times = plan.requests.iter().map(|request| request.at_us);
        let first = times.chain(plan.actions.iter().map(|action| action.at_us)).min().unwrap_or(0);
        plan.requests.iter_mut().for_each(|request| request.at_us -= first);
        plan.actions.iter_mut().for_each(|action| action.at_us -= first);
    },
    |plan, _| {
        plan.requests.iter_mut().for_each(|request| request.at_us /= 2);
        plan.actions.iter_mut().for_each(|action| action.at_us /= 2);
    },
    |plan, _| {
        let times = plan.requests.iter().map(|request| request.at_us);
        let last = times.chain(plan.actions.iter().map(|action| action.at_us)).max().unwrap_or(0);
        plan.duration_ms = plan.duration_ms.min(last / 1_000 + 1);
    },
];
