//! Subscribers of the event log: each follows one instance in its own manner, keeps the last number it was
//! given, and comes back with it after a cut, a crash or a restart.
//!
//! A session is a task in its instance's domain, as a connection is in a server: it ends with the instance.
//! What the subscriber remembers outlives it.

use core::pin::pin;
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::select;

use pointsman::core::time::Timestamp;
use pointsman::flow::follow::{Begin, FollowError, Reader};
use pointsman::flow::router::Router;
use pointsman::wire::filter::{Filter, Pattern};

use crate::executor::Domain;
use crate::oracle;
use crate::plan::{BeginPlan, SubscriberPlan};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Status, Subscriber, World};

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(250);

/// Lets a plan's subscribers come, each at its time. They stay until the world ends.
pub(crate) fn arrive(world: &Arc<World>) {
    for (number, asked) in world.plan.subscribers.iter().enumerate() {
        world.state.lock().subscribers.push(Subscriber::new(asked));
        let later = Arc::clone(world);
        world.handle.spawn(Domain::World, async move {
            later.handle.sleep_until(asked_at(&later, number)).await;
            subscribe(later, number).await;
        });
    }
}

fn asked_at(world: &World, number: usize) -> u64 {
    world.plan.subscribers[number].at_us * 1_000
}

/// Connects again and again.
async fn subscribe(world: Arc<World>, number: usize) {
    loop {
        let (index, ended) = {
            let mut state = world.state.lock();
            let of = &mut state.subscribers[number];
            of.sessions += 1;
            (of.instance, of.ended.listen())
        };
        let up = {
            let state = world.state.lock();
            let of = &state.instances[index];
            (of.status == Status::Up).then(|| of.router.clone().map(|router| (router, of.life))).flatten()
        };
        if let Some((router, life)) = up {
            let session = Session { world: Arc::clone(&world), number };
            world.state.lock().subscribers[number].connected = true;
            world.handle.spawn(Domain::Instance { index, life }, follow(session, router));
            ended.await;
        }
        world.handle.sleep(PAUSE).await;
    }
}

/// Ends with the task that serves the subscriber, however that ends.
struct Session {
    world: Arc<World>,
    number: usize,
}

impl Drop for Session {
    fn drop(&mut self) {
        let ended = {
            let mut state = self.world.state.lock();
            let of = &mut state.subscribers[self.number];
            of.connected = false;
            of.last_given = None;
            of.ended.clone()
        };
        ended.notify();
    }
}

async fn follow(session: Session, router: Arc<Router>) {
    let (world, number) = (&session.world, session.number);
    let asked = world.plan.subscribers[number].clone();
    let (begin, filter, stop) = {
        let state = world.state.lock();
        let of = &state.subscribers[number];
        let begin = match (of.resume, asked.begin) {
            (Some(seq), _) => Begin::After(seq),
            (None, BeginPlan::All) => Begin::After(0),
            (None, BeginPlan::Live) => Begin::Live,
            (None, BeginPlan::Since { back_ms }) => {
                let wall = state.wall(of.instance, world.now()).as_millis();
                Begin::Since(Timestamp::from_millis(wall.saturating_sub(back_ms)))
            }
        };
        (begin, of.filter.clone(), state.instances[of.instance].stop.listen())
    };
    let tip = router.log().bounds().tip;
    let reader = match router.follow(begin, filter).await {
        Ok(reader) => reader,
        Err(error) => return refused(world, number, &router, &error),
    };
    oracle::feed::began(world, number, begin, tip, &reader);
    let reading = read(world, number, &asked, reader, &router);
    // A server ends its streams when it stops.
    let _ = select(pin!(reading), stop).await;
}

fn refused(world: &World, number: usize, router: &Router, error: &FollowError) {
    world.remark(Actor::Subscriber(number), || format!("is told: {error}"));
    oracle::feed::refused(world, number, router, error);
}

async fn read(world: &World, number: usize, asked: &SubscriberPlan, mut reader: Reader, router: &Router) {
    let mut given = 0;
    loop {
        let step = match reader.next().await {
            Ok(step) => step,
            Err(error) => return refused(world, number, router, &error),
        };
        oracle::feed::looked(world, number, &reader, &step);
        for (seq, event) in &step.events {
            let calm = world.state.lock().calm;
            if !calm && asked.rests_us > 0 {
                world.reached(Point::SlowSubscriber);
                world.handle.sleep(Duration::from_micros(asked.rests_us)).await;
            }
            if !calm && asked.cut_after == Some(given) {
                // Cut off for being slow, in the middle of a step: it is told the last number written.
                return oracle::feed::cut(world, number, reader.cursor());
            }
            oracle::feed::given(world, number, *seq, event, reader.given());
            reader.wrote(&step, *seq);
            given += 1;
            if !calm && asked.leaves_after == Some(given) {
                return;
            }
        }
        reader.wrote(&step, step.end);
        oracle::feed::moved_on(world, number, step.end);
        if asked.changes_after.is_some_and(|after| given >= after) {
            let filter = filter(&asked.then);
            world.state.lock().subscribers[number].filter = filter.clone();
            world.reached(Point::FilterChanged);
            reader.set_filter(filter);
        }
    }
}

/// A filter by kinds.
pub(crate) fn filter(kinds: &[String]) -> Filter {
    let pattern =
        |kind: &String| Pattern::try_from(kind.clone()).expect("the scenario writes valid patterns");
    Filter { kinds: kinds.iter().map(pattern).collect(), ..Filter::default() }
}

impl Subscriber {
    fn new(asked: &SubscriberPlan) -> Subscriber {
        Subscriber {
            instance: asked.instance,
            filter: filter(&asked.kinds),
            resume: None,
            expect: None,
            last_given: None,
            connected: false,
            sessions: 0,
            ended: pointsman::core::signal::Signal::new(),
        }
    }
}
