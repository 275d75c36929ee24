//! The `Upstream` port: calls from an instance to an endpoint, with the faults between them.
//!
//! A call is open from the moment it is sent until the router has its end, its refusal or its failure,
//! or drops it; so in a right router the open calls are exactly the slots in flight. Dropping closes
//! at once, as a closed connection does.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use pointsman::ports::{BoxFuture, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};

use crate::executor::Sleep;
use crate::oracle;
use crate::plan;
use crate::script::{self, Dice, Finish, NoHead, Script};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Call, CallKind, Listing, World};

/// Carries the number of the client's request through the router.
pub(crate) const CLIENT: &str = "x-client";

/// Connecting through a partition takes so long until the adapter gives up.
const CONNECT_TIMEOUT_NS: u64 = 5_000_000_000;

/// The network as one life of one instance sees it.
pub(crate) struct SimUpstream {
    pub(crate) world: Arc<World>,
    pub(crate) instance: usize,
    pub(crate) life: u32,
}

impl Upstream for SimUpstream {
    fn send(&self, request: UpstreamRequest) -> BoxFuture<'_, Result<UpstreamResponse, UpstreamError>> {
        Box::pin(send(Arc::clone(&self.world), self.instance, self.life, request))
    }
}

async fn send(
    world: Arc<World>,
    instance: usize,
    life: u32,
    request: UpstreamRequest,
) -> Result<UpstreamResponse, UpstreamError> {
    let (open, script) = open(&world, instance, life, &request);
    let endpoint = open.endpoint;
    let cut_off_until = world.state.lock().instances[instance].cut_off_until[endpoint];
    if world.now() < cut_off_until {
        world.handle.sleep_until(world.now() + CONNECT_TIMEOUT_NS).await;
        return Err(open.failed(UpstreamError::Connect("no answer within 5 s".to_owned())));
    }
    world.handle.sleep_until(world.now() + script.connect_ns).await;
    let down = world.now() < world.state.lock().endpoints[endpoint].down_until;
    if down || script.no_head == Some(NoHead::Refused) {
        return Err(open.failed(UpstreamError::Connect("refused".to_owned())));
    }
    world.handle.sleep_until(world.now() + script.head_ns).await;
    match script.no_head {
        Some(NoHead::Stall) => core::future::pending().await,
        Some(NoHead::Cut) => return Err(open.failed(UpstreamError::Broken("reset".to_owned()))),
        Some(NoHead::Refused) | None => {}
    }
    while let Some(until) = open.blocked_until() {
        world.handle.sleep_until(until).await;
    }
    if open.lost() {
        return Err(open.failed(UpstreamError::Broken("reset".to_owned())));
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(script.content_type));
    let status = StatusCode::from_u16(script.status).expect("the simulator answers with known codes");
    open.head(script.status);
    let head_at = world.now();
    let body = Body { open, script, head_at, next: 0, alarm: None, over: false };
    Ok(UpstreamResponse { status, headers, body: Box::pin(body) })
}

/// Takes the request to the endpoint: what will it answer?
fn open(world: &Arc<World>, instance: usize, life: u32, request: &UpstreamRequest) -> (Open, Script) {
    let now = world.now();
    let (endpoint, path) = locate(world, &request.url);
    let plan = &world.plan.endpoints[endpoint];
    let client = request.headers.get(CLIENT).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut state = world.state.lock();
    let id = state.calls.len();
    let models = state.endpoints[endpoint].models.clone();
    let switches = (!state.calm).then_some(&world.plan.faults);
    let inference = client.filter(|_| path != "/api/show");
    let mut dice = Dice { seed: world.seed, key: [0; 4], switches, struck: Vec::new() };
    let (kind, script) = match inference {
        Some(client) => {
            let asked = Arc::clone(&state.clients[client].asked);
            let model = model_in(&request.body);
            dice.key = [asked.id, state.clients[client].calls.len() as u64, endpoint as u64, 1];
            let has = models.get(model).is_some_and(|(listed, _)| *listed);
            let question = script::Question {
                endpoint: plan,
                call: id,
                what: asked.call,
                stream: contains(&request.body, b"\"stream\":true"),
                asks_usage: contains(&request.body, b"\"include_usage\":true"),
                tokens: asked.tokens,
                has,
                loaded: has && models[model].1,
            };
            if has {
                state.endpoints[endpoint].models[model].1 = true;
            } else {
                state.reached(Point::GoneSinceListed);
            }
            (CallKind::Inference(model), script::inference(&question, &mut dice))
        }
        None => {
            let made = state.listings_made.entry((instance, endpoint)).or_default();
            *made += 1;
            dice.key = [instance as u64, *made, endpoint as u64, 2];
            let kind = match client {
                Some(_) => CallKind::Other,
                None => CallKind::Listing(state.instances[instance].listings.len()),
            };
            let good = script::listing_body(plan, &models, path);
            (kind, script::listing(plan, id, good, &mut dice))
        }
    };
    for fault in core::mem::take(&mut dice.struck) {
        state.struck(now, Actor::Endpoint(endpoint), fault);
    }
    let visible = match (&script.usage_event, inference) {
        (Some(event), Some(client)) if !state.clients[client].asked.wants_usage => {
            let mut visible = script.bytes[..event.start.min(script.bytes.len())].to_vec();
            visible.extend_from_slice(&script.bytes[event.end.min(script.bytes.len())..]);
            Bytes::from(visible)
        }
        _ => script.bytes.clone(),
    };
    state.calls.push(Call {
        instance,
        life,
        endpoint,
        kind,
        client,
        opened: now,
        open: true,
        status: None,
        visible,
        whole: script.finish == Finish::Whole,
        taken: 0,
        taken_at: now,
        counted: None,
    });
    if let Some(client) = client {
        state.clients[client].calls.push(id);
        state.trace.note(
            now,
            Actor::Instance(instance),
            "sends client {a}'s request as call {b}",
            client as u64,
            id as u64,
        );
    } else {
        state.trace.note(
            now,
            Actor::Instance(instance),
            "asks endpoint {a} about itself in call {b}",
            endpoint as u64,
            id as u64,
        );
    }
    state
        .trace
        .remark(now, Actor::Instance(instance), || format!("call {id}: {} {}", request.method, request.url));
    if let CallKind::Listing(_) = kind {
        let held = models.iter().map(|(listed, _)| *listed).collect();
        let good =
            matches!(script.finish, Finish::Whole) && script.status == 200 && script.bytes.starts_with(b"{");
        let held = good.then_some(held);
        state.instances[instance].listings.push(Listing { endpoint, path, began: now, ended: None, held });
    }
    oracle::call_opened(&mut state, &world.plan, now, id);
    (Open { world: Arc::clone(world), id, instance, endpoint }, script)
}

/// Which endpoint, and which path there.
fn locate(world: &World, url: &str) -> (usize, &'static str) {
    let rest = url.strip_prefix("http://e").expect("the simulator's endpoints are called e0, e1, ...");
    let (number, rest) = rest.split_once(':').expect("with a port");
    let endpoint = number.parse().ok().filter(|index| *index < world.plan.endpoints.len());
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    const PATHS: [&str; 11] = [
        "/api/tags",
        "/api/ps",
        "/api/version",
        "/v1/models",
        "/api/show",
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    ];
    let path = PATHS.into_iter().find(|known| *known == path).expect("the router asks for known paths only");
    (endpoint.expect("of the plan"), path)
}

/// The number in the model's name.
fn model_in(body: &[u8]) -> usize {
    let at = body.windows(9).position(|window| window == b"\"model\":\"").map_or(body.len(), |at| at + 9);
    let name = body[at..].split(|byte| *byte == b'"').next().unwrap_or_default();
    let digit = name.iter().rposition(|byte| *byte == b'm').and_then(|m| name.get(m + 1));
    digit.map_or(usize::MAX, |digit| usize::from(digit.wrapping_sub(b'0')))
}

fn contains(body: &[u8], what: &[u8]) -> bool {
    body.windows(what.len()).any(|window| window == what)
}

/// A call that the endpoint works on; closed when dropped.
struct Open {
    world: Arc<World>,
    id: usize,
    instance: usize,
    endpoint: usize,
}

impl Open {
    fn blocked_until(&self) -> Option<u64> {
        let until = self.world.state.lock().instances[self.instance].cut_off_until[self.endpoint];
        (self.world.now() < until).then_some(until)
    }

    /// The endpoint went down since the call was opened.
    fn lost(&self) -> bool {
        let state = self.world.state.lock();
        state.endpoints[self.endpoint].went_down.is_some_and(|at| at >= state.calls[self.id].opened)
    }

    fn head(&self, status: u16) {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        state.calls[self.id].status = Some(status);
        state.trace.note(
            now,
            Actor::Endpoint(self.endpoint),
            "answers call {a} with status {b}",
            self.id as u64,
            u64::from(status),
        );
        // Nobody reads on in a listing that was refused; an inference's refusal is read to its end.
        if status != 200 && !matches!(state.calls[self.id].kind, CallKind::Inference(_)) {
            oracle::call_closed(&mut state, &self.world.plan, now, self.id, oracle::Closed::Refused(status));
        }
    }

    fn took(&self, bytes: usize, whole: usize, counts: Option<script::Counts>) {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        let call = &mut state.calls[self.id];
        call.taken += bytes;
        let hidden = call.taken == whole && call.visible.len() < whole;
        if let Some(counts) = counts.filter(|counts| call.taken >= counts.known_at) {
            call.counted = Some((counts.input, counts.output));
        }
        state.trace.note(
            now,
            Actor::Endpoint(self.endpoint),
            "call {a} yields {b} bytes",
            self.id as u64,
            bytes as u64,
        );
        oracle::call_took(&mut state, now, self.id);
        if hidden {
            state.reached(Point::UsageHidden);
        }
    }

    fn failed(&self, error: UpstreamError) -> UpstreamError {
        self.close(oracle::Closed::Broken);
        error
    }

    fn close(&self, how: oracle::Closed) {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        oracle::call_closed(&mut state, &self.world.plan, now, self.id, how);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close(oracle::Closed::Dropped);
    }
}

/// An answer's body.
struct Body {
    open: Open,
    script: Script,
    head_at: u64,
    next: usize,
    alarm: Option<Sleep>,
    over: bool,
}

impl Stream for Body {
    type Item = Result<Bytes, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        loop {
            let now = this.open.world.now();
            if this.open.lost() {
                this.over = true;
                return Poll::Ready(Some(Err(this.open.failed(UpstreamError::Broken("reset".to_owned())))));
            }
            let due = match this.script.chunks.get(this.next) {
                Some((after, _)) => this.head_at + after,
                None if this.script.finish == Finish::Stall => return Poll::Pending,
                None => now,
            };
            let due = this.open.blocked_until().map_or(due, |until| due.max(until));
            if now < due {
                let alarm = this.alarm.insert(this.open.world.handle.sleep_until(due));
                if Pin::new(alarm).poll(cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            this.alarm = None;
            return Poll::Ready(this.deliver());
        }
    }
}

impl Body {
    fn deliver(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        let Some((_, end)) = self.script.chunks.get(self.next) else {
            self.over = true;
            if self.script.finish == Finish::Cut {
                return Some(Err(self.open.failed(UpstreamError::Broken("reset".to_owned()))));
            }
            self.open.close(match (self.script.finish, self.script.status) {
                (Finish::Whole, 200) => oracle::Closed::Ended,
                (Finish::Whole, status) => oracle::Closed::Refused(status),
                _ => oracle::Closed::Broken,
            });
            return None;
        };
        let start = if self.next == 0 { 0 } else { self.script.chunks[self.next - 1].1 };
        let chunk = self.script.bytes.slice(start..*end);
        self.next += 1;
        self.open.took(chunk.len(), self.script.bytes.len(), self.script.counts);
        Some(Ok(chunk))
    }
}

/// The plan's name for what a listing path is about; several concerns may share a path.
pub(crate) fn concerns_of(plan: &plan::EndpointPlan) -> u32 {
    if plan.speaks == plan::Speaks::Ollama { 1 } else { 3 }
}
