//! What one call from an instance to an endpoint proves, when it opens and when it closes.

use crate::net::concerns_of;
use crate::plan::{Plan, Speaks};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{CallKind, Listing, State};

use super::breakers::Told;
use super::{CATALOG_AGE, CATALOG_ISOLATION, CATALOG_SINGLE_FLIGHT, SLOT_CONSERVATION, SLOT_LIMIT};

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
pub(super) fn serves_path(speaks: Speaks) -> &'static str {
    if speaks == Speaks::Ollama { "/api/tags" } else { "/v1/models" }
}

/// The router has sent a request.
pub(crate) fn call_opened(state: &mut State, plan: &Plan, now: u64, id: usize) {
    match state.calls[id].kind {
        CallKind::Inference(model) => inference_opened(state, plan, now, id, model),
        CallKind::Listing(listing) => listing_opened(state, plan, now, id, listing),
        CallKind::Other => {}
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
    overloaded_without_need(state, plan, now, id, model, running);
    errors_expire(state, plan, now, id);

    state.instances[instance].told.push(Told::Entered(id));
    listed_lately(state, plan, now, id, model);
}

/// Calls now running for a model at an endpoint, from one instance.
pub(super) fn running(state: &State, instance: usize, endpoint: usize, model: usize) -> u32 {
    let calls = state.instances[instance].running_calls.iter().map(|call| &state.calls[*call]);
    calls.filter(|call| call.endpoint == endpoint && call.kind == CallKind::Inference(model)).count() as u32
}

/// Endpoints that a client of this request could certainly have been sent to when it began: known
/// to serve the model, healthy, and not silent for long.
pub(super) fn certain_candidates(
    state: &State,
    plan: &Plan,
    now: u64,
    client: usize,
    model: usize,
) -> Vec<usize> {
    let asked = &state.clients[client];
    let of = &state.instances[asked.instance];
    let speaks_all = asked.asked.call.inference().is_some_and(|(path, _)| path.starts_with("/v1"));
    let silence = of.settings.wedged_after_ms * 1_000_000;
    of.endpoints
        .iter()
        .copied()
        .filter(|e| speaks_all || plan.endpoints[*e].speaks == Speaks::Ollama)
        .filter(|e| of.breakers[*e].reference.is_closed() && of.arrivals[*e] == 0 && of.reloads == 0)
        // Whoever waits looks again every second.
        .filter(|e| now > of.breakers[*e].silent_until + 1_100_000_000)
        .filter(|e| {
            let path = serves_path(plan.endpoints[*e].speaks);
            let mut known = of.listings.iter().filter(|l| l.endpoint == *e && l.path == path).peekable();
            let early = known.peek().is_some_and(|l| l.ended.is_some_and(|at| at < asked.began));
            early
                && known.all(|l| l.ended.is_some() && l.held.as_ref().is_some_and(|held| held[model]))
                && of.listings.iter().any(|l| {
                    l.endpoint == *e && l.path == path && l.began + EXPIRY / 2 > now && l.ended.is_some()
                })
        })
        .filter(|e| {
            let busy = of.running_calls.iter().any(|call| state.calls[*call].endpoint == *e);
            !busy || now < of.breakers[*e].moved_at + silence
        })
        .collect()
}

fn overloaded_without_need(
    state: &mut State,
    plan: &Plan,
    now: u64,
    id: usize,
    model: usize,
    running_now: u32,
) {
    let (instance, endpoint) = (state.calls[id].instance, state.calls[id].endpoint);
    let Some(client) = state.calls[id].client else { return };
    let settings = &state.instances[instance].settings;
    if settings.queue || running_now <= settings.limit || state.clients[client].calls.len() > 1 {
        return;
    }
    state.reached(Point::Overloaded);
    let limit = state.instances[instance].settings.limit;
    let free = certain_candidates(state, plan, now, client, model)
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
fn errors_expire(state: &mut State, plan: &Plan, now: u64, id: usize) {
    let (instance, endpoint) = (state.calls[id].instance, state.calls[id].endpoint);
    let Some(asked) = state.calls[id].client.map(|client| state.clients[client].began) else { return };
    let of = &mut state.instances[instance];
    let is_its = |l: &&Listing| l.endpoint == endpoint && l.path == "/api/ps";
    let failed = of.listings.iter().rev().find(is_its).filter(|l| l.held.is_none()).and_then(|l| l.ended);
    let (Speaks::Ollama, Some(failed)) = (plan.endpoints[endpoint].speaks, failed) else { return };
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
    let (url, tracked) = (plan.endpoints[endpoint].url(endpoint), plan.endpoints[endpoint].tracked(model));
    let slots = router.usage().snapshot().slots;
    let used = slots.endpoints.iter().find(|used| used.name.as_str() == url);
    let mut in_flight = used.into_iter().flat_map(|used| used.in_flight.iter());
    in_flight.find(|(model, _)| model.as_str() == tracked).map_or(0, |(_, count)| *count)
}

/// A model is asked only of an endpoint that has listed it not too long ago.
fn listed_lately(state: &mut State, plan: &Plan, now: u64, id: usize, model: usize) {
    let call = &state.calls[id];
    let Some(client) = call.client else { return };
    let began = state.clients[client].began;
    let path = serves_path(plan.endpoints[call.endpoint].speaks);
    let known = state.instances[call.instance].listings.iter().any(|listing| {
        listing.endpoint == call.endpoint
            && listing.path == path
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

fn listing_opened(state: &mut State, plan: &Plan, now: u64, id: usize, listing: usize) {
    let call = &state.calls[id];
    let (instance, endpoint) = (call.instance, call.endpoint);
    let of = &state.instances[instance];
    let path = of.listings[listing].path;
    let same = || of.listings[..listing].iter().filter(|l| l.endpoint == endpoint && l.path == path);
    let under_way = 1 + same().filter(|l| l.ended.is_none()).count() as u32;
    let concerns = concerns_of(&plan.endpoints[endpoint]);
    if under_way > concerns {
        let why = format!(
            "instance {instance} asks endpoint {endpoint} for {path} {under_way} times at once, {concerns} concerns share it"
        );
        return state.break_promise(now, CATALOG_SINGLE_FLIGHT, why);
    }
    let last = same().next_back().cloned();
    let (Some(last), 1) = (last, concerns) else { return };
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
        entry.held = None;
    }
    let (began, failed) = (entry.began, entry.held.is_none());
    if failed {
        state.reached(Point::ListingFailed);
    }
    if how == Closed::Dropped {
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
