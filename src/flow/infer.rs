//! One inference request, from the parsed body to the head of an answer: find who serves the model,
//! reserve a slot, send, and try another endpoint as long as no byte of an answer has been given
//! away (`answer-pure`).

use core::pin::pin;
use core::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};
use futures_util::stream::FuturesUnordered;
use http::HeaderMap;

use crate::core::names::EndpointId;
use crate::core::slots::{Candidate, Reservation, Slot, Ticket};
use crate::core::sync::Arc;
use crate::wire::request::{Ask, Shape};
use crate::wire::{Family, Kind};

use super::answer::Answer;
use super::attempt::Missed;
use super::deadline::until;
use super::failure::Failure;
use super::fleet::{Backend, Fleet, Listed};
use super::refresh::{AVAILABLE, Known, LOADED};
use super::router::Router;
use super::story::Story;

/// How often somebody who waits for a slot has the queue look again, for what changes without a
/// call: a breaker's pause that ends, a wedged endpoint that moves.
const RECHECK: Duration = Duration::from_secs(1);

/// A listing older than this is made anew before a model is called unknown: it may just have been
/// pulled.
const DOUBT: Duration = Duration::from_secs(5);

/// With an endpoint found that serves the model, how long after the request began is waited to learn
/// more: for the first listings of others, and then for which of several has the model in memory.
const PATIENCE: Duration = Duration::from_millis(500);

/// A request for inference.
pub struct Inference {
    /// Which route it came in on.
    pub shape: Shape,
    /// That route's path, `/api/chat` or `/v1/chat/completions`.
    pub path: &'static str,
    /// The client's headers.
    pub headers: HeaderMap,
    /// The client's bytes.
    pub body: Bytes,
    /// What was read of them.
    pub ask: Ask,
    /// The request's name in logs.
    pub id: Arc<str>,
    /// Whose it is, if it came with a key.
    pub client_key: Option<ClientKey>,
}

/// What stands in the event log for a client's key: tells clients apart, and is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey([u8; 8]);

impl ClientKey {
    /// From the first bytes of a digest that nobody can undo.
    pub fn from_digest(digest: [u8; 4]) -> ClientKey {
        let hex = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        let mut text = [0; 8];
        for (two, byte) in text.chunks_exact_mut(2).zip(digest) {
            two.copy_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
        }
        ClientKey(text)
    }

    /// Its 8 hex digits.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// An endpoint that serves the model, and the model's name there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) backend: Arc<Backend>,
    pub(super) listed: String,
    candidate: Candidate,
}

impl Router {
    /// Routes one request. Completes with the head of an answer once its first byte is there.
    /// Dropping the future cancels whatever is under way.
    pub async fn infer(&self, request: Inference) -> Result<Answer, Failure> {
        let mut story = self.begin_story(&request);
        loop {
            match self.infer_with(&self.fleet(), &request, &mut story).await {
                Ok(mut answer) => {
                    answer.body.carry(story);
                    return Ok(answer);
                }
                Err(Unanswered::Failed(failure)) => {
                    if let Some(story) = story {
                        story.failed(&failure);
                    }
                    return Err(failure);
                }
                Err(Unanswered::Reloaded) => {
                    tracing::info!(request_id = %request.id, "the endpoints changed; routing anew");
                }
            }
        }
    }

    async fn infer_with(
        &self,
        fleet: &Arc<Fleet>,
        request: &Inference,
        story: &mut Option<Story>,
    ) -> Result<Answer, Unanswered> {
        let model = request.ask.model.as_str();
        let mut targets = self.targets(fleet, model, request.shape.family()).await?;
        let mut missed = None;
        for attempt in 1..=fleet.config.attempts_max.max(1) {
            let slot = match self.slot(fleet, model, &targets).await {
                Ok(slot) => slot,
                Err(unanswered) => return missed.unwrap_or(Err(unanswered)),
            };
            let target = target_of(&targets, slot.endpoint()).clone();
            if let Some(story) = story {
                story.at(&target.backend.name, slot.model());
            }
            let reason;
            match self.attempt(fleet, request, &target, slot).await {
                Ok(answer) => return Ok(answer),
                Err(Missed::Final(failure)) => return Err(failure.into()),
                Err(Missed::Refused(answer)) => {
                    reason = "upstream_refused";
                    missed = Some(Ok(*answer));
                }
                Err(Missed::Failed(failure)) => {
                    reason = failure.code();
                    missed = Some(Err(failure.into()));
                }
            }
            targets.retain(|other| other.backend.id != target.backend.id);
            if targets.is_empty() {
                break;
            }
            let endpoint = &target.backend.name;
            tracing::info!(request_id = %request.id, %endpoint, model, attempt, "trying another endpoint");
            if let Some(story) = story {
                story.retried(reason);
            }
        }
        missed.expect("every attempt that is not returned is remembered")
    }

    /// Who serves `model` and speaks the client's protocol (rules 1, 2 and 6).
    async fn targets(&self, fleet: &Fleet, model: &str, family: Family) -> Result<Vec<Target>, Failure> {
        let found = self.serving(fleet, model).await;
        let found = if found.is_empty() { self.serving_now(fleet, model).await? } else { found };
        let (speaking, mute): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|target| target.backend.speaks(family));
        if speaking.is_empty() {
            let endpoints = mute.iter().map(|target| target.backend.name.clone()).collect();
            return Err(Failure::WrongFamily { model: model.to_owned(), endpoints });
        }
        Ok(speaking)
    }

    /// The endpoints that serve `model`, those that have it in memory first.
    pub(super) async fn backends_for(
        &self,
        fleet: &Fleet,
        model: &str,
        family: Family,
    ) -> Result<Vec<Arc<Backend>>, Failure> {
        let mut targets = self.targets(fleet, model, family).await?;
        targets.sort_by_key(|target| !target.candidate.loaded);
        Ok(targets.into_iter().map(|target| target.backend).collect())
    }

    /// Who serves `model` by what is known, waiting for first listings where nothing is known, but
    /// not long once one endpoint is found.
    async fn serving(&self, fleet: &Fleet, model: &str) -> Vec<Target> {
        let clock = &self.ports.clock;
        let deadline = clock.now() + fleet.config.listing_timeout;
        let mut found = Vec::with_capacity(fleet.backends.len());
        let mut unknown = FuturesUnordered::new();
        for backend in &fleet.backends {
            match self.glance(&AVAILABLE, backend) {
                Ok(Known::Answer(listing, _)) => found.extend(target(backend, listing.find(model))),
                Ok(Known::Failed(_)) => {}
                Err(_) => {
                    unknown.push(async move { (backend, self.ask(&AVAILABLE, backend, deadline).await) })
                }
            }
        }
        let last_call = clock.now() + PATIENCE;
        while !unknown.is_empty() {
            let until_when = if found.is_empty() { deadline } else { last_call.min(deadline) };
            let Ok(Some((backend, answer))) = until(clock.as_ref(), until_when, unknown.next()).await else {
                break;
            };
            if let Ok(Known::Answer(listing, _)) = answer {
                found.extend(target(backend, listing.find(model)));
            }
        }
        drop(unknown);
        self.look_who_has_it_loaded(&mut found).await;
        found
    }

    /// Fills in which targets have the model in memory. With a choice to make it is worth a short
    /// wait: a cold start costs seconds.
    async fn look_who_has_it_loaded(&self, targets: &mut [Target]) {
        let deadline = self.ports.clock.now() + PATIENCE;
        let choice = targets.len() > 1;
        let seen: Vec<_> = targets
            .iter()
            .map(|target| match target.backend.kind {
                Kind::OpenAi => None,
                Kind::Ollama | Kind::LlamaServer => Some(self.glance(&LOADED, &target.backend)),
            })
            .collect();
        for (target, seen) in targets.iter_mut().zip(seen) {
            let known = match seen {
                None => {
                    target.candidate.loaded = true;
                    continue;
                }
                Some(Ok(known)) => Ok(known),
                Some(Err(_)) if choice => self.ask(&LOADED, &target.backend, deadline).await,
                Some(Err(_)) => continue,
            };
            if let Ok(Known::Answer(loaded, age)) = known {
                target.candidate.loaded = loaded.find(&target.listed).is_some();
                target.candidate.stale = age >= target.backend.loaded.ages().fresh;
            }
        }
    }

    /// Nobody is known to serve `model`: ask again where the listing is not brand new, then decide.
    async fn serving_now(&self, fleet: &Fleet, model: &str) -> Result<Vec<Target>, Failure> {
        let deadline = self.ports.clock.now() + fleet.config.listing_timeout;
        join_all(fleet.backends.iter().map(|backend| self.doubt(&AVAILABLE, backend, DOUBT, deadline))).await;
        let (mut found, mut asked, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (backend, known) in self.ask_all(&AVAILABLE, &fleet.backends, fleet.config.listing_timeout).await
        {
            match known {
                Known::Answer(listing, _) => {
                    asked.push(backend.name.clone());
                    found.extend(target(backend, listing.find(model)));
                }
                Known::Failed(why) => failed.push((backend.name.clone(), why.to_string())),
            }
        }
        let model = model.to_owned();
        match (found.is_empty(), asked.is_empty()) {
            (false, _) => {
                self.look_who_has_it_loaded(&mut found).await;
                Ok(found)
            }
            (true, false) => Err(Failure::UnknownModel { model, asked, failed }),
            (true, true) => Err(Failure::NobodyAnswers { model, failed }),
        }
    }

    /// Chooses and reserves (rules 3 to 5), waiting in the queue if it must.
    async fn slot(&self, fleet: &Arc<Fleet>, model: &str, targets: &[Target]) -> Result<Slot, Unanswered> {
        let slot = self.slot_at(fleet, model, targets).await?;
        let now = self.fleet();
        // Nothing is sent with a key, nor to an interface, that a reload has replaced in the meantime.
        let backend = &target_of(targets, slot.endpoint()).backend;
        if Arc::ptr_eq(&now, fleet) || now.latest(backend).is_asked_as(backend) {
            Ok(slot)
        } else {
            Err(Unanswered::Reloaded)
        }
    }

    async fn slot_at(&self, fleet: &Arc<Fleet>, model: &str, targets: &[Target]) -> Result<Slot, Unanswered> {
        let clock = &self.ports.clock;
        let began = clock.now();
        let candidates = targets.iter().map(|target| target.candidate.clone()).collect();
        let model = || model.to_owned();
        let failure = match self.usage.slots().reserve(candidates, began, self.ports.entropy.next_u64()) {
            Reservation::Slot(slot) => return Ok(slot),
            Reservation::Queued(ticket) => return self.queue(fleet, model(), targets, ticket).await,
            Reservation::QueueFull { waiting } => Failure::QueueFull { model: model(), waiting },
            Reservation::Unhealthy { .. } if !self.are_configured(targets) => {
                return Err(Unanswered::Reloaded);
            }
            Reservation::Unhealthy { retry_at } => Failure::Unhealthy {
                model: model(),
                endpoints: targets.iter().map(|target| target.backend.name.clone()).collect(),
                retry_after: retry_at.map_or(RECHECK, |at| at.since(began)),
            },
        };
        Err(failure.into())
    }

    /// Waits for a slot. A reload that takes away every endpoint waited for ends the wait.
    async fn queue(
        &self,
        fleet: &Fleet,
        model: String,
        targets: &[Target],
        mut ticket: Ticket,
    ) -> Result<Slot, Unanswered> {
        let clock = &self.ports.clock;
        let waited = fleet.config.queue_timeout;
        let deadline = clock.now() + waited;
        loop {
            let reloaded = self.reloaded();
            if !self.are_configured(targets) {
                return ticket.leave().ok_or(Unanswered::Reloaded);
            }
            let pause = select(clock.sleep_until(deadline.min(clock.now() + RECHECK)), reloaded);
            if let Either::Left((slot, _)) = select(pin!(ticket.granted()), pause).await {
                return Ok(slot);
            }
            let now = clock.now();
            // Also before giving up: an endpoint may have come back by time alone.
            self.usage.slots().recheck(now);
            if now >= deadline {
                return ticket.leave().ok_or_else(|| Failure::QueueTimeout { model, waited }.into());
            }
        }
    }

    /// Whether any of these endpoints is in the configuration now in force, and asked as it was.
    fn are_configured(&self, targets: &[Target]) -> bool {
        let fleet = self.fleet();
        let is_the_same = |backend: &Backend| {
            fleet.get(backend.id).is_some_and(|configured| configured.is_asked_as(backend))
        };
        targets.iter().any(|target| is_the_same(&target.backend))
    }
}

/// Why a request has no answer yet.
enum Unanswered {
    /// It will have none.
    Failed(Failure),
    /// Every endpoint it could have gone to has left the configuration, or is to be asked otherwise now.
    Reloaded,
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Unanswered::Failed(failure)
    }
}

fn target(backend: &Arc<Backend>, listed: Option<&Listed>) -> Option<Target> {
    let listed = listed?;
    let model = listed.tracked.clone();
    let candidate = Candidate { endpoint: backend.id, model, loaded: false, stale: false };
    Some(Target { backend: Arc::clone(backend), listed: listed.model.name.clone(), candidate })
}

fn target_of(targets: &[Target], endpoint: EndpointId) -> &Target {
    targets
        .iter()
        .find(|target| target.backend.id == endpoint)
        .expect("a slot is granted at one of the candidates that asked for it")
}
