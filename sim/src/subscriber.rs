//! Subscribers of the event log: each follows one instance in its own manner, keeps the last number it was
//! given, and comes back with it after a cut, a crash or a restart.
//!
//! A session is a task in its instance's domain, as a connection is in a server: it ends with the instance.
//! What the subscriber remembers outlives it.

use core::net::{IpAddr, Ipv4Addr};
use core::pin::pin;
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::{Either, select};

use pointsman::core::time::Timestamp;
use pointsman::flow::follow::{Begin, FollowError};
use pointsman::flow::pump::{Ending, Parts, Pump, Turn, Wish};
use pointsman::flow::router::Router;
use pointsman::flow::seats::Seats;
use pointsman::wire::filter::{Filter, Pattern};

use crate::executor::Domain;
use crate::faults::Fault;
use crate::oracle;
use crate::oracle::feed::Rested;
use crate::plan::{BeginPlan, SubscriberPlan};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Status, Subscriber, World};

/// How long a server that stops waits for who takes what it has written; see `http::feed`.
const STOP_GRACE: Duration = Duration::from_secs(2);

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
        world.reachable(world.plan.subscribers[number].instance).await;
        let (index, ended) = {
            let mut state = world.state.lock();
            let of = &mut state.subscribers[number];
            of.sessions += 1;
            (of.instance, of.ended.listen())
        };
        let up = {
            let state = world.state.lock();
            let of = &state.instances[index];
            let up = of.router.clone().filter(|_| of.status == Status::Up);
            up.map(|router| (router, Arc::clone(&of.seats), of.life))
        };
        if let Some((router, seats, life)) = up {
            let session = Session { world: Arc::clone(&world), number };
            world.state.lock().subscribers[number].connected = true;
            world.handle.spawn(Domain::Instance { index, life }, follow(session, router, seats));
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
            of.replayed = None;
            of.ended.clone()
        };
        ended.notify();
    }
}

async fn follow(session: Session, router: Arc<Router>, seats: Arc<Seats>) {
    let (world, number) = (&session.world, session.number);
    let asked = world.plan.subscribers[number].clone();
    let (begin, wish, stop) = {
        let state = world.state.lock();
        let of = &state.subscribers[number];
        let begin = match (of.resume, asked.begin) {
            (Some(seq), _) => Begin::After(seq),
            (None, BeginPlan::All) => Begin::Kept,
            (None, BeginPlan::Live) => Begin::Live,
            (None, BeginPlan::Since { back_ms }) => {
                let wall = state.wall(of.instance, world.now()).as_millis();
                Begin::Since(Timestamp::from_millis(wall.saturating_sub(back_ms)))
            }
        };
        (begin, of.wish.clone(), state.instances[of.instance].stop.listen())
    };
    let (clock, fleet) = (Arc::clone(&router.ports().clock), router.fleet());
    let seat = match seats.take(address(number), &fleet.config, clock.now()) {
        Ok(seat) => seat,
        Err(full) => return world.remark(Actor::Subscriber(number), || format!("is told: {full}")),
    };
    let tip = router.log().bounds().tip;
    let reader = match router.follow(begin, wish.filter.clone()).await {
        Ok(reader) => reader,
        Err(error) => return refused(world, number, &router, &error),
    };
    oracle::feed::began(world, number, begin, tip, &reader);
    let pump = Pump::new(Parts {
        reader,
        wish,
        seat,
        clock,
        stopping: Box::pin(stop),
        stall: fleet.config.subscriber_stall,
        min_rate: fleet.config.subscriber_min_rate,
        greet: matches!(begin, Begin::Live | Begin::Since(_)),
    });
    let stop = world.state.lock().instances[asked.instance].stop.listen();
    let stopped = async {
        stop.await;
        world.handle.sleep(STOP_GRACE).await;
    };
    // A server that stops waits a moment for those who take what is on its way to them.
    let _ = select(pin!(read(world, number, &asked, pump, &router)), pin!(stopped)).await;
}

/// Two neighbours have one address.
fn address(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, (number / 2) as u8))
}

fn refused(world: &World, number: usize, router: &Router, error: &FollowError) {
    world.remark(Actor::Subscriber(number), || format!("is told: {error}"));
    oracle::feed::refused(world, number, router, error);
}

/// Takes what the pump has, in the subscriber's manner, until one side has had enough.
async fn read(world: &World, number: usize, asked: &SubscriberPlan, mut pump: Pump, router: &Router) {
    let (mut given, mut rested, mut changed) = (0, Rested::default(), false);
    loop {
        let changes = !changed && asked.changes_after.is_some_and(|after| given >= after);
        let turn = match changes {
            false => pump.turn().await,
            true => {
                // What it wants is said while its server may be looking for something to write.
                let said = world.handle.sleep(Duration::from_millis(10));
                let turn = match select(pin!(pump.turn()), pin!(said)).await {
                    Either::Left((turn, _)) => Some(turn),
                    Either::Right(_) => None,
                };
                match turn {
                    Some(turn) => turn,
                    None => {
                        changed = true;
                        change(world, number, asked, &mut pump);
                        continue;
                    }
                }
            }
        };
        oracle::feed::handed(world, number, &turn, &pump);
        match turn {
            Turn::Silence => {}
            Turn::Checkpoint(seq) => oracle::feed::moved_on(world, number, seq),
            Turn::End(ending) => return ended(world, number, router, &ending, &rested),
            Turn::Events(events) => {
                let handed = world.now();
                let mut given_up = None;
                for one in &events {
                    // What it cannot take waits for it.
                    world.reachable(asked.instance).await;
                    if !world.state.lock().calm && asked.rests_us > 0 {
                        world.reached(Point::SlowSubscriber);
                        world.struck(Actor::Subscriber(number), Fault::SlowSubscriber);
                        world.handle.sleep(Duration::from_micros(asked.rests_us)).await;
                    }
                    let took = Duration::from_nanos(world.now() - handed);
                    if asked.over_socket && given_up.is_none() && took > pump.stall() {
                        rested.last = took;
                        given_up = Some(pump.stalled());
                    }
                    let calm = world.state.lock().calm;
                    if !calm && asked.cut_after == Some(given) {
                        return;
                    }
                    oracle::feed::given(world, number, one);
                    given += 1;
                    if !calm && asked.leaves_after == Some(given) {
                        return;
                    }
                }
                if let Some(ending) = given_up {
                    // What was handed out stands before it on the stream.
                    return ended(world, number, router, &ending, &rested);
                }
                rested.last = Duration::from_nanos(world.now() - handed);
                rested.total += rested.last;
                if asked.over_socket {
                    pump.written();
                }
            }
        }
    }
}

fn change(world: &World, number: usize, asked: &SubscriberPlan, pump: &mut Pump) {
    let wish = Wish { filter: filter(&asked.then), ..world.state.lock().subscribers[number].wish.clone() };
    let from = pump.wish(wish.clone());
    oracle::feed::moved_on(world, number, from);
    world.state.lock().subscribers[number].wish = wish;
    world.reached(Point::FilterChanged);
}

fn ended(world: &World, number: usize, router: &Router, ending: &Ending, rested: &Rested) {
    world.remark(Actor::Subscriber(number), || format!("is told: {ending:?}"));
    oracle::feed::ended(world, number, router, ending, rested);
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
            wish: Wish {
                filter: filter(&asked.kinds),
                message_bytes_max: asked.message_bytes_max.unwrap_or(usize::MAX),
            },
            resume: None,
            expect: None,
            replayed: None,
            last_given: None,
            told: 0,
            connected: false,
            sessions: 0,
            ended: pointsman::core::signal::Signal::new(),
        }
    }
}
