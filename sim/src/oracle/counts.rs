//! After each step of an instance: what the router says it has in flight, and has recorded, against
//! what its endpoints see and have answered.

use pointsman::core::breaker::Settings;
use pointsman::core::invariants::{self, Broken};
use pointsman::core::slots::{Limits, Snapshot};
use pointsman::core::usage;
use pointsman::flow::router::Router;

use core::time::Duration;

use crate::faults::Fault;
use crate::plan::Plan;
use crate::sometimes::Point;
use crate::world::{CallKind, Instance, State, World};

use super::breakers;
use super::{ADMITTED_ADDS_UP, ANSWER_ENDS, Judged, SLOT_CONSERVATION, SNAPSHOT_WHOLE, TOKEN_CONSERVATION};

/// What an instance's counts were found right against, the last time that anything of it had changed.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    usage: usage::Snapshot,
    outside: Outside,
    /// What its tokens add up to.
    tokens: (u64, u64),
}

/// What the counts are held against, as far as it can change without the counts. A call that is opened is one
/// more that was sent, and one that is closed is one less that runs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outside {
    sent: u64,
    running: usize,
    serving: usize,
    waited_in_vain_max: u64,
    reloads: u32,
}

impl Outside {
    fn of(instance: &Instance) -> Outside {
        Outside {
            sent: instance.sent,
            running: instance.running_calls.len(),
            serving: instance.serving.len(),
            waited_in_vain_max: instance.waited_in_vain_max,
            reloads: instance.reloads,
        }
    }
}

/// Checks an instance that is up.
pub(crate) fn after_step(state: &mut State, world: &World, instance: usize) {
    let Some(router) = state.instances[instance].router.clone() else { return };
    let now = world.now();
    let mut settled = state.instances[instance].settled.take().unwrap_or_default();
    if let Err((promise, why)) = check(state, &world.plan, now, instance, &router, &mut settled) {
        state.break_promise(now, promise, why);
    }
    state.instances[instance].settled = Some(settled);
}

/// Checks, when everybody who could do something has done it, that who follows the snapshots has seen the
/// newest. A paused instance is behind for as long as it is paused. Tells whether a promise is broken.
pub(crate) fn published(world: &World, paused: &[usize]) -> bool {
    let mut state = world.state.lock();
    (0..state.instances.len())
        .filter(|instance| !paused.contains(instance))
        .for_each(|instance| newest_seen(&mut state, world.now(), instance));
    state.broken.is_some()
}

fn newest_seen(state: &mut State, now: u64, instance: usize) {
    let of = &state.instances[instance];
    if of.router.is_some() && of.watched != of.newest {
        let why = format!(
            "the last snapshot of instance {instance} that was published is {:?}, now it is {:?}",
            of.watched, of.newest
        );
        state.break_promise(now, SNAPSHOT_WHOLE, why);
    }
}

fn named(broken: Broken) -> (&'static str, String) {
    (broken.promise.name(), broken.why)
}

fn check(
    state: &mut State,
    plan: &Plan,
    now: u64,
    instance: usize,
    router: &Router,
    settled: &mut Settled,
) -> Judged {
    let of = &mut state.instances[instance];
    let counts_changed = router.usage().refresh(&mut settled.usage);
    if counts_changed {
        let tokens = settled.usage.tokens.values();
        settled.tokens = tokens.fold((0, 0), |sum, t| (sum.0 + t.input, sum.1 + t.output));
    }
    let totals = settled.tokens;
    let (slots, outside) = (&settled.usage.slots, Outside::of(of));
    let changed = counts_changed || outside != settled.outside;
    if changed {
        of.newest = crate::instance::summary(slots, totals);
        number_endpoints(state, plan, instance, slots)?;
        // What the world outside sees says more than a sum that is wrong.
        in_flight(state, plan, instance, slots)?;
        limits(state, instance, slots)?;
        admitted(state, instance, slots)?;
        settled.outside = outside;
    }
    collected(state, plan, now, instance, slots)?;
    breakers::hear(state, plan, now, instance)?;
    if changed {
        breakers::judge(state, now, instance, &slots.endpoints)?;
    } else {
        // Time has passed, and the router says what it said before.
        breakers::still_stand(&state.instances[instance], now, instance)?;
    }

    let of = &mut state.instances[instance];
    let balance = router.usage().ledger().balance();
    invariants::ledger(&balance).map_err(named)?;
    let recorded = (balance.recorded.input, balance.recorded.output);
    if recorded != of.recorded_sum {
        let why = format!(
            "instance {instance} has recorded {recorded:?} tokens, its endpoints answered {:?}",
            of.recorded_sum
        );
        return Err((TOKEN_CONSERVATION, why));
    }
    let expected = (of.base_sum.0 + of.recorded_sum.0, of.base_sum.1 + of.recorded_sum.1);
    if totals != expected {
        let why = format!(
            "instance {instance}'s snapshot shows {totals:?} tokens, stored and recorded are {expected:?}"
        );
        return Err((SNAPSHOT_WHOLE, why));
    }
    let stored = balance.stored.total();
    if stored > of.stored_seen {
        of.stored_seen = stored;
        let retried = core::mem::take(&mut of.flush_failed);
        if core::mem::take(&mut of.minutes).len() > 1 {
            state.reached(Point::MinutesInOneBatch);
        }
        state.reached(Point::Flushed);
        if retried {
            state.reached(Point::FlushRetried);
        }
    }
    Ok(())
}

/// Learns which endpoint each number of the router is; they only ever grow.
fn number_endpoints(state: &mut State, plan: &Plan, instance: usize, slots: &Snapshot) -> Judged {
    let numbers = &mut state.instances[instance].numbers;
    for known in numbers.len()..slots.endpoints.len() {
        let name = slots.endpoints[known].name.as_str();
        let found =
            plan.endpoints.iter().enumerate().position(|(index, endpoint)| endpoint.url(index) == name);
        let Some(endpoint) = found else {
            return Err((
                SLOT_CONSERVATION,
                format!("instance {instance} counts for {name}, which nobody configured"),
            ));
        };
        numbers.push(endpoint);
    }
    Ok(())
}

fn limits(state: &mut State, instance: usize, slots: &Snapshot) -> Judged {
    let of = &mut state.instances[instance];
    let settings = &of.settings;
    let highest =
        slots.endpoints.iter().flat_map(|e| e.in_flight.iter()).map(|(_, count)| *count).max().unwrap_or(0);
    let queue_max = settings.queue.then_some(settings.queue_max);
    // A limit that was lowered holds once the requests above it have ended.
    of.allowed = if settings.queue { of.allowed.min(highest.max(settings.limit)) } else { u32::MAX };
    let limits = Limits {
        per_model: of.allowed,
        queue_max,
        breaker: Settings { failures: settings.breaker_failures, open_for: Duration::ZERO },
        wedged_after: Duration::ZERO,
    };
    invariants::slots(slots, &limits).map_err(named)?;
    if slots.queued > 0 {
        state.reached(Point::Queued);
    }
    if slots.handed_over > 0 {
        state.reached(Point::HandedOver);
    }
    if slots.endpoints.iter().any(|endpoint| endpoint.wedged) {
        state.reached(Point::Wedged);
    }
    Ok(())
}

/// What the router has admitted is what came: every call it sent, and whoever waits or may have waited in
/// vain. A reload may send a client back into the queue, so these lives are not judged.
fn admitted(state: &State, instance: usize, slots: &Snapshot) -> Judged {
    let of = &state.instances[instance];
    let (sent, running) = (of.sent, of.running_calls.len() as u64);
    let over = sent - running;
    let at_least = slots.admitted >= sent && slots.finished >= over;
    if !at_least || (of.reloads == 0 && slots.finished > over + of.waited_in_vain_max) {
        let why = format!(
            "instance {instance} has admitted {} and finished {}; it has sent {sent} calls, {running} of them are \
             under way, and {} clients may have waited in vain",
            slots.admitted, slots.finished, of.waited_in_vain_max
        );
        return Err((ADMITTED_ADDS_UP, why));
    }
    let waiting = (slots.queued + slots.handed_over) as u64;
    if waiting > 0 {
        let asks_a_model = |client: &&usize| state.clients[**client].asked.call.inference().is_some();
        let there = of.serving.values().filter(asks_a_model).count() as u64;
        if waiting + running > there {
            let why = format!(
                "{waiting} requests wait at instance {instance} and {running} run, {there} clients are there"
            );
            return Err((ADMITTED_ADDS_UP, why));
        }
    }
    Ok(())
}

/// Whoever is granted a slot takes it at once: no time passes while a task is ready.
fn collected(state: &mut State, plan: &Plan, now: u64, instance: usize, slots: &Snapshot) -> Judged {
    let of = &mut state.instances[instance];
    if slots.handed_over == 0 || plan.faults.is_on(Fault::Pause) {
        of.granted_since = None;
        return Ok(());
    }
    let since = *of.granted_since.get_or_insert(now);
    if since < now {
        let why = format!(
            "{} granted slots of instance {instance} lie idle for {} us: whoever waits was not woken",
            slots.handed_over,
            (now - since) / 1_000
        );
        return Err((ANSWER_ENDS, why));
    }
    Ok(())
}

/// What the router holds in flight is what endpoints work on, one by one.
fn in_flight(state: &State, plan: &Plan, instance: usize, slots: &Snapshot) -> Judged {
    let of = &state.instances[instance];
    let mut held = 0u64;
    for call in &of.running_calls {
        let call = &state.calls[*call];
        if call.client.is_some_and(|client| state.clients[client].ended.is_some()) {
            let why =
                format!("endpoint {} still works for client {:?}, who is gone", call.endpoint, call.client);
            return Err((ANSWER_ENDS, why));
        }
    }
    for (number, used) in slots.endpoints.iter().enumerate() {
        let endpoint = of.numbers[number];
        held += u64::from(used.total);
        let running = || {
            let calls = of.running_calls.iter().map(|call| &state.calls[*call]);
            calls.filter(move |call| call.endpoint == endpoint)
        };
        let total = running().count();
        if (used.total as usize) < total {
            let why = format!(
                "endpoint {endpoint} works on {total} requests of instance {instance}, which counts {}",
                used.total
            );
            return Err((SLOT_CONSERVATION, why));
        }
        let (turned, now_tags) = (of.turns[endpoint] > 0, of.asked_as[endpoint].speaks.tags());
        for (model, count) in used.in_flight.iter() {
            let known = plan.endpoints[endpoint].number_of(model.as_str());
            // What was let in before a reload keeps the name it was let in under.
            let Some((known, tags)) = known.filter(|(_, tags)| turned || *tags == now_tags) else {
                return Err((
                    SLOT_CONSERVATION,
                    format!("endpoint {endpoint} has slots under {model}, a name it does not have"),
                ));
            };
            let same = running().filter(|call| call.kind == CallKind::Inference(known));
            let working = same.filter(|call| call.asked_as.speaks.tags() == tags).count();
            if (*count as usize) < working {
                let why = format!(
                    "endpoint {endpoint} works on {working} requests for {model}, instance {instance} counts {count}"
                );
                return Err((SLOT_CONSERVATION, why));
            }
        }
    }
    let open = of.running_calls.len() as u64;
    let handed_over = slots.handed_over as u64;
    if held != open + handed_over {
        let why = format!(
            "instance {instance} holds {held} slots, {open} for calls under way and {handed_over} handed over: the others are lost"
        );
        return Err((SLOT_CONSERVATION, why));
    }
    Ok(())
}

/// After quiet: nothing is held, nobody waits, and the last snapshot published was seen.
pub(crate) fn at_rest(world: &World, instance: usize) {
    let now = world.now();
    let mut state = world.state.lock();
    let Some(router) = state.instances[instance].router.clone() else { return };
    let usage = router.usage().snapshot();
    if let Err(broken) = invariants::idle(&usage.slots) {
        let (promise, why) = named(broken);
        state.break_promise(now, promise, format!("instance {instance} at rest: {why}"));
    }
    let waiting = router.usage().ledger().balance().waiting.total();
    if waiting > 0 {
        let why = format!("{waiting} tokens of instance {instance} still wait to be stored at rest");
        state.break_promise(now, TOKEN_CONSERVATION, why);
    }
    newest_seen(&mut state, now, instance);
}
