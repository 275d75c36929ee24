//! One world from its beginning to its end: the plan is carried out, then it heals, then every promise
//! about what must finally come true is called in.

use core::panic::AssertUnwindSafe;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Arc;

use crate::client;
use crate::executor::{Domain, Executor, Step};
use crate::faults::Fault;
use crate::instance;
use crate::operator;
use crate::oracle;
use crate::panics;
use crate::plan::{Call, Plan, RequestPlan};
use crate::shared::Shared;
use crate::streams::Seed;
use crate::subscriber;
use crate::trace::{Actor, Line, Trace};
use crate::world::{
    CallKind, Command, CutOff, Ending, Endpoint, Instance, State, Status, Tally, Violation, World,
};

/// More steps than any plan needs: a world that takes more spins.
const STEPS_MAX: u64 = 300_000;

/// Room for the calls of an ordinary world.
const CALLS: usize = 128;

const SECOND: u64 = 1_000_000_000;

/// When faults have stopped, everybody has an answer within this time.
const ANSWERS_WITHIN: u64 = 300 * SECOND;

/// ... and whatever is served can be had within this time; listings may be stale for 300 s and errors
/// are believed for as long.
const SERVED_WITHIN: u64 = 700 * SECOND;

/// What came of one world.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    /// Tasks polled.
    pub(crate) events: u64,
    pub(crate) hash: u64,
    /// Nanoseconds of virtual time.
    pub(crate) nanos: u64,
    pub(crate) tally: Tally,
    /// If they were asked for.
    pub(crate) lines: Vec<Line>,
}

/// Lives through a plan.
pub(crate) fn run(plan: &Plan, keep_lines: bool) -> Outcome {
    run_with(plan, keep_lines, 0)
}

/// The same, with `noise` in what its routers take for chance: what a world must never have.
pub(crate) fn run_with(plan: &Plan, keep_lines: bool, noise: u64) -> Outcome {
    let mut run = Run::new(plan.clone(), keep_lines, noise);
    let result = catch_unwind(AssertUnwindSafe(|| run.live()));
    if result.is_err() {
        let said = panics::take();
        let promise = oracle::PROMISES.iter().find(|promise| said.contains(*promise));
        let promise = promise.copied().unwrap_or(oracle::ANSWER_ENDS);
        run.world.break_promise(promise, format!("panic: {said}"));
    }
    let mut outcome = run.outcome();
    if outcome.violation.is_some() {
        // A router that has given back what it never had may panic while it is dropped.
        core::mem::forget(run);
    } else if catch_unwind(AssertUnwindSafe(|| run.close())).is_err() {
        let why = format!("panic when the world ended: {}", panics::take());
        let at = outcome.nanos;
        outcome.violation = Some(Violation { promise: oracle::SLOT_CONSERVATION.to_owned(), why, at });
    }
    outcome
}

struct Run {
    world: Arc<World>,
    executor: Executor,
    /// Instances that stand still.
    paused: Vec<usize>,
}

impl Run {
    fn new(plan: Plan, keep_lines: bool, noise: u64) -> Run {
        let seed = Seed(plan.seed);
        let executor = Executor::new(seed.stream("schedule"));
        let endpoint = |plan: &crate::plan::EndpointPlan| Endpoint {
            models: plan.models.clone(),
            down_until: 0,
            went_down: None,
            vanished_until: 0,
            vanished_at: None,
            ghosts: Vec::new(),
            peak: 0,
            tokens: 0,
        };
        let state = State {
            trace: Trace::new(keep_lines),
            tally: Tally::default(),
            broken: None,
            calm: false,
            endpoints: plan.endpoints.iter().map(endpoint).collect(),
            instances: (0..plan.instances.len()).map(|index| Instance::new(&plan, index)).collect(),
            calls: Vec::with_capacity(CALLS),
            clients: Vec::new(),
            subscribers: Vec::new(),
            commands: Vec::new(),
            listings_made: BTreeMap::new(),
            store_operations: vec![0; plan.instances.len()],
        };
        let handle = executor.handle().clone();
        let world = Arc::new(World { plan, seed, noise, handle, state: Shared::new(state) });
        Run { world, executor, paused: Vec::new() }
    }

    fn live(&mut self) {
        let world = Arc::clone(&self.world);
        for index in 0..world.plan.instances.len() {
            instance::start(&world, index);
        }
        subscriber::arrive(&world);
        self.clocks();
        world.handle.spawn(Domain::World, operator::workload(Arc::clone(&world)));
        world.handle.spawn(Domain::World, operator::operate(Arc::clone(&world)));
        self.until(world.plan.duration_ms * 1_000_000, |_| false);
        self.heal();
    }

    /// What is wrong with a clock is wrong from the beginning.
    fn clocks(&self) {
        for (index, plan) in self.world.plan.instances.iter().enumerate() {
            let wrong = [(plan.wall_offset_ms, Fault::WallSkew), (plan.drift_ppm, Fault::ClockDrift)];
            for (_, fault) in wrong.into_iter().filter(|(by, _)| *by != 0) {
                self.world.struck(Actor::Instance(index), fault);
            }
        }
    }

    fn is_broken(&self) -> bool {
        self.world.state.lock().broken.is_some()
    }

    /// Goes on until `time`, or until `done` holds, or a promise is broken. Tells whether `done` held.
    fn until(&mut self, time: u64, done: impl Fn(&World) -> bool) -> bool {
        let mut broken = self.is_broken();
        while !broken && !done(&self.world) {
            broken = match self.executor.step(time) {
                Step::Idle => return done(&self.world),
                Step::Advanced => oracle::published(&self.world, &self.paused),
                Step::Ran(task, domain) => self.after(task, domain),
            };
        }
        true
    }

    /// Whether a promise is broken.
    fn after(&mut self, task: usize, domain: Domain) -> bool {
        let world = Arc::clone(&self.world);
        let now = world.now();
        let mut state = world.state.lock();
        state.trace.mix(now ^ ((task as u64) << 48));
        while !state.commands.is_empty() {
            let commands = core::mem::take(&mut state.commands);
            drop(state);
            commands.into_iter().for_each(|command| self.obey(command));
            state = world.state.lock();
        }
        match domain {
            Domain::Instance { index, .. } => oracle::after_step(&mut state, &world, index),
            Domain::World => (0..world.plan.instances.len())
                .for_each(|index| oracle::after_step(&mut state, &world, index)),
        }
        if self.executor.steps() > STEPS_MAX {
            state.break_promise(now, oracle::ANSWER_ENDS, format!("still busy after {STEPS_MAX} steps"));
        }
        state.broken.is_some()
    }

    fn obey(&mut self, command: Command) {
        let world = Arc::clone(&self.world);
        match command {
            Command::Crash(index) => instance::end(&world, &mut self.executor, index, None),
            Command::Stopped(index, stored) => {
                instance::end(&world, &mut self.executor, index, Some(stored));
            }
            Command::Pause(index) => {
                world.note(Actor::Instance(index), "stands still", 0, 0);
                self.executor.pause(world.domain(index));
                self.paused.push(index);
            }
            Command::Resume(index) => {
                world.note(Actor::Instance(index), "goes on", 0, 0);
                self.executor.resume(world.domain(index));
                self.paused.retain(|paused| *paused != index);
            }
        }
    }

    /// Faults stop; what was promised for the end must come true.
    fn heal(&mut self) {
        let world = Arc::clone(&self.world);
        if self.is_broken() {
            return;
        }
        world.note(Actor::World, "faults stop", 0, 0);
        {
            let now = world.now();
            let mut state = world.state.lock();
            state.calm = true;
            for endpoint in &mut state.endpoints {
                endpoint.down_until = now;
                endpoint.vanished_until = now;
            }
            for of in &mut state.instances {
                of.cut_off.fill(CutOff::default());
                of.clients_cut_off_until = now;
                of.disk_full_until = now;
                of.crashes_at = None;
            }
        }
        for index in core::mem::take(&mut self.paused) {
            self.executor.resume(world.domain(index));
        }

        let up = |world: &World| world.state.lock().instances.iter().all(|of| of.status == Status::Up);
        let ended = |world: &World| world.state.lock().clients.iter().all(|client| client.ended.is_some());
        let by = world.now() + ANSWERS_WITHIN;
        if !self.until(by, |world| up(world) && ended(world)) {
            let state = world.state.lock();
            let waiting = state.clients.iter().filter(|client| client.ended.is_none()).count();
            drop(state);
            let why = format!("{waiting} requests have not ended 300 s after the faults stopped");
            return world.break_promise(oracle::ANSWER_ENDS, why);
        }
        self.everything_can_be_had();
        self.nothing_is_left();
        self.everything_is_stored();
    }

    /// Whatever an endpoint serves, every instance can have, sooner or later.
    fn everything_can_be_had(&mut self) {
        let world = Arc::clone(&self.world);
        let mut asked = 1_000_000;
        for instance in 0..world.plan.instances.len() {
            for model in self.served(instance) {
                let by = world.now() + SERVED_WITHIN;
                loop {
                    asked += 1;
                    let client = client::arrive(&world, Arc::new(probe(asked, instance, model)));
                    let over = self.until(by + ANSWERS_WITHIN, |world| {
                        world.state.lock().clients[client].ended.is_some()
                    });
                    if self.is_broken() {
                        return;
                    }
                    let got = {
                        let state = world.state.lock();
                        let of = &state.clients[client];
                        over && of.status == Some(200)
                            && !of.error_said
                            && of.ended.is_some_and(|(_, how)| how == Ending::Answered)
                    };
                    if got {
                        break;
                    }
                    if world.now() > by {
                        let why = format!(
                            "model {model} is served, but instance {instance} gives no answer for it 700 s after the faults stopped"
                        );
                        return world.break_promise(oracle::ANSWER_ENDS, why);
                    }
                    self.until(world.now() + 7 * SECOND, |_| false);
                }
            }
        }
    }

    /// Models that an endpoint in the instance's configuration serves.
    fn served(&self, instance: usize) -> Vec<usize> {
        let state = self.world.state.lock();
        let endpoints = &state.instances[instance].endpoints;
        let serves = |model: usize| endpoints.iter().any(|e| state.endpoints[*e].models[model].0);
        (0..self.world.plan.endpoints[0].models.len()).filter(|model| serves(*model)).collect()
    }

    /// No slot, no waiter, no call, no task but those that always run.
    fn nothing_is_left(&mut self) {
        let world = Arc::clone(&self.world);
        // Long enough for two flushes.
        let quiet = 2 * world.plan.settings.flush_interval_ms * 1_000_000 + 10 * SECOND;
        self.until(world.now() + quiet, |_| false);
        // Whoever wants nothing of what came last is told how far that was a second later.
        let before = oracle::feed::progress(&world);
        self.until(world.now() + 3 * SECOND, |_| false);
        oracle::feed::at_rest(&world, &before);
        for index in 0..world.plan.instances.len() {
            if self.is_broken() {
                return;
            }
            oracle::at_rest(&world, index);
            let (listings, calls) = {
                let state = world.state.lock();
                let open = state
                    .calls
                    .iter()
                    .filter(|call| call.open && call.instance == index && state.is_alive(index, call.life));
                let (listings, calls): (Vec<_>, Vec<_>) =
                    open.partition(|call| matches!(call.kind, CallKind::Listing(_)));
                (listings.len(), calls.len())
            };
            if calls > 0 {
                let why = format!("{calls} calls of instance {index} are still under way at rest");
                world.break_promise(oracle::ANSWER_ENDS, why);
            }
            // Its life, the watcher, the witness, a fetch per listing under way, and its subscribers.
            let tasks = self.executor.running(world.domain(index));
            let state = world.state.lock();
            let subscribers =
                state.subscribers.iter().filter(|of| of.instance == index && of.connected).count();
            let witness = usize::from(state.instances[index].witness.is_some());
            drop(state);
            if tasks > 2 + witness + listings + subscribers {
                let why = format!(
                    "{tasks} tasks of instance {index} still run at rest, {listings} of them fetch listings"
                );
                world.break_promise(oracle::ANSWER_ENDS, why);
            }
        }
    }

    /// A graceful stop loses nothing.
    fn everything_is_stored(&mut self) {
        let world = Arc::clone(&self.world);
        for index in 0..world.plan.instances.len() {
            if self.is_broken() {
                return;
            }
            instance::stop(&world, index);
            let down = |world: &World| world.state.lock().instances[index].status == Status::Down;
            if !self.until(world.now() + 60 * SECOND, down) {
                let why = format!("instance {index} has not stopped after 60 s");
                return world.break_promise(oracle::ANSWER_ENDS, why);
            }
        }
        if world.plan.settings.log.is_some() {
            self.audits_find_nothing();
        }
    }

    /// What `pointsman audit` says of each store.
    fn audits_find_nothing(&mut self) {
        let world = Arc::clone(&self.world);
        let count = world.plan.instances.len();
        for instance in 0..count {
            world.handle.spawn(Domain::World, oracle::feed::audit(Arc::clone(&world), instance));
        }
        let all =
            |world: &World| world.state.lock().instances.iter().filter(|of| of.audited).count() == count;
        if !self.until(world.now() + 60 * SECOND, all) {
            world.break_promise(oracle::FEED_PROGRESS, "a store cannot be audited within 60 s".to_owned());
        }
    }

    fn outcome(&self) -> Outcome {
        let mut state = self.world.state.lock();
        for client in 0..state.clients.len() {
            let ended = state.clients[client].ended.map_or(0, |(at, how)| at ^ (how as u64));
            state.trace.mix(ended);
        }
        Outcome {
            violation: state.broken.clone(),
            events: self.executor.steps(),
            hash: state.trace.hash(),
            nanos: self.world.now(),
            tally: state.tally.clone(),
            lines: state.trace.take_lines(),
        }
    }

    /// Drops everything; actors and routers hold each other alive otherwise.
    fn close(mut self) {
        let routers: Vec<_> =
            self.world.state.lock().instances.iter_mut().map(|of| of.router.take()).collect();
        self.world.state.lock().instances.iter_mut().for_each(|of| of.status = Status::Down);
        drop(routers);
        self.executor.shut_down();
    }
}

/// A patient client that speaks what every endpoint speaks.
fn probe(id: u64, instance: usize, model: usize) -> RequestPlan {
    RequestPlan {
        id,
        at_us: 0,
        instance,
        call: Call::OpenAiChat,
        model,
        tagged: false,
        stream: true,
        wants_usage: false,
        leaves_after_us: None,
        leaves_after_chunks: None,
        rests_us: 0,
        tokens: 1,
    }
}
