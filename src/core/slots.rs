//! Requests in flight per endpoint and model, who waits for a slot, and each endpoint's breaker.
//!
//! Choosing and reserving are one step under one lock (`slot-limit`). A [`Slot`] is given back when
//! it is dropped, however the request ends, and cannot be given back twice (`slot-conservation`). A
//! freed slot is handed to the first in the queue that can use it, in the step that frees it, so no
//! newcomer overtakes and no wake-up is lost. Called by `flow::route`.

use std::collections::{BTreeMap, VecDeque};

use core::time::Duration;

use super::breaker::{Breaker, Health, Pass, Settings, Verdict};
use super::names::{EndpointId, EndpointName, ModelName};
use super::policy::{self, Choice, Standing};
use super::pulse::Pulse;
use super::signal::{Listener, Signal};
use super::sync::{Arc, Guard, Lock, Rank};
use super::time::Instant;

/// The shortest time between two rechecks of the queue: everybody who waits asks for them, one does for all.
const RECHECK_GAP: Duration = Duration::from_millis(500);

/// How many requests may go where, and what health means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Slots per endpoint and model; at least 1.
    pub per_model: u32,
    /// Requests that may wait for a slot; `None`: nobody waits, the least used endpoint is
    /// overloaded instead, as in the seed router.
    pub queue_max: Option<usize>,
    /// When an endpoint's breaker opens.
    pub breaker: Settings,
    /// An endpoint with requests waiting and no byte for this long is wedged: it gets no more.
    pub wedged_after: Duration,
}

/// One endpoint that serves the model.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which.
    pub endpoint: EndpointId,
    /// The model as its slots are counted there.
    pub model: ModelName,
    /// It has the model in memory.
    pub loaded: bool,
    /// That is known from a listing past its fresh age.
    pub stale: bool,
}

/// What became of a reservation.
#[derive(Debug)]
#[must_use]
pub enum Reservation {
    /// A slot: send the request.
    Slot(Slot),
    /// Every candidate is full: wait with the ticket.
    Queued(Ticket),
    /// The queue is full too.
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// No candidate is healthy.
    Unhealthy {
        /// When the first breaker among them admits a probe, if one is open.
        retry_at: Option<Instant>,
    },
}

/// All slots of the router.
#[derive(Debug)]
pub struct Slots {
    state: Lock<State>,
    /// Notified after every change of a count.
    changed: Signal,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    /// By [`EndpointId`]; entries are never removed.
    endpoints: Vec<Endpoint>,
    /// First come, first served.
    queue: VecDeque<Waiting>,
    /// Slots handed to tickets that have not collected them yet.
    granted: BTreeMap<u64, Grant>,
    /// Numbers tickets.
    tickets: u64,
    /// Reservations that became a slot or a place in the queue.
    admitted: u64,
    /// Slots given back and places left.
    finished: u64,
    /// The newest time any caller brought, for those that bring none (drops).
    now: Instant,
    /// When the queue was last looked through because somebody who waits asked for it.
    rechecked: Option<Instant>,
    /// Reused by each choice.
    standings: Vec<Standing>,
    /// Notified when a breaker has opened or closed.
    turned: Signal,
}

#[derive(Debug)]
struct Endpoint {
    name: EndpointName,
    enabled: bool,
    /// Requests in flight by model, no zeros. Shared with snapshots, copied on the next write.
    in_flight: Arc<Vec<(ModelName, u32)>>,
    total: u32,
    breaker: Breaker,
    pulse: Arc<Pulse>,
}

impl Endpoint {
    fn used(&self, health: Health, wedged: bool) -> EndpointUse {
        let (name, in_flight) = (self.name.clone(), Arc::clone(&self.in_flight));
        EndpointUse { name, enabled: self.enabled, in_flight, total: self.total, health, wedged }
    }

    /// What a snapshot shares with this is not written any more, so the same memory holds the same counts.
    fn is_used_as(&self, used: &EndpointUse) -> bool {
        (self.enabled, self.total) == (used.enabled, used.total)
            && Arc::ptr_eq(&self.in_flight, &used.in_flight)
    }
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    candidates: Vec<Candidate>,
    dice: u64,
    signal: Signal,
}

#[derive(Debug)]
struct Grant {
    candidate: Candidate,
    pass: Pass,
}

impl Slots {
    /// No endpoints yet.
    pub fn new(limits: Limits) -> Self {
        let state = State {
            limits,
            endpoints: Vec::new(),
            queue: VecDeque::new(),
            granted: BTreeMap::new(),
            tickets: 0,
            admitted: 0,
            finished: 0,
            now: Instant::ORIGIN,
            rechecked: None,
            standings: Vec::new(),
            turned: Signal::new(),
        };
        Slots { state: Lock::new(Rank::Slots, state), changed: Signal::new() }
    }

    /// Puts a configuration in force: the endpoints that may get requests, and the limits. Counts,
    /// queue and breakers stay as they are. Returns the endpoints' numbers, in the order given.
    pub fn configure(&self, limits: Limits, endpoints: &[EndpointName]) -> Vec<EndpointId> {
        let mut state = self.state.lock();
        state.limits = limits;
        for endpoint in &mut state.endpoints {
            endpoint.enabled = false;
        }
        let ids = endpoints.iter().map(|name| state.enable(name)).collect();
        let woken = state.serve_queue();
        self.announce(state, woken);
        ids
    }

    /// Chooses among `candidates` and reserves, in one step; or takes a place in the queue. `dice`
    /// is 64 uniform bits for ties. Does not wait.
    pub fn reserve(self: &Arc<Self>, candidates: Vec<Candidate>, now: Instant, dice: u64) -> Reservation {
        let mut state = self.state.lock();
        state.now = state.now.max(now);
        let mut woken = Vec::new();
        if !state.queue.is_empty() && state.has_room(&candidates) {
            // Time may have made room (a breaker's pause is over) that belongs to those who wait.
            woken = state.serve_queue();
        }
        let reservation = match state.choose(&candidates, dice) {
            Choice::Free(index) => {
                state.admitted += 1;
                Reservation::Slot(self.slot(&mut state, &candidates[index]))
            }
            Choice::Full(index) => match state.limits.queue_max {
                None => {
                    state.admitted += 1;
                    Reservation::Slot(self.slot(&mut state, &candidates[index]))
                }
                Some(max) if state.queue.len() < max => {
                    state.admitted += 1;
                    Reservation::Queued(self.ticket(&mut state, candidates, dice))
                }
                Some(_) => Reservation::QueueFull { waiting: state.queue.len() },
            },
            Choice::Nobody => Reservation::Unhealthy { retry_at: state.retry_at(&candidates) },
        };
        self.announce(state, woken);
        reservation
    }

    /// Lets those in the queue look again at `now`. Whoever waits calls this from time to time,
    /// because a breaker's pause ends, and a wedged endpoint moves, without anybody's call. At most one
    /// such call in [`RECHECK_GAP`] costs anything.
    pub fn recheck(&self, now: Instant) {
        let mut state = self.state.lock();
        state.now = state.now.max(now);
        if state.rechecked.is_some_and(|last| now.since(last) < RECHECK_GAP) {
            return;
        }
        state.rechecked = Some(now);
        let woken = state.serve_queue();
        self.announce(state, woken);
    }

    /// A future for the next change of a count. Make it before taking a snapshot.
    pub fn changed(&self) -> Listener {
        self.changed.listen()
    }

    /// A future for the next time a breaker opens or closes. Make it before taking a snapshot.
    pub fn turned(&self) -> Listener {
        self.state.lock().turned.listen()
    }

    /// Every count at one moment. Under the lock it copies one pointer per endpoint.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.refresh_with(&mut snapshot, || ());
        snapshot
    }

    /// Brings an older snapshot of these slots up to date, and says whether anything in it changed; and what `and`
    /// reads in the same critical section.
    pub(super) fn refresh_with<R>(&self, snapshot: &mut Snapshot, and: impl FnOnce() -> R) -> (bool, R) {
        let state = self.state.lock();
        let uses = &mut snapshot.endpoints;
        let mut changed = uses.len() < state.endpoints.len();
        uses.reserve_exact(state.endpoints.len() - uses.len());
        for (number, endpoint) in state.endpoints.iter().enumerate() {
            let health = endpoint.breaker.health(state.now);
            let wedged = endpoint.pulse.is_wedged(state.now, state.limits.wedged_after);
            match uses.get_mut(number) {
                Some(used) if endpoint.is_used_as(used) && (used.health, used.wedged) == (health, wedged) => {
                }
                Some(used) => {
                    *used = endpoint.used(health, wedged);
                    changed = true;
                }
                None => uses.push(endpoint.used(health, wedged)),
            }
        }
        let Snapshot { queued, handed_over, admitted, finished, .. } = snapshot;
        let now = (state.queue.len(), state.granted.len(), state.admitted, state.finished);
        changed |= (*queued, *handed_over, *admitted, *finished) != now;
        (*queued, *handed_over, *admitted, *finished) = now;
        (changed, and())
    }

    fn slot(self: &Arc<Self>, state: &mut State, candidate: &Candidate) -> Slot {
        let pass = state.occupy(candidate);
        self.slot_of(state, Grant { candidate: candidate.clone(), pass })
    }

    fn slot_of(self: &Arc<Self>, state: &State, grant: Grant) -> Slot {
        let pulse = Arc::clone(&state.endpoints[grant.candidate.endpoint.index()].pulse);
        let Grant { candidate: Candidate { endpoint, model, .. }, pass } = grant;
        Slot { slots: Arc::clone(self), endpoint, model, pass, pulse, waits: false, returned: false }
    }

    fn ticket(self: &Arc<Self>, state: &mut State, candidates: Vec<Candidate>, dice: u64) -> Ticket {
        state.tickets += 1;
        let (ticket, signal) = (state.tickets, Signal::new());
        state.queue.push_back(Waiting { ticket, candidates, dice, signal: signal.clone() });
        Ticket { slots: Arc::clone(self), ticket, signal, settled: false }
    }

    /// Gives a slot back and hands it on; `and` runs in the same critical section.
    fn give_back(&self, returned: Returned<'_>, and: impl FnOnce()) {
        let mut state = self.state.lock();
        let woken = state.vacate(returned);
        and();
        self.announce(state, woken);
    }

    /// Unlocks, then wakes: nobody is called while the lock is held.
    fn announce(&self, state: Guard<'_, State>, woken: Vec<Signal>) {
        drop(state);
        for signal in woken {
            signal.notify();
        }
        self.changed.notify();
    }
}

/// A slot on its way back.
struct Returned<'a> {
    endpoint: EndpointId,
    model: &'a ModelName,
    pass: Pass,
    verdict: Verdict,
    /// Absent when a drop gives it back.
    now: Option<Instant>,
}

impl State {
    fn enable(&mut self, name: &EndpointName) -> EndpointId {
        let index = self.endpoints.iter().position(|endpoint| endpoint.name == *name).unwrap_or_else(|| {
            self.endpoints.push(Endpoint {
                name: name.clone(),
                enabled: true,
                in_flight: Arc::default(),
                total: 0,
                breaker: Breaker::default(),
                pulse: Arc::default(),
            });
            self.endpoints.len() - 1
        });
        self.endpoints[index].enabled = true;
        EndpointId(u32::try_from(index).expect("fewer than 2^32 endpoints are ever configured"))
    }

    fn standing(&self, candidate: &Candidate) -> Standing {
        let endpoint = &self.endpoints[candidate.endpoint.index()];
        Standing {
            admitted: endpoint.enabled
                && endpoint.breaker.admits(self.now)
                && !endpoint.pulse.is_wedged(self.now, self.limits.wedged_after),
            loaded: candidate.loaded,
            stale: candidate.stale,
            in_flight: endpoint.count(&candidate.model),
            total: endpoint.total,
        }
    }

    fn choose(&mut self, candidates: &[Candidate], dice: u64) -> Choice {
        let mut standings = core::mem::take(&mut self.standings);
        standings.clear();
        standings.extend(candidates.iter().map(|candidate| self.standing(candidate)));
        let choice = policy::choose(&standings, self.limits.per_model, dice);
        self.standings = standings;
        choice
    }

    fn has_room(&self, candidates: &[Candidate]) -> bool {
        candidates.iter().any(|candidate| policy::has_room(&self.standing(candidate), self.limits.per_model))
    }

    fn retry_at(&self, candidates: &[Candidate]) -> Option<Instant> {
        let of = |candidate: &Candidate| self.endpoints[candidate.endpoint.index()].breaker.opens_until();
        candidates.iter().filter_map(of).min()
    }

    fn occupy(&mut self, candidate: &Candidate) -> Pass {
        let now = self.now;
        let endpoint = &mut self.endpoints[candidate.endpoint.index()];
        let in_flight = Arc::make_mut(&mut endpoint.in_flight);
        match in_flight.iter_mut().find(|(model, _)| *model == candidate.model) {
            Some((_, count)) => *count += 1,
            None => in_flight.push((candidate.model.clone(), 1)),
        }
        endpoint.total += 1;
        endpoint.breaker.enter(now)
    }

    /// Takes a slot back and serves those who can use it. Returns whom to wake.
    fn vacate(&mut self, returned: Returned<'_>) -> Vec<Signal> {
        let Returned { endpoint: id, model, pass, verdict, now } = returned;
        self.now = now.map_or(self.now, |now| self.now.max(now));
        let endpoint = &mut self.endpoints[id.index()];
        let in_flight = Arc::make_mut(&mut endpoint.in_flight);
        let at = in_flight
            .iter()
            .position(|(counted, _)| counted == model)
            .expect("slot-conservation: a slot is given back under the name it was reserved under");
        in_flight[at].1 -= 1;
        if in_flight[at].1 == 0 {
            in_flight.swap_remove(at);
        }
        endpoint.total -= 1;
        self.finished += 1;

        let health = endpoint.breaker.health(self.now);
        endpoint.breaker.leave(pass, verdict, self.now, &self.limits.breaker);
        if endpoint.breaker.health(self.now) == health {
            // The first may be better off elsewhere: the slot just freed is then for the next.
            core::iter::from_fn(|| self.serve_first(id, model)).collect()
        } else {
            let mut woken = self.serve_queue();
            woken.push(self.turned.clone());
            woken
        }
    }

    /// Hands the slot just freed to the first in the queue that asks for this endpoint and model.
    fn serve_first(&mut self, endpoint: EndpointId, model: &ModelName) -> Option<Signal> {
        let at = self.queue.iter().position(|waiting| {
            waiting.candidates.iter().any(|c| c.endpoint == endpoint && c.model == *model)
                && self.has_room(&waiting.candidates)
        })?;
        self.grant(at)
    }

    /// Hands out every slot that somebody in the queue can use, first come first served.
    fn serve_queue(&mut self) -> Vec<Signal> {
        let mut woken = Vec::new();
        let mut at = 0;
        while at < self.queue.len() {
            match self.has_room(&self.queue[at].candidates).then(|| self.grant(at)).flatten() {
                Some(signal) => woken.push(signal),
                None => at += 1,
            }
        }
        woken
    }

    fn grant(&mut self, at: usize) -> Option<Signal> {
        let waiting = self.queue.remove(at)?;
        let Choice::Free(index) = self.choose(&waiting.candidates, waiting.dice) else {
            unreachable!("a slot is granted only to a ticket for which there is room");
        };
        let candidate = waiting.candidates[index].clone();
        let pass = self.occupy(&candidate);
        self.granted.insert(waiting.ticket, Grant { candidate, pass });
        Some(waiting.signal)
    }
}

impl Endpoint {
    fn count(&self, model: &ModelName) -> u32 {
        self.in_flight.iter().find(|(counted, _)| counted == model).map_or(0, |(_, count)| *count)
    }
}

/// One request's place at one endpoint, given back when dropped. Hand it back with
/// [`settle`](Self::settle) to say what the request learned about the endpoint's health.
#[derive(Debug)]
#[must_use = "a slot that is dropped is given back"]
pub struct Slot {
    slots: Arc<Slots>,
    endpoint: EndpointId,
    model: ModelName,
    pass: Pass,
    pulse: Arc<Pulse>,
    waits: bool,
    returned: bool,
}

impl Slot {
    /// Where the request goes.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// The model under which it is counted there.
    pub fn model(&self) -> &ModelName {
        &self.model
    }

    /// From `now` on the request waits for the endpoint's next byte. Repeating it changes nothing.
    pub fn wait(&mut self, now: Instant) {
        if !self.waits {
            self.waits = true;
            self.pulse.wait(now);
        }
    }

    /// A byte came at `now`.
    pub fn moved(&mut self, now: Instant) {
        self.pulse.moved(now);
        self.stop_waiting();
    }

    /// The first byte of a good answer came: a probe closes its breaker here, not at the stream's end.
    pub fn first_byte(&mut self, now: Instant) {
        self.moved(now);
        let mut state = self.slots.state.lock();
        state.now = state.now.max(now);
        let settings = state.limits.breaker;
        let pass = state.endpoints[self.endpoint.index()].breaker.first_byte(self.pass, &settings);
        if pass != self.pass {
            self.pass = pass;
            let mut woken = state.serve_queue();
            woken.push(state.turned.clone());
            self.slots.announce(state, woken);
        }
    }

    /// Gives the slot back at `now` with a verdict on the endpoint.
    pub fn settle(self, verdict: Verdict, now: Instant) {
        self.settle_with(verdict, now, || ());
    }

    /// The same, with `and` in the same critical section.
    pub(super) fn settle_with(mut self, verdict: Verdict, now: Instant, and: impl FnOnce()) {
        self.give_back(verdict, Some(now), and);
    }

    fn give_back(&mut self, verdict: Verdict, now: Option<Instant>, and: impl FnOnce()) {
        self.returned = true;
        self.stop_waiting();
        let Slot { endpoint, ref model, pass, .. } = *self;
        self.slots.give_back(Returned { endpoint, model, pass, verdict, now }, and);
    }

    fn stop_waiting(&mut self) {
        if core::mem::take(&mut self.waits) {
            self.pulse.stop_waiting();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.returned {
            self.give_back(Verdict::Unknown, None, || ());
        }
    }
}

/// A place in the queue, left when dropped; a slot granted in the meantime is passed on.
#[derive(Debug)]
#[must_use = "a ticket that is dropped leaves the queue"]
pub struct Ticket {
    slots: Arc<Slots>,
    ticket: u64,
    signal: Signal,
    settled: bool,
}

impl Ticket {
    /// Completes with a slot. May be dropped and called again: the place is kept.
    pub async fn granted(&mut self) -> Slot {
        loop {
            let granted = self.signal.listen();
            if let Some(slot) = self.collect() {
                return slot;
            }
            granted.await;
        }
    }

    /// Leaves the queue; a slot that was granted at the last moment is not wasted.
    pub fn leave(mut self) -> Option<Slot> {
        self.collect()
    }

    fn collect(&mut self) -> Option<Slot> {
        if self.settled {
            return None;
        }
        let mut state = self.slots.state.lock();
        let grant = state.granted.remove(&self.ticket)?;
        self.settled = true;
        Some(self.slots.slot_of(&state, grant))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.slots.state.lock();
        if let Some(grant) = state.granted.remove(&self.ticket) {
            // Granted and not collected: given back like any other slot, after unlocking.
            let slot = self.slots.slot_of(&state, grant);
            drop(state);
            drop(slot);
        } else {
            let place = state.queue.iter().position(|waiting| waiting.ticket == self.ticket);
            place.and_then(|at| state.queue.remove(at)).expect("a ticket is queued or granted");
            state.finished += 1;
            self.slots.announce(state, Vec::new());
        }
    }
}

/// Every count at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By [`EndpointId`], those no longer configured too.
    pub endpoints: Vec<EndpointUse>,
    /// Requests waiting in the queue.
    pub queued: usize,
    /// Slots granted to a waiter that has not woken yet; they count as in flight.
    pub handed_over: usize,
    /// Reservations ever admitted, to a slot or to the queue.
    pub admitted: u64,
    /// Reservations ever ended.
    pub finished: u64,
}

/// One endpoint's counts.
#[derive(Clone, Debug)]
pub struct EndpointUse {
    /// Its URL as configured.
    pub name: EndpointName,
    /// It is in the configuration now in force.
    pub enabled: bool,
    /// Requests in flight by model, no zeros.
    pub in_flight: Arc<Vec<(ModelName, u32)>>,
    /// Requests in flight for any model.
    pub total: u32,
    /// Its breaker.
    pub health: Health,
    /// Requests wait there and no byte moves.
    pub wedged: bool,
}
