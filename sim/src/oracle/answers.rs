//! What clients got: the bytes of one endpoint's answer and no others, an end, and true reasons.

use memchr::memmem;
use pointsman::flow::failure::Failure;

use crate::faults::Fault;
use crate::plan::{Call, Plan};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Ending, State, World};

use super::breakers::gives_up_at;
use super::calls::{Closed, EXPIRY, certain_candidates, running};
use super::{ANSWER_ENDS, ANSWER_PURE, BREAKER_HONEST, CATALOG_AGE, CATALOG_ISOLATION};

/// How long an error is answered, and how long a pause may have held back the news of it.
const ERROR_EXPIRY: u64 = (300 + 60) * 1_000_000_000;

/// A client has the head of an answer.
pub(crate) fn headed(world: &World, client: usize, status: u16) {
    let now = world.now();
    let mut state = world.state.lock();
    state.clients[client].status = Some(status);
    state.trace.note(now, Actor::Client(client), "has the head: {a}", u64::from(status), 0);
    // A refusal is passed on, too, after nobody else had a slot in time.
    if status != 200 {
        may_have_waited(&mut state, client);
    }
}

/// What a client has come to may be the end of a wait for a slot that never came.
fn may_have_waited(state: &mut State, client: usize) {
    let of = &state.clients[client];
    if of.asked.call.inference().is_some() {
        let instance = of.instance;
        state.instances[instance].waited_in_vain_max += 1;
    }
}

/// A client got `bytes`.
pub(crate) fn got(world: &World, client: usize, bytes: &[u8]) {
    let now = world.now();
    let mut state = world.state.lock();
    state.trace.note(now, Actor::Client(client), "gets {a} bytes", bytes.len() as u64, 0);
    let State { calls, clients, .. } = &mut *state;
    let of = &mut clients[client];
    if of.error_said {
        let why =
            format!("client {client} got {} bytes after the record that ends a broken stream", bytes.len());
        return state.break_promise(now, ANSWER_PURE, why);
    }
    let at = of.got;
    let possible = |call: &usize| {
        let call: &crate::world::Call = &calls[*call];
        call.status == of.status && call.visible.get(at..at + bytes.len()) == Some(bytes)
    };
    let sources: Vec<usize> =
        of.sources.as_ref().unwrap_or(&of.calls).iter().copied().filter(possible).collect();
    if !sources.is_empty() {
        of.got += bytes.len();
        of.sources = Some(sources);
        return;
    }
    let text = bytes.trim_ascii_start();
    if of.status == Some(200) && (text.starts_with(b"{\"error\"") || text.starts_with(b"event: error")) {
        of.error_said = true;
        broken_for_a_reason(&mut state, &world.plan, now, client);
        if memmem::find(bytes, b"no byte for").is_some() {
            state.reached(Point::IdleTimedOut);
        }
        return state.reached(Point::BrokeOffInWords);
    }
    let why = format!(
        "client {client} got {:?} at byte {at}, which no one answer to it continues with",
        String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
    );
    state.break_promise(now, ANSWER_PURE, why);
}

/// A client's request has ended.
pub(crate) fn ended(world: &World, client: usize, ending: Ending) {
    let now = world.now();
    let mut state = world.state.lock();
    if state.clients[client].ended.is_some() {
        return;
    }
    state.clients[client].ended = Some((now, ending));
    let what = match ending {
        Ending::Answered => "has the whole answer",
        Ending::Refused => "is refused",
        Ending::BrokenOff => "sees its answer break off",
        Ending::Left => "leaves",
        Ending::CutOff => "is cut off",
        Ending::NotServed => "finds nobody there",
    };
    state.trace.note(now, Actor::Client(client), what, 0, 0);
    if state.clients[client].status.is_none() && !state.clients[client].turned_away {
        may_have_waited(&mut state, client);
    }
    let of = &state.clients[client];
    if of.calls.len() > 1 {
        state.reached(Point::Retried);
    }
    if ending == Ending::BrokenOff {
        broken_for_a_reason(&mut state, &world.plan, now, client);
    }
    let of = &state.clients[client];
    let reads = of.asked.call == Call::Show || of.asked.call.inference().is_some();
    if ending != Ending::Answered || !reads || of.error_said {
        return;
    }
    let whole = of.sources.as_ref().is_some_and(|sources| {
        sources.iter().any(|call| state.calls[*call].whole && state.calls[*call].visible.len() == of.got)
    });
    if whole {
        let call = if of.status == Some(200) { Point::AnsweredWhole } else { Point::RefusalPassedOn };
        state.reached(call);
    } else {
        let why =
            format!("client {client} saw a clean end after {} bytes of an answer that was not whole", of.got);
        state.break_promise(now, ANSWER_ENDS, why);
    }
}

/// A client is told, in a record or by a cut, that its answer broke off: then its endpoint has broken it off,
/// ended it before it was whole, or was silent for too long.
fn broken_for_a_reason(state: &mut State, plan: &Plan, now: u64, client: usize) {
    let last = state.clients[client].calls.last().copied();
    let broken = last.is_some_and(|id| match state.calls[id].closed {
        Some(Closed::Broken) => true,
        Some(Closed::Dropped) => now >= gives_up_at(state, plan, id),
        Some(Closed::Ended | Closed::Refused(_)) | None => false,
    });
    if !broken {
        let how = last.map(|id| state.calls[id].closed);
        let why = format!("client {client} is told that its answer broke off, and its call came to {how:?}");
        state.break_promise(now, ANSWER_ENDS, why);
    }
}

/// A client's request got no answer, for this reason.
pub(crate) fn failed(world: &World, client: usize, failure: &Failure) {
    let now = world.now();
    world.remark(Actor::Client(client), || format!("is told: {failure}"));
    let mut state = world.state.lock();
    state.reached(match failure {
        Failure::UnknownModel { .. } => Point::UnknownModel,
        Failure::NobodyAnswers { .. } | Failure::NobodyThere { .. } => Point::NobodyAnswered,
        Failure::WrongFamily { .. } => Point::WrongFamily,
        Failure::QueueFull { .. } => Point::QueueWasFull,
        Failure::QueueTimeout { .. } => Point::QueueTimedOut,
        Failure::Unhealthy { .. } => Point::AllUnhealthy,
        Failure::FirstByteTimeout { .. } => Point::FirstByteTimedOut,
        Failure::Nonsense { .. } => Point::Nonsense,
        Failure::Upstream { .. } => Point::UpstreamFailed,
    });
    let at_once = matches!(
        failure,
        Failure::UnknownModel { .. }
            | Failure::NobodyAnswers { .. }
            | Failure::WrongFamily { .. }
            | Failure::QueueFull { .. }
            | Failure::Unhealthy { .. }
    );
    state.clients[client].turned_away = at_once && state.clients[client].calls.is_empty();
    match failure {
        Failure::UnknownModel { asked, failed, .. } => {
            for name in asked {
                said_not_to_serve(&mut state, &world.plan, now, client, name.as_str());
            }
            for (name, _) in failed {
                said_to_have_failed(&mut state, &world.plan, now, client, name.as_str());
            }
        }
        Failure::NobodyAnswers { failed, .. } => {
            for (name, _) in failed {
                said_to_have_failed(&mut state, &world.plan, now, client, name.as_str());
            }
        }
        Failure::QueueTimeout { .. } => waited_in_vain(&mut state, &world.plan, now, client),
        Failure::Unhealthy { .. } => turned_away(&mut state, &world.plan, now, client),
        _ => {}
    }
    calm_but_failed(&mut state, &world.plan, now, client, failure);
}

fn endpoint_of(plan: &Plan, name: &str) -> Option<usize> {
    (0..plan.endpoints.len()).find(|index| plan.endpoints[*index].url(*index) == name)
}

/// An endpoint that is said not to serve the model has said so itself.
fn said_not_to_serve(state: &mut State, plan: &Plan, now: u64, client: usize, name: &str) {
    let Some(endpoint) = endpoint_of(plan, name) else { return };
    let of = &state.clients[client];
    let instance = &state.instances[of.instance];
    let said = instance.listings.iter().any(|listing| {
        listing.of_served(endpoint)
            && listing.may_be_believed(instance, of.began)
            && listing.began + EXPIRY > of.began
            && listing.held.as_ref().is_some_and(|held| held.get(of.asked.model) != Some(&true))
    });
    if !said {
        let ever = instance.listings.iter().any(|listing| {
            let lacked = listing.held.as_ref().is_some_and(|held| held.get(of.asked.model) != Some(&true));
            listing.of_served(endpoint) && lacked
        });
        // What it once said is too old; what it never said was said in another concern.
        let promise = if ever { CATALOG_AGE } else { CATALOG_ISOLATION };
        let why = format!(
            "client {client} is told that endpoint {endpoint} does not serve model {}, which it never said",
            of.asked.model
        );
        state.break_promise(now, promise, why);
    }
}

/// An endpoint that is said to have failed has failed, in this concern and not long ago.
fn said_to_have_failed(state: &mut State, plan: &Plan, now: u64, client: usize, name: &str) {
    let Some(endpoint) = endpoint_of(plan, name) else { return };
    let of = &state.clients[client];
    let instance = &state.instances[of.instance];
    let failed = instance.listings.iter().any(|listing| {
        let same = listing.of_served(endpoint) && listing.may_be_believed(instance, of.began);
        let lately = listing.ended.is_none_or(|at| at + ERROR_EXPIRY > of.began);
        same && lately && (listing.held.is_none() || listing.ended.is_none_or(|at| at > of.began))
    });
    if !failed {
        let why = format!(
            "client {client} is told that endpoint {endpoint} cannot say what it serves, but it has said so"
        );
        state.break_promise(now, CATALOG_ISOLATION, why);
    }
}

/// Nobody waits in vain while there is a slot.
fn waited_in_vain(state: &mut State, plan: &Plan, now: u64, client: usize) {
    let of = &state.clients[client];
    let (instance, model) = (of.instance, of.asked.model);
    let settings = &state.instances[instance].settings;
    // A slot may just have come free by time alone: the queue looks again every second.
    if !of.calls.is_empty() || now < of.began + 3_000_000_000 || plan.faults.is_on(Fault::Pause) {
        return;
    }
    let limit = settings.limit;
    let free = certain_candidates(state, now, client, model)
        .into_iter()
        .find(|endpoint| running(state, instance, *endpoint, model) + state.handed_over(instance) < limit);
    if let Some(endpoint) = free {
        let why = format!("client {client} waited in vain for a slot while endpoint {endpoint} had one free");
        state.break_promise(now, ANSWER_ENDS, why);
    }
}

/// Nobody is turned away as long as an endpoint is well.
fn turned_away(state: &mut State, plan: &Plan, now: u64, client: usize) {
    let of = &state.clients[client];
    let (instance, model) = (of.instance, of.asked.model);
    if !of.calls.is_empty() || plan.faults.is_on(Fault::Pause) {
        return;
    }
    if let Some(well) = certain_candidates(state, now, client, model).first() {
        let why = format!(
            "instance {instance} tells client {client} that nobody is healthy, and endpoint {well} is"
        );
        state.break_promise(now, BREAKER_HONEST, why);
    }
}

/// Without any fault a request for a model that is there may wait too long, and nothing else.
fn calm_but_failed(state: &mut State, plan: &Plan, now: u64, client: usize, failure: &Failure) {
    let asked = &state.clients[client].asked;
    let quiet = plan.faults.0.iter().all(|(fault, _)| fault.is_harmless());
    let known =
        plan.endpoints.iter().any(|endpoint| endpoint.models.get(asked.model).is_some_and(|model| model.0));
    let excused = matches!(
        failure,
        Failure::QueueFull { .. }
            | Failure::QueueTimeout { .. }
            | Failure::WrongFamily { .. }
            | Failure::NobodyThere { .. }
    );
    if quiet && known && !excused {
        state.break_promise(
            now,
            ANSWER_ENDS,
            format!("without any fault client {client} is told: {failure}"),
        );
    }
}
