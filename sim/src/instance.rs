//! The lives of an instance: start, graceful stop, crash.
//!
//! A life is `Router::live`, as in the production process; what stands here in a server's place takes
//! nothing new once it is stopped, lets answers end within the grace time and cuts the rest off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use core::time::Duration;

use pointsman::core::breaker::Health;
use pointsman::core::signal::Signal;
use pointsman::core::slots;
use pointsman::flow::flush::LoadError;
use pointsman::flow::router::{Ports, Router, StartError};
use pointsman::ports::StoreError;

use crate::disk::Disk;
use crate::executor::{Domain, Executor};
use crate::faults::Fault;
use crate::net::SimUpstream;
use crate::oracle;
use crate::plan::{AskedAs, Plan, Settings};
use crate::ports::{SimClock, SimEntropy, SimSpawn};
use crate::script::Dice;
use crate::shared::Shared;
use crate::sometimes::Point;
use crate::store::SimStore;
use crate::trace::Actor;
use crate::world::{BreakerWatch, Command, CutOff, Instance, Rows, State, Status, World};

/// How long the last flush may take, as in production.
const LAST_FLUSH: Duration = Duration::from_secs(10);

impl Instance {
    /// An instance that was never started.
    pub(crate) fn new(plan: &Plan, index: usize) -> Instance {
        Instance {
            life: 0,
            status: Status::Down,
            router: None,
            origin: 0,
            wall_offset_ms: plan.instances[index].wall_offset_ms,
            drift_ppm: plan.instances[index].drift_ppm,
            cut_off: vec![CutOff::default(); plan.endpoints.len()],
            clients_cut_off_until: 0,
            disk: Disk::default(),
            crashes_at: None,
            unsure: BTreeSet::new(),
            trims: 0,
            disk_full_until: 0,
            settings: plan.settings.clone(),
            endpoints: plan.instances[index].endpoints.clone(),
            arrivals: vec![0; plan.endpoints.len()],
            asked_as: plan.endpoints.iter().enumerate().map(|(e, of)| of.asked_as(e, &[], &[])).collect(),
            turns: vec![0; plan.endpoints.len()],
            turned_at: vec![None; plan.endpoints.len()],
            reloads: 0,
            allowed: plan.settings.limit,
            base: Rows::new(),
            recorded: Rows::new(),
            base_sum: (0, 0),
            recorded_sum: (0, 0),
            running_calls: Vec::new(),
            sent: 0,
            waited_in_vain_max: 0,
            serving: BTreeMap::new(),
            doubtful: vec![None; plan.endpoints.len()],
            stop: Signal::new(),
            listings: Vec::new(),
            numbers: Vec::new(),
            breakers: vec![BreakerWatch::new(); plan.endpoints.len()],
            told: Vec::new(),
            settled: None,
            watched: (0, 0, 0, 0),
            newest: (0, 0, 0, 0),
            flush_failed: false,
            minutes: BTreeSet::new(),
            granted_since: None,
            stored_seen: 0,
            events: Default::default(),
            witness: None,
            seats: Arc::default(),
            audited: false,
        }
    }
}

impl BreakerWatch {
    fn new() -> Self {
        BreakerWatch { health: Health::Closed, reference: Default::default(), moved_at: 0, silent_until: 0 }
    }
}

/// What of a snapshot a watcher compares: admitted, finished, queued, tokens.
pub(crate) fn summary(slots: &slots::Snapshot, tokens: (u64, u64)) -> (u64, u64, u64, u64) {
    (slots.admitted, slots.finished, slots.queued as u64, tokens.0 + tokens.1)
}

/// Begins a life, unless one is under way.
pub(crate) fn start(world: &Arc<World>, index: usize) {
    let ports = {
        let mut state = world.state.lock();
        let state = &mut *state;
        let of = &mut state.instances[index];
        if of.status != Status::Down {
            return;
        }
        of.life += 1;
        of.status = Status::Starting;
        of.origin = world.seed.stream_of("origin", &[index as u64, u64::from(of.life)]).below(1 << 50);
        of.arrivals.fill(0);
        of.turns.fill(0);
        of.turned_at.fill(None);
        of.reloads = 0;
        of.allowed = if of.settings.queue { of.settings.limit } else { u32::MAX };
        of.running_calls.clear();
        (of.sent, of.waited_in_vain_max) = (0, 0);
        of.serving.clear();
        of.listings.clear();
        of.doubtful.fill(None);
        of.numbers.clear();
        of.breakers.fill(BreakerWatch::new());
        of.told.clear();
        of.settled = None;
        of.watched = (0, 0, 0, 0);
        of.newest = (0, 0, 0, 0);
        of.flush_failed = false;
        of.minutes.clear();
        of.granted_since = None;
        of.stored_seen = 0;
        of.seats = Arc::default();
        if let Some(log) = of.settings.log.as_mut().filter(|log| log.switches && of.life > 1) {
            log.none = !log.none;
        }
        if !of.base.is_empty() {
            state.tally.reached[Point::StartedFromRows as usize] += 1;
        }
        let (life, origin) = (of.life, of.origin);
        let domain = Domain::Instance { index, life };
        let chance = world.seed.stream_of("entropy", &[index as u64, u64::from(life)]);
        let ports = Ports {
            clock: Arc::new(SimClock { world: Arc::clone(world), instance: index, origin }),
            entropy: Arc::new(SimEntropy { chance: Shared::new(chance), noise: world.noise }),
            spawn: Arc::new(SimSpawn { world: Arc::clone(world), domain }),
            upstream: Arc::new(SimUpstream { world: Arc::clone(world), instance: index, life }),
            store: Arc::new(SimStore { world: Arc::clone(world), instance: index }),
        };
        state.trace.note(world.handle.now(), Actor::Instance(index), "starts life {a}", u64::from(life), 0);
        (domain, ports)
    };
    let (domain, ports) = ports;
    let world = Arc::clone(world);
    world.handle.clone().spawn(domain, boot(world, index, domain, ports));
}

async fn boot(world: Arc<World>, index: usize, domain: Domain, ports: Ports) {
    let configured = |world: &World| {
        let state = world.state.lock();
        let of = &state.instances[index];
        (of.settings.clone(), of.endpoints.clone(), of.asked_as.clone())
    };
    let config = |(settings, endpoints, asked): &(Settings, Vec<usize>, Vec<AskedAs>)| {
        settings.config(&world.plan.endpoints, endpoints, asked)
    };
    let (router, began_with) = loop {
        let now_configured = configured(&world);
        match Router::start(config(&now_configured), ports.clone()).await {
            Ok(router) => break (router, now_configured),
            Err(StartError::Load(LoadError::Store(_)) | StartError::Log(StoreError::Unavailable(_))) => {
                ports.clock.sleep(Duration::from_millis(300)).await
            }
            Err(error) => {
                let promise = match error {
                    StartError::Load(_) => oracle::TOKEN_CONSERVATION,
                    StartError::Log(_) => oracle::FEED_DURABLE,
                };
                return world.break_promise(promise, format!("instance {index} cannot start: {error}"));
            }
        }
    };
    oracle::feed::opened(&world, index, &router).await;
    // The operator may have changed the file while the store was being read.
    let now_configured = configured(&world);
    if now_configured != began_with {
        router.reload(config(&now_configured));
    }
    let handle = &world.handle;
    if began_with.0.log.as_ref().is_some_and(|log| log.none) {
        handle.spawn(domain, oracle::feed::look_on(Arc::clone(&world), index, Arc::clone(&router)));
    }
    handle.spawn(domain, watch(Arc::clone(&world), index, Arc::clone(&router)));
    handle.spawn(domain, live(Arc::clone(&world), index, Arc::clone(&router)));
    let now = world.now();
    let mut state = world.state.lock();
    let of = &mut state.instances[index];
    of.router = Some(router);
    of.allowed = if of.settings.queue { of.settings.limit } else { u32::MAX };
    of.status = Status::Up;
    state.trace.note(now, Actor::Instance(index), "is up", 0, 0);
}

/// Follows the snapshots, as the usage stream does.
async fn watch(world: Arc<World>, index: usize, router: Arc<Router>) {
    loop {
        let changed = router.usage().changed();
        let usage = router.usage().snapshot();
        let tokens = usage.tokens.values().fold((0, 0), |sum, t| (sum.0 + t.input, sum.1 + t.output));
        let seen = summary(&usage.slots, tokens);
        world.state.lock().instances[index].watched = seen;
        changed.await;
    }
}

/// Lives as a process does, until its operator stops it.
async fn live(world: Arc<World>, index: usize, router: Arc<Router>) {
    let ((), stored) = router.live(serving(&world, index), LAST_FLUSH).await;
    let what =
        if stored.is_ok() { "has stored everything and ends" } else { "could not store everything and ends" };
    world.note(Actor::Instance(index), what, 0, 0);
    world.state.lock().commands.push(Command::Stopped(index, stored.is_ok()));
}

/// Tells an instance to stop gracefully, if it is up.
pub(crate) fn stop(world: &World, index: usize) {
    let mut state = world.state.lock();
    let of = &mut state.instances[index];
    if of.status == Status::Up {
        of.status = Status::Stopping;
        of.stop.notify();
        state.trace.note(world.now(), Actor::Instance(index), "stops: takes nothing new", 0, 0);
    }
}

/// What a server does: completes once it was stopped and its answers have ended, or were cut off because
/// the grace time was over.
async fn serving(world: &World, index: usize) {
    loop {
        let (stop, status) = {
            let state = world.state.lock();
            (state.instances[index].stop.listen(), state.instances[index].status)
        };
        if status == Status::Stopping {
            break;
        }
        stop.await;
    }
    let handle = &world.handle;
    let until = world.now() + world.plan.settings.drain_grace_ms * 1_000_000;
    let serving = || world.state.lock().instances[index].serving.keys().copied().collect::<Vec<usize>>();
    let waited = !serving().is_empty();
    while !serving().is_empty() && world.now() < until {
        handle.sleep(Duration::from_millis(20)).await;
    }
    let left = serving();
    if !left.is_empty() {
        world.reached(Point::DrainCutOff);
        left.iter().for_each(|task| handle.cancel(*task));
        // What was cancelled is dropped at the end of this step.
        handle.sleep(Duration::from_nanos(1)).await;
    } else if waited {
        world.reached(Point::DrainedWhole);
    }
}

/// Ends a life: in a crash, or when a graceful stop is over and its last flush worked or not.
pub(crate) fn end(world: &World, executor: &mut Executor, index: usize, stopped: Option<bool>) {
    let now = world.now();
    let (domain, router, witness) = {
        let mut state = world.state.lock();
        // What was seen without being stored is not there to be learned later.
        oracle::feed::learn(&mut state, now, index);
        let of = &mut state.instances[index];
        if of.status == Status::Down {
            return;
        }
        let domain = Domain::Instance { index, life: of.life };
        // From here on what its dropped calls and clients do counts no more.
        of.status = Status::Down;
        of.running_calls.clear();
        of.told.clear();
        (domain, of.router.take(), of.witness.take())
    };
    let before = router.as_ref().map(|router| router.usage().ledger().balance());
    executor.kill(domain);
    drop((router, witness));
    let mut state = world.state.lock();
    let life = u64::from(state.instances[index].life);
    match stopped {
        Some(true) => {
            state.instances[index].disk.sync();
            oracle::after_stop(&mut state, &world.plan, now, index);
            oracle::feed::after_stop(&mut state, now, index);
        }
        Some(false) => {
            state.instances[index].disk.sync();
            oracle::after_crash(&mut state, &world.plan, now, index, before);
        }
        None => {
            state.trace.note(now, Actor::Instance(index), "crashes in life {a}", life, 0);
            if state.instances[index].disk.unsynced() > 0 {
                state.reached(Point::CrashDuringWrite);
            }
            crash(&mut state, world, now, index);
            oracle::after_crash(&mut state, &world.plan, now, index, before);
        }
    }
}

/// What a crash does to the disk. The end of a process alone takes nothing that was written; the end of a
/// machine takes what was not synced, or leaves the first of it.
fn crash(state: &mut State, world: &World, now: u64, index: usize) {
    let switches = (!state.calm).then_some(&world.plan.faults);
    let key = [index as u64, u64::from(state.instances[index].life), 0, 4];
    let dice = Dice { seed: world.seed, key, switches };
    let disk = &mut state.instances[index].disk;
    let unsynced = disk.unsynced();
    let (kept, fault) = if dice.strikes(Fault::LostWrites) {
        (0, Some(Fault::LostWrites))
    } else if unsynced > 1 && dice.strikes(Fault::TornWrite) {
        (dice.stream("torn at").within(1, unsynced as u64 - 1) as usize, Some(Fault::TornWrite))
    } else {
        (unsynced, None)
    };
    disk.crash(kept);
    state.instances[index].unsure.clear();
    if let Some(fault) = fault.filter(|_| unsynced > 0) {
        state.struck(now, Actor::Store(index), fault);
    }
}
