//! The endpoints now configured, each with what it last said about itself.
//!
//! A fleet is immutable; a reload makes a new one. What endpoints said outlives it: an endpoint has the
//! same cells for as long as the process runs, so that one taken out and put back while it is being
//! asked is not asked twice at once. Read by every use case through `Router::fleet`.

use std::collections::BTreeMap;

use core::fmt;
use core::time::Duration;

use http::HeaderValue;

use crate::config::{Config, EndpointConfig, Secret};
use crate::core::catalog::{Ages, Cell};
use crate::core::names::{EndpointId, EndpointName, ModelName};
use crate::core::slots::Limits;
use crate::core::sync::{Arc, Lock, Rank};
use crate::wire::listing::Model;
use crate::wire::{Family, Kind, names};

use super::router;

/// The endpoints and settings of one configuration.
#[derive(Debug, Default)]
pub struct Fleet {
    /// In the order of the configuration.
    pub backends: Vec<Arc<Backend>>,
    /// Everything else that was configured.
    pub config: Config,
    /// By the endpoints' numbers: as each was last configured; also those that no longer are, which may come back.
    latest: BTreeMap<EndpointId, Arc<Backend>>,
}

/// What the event log says of one endpoint's models, so that it tells every change once and in order: whoever
/// has something to tell compares with this, and puts the new state here, in one step.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// It is in the configuration: what is learnt of others concerns nobody.
    pub(super) configured: bool,
    /// What it serves.
    pub(super) available: Option<Arc<Listing>>,
    /// What it has in memory.
    pub(super) loaded: Option<Arc<Listing>>,
}

/// How long the answer to "are you there" is believed: the pages that ask are polled by people and
/// load balancers, one question per endpoint every few seconds is enough for all of them.
const STATUS: Ages = Ages {
    fresh: Duration::from_secs(5),
    expiry: Duration::from_secs(10),
    error_quiet: Duration::from_secs(2),
    error_expiry: Duration::from_secs(5),
};

/// One endpoint.
pub struct Backend {
    /// Its number.
    pub id: EndpointId,
    /// Its URL as configured.
    pub name: EndpointName,
    /// What it speaks.
    pub kind: Kind,
    /// Where its native API begins: an Ollama's root, the others' `/v1`.
    pub base: String,
    /// Its key, to be masked wherever the endpoint repeats it.
    pub key: Option<Secret>,
    /// `Bearer KEY`, if a key is configured.
    pub authorization: Option<HeaderValue>,
    /// How often a reload has changed its key or its kind.
    turn: u64,
    /// The models it serves.
    pub available: Cell<Listing>,
    /// The models it has in memory.
    pub loaded: Cell<Listing>,
    /// Its version, as a sign of life.
    pub status: Cell<String>,
    /// What was logged of its models.
    pub(super) told: Arc<Lock<Told>>,
}

impl Fleet {
    /// The fleet of `config`, with what is known from `before` of endpoints that stay what they were.
    pub(super) fn new(
        config: Config,
        before: &Fleet,
        configure: impl FnOnce(Limits, &[EndpointName]) -> Vec<EndpointId>,
    ) -> Fleet {
        let ids = configure(router::limits(&config), &router::names(&config));
        let mut latest = before.latest.clone();
        let backends = config.endpoints.iter().zip(&ids).map(|(endpoint, id)| {
            let backend = Arc::new(match latest.get(id) {
                None => Backend::new(endpoint, *id),
                Some(before) => Backend::again(endpoint, before),
            });
            latest.insert(*id, Arc::clone(&backend));
            backend
        });
        let backends = backends.collect();
        Fleet { backends, config, latest }
    }

    /// An endpoint of this fleet or of an earlier one, as it is to be asked now: as this configuration says, or
    /// the last one that had it. Whoever began under an earlier one must not go on with its key, nor with its kind.
    pub(super) fn latest<'a>(&'a self, backend: &'a Arc<Backend>) -> &'a Arc<Backend> {
        self.latest.get(&backend.id).unwrap_or(backend)
    }

    /// The endpoint with this number, if it is configured.
    pub fn get(&self, id: EndpointId) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.id == id).map(|backend| &**backend)
    }
}

impl Backend {
    fn new(config: &EndpointConfig, id: EndpointId) -> Backend {
        Backend {
            id,
            name: config.url.as_str().into(),
            kind: config.kind,
            base: match config.kind {
                Kind::Ollama => config.base.clone(),
                Kind::LlamaServer | Kind::OpenAi => config.openai_base.clone(),
            },
            key: config.api_key.clone(),
            authorization: authorization(config),
            turn: 0,
            available: Cell::new(Ages::AVAILABLE),
            loaded: Cell::new(Ages::LOADED),
            status: Cell::new(STATUS),
            told: Arc::new(Lock::new(Rank::Told, Told::default())),
        }
    }

    /// The same endpoint in another configuration, with what it said in the same cells.
    fn again(config: &EndpointConfig, before: &Backend) -> Backend {
        let mut backend = Backend {
            turn: before.turn,
            available: before.available.clone(),
            loaded: before.loaded.clone(),
            status: before.status.clone(),
            told: Arc::clone(&before.told),
            ..Backend::new(config, before.id)
        };
        // Another kind or key may list other models. Whoever is asking now stops before anybody asks again.
        if (backend.kind, &backend.authorization) != (before.kind, &before.authorization) {
            backend.turn += 1;
            backend.available.invalidate();
            backend.loaded.invalidate();
            backend.status.invalidate();
        }
        backend
    }

    /// Whether it is asked as it was at `then`, and has been all the time: what it said in between, with a key
    /// that was replaced again, is nothing to go by.
    pub(super) fn is_asked_as(&self, then: &Backend) -> bool {
        self.turn == then.turn
    }

    /// Whether it answered when it was last asked what it serves, and when it was last asked whether it is there.
    pub fn answers(&self) -> bool {
        self.available.answered() && self.status.answered()
    }

    /// Whether it answers this family's routes: everybody speaks OpenAI's, only an Ollama its own.
    pub fn speaks(&self, family: Family) -> bool {
        self.kind == Kind::Ollama || family == Family::OpenAi
    }

    /// The absolute URL of `path`, which is written as the router's own routes are (`/api/chat`,
    /// `/v1/models`).
    pub fn url(&self, path: &str) -> String {
        let path = if self.kind == Kind::Ollama { path } else { path.strip_prefix("/v1").unwrap_or(path) };
        let mut url = String::with_capacity(self.base.len() + path.len());
        url.push_str(&self.base);
        url.push_str(path);
        url
    }
}

/// `Bearer KEY`, if a key is configured.
fn authorization(config: &EndpointConfig) -> Option<HeaderValue> {
    let key = config.api_key.as_ref()?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({}, {:?})", self.name, self.kind)
    }
}

/// The models one endpoint listed, findable by the names clients use.
#[derive(Debug, Default)]
pub struct Listing {
    kind: Option<Kind>,
    /// In the endpoint's order.
    models: Vec<Listed>,
    /// Where each listed name is.
    by_name: BTreeMap<String, usize>,
}

/// One listed model.
#[derive(Debug)]
pub struct Listed {
    /// As the endpoint listed it.
    pub model: Model,
    /// As its slots and tokens are counted.
    pub tracked: ModelName,
}

impl Listing {
    pub(super) fn new(kind: Kind, models: Vec<Model>) -> Listing {
        let by_name = models.iter().enumerate().rev().map(|(at, model)| (model.name.clone(), at)).collect();
        let models = models
            .into_iter()
            .map(|model| Listed { tracked: names::tracked(kind, &model.name).into(), model })
            .collect();
        Listing { kind: Some(kind), models, by_name }
    }

    /// The model a client means by `asked`: the exact name, else one the naming rules make equal.
    pub fn find(&self, asked: &str) -> Option<&Listed> {
        if let Some(at) = self.by_name.get(asked) {
            return Some(&self.models[*at]);
        }
        let kind = self.kind?;
        self.models.iter().find(|listed| names::serves(kind, &listed.model.name, asked))
    }

    /// What the endpoint was when it listed them.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// All of them, in the endpoint's order.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.iter().map(|listed| &listed.model)
    }
}
