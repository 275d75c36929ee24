//! The `Upstream` port: calls from an instance to an endpoint, with the faults between them.
//!
//! A call is open from the moment it is sent until the router has its end, its refusal or its failure,
//! or drops it; so in a right router the open calls are exactly the slots in flight. Dropping closes it
//! for the router at once. The endpoint hears of it as soon as the way there is clear, or never, and works on
//! until then: a ghost, which may keep others waiting.
//!
//! A call goes over a new connection, which has to be made first, or over one that is there, whose other end
//! may be gone without anybody knowing.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use memchr::memmem;

use pointsman::ports::{BoxFuture, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};

use crate::executor::Sleep;
use crate::faults::Fault;
use crate::oracle;
use crate::plan::Speaks;
use crate::script::{self, Acts, Dice, Finish, NoHead, Script};
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::{Call, CallKind, CutOff, Listing, World};

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
    let (mut open, mut script) = open(&world, instance, life, &request);
    let endpoint = open.endpoint;
    if !open.connected && open.cannot_connect() {
        world.handle.sleep_until(world.now() + CONNECT_TIMEOUT_NS).await;
        return Err(open.failed(UpstreamError::Connect("no answer within 5 s".to_owned())));
    }
    world.handle.sleep_until(world.now() + script.connect_ns).await;
    // What is sent over a connection that is there arrives when the way is clear.
    while let Some(until) = open.blocked_until(|cut| cut.requests_until, REQUESTS) {
        world.handle.sleep_until(until).await;
    }
    if let Some(back) = open.vanished_until() {
        world.handle.sleep_until(back).await;
        return Err(open.failed(UpstreamError::Broken("reset".to_owned())));
    }
    let down = world.now() < world.state.lock().endpoints[endpoint].down_until;
    if down || script.no_head == Some(NoHead::Refused) {
        open.acts(&mut script, |acts| acts == Acts::Connect);
        if down {
            open.struck(Fault::EndpointDown);
        }
        return Err(open.failed(UpstreamError::Connect("refused".to_owned())));
    }
    open.arrived(&script);
    world.handle.sleep_until(open.answers_at.unwrap_or(0).max(world.now() + script.head_ns)).await;
    open.acts(&mut script, |acts| acts == Acts::Head);
    match script.no_head {
        Some(NoHead::Stall) => core::future::pending().await,
        Some(NoHead::Cut) => return Err(open.failed(UpstreamError::Broken("reset".to_owned()))),
        Some(NoHead::Refused) | None => {}
    }
    while let Some(until) = open.blocked_until(|cut| cut.answers_until, ANSWERS) {
        world.handle.sleep_until(until).await;
    }
    if open.is_half_open() {
        core::future::pending().await
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
    let of = &state.instances[instance];
    let (asked_as, turn) = (of.asked_as[endpoint], of.turns[endpoint]);
    let switches = (!state.calm).then_some(&world.plan.faults);
    let inference = client.filter(|_| path != "/api/show");
    let mut dice = Dice { seed: world.seed, key: [0; 4], switches };
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
            (CallKind::Inference(model), script::inference(&question, &dice))
        }
        None => {
            let made = state.listings_made.entry((instance, endpoint)).or_default();
            *made += 1;
            dice.key = [instance as u64, *made, endpoint as u64, 2];
            let kind = match client {
                Some(_) => CallKind::Other,
                None => CallKind::Listing(state.instances[instance].listings.len()),
            };
            let good = script::listing_body(plan, endpoint, &models, path);
            (kind, script::listing(plan, id, good, &dice))
        }
    };
    let asked_for = inference.is_none_or(|client| state.clients[client].asked.wants_usage);
    let visible = match &script.hidden[..] {
        hidden if asked_for || hidden.is_empty() => script.bytes.clone(),
        hidden => {
            let (mut visible, mut at, len) = (Vec::new(), 0, script.bytes.len());
            for event in hidden {
                visible.extend_from_slice(&script.bytes[at.min(len)..event.start.min(len)]);
                at = event.end;
            }
            visible.extend_from_slice(&script.bytes[at.min(len)..]);
            Bytes::from(visible)
        }
    };
    let connected = dice.stream("connected").chance(500);
    let cancel_lost = inference.is_some() && dice.strikes(Fault::CancelLost);
    state.calls.push(Call {
        instance,
        life,
        endpoint,
        kind,
        client,
        asked_as,
        key: key_in(&request.headers),
        opened: now,
        open: true,
        closed: None,
        status: None,
        visible,
        whole: script.finish == Finish::Whole,
        complete_at: script.complete_at,
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
        // Nobody says what is in memory who was taken for a llama.cpp server: then all is.
        let says = path == "/api/ps" || plan.speaks == Speaks::LlamaServer;
        let loaded = models.iter().map(|(listed, loaded)| *listed && (*loaded || !says)).collect();
        let loaded = good.then_some(loaded);
        let listing = Listing { endpoint, path, asked_as, turn, began: now, ended: None, held, loaded };
        state.instances[instance].listings.push(listing);
    }
    oracle::call_opened(&mut state, &world.plan, now, id);
    let world = Arc::clone(world);
    (
        Open { world, id, instance, endpoint, connected, cancel_lost, answers_at: None, works_until: None },
        script,
    )
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

/// The number in the key; 0 if there is none.
fn key_in(headers: &HeaderMap) -> u32 {
    let said = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    said.map_or(0, |said| said.strip_prefix("Bearer k").and_then(|key| key.parse().ok()).unwrap_or(u32::MAX))
}

/// The number in the model's name.
fn model_in(body: &[u8]) -> usize {
    let at = memmem::find(body, b"\"model\":\"").map_or(body.len(), |at| at + 9);
    let name = body[at..].split(|byte| *byte == b'"').next().unwrap_or_default();
    let digit = name.iter().rposition(|byte| *byte == b'm').and_then(|m| name.get(m + 1));
    digit.map_or(usize::MAX, |digit| usize::from(digit.wrapping_sub(b'0')))
}

fn contains(body: &[u8], what: &[u8]) -> bool {
    memmem::find(body, what).is_some()
}

/// The faults behind what blocks one way only, and both.
const REQUESTS: [Fault; 2] = [Fault::PartitionRequests, Fault::Partition];
const ANSWERS: [Fault; 2] = [Fault::PartitionAnswers, Fault::Partition];

/// A call that the endpoint works on; closed when dropped.
struct Open {
    world: Arc<World>,
    id: usize,
    instance: usize,
    endpoint: usize,
    /// It goes over a connection that was there before.
    connected: bool,
    /// The endpoint will not hear if it is dropped.
    cancel_lost: bool,
    /// Not before, because the endpoint is busy for somebody who is gone.
    answers_at: Option<u64>,
    /// When the endpoint will be done with it; `None` before it arrives.
    works_until: Option<u64>,
}

impl Open {
    fn struck(&self, fault: Fault) {
        let now = self.world.now();
        self.world.state.lock().struck(now, Actor::Endpoint(self.endpoint), fault);
    }

    /// Counts the faults of the script that act now.
    fn acts(&self, script: &mut Script, now: impl Fn(Acts) -> bool) {
        script.acts.retain(|(fault, acts)| {
            let acting = now(*acts);
            if acting {
                self.struck(*fault);
            }
            !acting
        });
    }

    /// Until when one direction is blocked, if it is: by the first of these faults, or the second if both
    /// directions are.
    fn blocked_until(&self, way: fn(&CutOff) -> u64, faults: [Fault; 2]) -> Option<u64> {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        let cut = state.instances[self.instance].cut_off[self.endpoint];
        if now >= way(&cut) {
            return None;
        }
        let both = cut.requests_until == cut.answers_until;
        state.struck(now, Actor::Endpoint(self.endpoint), faults[usize::from(both)]);
        Some(way(&cut))
    }

    /// Neither side hears the other's first words, or the endpoint is not there to hear them.
    fn cannot_connect(&self) -> bool {
        self.blocked_until(|cut| cut.requests_until, REQUESTS).is_some()
            || self.blocked_until(|cut| cut.answers_until, ANSWERS).is_some()
            || self.vanished_until().is_some()
    }

    /// When the endpoint will be back, if it is not there.
    fn vanished_until(&self) -> Option<u64> {
        let until = self.world.state.lock().endpoints[self.endpoint].vanished_until;
        if self.world.now() >= until {
            return None;
        }
        self.struck(Fault::EndpointVanishes);
        Some(until)
    }

    /// The endpoint has vanished since the call was opened, and forgotten it.
    fn is_half_open(&self) -> bool {
        let state = self.world.state.lock();
        state.endpoints[self.endpoint].vanished_at.is_some_and(|at| at >= state.calls[self.id].opened)
    }

    /// The endpoint has the request.
    fn arrived(&mut self, script: &Script) {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        let inference = matches!(state.calls[self.id].kind, CallKind::Inference(_));
        let ghosts = &mut state.endpoints[self.endpoint].ghosts;
        ghosts.retain(|until| *until > now);
        let busy_until = ghosts.iter().min().copied().filter(|_| inference);
        if busy_until.is_some() {
            state.reached(Point::WaitedForAGhost);
        }
        let begins = busy_until.unwrap_or(now);
        self.answers_at = busy_until;
        self.works_until = Some(begins + script.lasts_ns());
    }

    /// The router has dropped the call: the endpoint works on until it hears of it.
    fn haunt(&self) {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        let call = &state.calls[self.id];
        let Some(done) = self.works_until.filter(|_| matches!(call.kind, CallKind::Inference(_))) else {
            return;
        };
        let blocked_until = state.instances[self.instance].cut_off[self.endpoint].requests_until;
        let hears = if self.cancel_lost { done } else { done.min(blocked_until) };
        if !call.open || hears <= now {
            return;
        }
        if self.cancel_lost {
            state.struck(now, Actor::Endpoint(self.endpoint), Fault::CancelLost);
        } else {
            state.reached(Point::CancelledLate);
        }
        state.endpoints[self.endpoint].ghosts.push(hears);
    }

    /// The endpoint went down since the call was opened.
    fn lost(&self) -> bool {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        let opened = state.calls[self.id].opened;
        let lost = state.endpoints[self.endpoint].went_down.is_some_and(|at| at >= opened);
        if lost {
            state.struck(now, Actor::Endpoint(self.endpoint), Fault::EndpointDown);
        }
        lost
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

    fn took(&self, bytes: usize, whole: usize, counts: &[script::Counts]) {
        let now = self.world.now();
        let mut state = self.world.state.lock();
        let call = &mut state.calls[self.id];
        call.taken += bytes;
        let hidden = call.taken == whole && call.visible.len() < whole;
        if let Some(counts) = counts.iter().rev().find(|counts| call.taken >= counts.known_at) {
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
        self.haunt();
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
                None if this.script.finish == Finish::Stall => {
                    this.open.acts(&mut this.script, |acts| acts == Acts::End);
                    return Poll::Pending;
                }
                None => now,
            };
            if this.open.is_half_open() {
                return Poll::Pending;
            }
            let until = this.open.blocked_until(|cut| cut.answers_until, ANSWERS);
            let due = until.map_or(due, |until| due.max(until));
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
        let Some((_, end)) = self.script.chunks.get(self.next).copied() else {
            self.over = true;
            self.open.acts(&mut self.script, |acts| acts == Acts::End);
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
        let chunk = self.script.bytes.slice(start..end);
        self.next += 1;
        self.open.took(chunk.len(), self.script.bytes.len(), &self.script.counts);
        let taken = end;
        self.open.acts(&mut self.script, |acts| matches!(acts, Acts::Byte(at) if at <= taken));
        Some(Ok(chunk))
    }
}

/// How many concerns share the path of a listing, by what the endpoint is asked as.
pub(crate) fn concerns_of(speaks: Speaks) -> u32 {
    if speaks.tags() { 1 } else { 3 }
}
