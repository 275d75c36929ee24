//! Whoever, or whatever, changes the world on purpose: the plan's actions, one after the other.

use core::time::Duration;
use std::sync::Arc;

use crate::client;
use crate::executor::Domain;
use crate::faults::Fault;
use crate::instance;
use crate::plan::{Action, AskedAs, Way};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Command, Status, World};

/// Lets the plan's clients come, each at its time.
pub(crate) async fn workload(world: Arc<World>) {
    for asked in &world.plan.requests {
        world.handle.sleep_until(asked.at_us * 1_000).await;
        client::arrive(&world, Arc::new(asked.clone()));
    }
}

/// Carries the plan's actions out, each at its time.
pub(crate) async fn operate(world: Arc<World>) {
    for action in &world.plan.actions {
        world.handle.sleep_until(action.at_us * 1_000).await;
        act(&world, &action.what);
    }
}

/// Does it. What strikes only those who come upon it counts there; the rest counts here, if it does anything.
fn act(world: &Arc<World>, action: &Action) {
    let now = world.now();
    world.remark(Actor::Operator, || format!("{action:?}"));
    let mut state = world.state.lock();
    let fault = match *action {
        Action::Reload { instance, .. } => {
            state.instances[instance].router.is_some().then_some(Fault::Reload)
        }
        Action::Crash { instance, down_us, writes } => {
            state.instances[instance].crashes_at = Some((writes, down_us));
            drop(state);
            crash_if_due(world, instance);
            state = world.state.lock();
            None
        }
        Action::Restart { instance, down_us } => {
            let up = state.instances[instance].status == Status::Up;
            drop(state);
            instance::stop(world, instance);
            start_later(world, instance, down_us);
            state = world.state.lock();
            up.then_some(Fault::Restart)
        }
        Action::Pause { instance, for_us } => {
            let lives = state.instances[instance].status != Status::Down;
            state.commands.push(Command::Pause(instance));
            let later = Arc::clone(world);
            world.handle.spawn(Domain::World, async move {
                later.handle.sleep(Duration::from_micros(for_us)).await;
                later.state.lock().commands.push(Command::Resume(instance));
            });
            lives.then_some(Fault::Pause)
        }
        Action::WallStep { instance, by_ms } => {
            state.instances[instance].wall_offset_ms += by_ms;
            if by_ms < 0 {
                state.reached(Point::WallWentBack);
            }
            Some(Fault::WallStep)
        }
        Action::Partition { instance, endpoint, for_us, way } => {
            let until = now + for_us * 1_000;
            let cut = &mut state.instances[instance].cut_off[endpoint];
            if way != Way::Answers {
                cut.requests_until = until;
            }
            if way != Way::Requests {
                cut.answers_until = until;
            }
            None
        }
        Action::ClientPartition { instance, for_us } => {
            state.instances[instance].clients_cut_off_until = now + for_us * 1_000;
            None
        }
        Action::Down { endpoint, for_us } => {
            state.endpoints[endpoint].down_until = now + for_us * 1_000;
            state.endpoints[endpoint].went_down = Some(now);
            None
        }
        Action::Vanish { endpoint, for_us } => {
            state.endpoints[endpoint].vanished_until = now + for_us * 1_000;
            state.endpoints[endpoint].vanished_at = Some(now);
            state.endpoints[endpoint].ghosts.clear();
            None
        }
        Action::DiskFull { instance, for_us } => {
            state.instances[instance].disk_full_until = now + for_us * 1_000;
            None
        }
        Action::Serve { endpoint, model, listed } => {
            let of = &mut state.endpoints[endpoint].models[model];
            let before = core::mem::replace(of, (listed, listed && of.1));
            (before != *of).then_some(Fault::ModelChurn)
        }
        Action::Load { endpoint, model, loaded } => {
            let of = &mut state.endpoints[endpoint].models[model];
            let before = core::mem::replace(of, (of.0, of.0 && loaded));
            (before != *of).then_some(Fault::ModelChurn)
        }
    };
    if let Some(fault) = fault {
        state.struck(now, Actor::Operator, fault);
    }
    drop(state);
    if let Action::Reload { instance, endpoints, limit, queue, keys, llamas } = action {
        let asked_as = |endpoint: &usize| world.plan.endpoints[*endpoint].asked_as(*endpoint, keys, llamas);
        let configured: Vec<_> = endpoints.iter().map(|endpoint| (*endpoint, asked_as(endpoint))).collect();
        reload(world, *instance, &configured, *limit, *queue);
    }
}

/// Crashes the instance if it is told to and as many writes are under way as it shall be in the midst of.
pub(crate) fn crash_if_due(world: &Arc<World>, instance: usize) {
    let now = world.now();
    let mut state = world.state.lock();
    let of = &mut state.instances[instance];
    let unsynced = of.disk.unsynced();
    let Some((_, down_us)) = of.crashes_at.take_if(|(writes, _)| *writes <= unsynced) else { return };
    if of.status != Status::Down {
        state.struck(now, Actor::Operator, Fault::Crash);
    }
    state.commands.push(Command::Crash(instance));
    drop(state);
    start_later(world, instance, down_us);
}

fn start_later(world: &Arc<World>, instance: usize, down_us: u64) {
    let later = Arc::clone(world);
    world.handle.spawn(Domain::World, async move {
        later.handle.sleep(Duration::from_micros(down_us)).await;
        // A graceful stop may take longer than that.
        while later.state.lock().instances[instance].status == Status::Stopping {
            later.handle.sleep(Duration::from_millis(100)).await;
        }
        instance::start(&later, instance);
    });
}

fn reload(world: &World, instance: usize, configured: &[(usize, AskedAs)], limit: u32, queue: bool) {
    let now = world.now();
    let mut state = world.state.lock();
    let of = &mut state.instances[instance];
    let endpoints: Vec<usize> = configured.iter().map(|(endpoint, _)| *endpoint).collect();
    let before = core::mem::replace(&mut of.endpoints, endpoints.clone());
    of.settings.limit = limit;
    of.settings.queue = queue;
    let mut turned = Vec::new();
    for (endpoint, asked_as) in configured {
        let before = core::mem::replace(&mut of.asked_as[*endpoint], *asked_as);
        if before != *asked_as {
            turned.push((*endpoint, before.speaks != asked_as.speaks));
        }
    }
    let Some(router) = of.router.clone() else { return };
    let config = of.settings.config(&world.plan.endpoints, &endpoints, &of.asked_as);
    for (endpoint, _) in &turned {
        of.turns[*endpoint] += 1;
        of.turned_at[*endpoint] = Some(now);
        of.doubtful[*endpoint] = None;
    }
    for endpoint in endpoints.iter().filter(|endpoint| !before.contains(endpoint)) {
        of.arrivals[*endpoint] += 1;
    }
    of.reloads += 1;
    let slots = router.usage().snapshot().slots;
    let highest = slots.endpoints.iter().flat_map(|e| e.in_flight.iter()).map(|(_, count)| *count).max();
    let highest = highest.unwrap_or(0);
    of.allowed = limit.max(highest);
    let running = of.running_calls.clone();
    let busy = |endpoint: usize| running.iter().any(|call| state.calls[*call].endpoint == endpoint);
    let removed_busy = before.iter().any(|endpoint| !endpoints.contains(endpoint) && busy(*endpoint));
    let turned_busy: Vec<bool> =
        turned.into_iter().filter(|(endpoint, _)| busy(*endpoint)).map(|(_, of_kind)| of_kind).collect();
    if highest > 0 {
        state.reached(Point::ReloadedInFlight);
    }
    if highest > limit {
        state.reached(Point::LoweredBelow);
    }
    if removed_busy {
        state.reached(Point::RemovedInFlight);
    }
    for of_kind in turned_busy {
        state.reached(if of_kind { Point::KindChangedInFlight } else { Point::KeyChangedInFlight });
    }
    drop(state);
    router.reload(config);
}
