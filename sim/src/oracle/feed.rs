//! What subscribers are given, against the log as the disk holds it: nothing left out, nothing twice,
//! nothing before it is durable, and no cut without a number to go on from.
//!
//! Where events are not stored, a witness sees each as soon as it can be seen: its numbers have no gap within
//! a life, its events one start and one end each, everybody else is given what it saw, and no later life
//! uses a number that it saw.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use core::time::Duration;

use futures_util::future::FutureExt;

use pointsman::core::timeline::{Bounds, Seq};
use pointsman::flow::audit;
use pointsman::flow::follow::{Begin, FollowError, Reader};
use pointsman::flow::pump::{Ending, Given, Pump, Turn};
use pointsman::flow::router::Router;
use pointsman::ports::StoreError;
use pointsman::wire::event::Event;
use pointsman::wire::filter::Filter;

use crate::sometimes::Point;
use crate::store::SimStore;
use crate::trace::Actor;
use crate::world::{Instance, State, Status, Subscriber, World};

use super::{FEED_DURABLE, FEED_EXACT, FEED_EXPLICIT, FEED_INDEPENDENT, FEED_PROGRESS};

/// Bytes before the JSON of a stored event; see `flow::log`.
const HEAD: usize = 8;

/// Events looked at in one step, at most, so that no reader keeps a thread for long.
const STEP_MAX: u64 = 128;

/// A growing lag is held against a subscriber over so much of its own time, at least.
const LAGS_FOR: Duration = Duration::from_secs(30);

/// The log of one instance as it became durable, or was seen, for good.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    events: BTreeMap<Seq, Arc<Event>>,
    /// What the numbers of stored events are ahead of the disk's, by what the router says at its start.
    offset: u64,
    /// The newest record on the disk that is known.
    stored: Seq,
    /// The newest number the witness has seen, or that was there before it came.
    seen: Seq,
    /// Requests that have started and not ended, by the log.
    open: BTreeSet<String>,
    /// Whether an endpoint is up, serves a model, or has it in memory, by the log.
    there: BTreeMap<(&'static str, String, String), bool>,
    /// The witness missed events of this life: more came at once than the ring holds.
    missed: bool,
}

impl Reference {
    fn get(&self, seq: Seq) -> Option<&Arc<Event>> {
        self.events.get(&seq)
    }

    fn newest(&self) -> Seq {
        self.events.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    /// The first of the events behind `after` and before `before` that this subscriber wants.
    fn wanted(&self, of: &Subscriber, after: Seq, before: Seq) -> Option<Seq> {
        let between = (after + 1 < before).then(|| self.events.range(after + 1..before));
        between.into_iter().flatten().find(|(seq, event)| wants(of, **seq, event)).map(|(seq, _)| *seq)
    }

    fn add(&mut self, seq: Seq, event: Arc<Event>) -> Result<(), String> {
        let judged = self.account(seq, &event);
        match self.events.insert(seq, event) {
            Some(_) => Err(format!("the number {seq} is used for a second event")),
            None => judged,
        }
    }

    /// One start, one end; up and down, coming and going, by turns.
    fn account(&mut self, seq: Seq, event: &Event) -> Result<(), String> {
        let fields = event.fields().map_err(|bad| bad.to_string())?;
        let request = || fields.request_id.as_deref().unwrap_or_default().to_owned();
        match &*event.kind {
            // Whatever was open when the instance crashed has no end.
            "instance.joined" => {
                self.open.clear();
                self.there.clear();
                self.missed = false;
            }
            _ if self.missed => {}
            "instance.left" => {
                if let Some(open) = self.open.first() {
                    return Err(format!(
                        "event {seq}: the instance left, and the end of {open} is not logged"
                    ));
                }
            }
            "request.started" if !self.open.insert(request()) => {
                return Err(format!("event {seq}: {} starts twice", request()));
            }
            "request.finished" if !self.open.remove(&request()) => {
                return Err(format!("event {seq}: {} ends without a start, or twice", request()));
            }
            kind => {
                let (concern, now) = match kind {
                    "endpoint.up" => ("endpoint", true),
                    "endpoint.down" => ("endpoint", false),
                    "model.appeared" => ("served", true),
                    "model.gone" => ("served", false),
                    "model.loaded" => ("loaded", true),
                    "model.unloaded" => ("loaded", false),
                    _ => return Ok(()),
                };
                let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
                let (endpoint, model) = (name(event.endpoint()), name(event.model()));
                let before = self.there.insert((concern, endpoint, model), now);
                // Every endpoint begins up, and with nothing.
                if before.unwrap_or(concern == "endpoint") == now {
                    return Err(format!("event {seq}: {kind} is told of what was so before: {fields:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Whether the event is one that this subscriber asked for.
fn wants(of: &Subscriber, seq: Seq, event: &Event) -> bool {
    of.wish.filter.matches(event) && event.frame_len(seq, of.last_given) <= of.wish.message_bytes_max
}

/// Floor and tip of an instance's log, by its disk if events are stored there.
fn bounds(of: &Instance) -> Bounds {
    match (&of.witness, &of.router) {
        (Some(_), Some(router)) => router.log().bounds(),
        _ => {
            let Bounds { floor, tip } = of.disk.bounds();
            Bounds { floor: floor + of.events.offset, tip: tip + of.events.offset }
        }
    }
}

/// Floor and tip as the router tells them, which it does before the disk has trimmed.
fn bounds_told(of: &Instance) -> Bounds {
    of.router.as_ref().map_or_else(|| bounds(of), |router| router.log().bounds())
}

/// Takes note of what has become durable in an instance's log, or can be seen.
pub(crate) fn learn(state: &mut State, now: u64, instance: usize) {
    let of = &mut state.instances[instance];
    let judged = if of.witness.is_some() { learn_by_sight(of) } else { learn_from_disk(of) };
    if judged == Ok(true) {
        state.reached(Point::NotStored);
    }
    if let Err(why) = judged {
        state.break_promise(now, FEED_DURABLE, format!("instance {instance}: {why}"));
    }
}

fn learn_from_disk(of: &mut Instance) -> Result<bool, String> {
    let known = of.events.stored;
    let Some(records) = of.disk.durable_records(known + 1) else { return Ok(false) };
    for (number, record) in (known + 1..).zip(records) {
        let seq = number + of.events.offset;
        of.events.stored = number;
        let event = Event::parse(record.slice(HEAD.min(record.len())..));
        let event = event.map_err(|bad| format!("event {seq}: {bad}"))?;
        of.events.add(seq, Arc::new(event))?;
    }
    Ok(false)
}

/// True if there was anything to see.
fn learn_by_sight(of: &mut Instance) -> Result<bool, String> {
    let mut any = false;
    while let Some(looked) = of.witness.as_mut().and_then(|witness| witness.next().now_or_never()) {
        match (looked, &of.router) {
            (Ok(step), _) => {
                for (seq, event) in &step.events {
                    if *seq != of.events.seen + 1 {
                        return Err(format!("event {seq} is seen after event {}", of.events.seen));
                    }
                    of.events.seen = *seq;
                    of.events.add(*seq, Arc::clone(event))?;
                    any = true;
                }
                of.witness.as_mut().expect("it has just looked").wrote(&step, step.end);
            }
            (Err(FollowError::Gone { floor }), Some(router)) => {
                let anew = router.follow(Begin::Kept, Filter::default()).now_or_never();
                let anew = anew.and_then(Result::ok).ok_or("the ring cannot be read from its floor")?;
                (of.events.seen, of.events.missed) = (floor - 1, true);
                of.witness = Some(anew);
            }
            (Err(error), _) => return Err(format!("who keeps up is told: {error}")),
        }
    }
    Ok(any)
}

/// A life's log is open: its numbers go on behind all that were ever seen.
pub(crate) async fn opened(world: &World, instance: usize, router: &Router) {
    if !router.log().is_on() {
        return;
    }
    let opened = router.log().bounds();
    let witness = router.follow(Begin::Kept, Filter::default()).await;
    let now = world.now();
    let mut state = world.state.lock();
    learn(&mut state, now, instance);
    let of = &mut state.instances[instance];
    let (newest, before) = (of.events.newest(), bounds(of));
    let none = of.settings.log.as_ref().is_some_and(|log| log.none);
    let moved = !none && opened.tip != before.tip;
    if none {
        of.events.seen = opened.tip;
        of.witness = witness.ok();
    } else {
        of.events.offset = opened.tip.saturating_sub(of.disk.bounds().tip);
    }
    if newest > before.tip {
        state.reached(if none { Point::NumbersGoOn } else { Point::StoredAgain });
    }
    if newest > opened.tip {
        let why = format!(
            "instance {instance} goes on behind number {}, and event {newest} was seen before",
            opened.tip
        );
        state.break_promise(now, FEED_DURABLE, why);
    } else if (none || moved) && opened.floor != opened.tip + 1 {
        let why = format!(
            "instance {instance} says it has events from {} to {} of a life that did not store them under these numbers",
            opened.floor, opened.tip
        );
        state.break_promise(now, FEED_DURABLE, why);
    }
}

fn broken(world: &World, number: usize, promise: &str, why: String) {
    world.break_promise(promise, format!("subscriber {number}: {why}"));
}

/// Sees to it that the witness looks whenever there is more to see.
pub(crate) async fn look_on(world: Arc<World>, instance: usize, router: Arc<Router>) {
    loop {
        let Ok(mut reader) = router.follow(Begin::Live, Filter::default()).await else { return };
        while let Ok(step) = reader.next().await {
            learn(&mut world.state.lock(), world.now(), instance);
            reader.wrote(&step, step.end);
        }
    }
}

/// A session began at a position; the tip was `tip` when it asked for it.
pub(crate) fn began(world: &World, number: usize, begin: Begin, tip: Seq, reader: &Reader) {
    let now = world.now();
    let mut state = world.state.lock();
    let instance = state.subscribers[number].instance;
    learn(&mut state, now, instance);
    let cursor = reader.cursor();
    state.trace.note(now, Actor::Subscriber(number), "begins behind event {a}", cursor, 0);
    let right = match begin {
        // Floors only rise: it is not further on than the floor is now.
        Begin::Kept if cursor < bounds_told(&state.instances[instance]).floor => Ok(()),
        Begin::Kept => Err(format!("it asked for all there is and begins after {cursor}")),
        Begin::After(after) if after == cursor => {
            state.reached(Point::Resumed);
            Ok(())
        }
        Begin::After(after) => {
            Err(format!("it asked for what comes after {after} and begins after {cursor}"))
        }
        Begin::Live if (tip..=bounds_told(&state.instances[instance]).tip).contains(&cursor) => Ok(()),
        Begin::Live => Err(format!("it asked for what comes behind {tip} and begins after {cursor}")),
        Begin::Since(time) => {
            let events = &state.instances[instance].events;
            let late = |seq: &Seq| events.get(*seq).is_some_and(|event| event.time_ms > time.as_millis());
            let missed = (bounds(&state.instances[instance]).floor..=cursor).find(late);
            let early = |event: &Arc<Event>| event.time_ms <= time.as_millis();
            let too_early = cursor < tip && events.get(cursor + 1).is_some_and(early);
            match missed {
                Some(missed) => {
                    Err(format!("event {missed} is later than it asked for, and lies before {cursor}"))
                }
                None if too_early => Err(format!("event {} is not later than it asked for", cursor + 1)),
                None => Ok(()),
            }
        }
    };
    if let Err(why) = right {
        drop(state);
        return broken(world, number, FEED_EXACT, why);
    }
    let of = &mut state.subscribers[number];
    // Who has nothing to come back with begins anew.
    of.expect = of.resume.and(of.expect).or(Some(cursor));
    of.told = cursor;
}

/// A turn was handed out.
pub(crate) fn handed(world: &World, number: usize, turn: &Turn, pump: &Pump) {
    if !matches!(turn, Turn::Events(_)) {
        return;
    }
    let ring = world.plan.settings.log.as_ref().map_or(0, |log| log.ring as u64);
    let (tip, stored) = {
        let now = world.now();
        let mut state = world.state.lock();
        let instance = world.plan.subscribers[number].instance;
        // By the time it is given the events, the ring may hold others.
        learn(&mut state, now, instance);
        let of = &state.instances[instance];
        let (tip, stored, trims) = (bounds(of).tip, of.witness.is_none(), of.trims);
        let replays = stored && tip.saturating_sub(pump.cursor()) > ring;
        let began = state.subscribers[number].replayed.take();
        if replays {
            state.subscribers[number].replayed = began.or(Some(trims));
        } else if began.is_some_and(|before| before < trims) {
            state.reached(Point::CutOverAtACut);
        }
        (tip, stored)
    };
    if stored && tip.saturating_sub(pump.cursor()) > ring {
        world.reached(Point::ReadFromDisk);
    }
    let in_hand = pump.in_hand();
    if in_hand > STEP_MAX {
        let why = format!("{in_hand} events are held for it at once, while others wait");
        broken(world, number, FEED_INDEPENDENT, why);
    }
}

/// The subscriber was given an event.
pub(crate) fn given(world: &World, number: usize, given: &Given) {
    let Given { seq, prev, event } = given;
    let (seq, prev) = (*seq, *prev);
    let now = world.now();
    let mut state = world.state.lock();
    let instance = state.subscribers[number].instance;
    learn(&mut state, now, instance);
    state.trace.note(now, Actor::Subscriber(number), "is given event {a}", seq, 0);
    let State { subscribers, instances, .. } = &mut *state;
    let (of, events) = (&mut subscribers[number], &instances[instance].events);
    let expect = of.expect.unwrap_or(seq - 1);
    let judged = match events.get(seq) {
        None => Err((FEED_DURABLE, format!("is given event {seq}, which a crash would take back"))),
        Some(known) if **known != **event => Err((
            FEED_DURABLE,
            format!("event {seq} is another than the one that was logged under this number"),
        )),
        Some(_) if seq <= expect => {
            Err((FEED_EXACT, format!("is given event {seq} after everything up to {expect}")))
        }
        Some(_) if !wants(of, seq, event) => Err((FEED_EXACT, format!("did not want event {seq}"))),
        Some(_) if prev != of.last_given => Err((
            FEED_EXACT,
            format!("event {seq} says that {prev:?} was before it, it was {:?}", of.last_given),
        )),
        Some(_) => match events.wanted(of, expect, seq) {
            Some(missed) => Err((FEED_EXACT, format!("is given event {seq}, and never was event {missed}"))),
            None => Ok(()),
        },
    };
    (of.expect, of.resume, of.last_given, of.told) = (Some(seq), Some(seq), Some(seq), seq);
    let filtered = seq > expect + 1;
    if filtered {
        state.reached(Point::Filtered);
    }
    drop(state);
    if let Err((promise, why)) = judged {
        broken(world, number, promise, why);
    }
}

/// The subscriber was told how far was looked.
pub(crate) fn moved_on(world: &World, number: usize, end: Seq) {
    let now = world.now();
    let mut state = world.state.lock();
    let instance = state.subscribers[number].instance;
    learn(&mut state, now, instance);
    let State { subscribers, instances, .. } = &mut *state;
    let of = &mut subscribers[number];
    let expect = of.expect.unwrap_or(end);
    let missed = instances[instance].events.wanted(of, expect, end + 1);
    (of.expect, of.resume, of.told) = (Some(end.max(expect)), Some(end), end);
    drop(state);
    if let Some(missed) = missed {
        broken(
            world,
            number,
            FEED_EXACT,
            format!("everything up to {end} is done with, and event {missed} never came"),
        );
    }
}

/// How long a subscriber took over what it was handed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rested {
    /// Over the last piece.
    pub(crate) last: Duration,
    /// Over all of them, in this session.
    pub(crate) total: Duration,
}

/// Its stream ended with these words.
pub(crate) fn ended(world: &World, number: usize, router: &Router, ending: &Ending, rested: &Rested) {
    let (last_seq, judged) = match ending {
        Ending::Stopping => {
            let state = world.state.lock();
            let stops = state.instances[state.subscribers[number].instance].status != Status::Up;
            (
                None,
                if stops { Ok(()) } else { Err("its stream ends, and nobody stops its instance".to_owned()) },
            )
        }
        Ending::TooSlow { last_seq, reason, .. } => (Some(*last_seq), is_slow(world, reason, rested)),
        Ending::Gone { last_seq, .. } | Ending::Failed { last_seq, .. } => (Some(*last_seq), Ok(())),
    };
    if let Err(why) = judged {
        return broken(world, number, FEED_EXPLICIT, why);
    }
    if let Some(last_seq) = last_seq {
        let told = {
            let mut state = world.state.lock();
            let of = &mut state.subscribers[number];
            // It takes the server's word for it, not its own.
            of.resume = Some(last_seq);
            of.told
        };
        world.note(Actor::Subscriber(number), "is cut off after event {a}", last_seq, 0);
        if told != last_seq {
            let why = format!(
                "is cut off and told that {last_seq} was the last number on its stream, it was {told}"
            );
            return broken(world, number, FEED_EXPLICIT, why);
        }
    }
    match ending {
        Ending::Gone { floor, .. } => refused(world, number, router, &FollowError::Gone { floor: *floor }),
        Ending::Failed { error, .. } => refused(world, number, router, error),
        Ending::TooSlow { .. } => world.reached(Point::CutOffForSlowness),
        Ending::Stopping => {}
    }
}

/// Whoever took all it was handed in time is not slow, whatever its address's rate or its lag.
fn is_slow(world: &World, reason: &str, rested: &Rested) -> Result<(), String> {
    let stall = world.plan.settings.log.as_ref().map_or(0, |log| log.stall_ms);
    let is_slow = match reason {
        "stalled" => rested.last > Duration::from_millis(stall),
        _ => rested.total >= LAGS_FOR,
    };
    if is_slow {
        Ok(())
    } else {
        Err(format!("is cut off as {reason}, and took {rested:?} over what it got"))
    }
}

/// Nothing could be read.
pub(crate) fn refused(world: &World, number: usize, router: &Router, error: &FollowError) {
    let now = world.now();
    let mut state = world.state.lock();
    let instance = state.subscribers[number].instance;
    learn(&mut state, now, instance);
    let floor = router.log().bounds().floor;
    let of = &mut state.subscribers[number];
    let why = match error {
        FollowError::Gone { floor: told } if *told <= floor && of.resume.unwrap_or(0) + 1 < floor => {
            // It was told so, and goes on from there.
            // What it was given before counts only if it came back with a number.
            let had = of.resume.and(of.expect).unwrap_or(0);
            of.expect = Some(had.max(told - 1));
            of.resume = Some(told - 1);
            state.reached(Point::ToldGone);
            return;
        }
        FollowError::Gone { floor: told } => {
            format!(
                "is told that events before {told} are gone, it stands at {:?}, the floor is {floor}",
                of.resume
            )
        }
        FollowError::Future { after, tip } => {
            format!("is told that its number {after} is ahead of the tip {tip}")
        }
        // It asks for times that its server's clock has reached.
        FollowError::NotYet { time, now } => {
            format!("is told that {} ms lies in the future, it is {} ms", time.as_millis(), now.as_millis())
        }
        // Its disk fails, fills up and forgets what was not synced; it never damages what it holds.
        FollowError::Store(StoreError::Corrupt(why)) => {
            let why = format!("is told that the log is damaged: {why}");
            drop(state);
            return broken(world, number, FEED_DURABLE, why);
        }
        FollowError::Store(_) => return,
        FollowError::Off => "is told that the log is off".to_owned(),
    };
    drop(state);
    broken(world, number, FEED_EXPLICIT, why);
}

/// After a graceful stop that said it stored everything.
pub(crate) fn after_stop(state: &mut State, now: u64, instance: usize) {
    learn(state, now, instance);
    let of = &state.instances[instance];
    let last = of.events.events.last_key_value();
    if of.settings.log.is_some() && last.is_none_or(|(_, event)| event.kind != "instance.left") {
        let why = format!("instance {instance} stopped in order, and its log ends with {last:?}");
        state.break_promise(now, FEED_DURABLE, why);
    }
}

/// Reads a stopped instance's store as `pointsman audit` does.
pub(crate) async fn audit(world: Arc<World>, instance: usize) {
    let store = SimStore { world: Arc::clone(&world), instance };
    let audited = audit::audit(&store).await;
    world.state.lock().instances[instance].audited = true;
    match audited {
        Err(error) => {
            world.break_promise(FEED_DURABLE, format!("the audit of instance {instance} fails: {error}"))
        }
        Ok(report) => {
            if let Some(found) = report.broken {
                let why = format!("the audit of instance {instance} finds: {found}");
                world.break_promise(found.broken.promise.name(), why);
            }
            world.reached(if report.crashes > 0 { Point::AuditedACrash } else { Point::Audited });
        }
    }
}

/// How far an instance's log had come at some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// The newest event that was durable.
    tip: Seq,
    /// The newest event that the router had handed in.
    handed_in: Seq,
}

/// How far every instance's log has come.
pub(crate) fn progress(world: &World) -> Vec<Progress> {
    let of = |of: &Instance| {
        let handed_in = of.router.as_ref().map_or(0, |router| {
            let log = router.log();
            log.bounds().tip + log.waiting() as Seq
        });
        Progress { tip: bounds(of).tip, handed_in }
    };
    world.state.lock().instances.iter().map(of).collect()
}

/// After quiet: what had been handed in some seconds ago is durable, and everybody has come to what was the tip.
pub(crate) fn at_rest(world: &World, before: &[Progress]) {
    let now = world.now();
    let mut state = world.state.lock();
    for (instance, Progress { handed_in, .. }) in before.iter().enumerate() {
        learn(&mut state, now, instance);
        let Some(router) = state.instances[instance].router.clone() else { continue };
        let tip = router.log().bounds().tip;
        if tip < *handed_in {
            let why = format!(
                "{} events of instance {instance} still wait to be durable at rest, seconds after they were handed in",
                handed_in - tip
            );
            state.break_promise(now, FEED_PROGRESS, why);
        }
    }
    for instance in 0..state.instances.len() {
        let connected = state.subscribers.iter().filter(|of| of.instance == instance && of.connected).count();
        let taken = state.instances[instance].seats.taken();
        if state.instances[instance].status == Status::Up && taken != connected {
            let why =
                format!("{taken} seats of instance {instance} are taken at rest, by {connected} subscribers");
            state.break_promise(now, FEED_INDEPENDENT, why);
        }
    }
    for number in 0..state.subscribers.len() {
        let of = &state.subscribers[number];
        let (instance, expect) = (of.instance, of.expect);
        let tip = before[instance].tip;
        let up = state.instances[instance].status == Status::Up;
        let came = of.sessions > 0;
        if up && came && (!of.connected || expect.is_none_or(|expect| expect < tip)) {
            let why = format!(
                "subscriber {number} has everything up to {expect:?} at rest, the tip of instance {instance} was {tip}"
            );
            state.break_promise(now, FEED_PROGRESS, why);
        }
    }
}
