//! What one call from an instance to an endpoint proves, when it opens and when it closes.

use crate::net::concerns_of;
use crate::plan::{Call, Plan, Speaks, tracked};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{CallKind, Instance, Listing, State};

use super::breakers::Told;
use super::{
    CATALOG_AGE, CATALOG_ISOLATION, CATALOG_SINGLE_FLIGHT, RELOAD_HEEDED, SLOT_CONSERVATION, SLOT_LIMIT,
};

const SECOND: u64 = 1_000_000_000;

/// Nobody asks again for this long after an error.
const ERROR_QUIET: u64 = 30 * SECOND;

/// A listing is never served at this age or beyond.
pub(super) const EXPIRY: u64 = 600 * SECOND;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// With this status, and the router has been told.
    Refused(u16),
    /// The router has had its clean end.
    Ended,
    /// It broke, and the router has been told.
    Broken,
    /// The router dropped it.
    Dropped,
}

/// The path under which an endpoint lists the models it serves.
fn serves_path(speaks: Speaks) -> &'static str {
    if speaks.tags() { "/api/tags" } else { "/v1/models" }
}

impl Listing {
    /// It says what the endpoint serves.
    pub(super) fn of_served(&self, endpoint: usize) -> bool {
        self.endpoint == endpoint && self.path == serves_path(self.asked_as.speaks)
    }

    /// Somebody who came at `since` may go by it: the endpoint is still asked as it was then, or has been asked
    /// otherwise only since.
    pub(super) fn may_be_believed(&self, of: &Instance, since: u64) -> bool {
        self.turn == of.turns[self.endpoint] || of.turned_at[self.endpoint].is_some_and(|at| at >= since)
    }
}

/// The router has sent a request.
pub(crate) fn call_opened(state: &mut State, plan: &Plan, now: u64, id: usize) {
    asked_as_configured(state, now, id);
    match state.calls[id].kind {
        CallKind::Inference(model) => inference_opened(state, plan, now, id, model),
        CallKind::Listing(listing) => listing_opened(state, now, id, listing),
        CallKind::Other => {
            if let Some(client) = state.calls[id].client {
                listed_lately(state, now, id, state.clients[client].asked.model);
            }
        }
    }
}

/// Whatever is sent comes with the key, and to the interface, of the configuration now in force.
fn asked_as_configured(state: &mut State, now: u64, id: usize) {
    let call = &state.calls[id];
    let (instance, endpoint, asked_as) = (call.instance, call.endpoint, call.asked_as);
    let native = match call.kind {
        CallKind::Listing(listing) => {
            Some(state.instances[instance].listings[listing].path.starts_with("/api/"))
        }
        // An Ollama speaks both.
        CallKind::Inference(_) | CallKind::Other => {
            let asked = call.client.map(|client| state.clients[client].asked.call);
            asked.is_some_and(Call::is_native).then_some(true)
        }
    };
    let heeded = call.key == asked_as.key && native.is_none_or(|native| native == asked_as.speaks.tags());
    if !heeded {
        let why = format!(
            "instance {instance} sends call {id} to endpoint {endpoint} with key {}{}, its configuration says {asked_as:?}",
            call.key,
            if native == Some(true) { " as to an Ollama" } else { "" },
        );
        state.break_promise(now, RELOAD_HEEDED, why);
    }
}

fn inference_opened(state: &mut State, plan: &Plan, now: u64, id: usize, model: usize) {
    let (instance, endpoint) = (state.calls[id].instance, state.calls[id].endpoint);
    let calls = &state.calls;
    let of = &mut state.instances[instance];
    if !of.running_calls.iter().any(|call| calls[*call].endpoint == endpoint) {
        of.breakers[endpoint].moved_at = now;
    }
    of.running_calls.push(id);
    of.sent += 1;
    let at_endpoint: usize = state
        .instances
        .iter()
        .flat_map(|of| &of.running_calls)
        .filter(|call| state.calls[**call].endpoint == endpoint)
        .count();
    state.endpoints[endpoint].peak = state.endpoints[endpoint].peak.max(at_endpoint as u32);

    let running = running(state, instance, endpoint, model);
    let allowed = state.instances[instance].allowed;
    if running > allowed {
        let counted = counted(state, plan, instance, endpoint, model);
        let why = format!(
            "endpoint {endpoint} runs {running} requests of instance {instance} for model {model}, the limit is \
             {allowed} and the router counts {counted}"
        );
        // Who has lost count breaks a limit without knowing.
        let promise = if counted < running { SLOT_CONSERVATION } else { SLOT_LIMIT };
        state.break_promise(now, promise, why);
    }
    overloaded_without_need(state, now, id, model, running);
    errors_expire(state, now, id);

    state.instances[instance].told.push(Told::Entered(id));
    listed_lately(state, now, id, model);
}

/// Calls now running for a model at an endpoint, from one instance, under the name it now has there.
pub(super) fn running(state: &State, instance: usize, endpoint: usize, model: usize) -> u32 {
    let of = &state.instances[instance];
    let tags = of.asked_as[endpoint].speaks.tags();
    let calls = of.running_calls.iter().map(|call| &state.calls[*call]);
    let same = calls.filter(|call| call.endpoint == endpoint && call.kind == CallKind::Inference(model));
    same.filter(|call| call.asked_as.speaks.tags() == tags).count() as u32
}

/// Endpoints that a client of this request could certainly have been sent to when it began: known
/// to serve the model, healthy, and not silent for long.
pub(super) fn certain_candidates(state: &State, now: u64, client: usize, model: usize) -> Vec<usize> {
    let asked = &state.clients[client];
    let of = &state.instances[asked.instance];
    let speaks_all = asked.asked.call.inference().is_some_and(|(path, _)| path.starts_with("/v1"));
    let silence = of.settings.wedged_after_ms * 1_000_000;
    of.endpoints
        .iter()
        .copied()
        .filter(|e| speaks_all || of.asked_as[*e].speaks.tags())
        .filter(|e| of.breakers[*e].reference.is_closed() && of.arrivals[*e] == 0 && of.reloads == 0)
        // Whoever waits looks again every second.
        .filter(|e| now > of.breakers[*e].silent_until + 1_100_000_000)
        .filter(|e| {
            let mut known = of.listings.iter().filter(|l| l.of_served(*e)).peekable();
            let early = known.peek().is_some_and(|l| l.ended.is_some_and(|at| at < asked.began));
            early
                && known.all(|l| l.ended.is_some() && l.held.as_ref().is_some_and(|held| held[model]))
                && of
                    .listings
                    .iter()
                    .any(|l| l.of_served(*e) && l.began + EXPIRY / 2 > now && l.ended.is_some())
        })
        .filter(|e| {
            let busy = of.running_calls.iter().any(|call| state.calls[*call].endpoint == *e);
            !busy || now < of.breakers[*e].moved_at + silence
        })
        .collect()
}

fn overloaded_without_need(state: &mut State, now: u64, id: usize, model: usize, running_now: u32) {
    let (instance, endpoint) = (state.calls[id].instance, state.calls[id].endpoint);
    let Some(client) = state.calls[id].client else { return };
    let settings = &state.instances[instance].settings;
    if settings.queue || running_now <= settings.limit || state.clients[client].calls.len() > 1 {
        return;
    }
    state.reached(Point::Overloaded);
    let limit = state.instances[instance].settings.limit;
    let free = certain_candidates(state, now, client, model)
        .into_iter()
        .find(|other| *other != endpoint && running(state, instance, *other, model) < limit);
    if let Some(free) = free {
        let why = format!(
            "call {id} is number {running_now} at endpoint {endpoint} though endpoint {free} has a free slot (limit {limit})"
        );
        state.break_promise(now, SLOT_LIMIT, why);
    }
}

/// An error about what is loaded is asked about again, behind the next request after its quiet time.
fn errors_expire(state: &mut State, now: u64, id: usize) {
    let (instance, endpoint) = (state.calls[id].instance, state.calls[id].endpoint);
    let Some(asked) = state.calls[id].client.map(|client| state.clients[client].began) else { return };
    let of = &mut state.instances[instance];
    let turn = of.turns[endpoint];
    let is_its = |l: &&Listing| l.endpoint == endpoint && l.path == "/api/ps" && l.turn == turn;
    let failed = of.listings.iter().rev().find(is_its).filter(|l| l.held.is_none()).and_then(|l| l.ended);
    let (Speaks::Ollama, Some(failed)) = (of.asked_as[endpoint].speaks, failed) else { return };
    // A request that has waited may have looked before that.
    if asked < failed + ERROR_QUIET {
        return;
    }
    match of.doubtful[endpoint].filter(|since| *since > failed) {
        None => of.doubtful[endpoint] = Some(now),
        Some(since) if now > since + SECOND => {
            let why = format!(
                "instance {instance} still believes endpoint {endpoint}'s error of {} s ago and does not ask again",
                (now - failed) / SECOND
            );
            state.break_promise(now, CATALOG_ISOLATION, why);
        }
        Some(_) => {}
    }
}

/// How many requests the router itself says an endpoint runs for a model.
fn counted(state: &State, plan: &Plan, instance: usize, endpoint: usize, model: usize) -> u32 {
    let Some(router) = &state.instances[instance].router else { return 0 };
    let url = plan.endpoints[endpoint].url(endpoint);
    let tracked = tracked(model, state.instances[instance].asked_as[endpoint].speaks);
    let slots = router.usage().snapshot().slots;
    let used = slots.endpoints.iter().find(|used| used.name.as_str() == url);
    let mut in_flight = used.into_iter().flat_map(|used| used.in_flight.iter());
    in_flight.find(|(model, _)| model.as_str() == tracked).map_or(0, |(_, count)| *count)
}

/// A model is asked only of an endpoint that has listed it not too long ago.
fn listed_lately(state: &mut State, now: u64, id: usize, model: usize) {
    let call = &state.calls[id];
    let Some(client) = call.client else { return };
    let began = state.clients[client].began;
    let of = &state.instances[call.instance];
    let known = of.listings.iter().any(|listing| {
        listing.of_served(call.endpoint)
            && listing.asked_as == call.asked_as
            && listing.may_be_believed(of, began)
            && listing.ended.is_some()
            && listing.began + EXPIRY > began
            && listing.held.as_ref().is_some_and(|held| held.get(model) == Some(&true))
    });
    if !known {
        let why = format!(
            "instance {} sends client {client}'s request for model {model} to endpoint {}, which has not listed it for 600 s",
            call.instance, call.endpoint
        );
        state.break_promise(now, CATALOG_AGE, why);
    }
}

fn listing_opened(state: &mut State, now: u64, id: usize, listing: usize) {
    let call = &state.calls[id];
    let (instance, endpoint) = (call.instance, call.endpoint);
    let of = &state.instances[instance];
    let Listing { path, asked_as, turn, .. } = of.listings[listing];
    let same = || of.listings[..listing].iter().filter(|l| l.endpoint == endpoint && l.path == path);
    let under_way = 1 + same().filter(|l| l.ended.is_none()).count() as u32;
    let concerns = concerns_of(asked_as.speaks);
    if under_way > concerns {
        let why = format!(
            "instance {instance} asks endpoint {endpoint} for {path} {under_way} times at once, {concerns} concerns share it"
        );
        return state.break_promise(now, CATALOG_SINGLE_FLIGHT, why);
    }
    let last = same().next_back().cloned();
    let (Some(last), 1) = (last.filter(|last| last.turn == turn), concerns) else { return };
    let Some(ended) = last.ended else { return };
    if now >= last.began + EXPIRY {
        state.reached(Point::RefetchedAfterExpiry);
    }
    // Fresh ages and the quiet after an error, by the seed router's numbers; a model that is not listed
    // makes what is served worth a second look after 5 s.
    let (fresh, quiet) = match path {
        "/api/tags" => (5, 30),
        "/api/ps" => (10, 30),
        _ => (5, 2),
    };
    let (since, age, what) = match last.held {
        Some(_) => (last.began, fresh, "its answer was fresh"),
        None => (ended, quiet, "it had just failed"),
    };
    if now < since + age * SECOND {
        let why = format!(
            "instance {instance} asks endpoint {endpoint} for {path} again after {} ms though {what}",
            (now - since) / 1_000_000
        );
        state.break_promise(now, CATALOG_AGE, why);
    }
}

/// The router has taken bytes of an answer.
pub(crate) fn call_took(state: &mut State, now: u64, id: usize) {
    state.calls[id].taken_at = now;
    let call = &state.calls[id];
    // The words of a refusal are no answer, nor is nonsense.
    let (CallKind::Inference(_), Some(200)) = (call.kind, call.status) else { return };
    if call.visible.starts_with(b"<") {
        return;
    }
    let (instance, endpoint) = (call.instance, call.endpoint);
    state.instances[instance].told.push(Told::Streams(id));
    silence_over(state, now, instance, endpoint);
    state.instances[instance].breakers[endpoint].moved_at = now;
}

/// If an endpoint was silent for so long that it may have been held to be wedged, it was until now.
fn silence_over(state: &mut State, now: u64, instance: usize, endpoint: usize) {
    let of = &mut state.instances[instance];
    let watch = &mut of.breakers[endpoint];
    if now >= watch.moved_at + of.settings.wedged_after_ms * 1_000_000 {
        watch.silent_until = now;
    }
}

/// A call is over. Repeating it changes nothing.
pub(crate) fn call_closed(state: &mut State, plan: &Plan, now: u64, id: usize, how: Closed) {
    if !core::mem::take(&mut state.calls[id].open) {
        return;
    }
    state.calls[id].closed = Some(how);
    let call = &state.calls[id];
    let (instance, endpoint, kind) = (call.instance, call.endpoint, call.kind);
    let actor = Actor::Endpoint(endpoint);
    let what = match how {
        Closed::Refused(_) => "call {a} is over: refused",
        Closed::Ended => "call {a} is over: whole",
        Closed::Broken => "call {a} is over: broken",
        Closed::Dropped => "call {a} is over: dropped",
    };
    let life = call.life;
    if !state.is_alive(instance, life) {
        return;
    }
    state.trace.note(now, actor, what, id as u64, 0);
    match kind {
        CallKind::Inference(model) => {
            state.instances[instance].running_calls.retain(|running| *running != id);
            silence_over(state, now, instance, endpoint);
            state.instances[instance].told.push(Told::Left(id, how));
            count(state, now, id, model);
        }
        CallKind::Listing(listing) => listing_closed(state, plan, now, id, listing, how),
        CallKind::Other => {}
    }
}

fn listing_closed(state: &mut State, plan: &Plan, now: u64, id: usize, listing: usize, how: Closed) {
    let instance = state.calls[id].instance;
    let timeout = plan.settings.listing_timeout_ms * 1_000_000;
    let entry = &mut state.instances[instance].listings[listing];
    entry.ended = Some(now);
    if how != Closed::Ended {
        (entry.held, entry.loaded) = (None, None);
    }
    let (began, failed) = (entry.began, entry.held.is_none());
    let (endpoint, turn) = (entry.endpoint, entry.turn);
    if failed {
        state.reached(Point::ListingFailed);
    }
    // What was asked of an endpoint that is now asked otherwise is of no use.
    if how == Closed::Dropped && turn == state.instances[instance].turns[endpoint] {
        if now < began + timeout {
            let why = format!(
                "instance {instance} gave up listing call {id} after {} ms, before its time",
                (now - began) / 1_000_000
            );
            state.break_promise(now, CATALOG_SINGLE_FLIGHT, why);
        }
        state.reached(Point::FetchTimedOut);
    }
}

/// What the router must record, in this very step.
fn count(state: &mut State, now: u64, id: usize, model: usize) {
    let call = &state.calls[id];
    let (instance, endpoint) = (call.instance, call.endpoint);
    let Some((input, output)) = call.counted else { return };
    let minute = state.wall(instance, now).minute().number();
    let of = &mut state.instances[instance];
    of.minutes.insert(minute);
    let row = of.recorded.entry((minute, endpoint, model)).or_default();
    *row = (row.0 + input, row.1 + output);
    of.recorded_sum = (of.recorded_sum.0 + input, of.recorded_sum.1 + output);
    state.endpoints[endpoint].tokens += input + output;
}
