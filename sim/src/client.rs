//! Clients: each sends one request and reads its answer in its own manner, patient, leaving, or slow.
//!
//! A client's connection lives in its instance's domain, as in a server: when the client leaves, the
//! future that serves it is dropped; when the instance crashes, so is it.

use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderValue};

use pointsman::flow::answer::{Answer, Outcome};
use pointsman::flow::failure::Failure;
use pointsman::flow::infer::Inference;
use pointsman::flow::router::Router;
use pointsman::wire::request::Ask;

use crate::executor::Domain;
use crate::faults::Fault;
use crate::net::CLIENT;
use crate::oracle;
use crate::plan::{Call, RequestPlan};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Client, Ending, State, Status, World};

/// Lets a client come. Returns its number. Its request arrives once its instance can be reached.
pub(crate) fn arrive(world: &Arc<World>, asked: Arc<RequestPlan>) -> usize {
    let now = world.now();
    let mut state = world.state.lock();
    let client = state.clients.len();
    let cut_off = now < state.instances[asked.instance].clients_cut_off_until;
    state.clients.push(Client {
        asked: Arc::clone(&asked),
        instance: asked.instance,
        began: now,
        ended: None,
        status: None,
        calls: Vec::new(),
        sources: None,
        got: 0,
        error_said: false,
        turned_away: false,
    });
    state.trace.note(
        now,
        Actor::Client(client),
        "asks instance {a} for model {b}",
        asked.instance as u64,
        asked.model as u64,
    );
    state.trace.remark(now, Actor::Client(client), || format!("is {asked:?}"));
    drop(state);
    if cut_off {
        let later = Arc::clone(world);
        world.handle.spawn(Domain::World, async move {
            later.reachable(asked.instance).await;
            enter(&later, client, asked);
        });
    } else {
        enter(world, client, asked);
    }
    client
}

/// The client's request has come to its instance.
fn enter(world: &Arc<World>, client: usize, asked: Arc<RequestPlan>) {
    let mut state = world.state.lock();
    let of = &state.instances[asked.instance];
    let (life, up) = (of.life, of.status == Status::Up);
    let router = of.router.clone();
    if up && state.instances.iter().filter(|of| of.status == Status::Up).count() > 1 {
        state.reached(Point::TwoInstances);
    }
    drop(state);
    let (true, Some(router)) = (up, router) else {
        return oracle::ended(world, client, Ending::NotServed);
    };
    let instance = asked.instance;
    let serving = Serving { world: Arc::clone(world), client, instance, life };
    let task = world.handle.spawn(Domain::Instance { index: instance, life }, serve(serving, router, asked));
    world.state.lock().instances[instance].serving.insert(task, client);
}

/// Ends with the future that serves the client, however that ends.
struct Serving {
    world: Arc<World>,
    client: usize,
    instance: usize,
    life: u32,
}

impl Drop for Serving {
    fn drop(&mut self) {
        {
            let mut state = self.world.state.lock();
            let client = self.client;
            let of = &mut state.instances[self.instance];
            if of.life == self.life {
                of.serving.retain(|_, served| *served != client);
            }
            if state.clients[client].ended.is_none() && state.clients[client].got > 0 {
                state.reached(Point::CrashDuringStream);
            }
        }
        oracle::ended(&self.world, self.client, Ending::CutOff);
    }
}

async fn serve(serving: Serving, router: Arc<Router>, asked: Arc<RequestPlan>) {
    let (world, client) = (Arc::clone(&serving.world), serving.client);
    world.state.lock().clients[client].began = world.now();
    let ending = match asked.leaves_after_us {
        None => exchange(&world, client, &router, &asked).await,
        Some(after) => {
            let exchange = exchange(&world, client, &router, &asked);
            // Behind a partition its instance does not hear that it left.
            let patience = async {
                world.handle.sleep(Duration::from_micros(after)).await;
                world.reachable(asked.instance).await;
            };
            // The exchange is dropped with the pin at the end of this block, before the ending is told.
            match select(pin!(exchange), pin!(patience)).await {
                Either::Left((ending, _)) => ending,
                Either::Right(((), _)) => Ending::Left,
            }
        }
    };
    if ending == Ending::Left {
        left(&world, client);
    }
    oracle::ended(&world, client, ending);
    drop(serving);
}

fn left(world: &World, client: usize) {
    let mut state = world.state.lock();
    let of = &state.clients[client];
    let counted = of.calls.iter().any(|call| state.calls[*call].counted.is_some());
    let (status, waits) = (of.status, waits_for_a_listing(&state, client));
    state.reached(if status.is_some() { Point::LeftMidStream } else { Point::LeftBeforeHead });
    if waits {
        state.reached(Point::WaiterLeftDuringFetch);
    }
    if counted {
        state.reached(Point::TokensOfACancelled);
    }
}

/// Whether all that the client can be waiting for is a listing under way: nobody is known to have the model,
/// so it cannot be in a queue.
fn waits_for_a_listing(state: &State, client: usize) -> bool {
    let of = &state.clients[client];
    let instance = &state.instances[of.instance];
    let had =
        |held: &Option<Vec<bool>>| held.as_ref().is_some_and(|held| held.get(of.asked.model) == Some(&true));
    of.asked.call.inference().is_some()
        && of.status.is_none()
        && of.calls.is_empty()
        && instance.listings.iter().any(|listing| listing.ended.is_none())
        && !instance.listings.iter().any(|listing| listing.ended.is_some() && had(&listing.held))
}

async fn exchange(world: &Arc<World>, client: usize, router: &Router, asked: &RequestPlan) -> Ending {
    let mut headers = HeaderMap::new();
    headers.insert(CLIENT, HeaderValue::from(client));
    let answered = match asked.call.inference() {
        Some((path, shape)) => {
            let body = body(asked);
            let ask = Ask::parse(shape, &body).expect("the simulator's clients write valid requests");
            let id = format!("r{client}").into();
            let inference = Inference { shape, path, headers, body, ask, id, client_key: None };
            Box::pin(router.infer(inference)).await
        }
        None => match Box::pin(overview(world, client, router, asked, headers)).await {
            Some(answered) => answered,
            None => return Ending::Answered,
        },
    };
    match answered {
        Ok(answer) => read(world, client, asked, answer).await,
        Err(failure) => {
            refused(world, client, &failure);
            Ending::Refused
        }
    }
}

fn refused(world: &World, client: usize, failure: &Failure) {
    oracle::failed(world, client, failure);
}

/// Asks for something that runs no model. `None`: there is no more to read.
async fn overview(
    world: &World,
    client: usize,
    router: &Router,
    asked: &RequestPlan,
    headers: HeaderMap,
) -> Option<Result<Answer, Failure>> {
    let models = match asked.call {
        Call::Show => {
            let body = Bytes::from(format!("{{\"model\":\"{}\"}}", name(asked)));
            return Some(router.show(&name(asked), headers, body).await);
        }
        Call::Tags => router.tags().await,
        Call::Ps => router.ps().await,
        Call::Models => router.models().await,
        Call::Version => {
            oracle::version_told(world, client, router.version().await.ok().as_deref());
            return None;
        }
        _ => {
            oracle::endpoints_told(world, client, &router.endpoints().await);
            return None;
        }
    };
    oracle::models_told(world, client, &models);
    None
}

fn name(asked: &RequestPlan) -> String {
    format!("m{}{}", asked.model, if asked.tagged { ":latest" } else { "" })
}

fn body(asked: &RequestPlan) -> Bytes {
    let content = match asked.call {
        Call::OllamaChat | Call::OpenAiChat => "\"messages\":[]",
        Call::OllamaGenerate | Call::OpenAiCompletion => "\"prompt\":\"why\"",
        _ => "\"input\":\"why\"",
    };
    let streams = !matches!(asked.call, Call::OllamaEmbed | Call::OpenAiEmbedding);
    let stream = match (streams, asked.stream) {
        (false, _) => "",
        (true, false) => ",\"stream\":false",
        (true, true) => ",\"stream\":true",
    };
    let chat = matches!(asked.call, Call::OpenAiChat | Call::OpenAiCompletion) && asked.stream;
    let usage = if chat && asked.wants_usage { ",\"stream_options\":{\"include_usage\":true}" } else { "" };
    Bytes::from(["{\"model\":\"", &name(asked), "\",", content, stream, usage, "}"].concat())
}

async fn read(world: &Arc<World>, client: usize, asked: &RequestPlan, answer: Answer) -> Ending {
    let Answer { status, mut body, .. } = answer;
    oracle::headed(world, client, status.as_u16());
    let at_end = Arc::clone(world);
    body.on_end(Box::new(move |outcome| tell(&at_end, client, outcome)));
    let (mut chunks, mut rested) = (0, false);
    loop {
        // What a client cannot take waits for it; that it has left is not heard either.
        world.reachable(asked.instance).await;
        if asked.leaves_after_chunks == Some(chunks) {
            return Ending::Left;
        }
        let mut at_once = rested;
        let next = poll_fn(|cx| {
            let polled = Pin::new(&mut body).poll_next(cx);
            at_once &= polled.is_ready();
            polled
        });
        let next = next.await;
        if at_once {
            world.reached(Point::SlowReader);
        }
        match next {
            None => {
                return if status.is_success() || body_is_refusal(status.as_u16()) {
                    Ending::Answered
                } else {
                    Ending::Refused
                };
            }
            Some(Ok(bytes)) => oracle::got(world, client, &bytes),
            Some(Err(broken)) => {
                world.remark(Actor::Client(client), || format!("sees: {broken}"));
                world.reached(Point::BrokeOffByCut);
                return Ending::BrokenOff;
            }
        }
        chunks += 1;
        rested = asked.rests_us > 0;
        if rested {
            world.struck(Actor::Client(client), Fault::SlowClient);
            world.handle.sleep(Duration::from_micros(asked.rests_us)).await;
        }
    }
}

/// A refusal in the endpoint's words is read to its end like an answer.
fn body_is_refusal(status: u16) -> bool {
    matches!(status, 400 | 404 | 429 | 500)
}

fn tell(world: &World, client: usize, outcome: Outcome) {
    let what = match outcome {
        Outcome::Answered => "'s answer is accounted as answered",
        Outcome::Failed => "'s answer is accounted as failed",
        Outcome::Cancelled => "'s answer is accounted as cancelled",
        Outcome::Refused => "'s answer is accounted as refused",
    };
    world.note(Actor::Client(client), what, 0, 0);
}
