//! The router as one value: the ports it was given, what it counts, and the fleet now in force.
//!
//! Handlers, background tasks and the simulator's instances each hold an `Arc` of it. The use cases
//! are in the files beside this one, as further methods.

use thiserror::Error;

use crate::config::Config;
use crate::core::breaker;
use crate::core::ledger::Ledger;
use crate::core::names::EndpointName;
use crate::core::signal::{Listener, Signal};
use crate::core::slots::{Limits, Slots};
use crate::core::sync::{Arc, Lock, Rank, Weak};
use crate::core::usage::Usage;
use crate::ports::{Clock, Entropy, Spawn, Store, StoreError, Upstream};
use crate::wire::event::{Fields, Kind};

use super::fleet::Fleet;
use super::flush;
use super::log::EventLog;

/// The world as the router sees it.
#[derive(Clone)]
pub struct Ports {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance, for ties in the choice of an endpoint.
    pub entropy: Arc<dyn Entropy>,
    /// Tasks that outlive the request that started them.
    pub spawn: Arc<dyn Spawn>,
    /// Backends.
    pub upstream: Arc<dyn Upstream>,
    /// Where token counts go.
    pub store: Arc<dyn Store>,
}

/// One running router.
pub struct Router {
    pub(super) ports: Ports,
    pub(super) usage: Usage,
    pub(super) log: EventLog,
    /// Replaced as a whole by [`Router::reload`]; requests under way keep the one they began with.
    fleet: Lock<Arc<Fleet>>,
    /// Notified after each replacement.
    reloaded: Signal,
    /// Notified when an endpoint has answered what it did not answer before, or the other way round.
    pub(super) answered: Signal,
    /// For tasks the router starts for itself.
    this: Weak<Router>,
}

/// Why the router could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The stored token counts cannot be read.
    #[error("the stored token counts cannot be read: {0}")]
    Load(#[from] flush::LoadError),
    /// The event log cannot be read.
    #[error("the event log cannot be read: {0}")]
    Log(StoreError),
}

impl Router {
    /// A router in force with `config`, its token counts loaded from the store.
    pub async fn start(config: Config, ports: Ports) -> Result<Arc<Router>, StartError> {
        let (totals, newest) = flush::load(ports.store.as_ref()).await?;
        let log = EventLog::open(config.event_log, config.event_ring, ports.store.as_ref()).await;
        let log = log.map_err(StartError::Log)?;
        let ledger = Arc::new(Ledger::new(totals, newest));
        let slots = Arc::new(Slots::new(limits(&config)));
        let fleet = Fleet::new(config, &Fleet::default(), |limits, names| slots.configure(limits, names));
        let usage = Usage::new(slots, ledger);
        let router = Arc::new_cyclic(|this| Router {
            ports,
            usage,
            log,
            fleet: Lock::new(Rank::Fleet, Arc::new(fleet)),
            reloaded: Signal::new(),
            answered: Signal::new(),
            this: Weak::clone(this),
        });
        // Before anything else can happen to it.
        router.begin_log();
        router.tell_fleet(&Fleet::default(), &router.fleet());
        Ok(router)
    }

    /// Puts another configuration in force without dropping a request: endpoints that stay keep
    /// their counts, breakers and listings.
    pub fn reload(&self, config: Config) {
        let endpoints = config.endpoints.len() as u64;
        {
            let mut fleet = self.fleet.lock();
            let slots = self.usage.slots();
            let after = Arc::new(Fleet::new(config, &fleet, |limits, names| slots.configure(limits, names)));
            let before = core::mem::replace(&mut *fleet, Arc::clone(&after));
            self.note(Kind::ConfigReloaded, Fields { endpoints: Some(endpoints), ..Fields::default() });
            self.tell_fleet(&before, &after);
        }
        self.reloaded.notify();
        // Whoever is judged by its answers may have none now.
        self.answered.notify();
    }

    /// A future for the next reload. Make it before looking at the fleet.
    pub(super) fn reloaded(&self) -> Listener {
        self.reloaded.listen()
    }

    /// The fleet now in force.
    pub fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet.lock())
    }

    /// What is counted.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The ports.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    pub(super) fn arc(&self) -> Arc<Router> {
        self.this.upgrade().expect("a router is always held by an Arc")
    }
}

/// What of the configuration the slots need.
pub(super) fn limits(config: &Config) -> Limits {
    Limits {
        per_model: config.max_concurrent_connections,
        queue_max: config.queue.then_some(config.queue_max),
        breaker: breaker::Settings { failures: config.breaker_failures, open_for: config.breaker_open },
        wedged_after: config.wedged_after,
    }
}

/// The names of all endpoints of a configuration.
pub(super) fn names(config: &Config) -> Vec<EndpointName> {
    config.endpoints.iter().map(|endpoint| EndpointName::from(endpoint.url.as_str())).collect()
}
