//! What the fleet as a whole has to say: the models it serves, what is in memory, versions, health.
//!
//! Every answer comes through the catalog, so however often these are polled, an endpoint is asked
//! at most once per concern at a time.

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::core::breaker::Health;
use crate::core::names::EndpointName;
use crate::core::slots::Snapshot;
use crate::core::sync::Arc;
use crate::ports::UpstreamRequest;
use crate::wire::{Family, Kind, listing};

use super::answer::Answer;
use super::attempt::whole;
use super::deadline::{Elapsed, within};
use super::failure::Failure;
use super::fleet::{Backend, Listing};
use super::headers;
use super::refresh::{AVAILABLE, Known, LOADED, Question, STATUS};
use super::router::Router;

/// One endpoint's state, as `/health` and `/api/config` show it.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    /// Its URL as configured.
    pub name: String,
    /// What it speaks.
    pub kind: Kind,
    /// Its version (or `ok`), or why it did not answer.
    pub answer: Result<String, String>,
    /// Its breaker.
    pub health: Health,
    /// Requests wait there and no byte moves.
    pub wedged: bool,
    /// Requests in flight.
    pub in_flight: u32,
    /// What `/metrics` and the event log say too.
    pub up: bool,
}

impl EndpointStatus {
    /// It may be given a request, if only to see what becomes of it.
    pub fn takes_requests(&self) -> bool {
        self.answer.is_ok() && self.health != Health::Open && !self.wedged
    }
}

impl Router {
    /// Ollama's `/api/tags`: the union over all endpoints.
    pub async fn tags(&self) -> Vec<u8> {
        let listings = self.listings(&AVAILABLE).await;
        listing::tags_union(models(&listings))
    }

    /// Ollama's `/api/ps`: the union over all endpoints that say what is in memory.
    pub async fn ps(&self) -> Vec<u8> {
        let mut listings = self.listings(&LOADED).await;
        listings.retain(|(backend, listing)| kind(backend, listing) != Kind::OpenAi);
        listing::ps_union(models(&listings))
    }

    /// OpenAI's `/v1/models`: the union over all endpoints.
    pub async fn models(&self) -> Vec<u8> {
        let listings = self.listings(&AVAILABLE).await;
        listing::models_union(models(&listings))
    }

    /// OpenAI's `/v1/models/MODEL`: the entry of the first endpoint that serves it.
    pub async fn model(&self, model: &str) -> Result<Vec<u8>, Failure> {
        let fleet = self.fleet();
        let backends = self.backends_for(&fleet, model, Family::OpenAi).await?;
        let listed = backends.iter().find_map(|backend| {
            let listing = backend.available.peek(self.ports.clock.now())?;
            Some(listing::openai_model(kind(backend, &listing), &listing.find(model)?.model))
        });
        listed.ok_or_else(|| Failure::NobodyAnswers { model: model.to_owned(), failed: Vec::new() })
    }

    /// Ollama's `/api/version`: the lowest of all Ollama endpoints, so that clients expect no more
    /// than every one of them can do.
    pub async fn version(&self) -> Result<String, Failure> {
        let fleet = self.fleet();
        let ollamas = fleet.backends.iter().filter(|backend| backend.kind == Kind::Ollama);
        let (mut versions, mut failed) = (Vec::new(), Vec::new());
        for (backend, known) in self.ask_all(&STATUS, ollamas, fleet.config.listing_timeout).await {
            match known {
                Known::Answer(version, _) => versions.push(version),
                Known::Failed(why) => failed.push((backend.name.clone(), why.to_string())),
            }
        }
        listing::lowest_version(versions.iter().map(|version| version.as_str()))
            .ok_or(Failure::NobodyThere { failed })
    }

    /// Every endpoint's state, in the order of the configuration.
    pub async fn endpoints(&self) -> Vec<EndpointStatus> {
        let fleet = self.fleet();
        let answers = self.ask_all(&STATUS, &fleet.backends, fleet.config.listing_timeout).await;
        let slots = self.slots_now();
        let status = |(backend, known): (&Arc<Backend>, Known<String>)| {
            let used = slots.endpoints.get(backend.id.index());
            EndpointStatus {
                name: backend.name.to_string(),
                kind: backend.kind,
                answer: match known {
                    Known::Answer(version, _) => Ok(version.as_str().to_owned()),
                    Known::Failed(why) => Err(why.to_string()),
                },
                health: used.map_or(Health::Closed, |used| used.health),
                wedged: used.is_some_and(|used| used.wedged),
                in_flight: used.map_or(0, |used| used.total),
                up: is_up(backend, &slots),
            }
        };
        answers.into_iter().map(status).collect()
    }

    /// Every configured endpoint, and whether it is up: the one judgement that events, `/metrics`, `/health` and
    /// `/api/config` share. It is if its breaker is closed, bytes move if any are waited for, and it answered
    /// when it was last asked about itself.
    pub fn ups(&self) -> Vec<(EndpointName, bool)> {
        let (fleet, slots) = (self.fleet(), self.slots_now());
        fleet.backends.iter().map(|backend| (backend.name.clone(), is_up(backend, &slots))).collect()
    }

    /// The slots as they are by the clock: on an idle router nobody else says what time it is.
    fn slots_now(&self) -> Snapshot {
        self.usage.slots().recheck(self.ports.clock.now());
        self.usage.snapshot().slots
    }

    /// Looks at what endpoints serve and have loaded, as a request would, and again at what they last failed to
    /// say: so that the event log hears of it on a router that nobody asks.
    pub(super) fn look_around(&self) {
        for backend in &self.fleet().backends {
            let _ = self.glance(&AVAILABLE, backend);
            // A plain OpenAI-style service does not say what it has in memory.
            if backend.kind != Kind::OpenAi {
                let _ = self.glance(&LOADED, backend);
            }
            if !backend.status.answered() {
                let _ = self.glance(&STATUS, backend);
            }
        }
    }

    /// Ollama's `/api/show`: answered by one endpoint that serves the model; the next is asked only
    /// if one gives no answer at all. Takes no slot: it runs no model.
    pub async fn show(&self, model: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, Failure> {
        'anew: loop {
            let fleet = self.fleet();
            let mut last = None;
            for backend in self.backends_for(&fleet, model, Family::Ollama).await? {
                // A reload in the meantime may have it asked with another key, or not at all.
                if !self.fleet().latest(&backend).is_asked_as(&backend) {
                    continue 'anew;
                }
                let mut headers = headers.clone();
                headers::to_upstream(&mut headers, backend.authorization.as_ref());
                let url = backend.url("/api/show");
                let request = UpstreamRequest { method: Method::POST, url, headers, body: body.clone() };
                let limit = fleet.config.first_byte_timeout;
                let endpoint = backend.name.clone();
                let answer = within(self.ports.clock.as_ref(), limit, async {
                    let response = self.ports.upstream.send(request).await;
                    whole(&backend, response.map_err(|error| Failure::Upstream { endpoint, error })?).await
                });
                match answer.await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failure)) => last = Some(failure),
                    Err(Elapsed) => {
                        last =
                            Some(Failure::FirstByteTimeout { endpoint: backend.name.clone(), after: limit });
                    }
                }
            }
            return Err(last.expect("at least one endpoint serves the model"));
        }
    }

    /// Learns what every endpoint serves and has loaded, so that the first request need not wait.
    pub(super) async fn warm_up(&self) {
        let fleet = self.fleet();
        let limit = fleet.config.listing_timeout;
        self.ask_all(&AVAILABLE, &fleet.backends, limit).await;
        self.ask_all(&LOADED, &fleet.backends, limit).await;
    }

    async fn listings(&self, question: &Question<Listing>) -> Vec<(Arc<Backend>, Arc<Listing>)> {
        let fleet = self.fleet();
        let answers = self.ask_all(question, &fleet.backends, fleet.config.listing_timeout).await;
        let answered = |(backend, known): (&Arc<Backend>, Known<Listing>)| match known {
            Known::Answer(listing, _) => Some((Arc::clone(backend), listing)),
            Known::Failed(_) => None,
        };
        answers.into_iter().filter_map(answered).collect()
    }
}

fn is_up(backend: &Backend, slots: &Snapshot) -> bool {
    let used = slots.endpoints.get(backend.id.index());
    backend.answers() && used.is_none_or(|used| used.health == Health::Closed && !used.wedged)
}

fn models(listings: &[(Arc<Backend>, Arc<Listing>)]) -> impl Iterator<Item = (Kind, &listing::Model)> {
    listings.iter().flat_map(|(backend, listing)| {
        let kind = kind(backend, listing);
        listing.models().map(move |model| (kind, model))
    })
}

/// What the endpoint was when it listed these: a reload may have made it something else since the caller looked
/// at the fleet.
fn kind(backend: &Backend, listing: &Listing) -> Kind {
    listing.kind().unwrap_or(backend.kind)
}
