//! One world: what every actor in it can reach, behind the one lock.
//!
//! Holds facts only (calls, clients, disks, clocks, tallies). What they mean is judged in `oracle`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use pointsman::core::breaker::Health;
use pointsman::core::time::Timestamp;
use pointsman::flow::follow::Reader;
use pointsman::flow::pump::Wish;
use pointsman::flow::router::Router;
use pointsman::flow::seats::Seats;

use crate::disk::Disk;
use pointsman::core::signal::Signal;

use crate::executor::{Domain, Handle, TaskId};
use crate::faults::Fault;
use crate::oracle::breakers::{self, Told};
use crate::oracle::calls::Closed;
use crate::oracle::counts::Settled;
use crate::oracle::feed::Reference;
use crate::plan::{AskedAs, Plan, RequestPlan, Settings};
use crate::shared::Shared;
use crate::sometimes::Point;
use crate::streams::Seed;
use crate::trace::{Actor, Trace};

/// Where wall clocks begin: some minute of 2026, in milliseconds.
const WALL_BEGINS_MS: i64 = 1_790_000_000_000;

/// A promise that was seen broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Violation {
    /// Its name in the design.
    pub(crate) promise: String,
    /// What was seen, in one line.
    pub(crate) why: String,
    /// When, in nanoseconds since the world began.
    pub(crate) at: u64,
}

/// How often something happened.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) fired: Vec<u64>,
    pub(crate) reached: Vec<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Tally { fired: vec![0; Fault::ALL.len()], reached: vec![0; Point::ALL.len()] }
    }
}

/// Everything that can be reached by everybody.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) seed: Seed,
    /// Chance from outside, which no world has: 0 but for the canary of `determinism`.
    pub(crate) noise: u64,
    pub(crate) handle: Handle,
    pub(crate) state: Shared<State>,
}

/// What changes.
pub(crate) struct State {
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    pub(crate) broken: Option<Violation>,
    /// Faults have stopped.
    pub(crate) calm: bool,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) instances: Vec<Instance>,
    pub(crate) calls: Vec<Call>,
    pub(crate) clients: Vec<Client>,
    pub(crate) subscribers: Vec<Subscriber>,
    /// For whoever drives the executor.
    pub(crate) commands: Vec<Command>,
    /// Listing calls so far, by instance and endpoint, so that each has streams of its own.
    pub(crate) listings_made: BTreeMap<(usize, usize), u64>,
    /// Store operations so far, by instance.
    pub(crate) store_operations: Vec<u64>,
}

/// What only the driver of the executor can do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    Crash(usize),
    Pause(usize),
    Resume(usize),
    /// A graceful stop has ended; the last flush worked or not.
    Stopped(usize, bool),
}

/// One backend, as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// By model number: listed, loaded.
    pub(crate) models: Vec<(bool, bool)>,
    pub(crate) down_until: u64,
    /// When it last went down: calls opened before that are broken.
    pub(crate) went_down: Option<u64>,
    pub(crate) vanished_until: u64,
    /// When it last vanished: calls opened before that stay half open.
    pub(crate) vanished_at: Option<u64>,
    /// Until when it works for calls that were dropped without its knowing.
    pub(crate) ghosts: Vec<u64>,
    /// Requests running at most, for any model.
    pub(crate) peak: u32,
    /// Tokens of the answers it saw read to where its counts are.
    pub(crate) tokens: u64,
}

/// How far an instance and an endpoint are cut off from each other: nothing passes until then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CutOff {
    pub(crate) requests_until: u64,
    pub(crate) answers_until: u64,
}

/// Where an instance's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Down,
    Starting,
    Up,
    Stopping,
}

/// Input and output tokens by minute, endpoint and model.
pub(crate) type Rows = BTreeMap<(u64, usize, usize), (u64, u64)>;

/// One router, as the world sees it.
pub(crate) struct Instance {
    pub(crate) life: u32,
    pub(crate) status: Status,
    pub(crate) router: Option<Arc<Router>>,
    /// Its monotonic clock's reading when the world began; another in every life.
    pub(crate) origin: u64,
    pub(crate) wall_offset_ms: i64,
    /// What its wall clock gains in a million parts of time.
    pub(crate) drift_ppm: i64,
    /// By endpoint.
    pub(crate) cut_off: Vec<CutOff>,
    /// Nothing passes between it and its clients until then.
    pub(crate) clients_cut_off_until: u64,
    pub(crate) disk: Disk,
    /// It crashes once so many writes are under way, and stays down for so long, in microseconds.
    pub(crate) crashes_at: Option<(usize, u64)>,
    /// Keys whose last write worked although it was said to have failed.
    pub(crate) unsure: BTreeSet<String>,
    /// Trims that took events away.
    pub(crate) trims: u64,
    pub(crate) disk_full_until: u64,
    pub(crate) settings: Settings,
    pub(crate) endpoints: Vec<usize>,
    /// By endpoint: how often it came anew into the configuration in this life.
    pub(crate) arrivals: Vec<u32>,
    /// By endpoint: how the configuration in force has it asked, or had when it was last in it.
    pub(crate) asked_as: Vec<AskedAs>,
    /// By endpoint: how often that changed in this life, and when it last did.
    pub(crate) turns: Vec<u32>,
    pub(crate) turned_at: Vec<Option<u64>>,
    /// Configurations put in force in this life, after the first.
    pub(crate) reloads: u32,
    /// No count may rise above this.
    pub(crate) allowed: u32,
    /// What the store must hold from earlier lives.
    pub(crate) base: Rows,
    /// What was counted in this life.
    pub(crate) recorded: Rows,
    /// The sums of `base` and of `recorded`.
    pub(crate) base_sum: (u64, u64),
    pub(crate) recorded_sum: (u64, u64),
    /// Calls that run a model now.
    pub(crate) running_calls: Vec<usize>,
    /// Such calls in this life.
    pub(crate) sent: u64,
    /// Clients of this life that have come to what may be the end of a wait in vain.
    pub(crate) waited_in_vain_max: u64,
    /// Tasks of clients now served.
    pub(crate) serving: BTreeMap<TaskId, usize>,
    /// By endpoint: since when requests have gone there although its last word about what it has loaded is
    /// an error that should have been asked about again.
    pub(crate) doubtful: Vec<Option<u64>>,
    /// Notified when it is told to stop.
    pub(crate) stop: Signal,
    pub(crate) listings: Vec<Listing>,
    /// By the router's number for it: which endpoint.
    pub(crate) numbers: Vec<usize>,
    /// By endpoint.
    pub(crate) breakers: Vec<BreakerWatch>,
    /// What calls told in the present step, for the breakers.
    pub(crate) told: Vec<Told>,
    /// What its counts were last found right against in this life.
    pub(crate) settled: Option<Settled>,
    /// The last snapshot the watcher saw: admitted, finished, queued, tokens.
    pub(crate) watched: (u64, u64, u64, u64),
    /// What was so at the end of its last step.
    pub(crate) newest: (u64, u64, u64, u64),
    /// A write to the store failed since the last flush that worked.
    pub(crate) flush_failed: bool,
    /// Minutes of the rows recorded since the last flush.
    pub(crate) minutes: BTreeSet<u64>,
    /// Since when a granted slot has not been collected.
    pub(crate) granted_since: Option<u64>,
    /// What the router last said it had stored.
    pub(crate) stored_seen: u64,
    /// Its event log: what is durable, or what was seen in lives that stored no events.
    pub(crate) events: Reference,
    /// In such a life: who sees every event as soon as anybody can.
    pub(crate) witness: Option<Reader>,
    /// Who follows this life.
    pub(crate) seats: Arc<Seats>,
    /// Its store was read once more when all was over.
    pub(crate) audited: bool,
}

/// One endpoint's health as the router has it, and as its calls tell it.
#[derive(Clone, Debug)]
pub(crate) struct BreakerWatch {
    pub(crate) health: Health,
    pub(crate) reference: breakers::Reference,
    /// When a byte last came, or somebody began to wait for one while nobody else did.
    pub(crate) moved_at: u64,
    /// When a call last moved or ended after a long silence: until then the endpoint may have been
    /// held to be wedged.
    pub(crate) silent_until: u64,
}

/// One listing that an instance asked for.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) endpoint: usize,
    pub(crate) path: &'static str,
    /// How the endpoint was asked, and the how-many-th way of asking it that was in this life.
    pub(crate) asked_as: AskedAs,
    pub(crate) turn: u32,
    pub(crate) began: u64,
    pub(crate) ended: Option<u64>,
    /// By model number: it was in it. `None`: it failed.
    pub(crate) held: Option<Vec<bool>>,
    /// By model number: it was said to be in memory. `None`: it failed.
    pub(crate) loaded: Option<Vec<bool>>,
}

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// It runs a model: this one.
    Inference(usize),
    /// It asks for a listing: the how-many-th of the instance's.
    Listing(usize),
    /// It runs nothing.
    Other,
}

/// One call from an instance to an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) instance: usize,
    pub(crate) life: u32,
    pub(crate) endpoint: usize,
    pub(crate) kind: CallKind,
    pub(crate) client: Option<usize>,
    /// How the configuration had its endpoint asked when it was opened, and the key it came with.
    pub(crate) asked_as: AskedAs,
    pub(crate) key: u32,
    pub(crate) opened: u64,
    /// The endpoint works on it.
    pub(crate) open: bool,
    /// How it ended.
    pub(crate) closed: Option<Closed>,
    pub(crate) status: Option<u16>,
    /// What a client may see of the answer, to its very end.
    pub(crate) visible: Bytes,
    /// That is the whole of it, as far as the endpoint is concerned.
    pub(crate) whole: bool,
    /// Who has taken so many bytes knows that the message is whole, if it ever is.
    pub(crate) complete_at: Option<usize>,
    /// Bytes the router has taken.
    pub(crate) taken: usize,
    /// When it took the last of them.
    pub(crate) taken_at: u64,
    /// Its tokens, once they are known to the router.
    pub(crate) counted: Option<(u64, u64)>,
}

/// One follower of an instance's event log.
#[derive(Clone, Debug)]
pub(crate) struct Subscriber {
    pub(crate) instance: usize,
    /// What it wants now.
    pub(crate) wish: Wish,
    /// With which number it comes back.
    pub(crate) resume: Option<u64>,
    /// Everything up to here was given to it, or not wanted.
    pub(crate) expect: Option<u64>,
    /// How many trims there had been when it was last given events that the ring did not hold.
    pub(crate) replayed: Option<u64>,
    /// The last event it was given in this session.
    pub(crate) last_given: Option<u64>,
    /// The last number it was told in this session, or where the session began.
    pub(crate) told: u64,
    pub(crate) connected: bool,
    pub(crate) sessions: u64,
    /// Notified when a session ends.
    pub(crate) ended: Signal,
}

/// How a client's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Answered,
    Refused,
    BrokenOff,
    Left,
    /// Its instance crashed, or cut it off when it stopped.
    CutOff,
    /// No instance was there to ask.
    NotServed,
}

/// One request of one client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) asked: Arc<RequestPlan>,
    pub(crate) instance: usize,
    pub(crate) began: u64,
    pub(crate) ended: Option<(u64, Ending)>,
    /// The status it got.
    pub(crate) status: Option<u16>,
    /// Calls that were made for it.
    pub(crate) calls: Vec<usize>,
    /// Of these, those whose answer can be what it got so far; `None` before the first byte.
    pub(crate) sources: Option<Vec<usize>>,
    pub(crate) got: usize,
    pub(crate) error_said: bool,
    /// It was told so at once: it never had a place in the queue, nor a slot.
    pub(crate) turned_away: bool,
}

impl World {
    /// Now, in nanoseconds since the world began.
    pub(crate) fn now(&self) -> u64 {
        self.handle.now()
    }

    /// Notes what somebody did.
    pub(crate) fn note(&self, actor: Actor, what: &'static str, a: u64, b: u64) {
        let now = self.now();
        self.state.lock().trace.note(now, actor, what, a, b);
    }

    /// A remark for readers of the timeline.
    pub(crate) fn remark(&self, actor: Actor, text: impl FnOnce() -> String) {
        let now = self.now();
        self.state.lock().trace.remark(now, actor, text);
    }

    /// A point was reached.
    pub(crate) fn reached(&self, point: Point) {
        self.state.lock().reached(point);
    }

    /// A fault acts.
    pub(crate) fn struck(&self, actor: Actor, fault: Fault) {
        let now = self.now();
        self.state.lock().struck(now, actor, fault);
    }

    /// A promise is broken; the first one counts.
    pub(crate) fn break_promise(&self, promise: &str, why: String) {
        let now = self.now();
        self.state.lock().break_promise(now, promise, why);
    }

    /// Completes once an instance's clients can reach it.
    pub(crate) async fn reachable(&self, instance: usize) {
        let until = |world: &World| {
            let now = world.now();
            let mut state = world.state.lock();
            let until = Some(state.instances[instance].clients_cut_off_until).filter(|until| now < *until);
            if until.is_some() {
                state.struck(now, Actor::Instance(instance), Fault::ClientPartition);
            }
            until
        };
        while let Some(until) = until(self) {
            self.handle.sleep_until(until).await;
        }
    }

    /// The domain of an instance's present life.
    pub(crate) fn domain(&self, instance: usize) -> Domain {
        Domain::Instance { index: instance, life: self.state.lock().instances[instance].life }
    }
}

impl State {
    pub(crate) fn reached(&mut self, point: Point) {
        self.tally.reached[point as usize] += 1;
    }

    pub(crate) fn struck(&mut self, now: u64, actor: Actor, fault: Fault) {
        self.tally.fired[fault as usize] += 1;
        self.trace.note(now, actor, fault.name(), 0, 1);
    }

    pub(crate) fn break_promise(&mut self, now: u64, promise: &str, why: String) {
        if self.broken.is_none() {
            self.trace.note(now, Actor::World, "a promise is broken", 0, 0);
            self.trace.remark(now, Actor::World, || format!("VIOLATION {promise}: {why}"));
            self.broken = Some(Violation { promise: promise.to_owned(), why, at: now });
        }
    }

    /// An instance's wall clock, in milliseconds.
    pub(crate) fn wall(&self, instance: usize, now: u64) -> Timestamp {
        let of = &self.instances[instance];
        let gained = (now as i128 * i128::from(of.drift_ppm) / 1_000_000) as i64;
        let millis = WALL_BEGINS_MS + (now as i64 + gained) / 1_000_000 + of.wall_offset_ms;
        Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// Slots granted to somebody who has not collected them.
    pub(crate) fn handed_over(&self, instance: usize) -> u32 {
        let router = self.instances[instance].router.as_ref();
        router.map_or(0, |router| router.usage().snapshot().slots.handed_over as u32)
    }

    /// This life has not ended.
    pub(crate) fn is_alive(&self, instance: usize, life: u32) -> bool {
        self.instances[instance].life == life && self.instances[instance].status != Status::Down
    }
}
