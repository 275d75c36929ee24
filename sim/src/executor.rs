//! Who runs next: a single-threaded executor that picks among the ready tasks at random, and the
//! virtual clock that moves only when nobody is ready.
//!
//! Every task belongs to a [`Domain`], one life of one instance or the world around them: a paused
//! domain is not polled, a killed one is dropped whole, which is what a crash does. The trace of
//! picks is a pure function of the `schedule` stream and of what the tasks do.

use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll};
use core::time::Duration;
use std::sync::Arc;
use std::task::{Wake, Waker};

use pointsman::ports::{BoxFuture, Task};

use crate::shared::Shared;
use crate::streams::Stream;

/// Numbers tasks in the order of their start; never reused.
pub(crate) type TaskId = usize;

/// Whose task it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Domain {
    /// The workload, the operator and whatever else no crash can stop.
    World,
    /// One life of one instance.
    Instance {
        /// Which instance.
        index: usize,
        /// Its how-many-th life.
        life: u32,
    },
}

/// What every task, timer and port of one world holds.
#[derive(Clone)]
pub(crate) struct Handle {
    schedule: Arc<Shared<Schedule>>,
    /// Nanoseconds since the world began. Not in the schedule, since everybody asks all the time.
    now: Arc<AtomicU64>,
}

#[derive(Default)]
struct Schedule {
    ready: Vec<TaskId>,
    /// By task: it is in `ready`, or set aside because its domain is paused.
    queued: Vec<bool>,
    timers: Timers,
    /// Started during the present step.
    spawned: Vec<(TaskId, Domain, BoxFuture<'static, ()>)>,
    /// Cancelled during the present step.
    cancelled: Vec<TaskId>,
}

/// Who is to be woken when.
#[derive(Default)]
struct Timers {
    /// The first to ring is the last: most timers ring, or are dropped, soon after they were made.
    waiting: Vec<Timer>,
    made: u64,
}

struct Timer {
    key: TimerKey,
    waker: Waker,
}

/// Time, then the order of registration.
type TimerKey = (u64, u64);

impl Timers {
    fn insert(&mut self, at: u64, waker: Waker) -> TimerKey {
        self.made += 1;
        let key = (at, self.made);
        let place = self.waiting.partition_point(|timer| timer.key > key);
        self.waiting.insert(place, Timer { key, waker });
        key
    }

    fn place(&self, key: TimerKey) -> Option<usize> {
        self.waiting.binary_search_by(|timer| key.cmp(&timer.key)).ok()
    }

    fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.place(key).map(|place| self.waiting.remove(place).waker)
    }

    /// Somebody else waits for it now, perhaps.
    fn set_waker(&mut self, key: TimerKey, waker: &Waker) {
        if let Some(place) = self.place(key) {
            self.waiting[place].waker.clone_from(waker);
        }
    }

    /// When the first rings.
    fn next(&self) -> Option<u64> {
        self.waiting.last().map(|timer| timer.key.0)
    }

    /// Those that ring at this time, which is the first's, in the order of registration.
    fn ring(&mut self, at: u64) -> impl Iterator<Item = Waker> {
        let count = self.waiting.iter().rev().take_while(|timer| timer.key.0 == at).count();
        self.waiting.drain(self.waiting.len() - count..).rev().map(|timer| timer.waker)
    }
}

impl Schedule {
    /// Nobody was started or cancelled that the executor does not know of.
    fn is_settled(&self) -> bool {
        self.spawned.is_empty() && self.cancelled.is_empty()
    }
}

impl Handle {
    /// Nanoseconds since the world began.
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Starts a task; it is polled for the first time at some later step.
    pub(crate) fn spawn(&self, domain: Domain, task: impl Future<Output = ()> + Send + 'static) -> TaskId {
        self.spawn_boxed(domain, Box::pin(task))
    }

    /// The same for a boxed task.
    pub(crate) fn spawn_boxed(&self, domain: Domain, task: BoxFuture<'static, ()>) -> TaskId {
        let mut schedule = self.schedule.lock();
        let id = schedule.queued.len();
        schedule.queued.push(true);
        schedule.ready.push(id);
        schedule.spawned.push((id, domain, task));
        id
    }

    /// Starts a task as the `Spawn` port does.
    pub(crate) fn spawn_task(&self, domain: Domain, task: BoxFuture<'static, ()>) -> Task {
        let id = self.spawn_boxed(domain, task);
        let handle = self.clone();
        Task::new(move || handle.cancel(id))
    }

    /// Drops the task's future at the end of the present step. A task that has ended stays ended.
    pub(crate) fn cancel(&self, id: TaskId) {
        self.schedule.lock().cancelled.push(id);
    }

    /// Completes at `at`, in nanoseconds since the world began.
    pub(crate) fn sleep_until(&self, at: u64) -> Sleep {
        Sleep { handle: self.clone(), at, registered: None }
    }

    /// Completes `duration` from now.
    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sleep_until(self.now().saturating_add(nanos))
    }

    fn wake(&self, id: TaskId) {
        let mut schedule = self.schedule.lock();
        if !core::mem::replace(&mut schedule.queued[id], true) {
            schedule.ready.push(id);
        }
    }
}

/// Wakes one task.
struct TaskWaker {
    id: TaskId,
    handle: Handle,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.handle.wake(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.handle.wake(self.id);
    }
}

/// A pause in virtual time. Leaves no timer behind when dropped.
pub(crate) struct Sleep {
    handle: Handle,
    at: u64,
    registered: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = this.handle.now();
        let mut schedule = this.handle.schedule.lock();
        if now >= this.at {
            let old = this.registered.take().and_then(|key| schedule.timers.remove(key));
            drop(schedule);
            drop(old);
            return Poll::Ready(());
        }
        match this.registered {
            Some(key) => schedule.timers.set_waker(key, cx.waker()),
            None => this.registered = Some(schedule.timers.insert(this.at, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.registered {
            let waker = self.handle.schedule.lock().timers.remove(key);
            drop(waker);
        }
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Polled this task of this domain.
    Ran(TaskId, Domain),
    /// Nobody was ready: the clock moved.
    Advanced,
    /// Nobody is ready, and nothing happens at or before the time given.
    Idle,
}

struct Running {
    domain: Domain,
    future: BoxFuture<'static, ()>,
    waker: Waker,
}

/// All tasks of one world.
pub(crate) struct Executor {
    handle: Handle,
    chance: Stream,
    tasks: Vec<Option<Running>>,
    paused: Vec<Domain>,
    /// Ready, but paused.
    aside: Vec<TaskId>,
    steps: u64,
    /// What is being taken in, or woken: kept, because it is filled at nearly every step.
    taken_in: TakenIn,
    due: Vec<Waker>,
}

/// Tasks that were started, and those that were cancelled.
type TakenIn = (Vec<(TaskId, Domain, BoxFuture<'static, ()>)>, Vec<TaskId>);

impl Executor {
    /// An executor that picks by `chance`.
    pub(crate) fn new(chance: Stream) -> Self {
        let handle = Handle { schedule: Arc::default(), now: Arc::default() };
        Executor {
            handle,
            chance,
            tasks: Vec::new(),
            paused: Vec::new(),
            aside: Vec::new(),
            steps: 0,
            taken_in: Default::default(),
            due: Vec::new(),
        }
    }

    /// For tasks and ports.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Tasks polled so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Polls one ready task, or moves the clock to the next timer that is due by `until`.
    pub(crate) fn step(&mut self, until: u64) -> Step {
        let Some(id) = self.pick() else { return self.advance(until) };
        let task = self.tasks[id].as_mut().expect("it was picked because it runs");
        self.steps += 1;
        let domain = task.domain;
        let done = task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready();
        if done {
            let ended = self.tasks[id].take();
            drop(ended);
        }
        self.settle();
        Step::Ran(id, domain)
    }

    /// One of the tasks that are ready and not paused.
    fn pick(&mut self) -> Option<TaskId> {
        let mut schedule = self.handle.schedule.lock();
        // Somebody besides the tasks may have started one.
        while !schedule.is_settled() {
            drop(schedule);
            self.settle();
            schedule = self.handle.schedule.lock();
        }
        loop {
            let at = match schedule.ready.len() as u64 {
                0 => return None,
                1 => 0,
                ready => self.chance.below(ready) as usize,
            };
            let id = schedule.ready.swap_remove(at);
            let Some(task) = self.tasks.get(id).and_then(Option::as_ref) else { continue };
            if self.paused.contains(&task.domain) {
                self.aside.push(id);
                continue;
            }
            schedule.queued[id] = false;
            return Some(id);
        }
    }

    /// Whether this task has not ended.
    #[cfg(test)]
    pub(crate) fn is_running(&self, id: TaskId) -> bool {
        self.tasks.get(id).is_some_and(Option::is_some)
    }

    /// How many tasks of this domain have not ended.
    pub(crate) fn running(&self, domain: Domain) -> usize {
        self.tasks.iter().flatten().filter(|task| task.domain == domain).count()
    }

    /// Stops polling a domain; its timers go on ringing unheard.
    pub(crate) fn pause(&mut self, domain: Domain) {
        self.paused.push(domain);
    }

    /// Polls a domain again; what rang meanwhile is heard now.
    pub(crate) fn resume(&mut self, domain: Domain) {
        self.paused.retain(|paused| *paused != domain);
        let aside = core::mem::take(&mut self.aside);
        self.handle.schedule.lock().ready.extend(aside);
    }

    /// Drops every task of a domain, as a crash does.
    pub(crate) fn kill(&mut self, domain: Domain) {
        self.settle();
        self.paused.retain(|paused| *paused != domain);
        for id in 0..self.tasks.len() {
            if self.tasks[id].as_ref().is_some_and(|task| task.domain == domain) {
                let dead = self.tasks[id].take();
                drop(dead);
            }
        }
        self.settle();
    }

    /// Drops everything: tasks and timers hold each other alive otherwise.
    pub(crate) fn shut_down(&mut self) {
        loop {
            self.settle();
            let Some(task) = self.tasks.iter_mut().find_map(Option::take) else { break };
            drop(task);
        }
        let timers = core::mem::take(&mut self.handle.schedule.lock().timers);
        drop(timers);
    }

    fn advance(&mut self, until: u64) -> Step {
        let mut due = core::mem::take(&mut self.due);
        {
            let mut schedule = self.handle.schedule.lock();
            let Some(next) = schedule.timers.next().filter(|at| *at <= until) else {
                self.handle.now.fetch_max(until, Ordering::Relaxed);
                return Step::Idle;
            };
            self.handle.now.store(next, Ordering::Relaxed);
            due.extend(schedule.timers.ring(next));
        }
        due.drain(..).for_each(Waker::wake);
        self.due = due;
        Step::Advanced
    }

    /// Takes in what the last step started and cancelled.
    fn settle(&mut self) {
        loop {
            let (spawned, cancelled) = &mut self.taken_in;
            {
                let mut schedule = self.handle.schedule.lock();
                if schedule.is_settled() {
                    return;
                }
                core::mem::swap(&mut schedule.spawned, spawned);
                core::mem::swap(&mut schedule.cancelled, cancelled);
            }
            for (id, domain, future) in spawned.drain(..) {
                self.tasks.resize_with(self.tasks.len().max(id + 1), || None);
                let waker = Waker::from(Arc::new(TaskWaker { id, handle: self.handle.clone() }));
                self.tasks[id] = Some(Running { domain, future, waker });
            }
            for id in cancelled.drain(..) {
                let dead = self.tasks.get_mut(id).and_then(Option::take);
                drop(dead);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::Seed;

    const SECOND: u64 = 1_000_000_000;

    /// Ten tasks that each report three times; returns who reported when.
    fn order(seed: u64) -> Vec<(u64, usize)> {
        let mut executor = Executor::new(Seed(seed).stream("schedule"));
        let said = Arc::new(Shared::new(Vec::new()));
        for name in 0..10 {
            let (handle, said) = (executor.handle().clone(), Arc::clone(&said));
            executor.handle().spawn(Domain::World, async move {
                for _ in 0..3 {
                    said.lock().push((handle.now(), name));
                    handle.sleep(Duration::from_secs(1)).await;
                }
            });
        }
        while executor.step(60 * SECOND) != Step::Idle {}
        core::mem::take(&mut *said.lock())
    }

    #[test]
    fn the_same_seed_picks_in_the_same_order_and_another_in_another() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn time_is_virtual_and_moves_only_when_nobody_is_ready() {
        let times: Vec<u64> = order(5).iter().map(|(at, _)| *at).collect();
        let expected: Vec<u64> = [0, SECOND, 2 * SECOND].into_iter().flat_map(|at| [at; 10]).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn a_timer_that_is_dropped_leaves_nothing_behind() {
        let mut executor = Executor::new(Seed(1).stream("schedule"));
        let handle = executor.handle().clone();
        executor.handle().spawn(Domain::World, async move {
            let mut long = handle.sleep(Duration::from_secs(100));
            let short = handle.sleep(Duration::from_secs(1));
            futures_util::future::select(&mut long, short).await;
        });
        while executor.step(10 * SECOND) != Step::Idle {}
        assert!(executor.handle().schedule.lock().timers.waiting.is_empty());
    }

    #[test]
    fn a_paused_domain_hears_its_timers_late_and_a_killed_one_never() {
        let mut executor = Executor::new(Seed(1).stream("schedule"));
        let heard = Arc::new(Shared::new(Vec::new()));
        let domains = [1, 2].map(|index| Domain::Instance { index, life: 1 });
        let ids = domains.map(|domain| {
            let (handle, heard) = (executor.handle().clone(), Arc::clone(&heard));
            executor.handle().spawn(domain, async move {
                handle.sleep(Duration::from_secs(1)).await;
                heard.lock().push((domain, handle.now()));
            })
        });
        while executor.step(0) != Step::Idle {}
        executor.pause(domains[0]);
        executor.kill(domains[1]);
        while executor.step(5 * SECOND) != Step::Idle {}
        assert!(heard.lock().is_empty());
        executor.resume(domains[0]);
        while executor.step(9 * SECOND) != Step::Idle {}
        assert_eq!(*heard.lock(), [(domains[0], 5 * SECOND)]);
        assert_eq!(ids.map(|id| executor.is_running(id)), [false, false]);
    }
}
