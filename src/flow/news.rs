//! What is new about the models of an endpoint, as events of the log.
//!
//! Told is the difference between an endpoint's listing and the one that was told last, under one lock for each
//! endpoint, so that every model that came goes again before it comes. Called by `refresh` when an endpoint has
//! answered, and where the fleet is replaced.

use crate::core::sync::Arc;
use crate::wire::Kind as Speaks;
use crate::wire::event::{Fields, Kind};

use super::fleet::{Backend, Fleet, Listing, Told};
use super::router::Router;

/// What changes when an endpoint's listing does: the events, and where the listing stands that was logged last.
#[derive(Clone, Copy)]
pub(super) struct Concern {
    came: Kind,
    went: Kind,
    told: fn(&mut Told) -> &mut Option<Arc<Listing>>,
}

pub(super) const SERVED: Concern =
    Concern { came: Kind::ModelAppeared, went: Kind::ModelGone, told: |told| &mut told.available };

pub(super) const IN_MEMORY: Concern =
    Concern { came: Kind::ModelLoaded, went: Kind::ModelUnloaded, told: |told| &mut told.loaded };

impl Router {
    /// Logs what is new in a listing.
    pub(super) fn tell_listing(&self, backend: &Backend, concern: Concern, after: &Arc<Listing>) {
        if !self.log.is_on() {
            return;
        }
        let mut told = backend.told.lock();
        if told.configured {
            self.tell_models(backend, concern, &mut told, Some(Arc::clone(after)));
        }
    }

    /// Logs which models came and went because `after` takes the place of `before`: with their endpoints, or
    /// because what an endpoint said before holds no longer. Called where the fleet is replaced.
    pub(super) fn tell_fleet(&self, before: &Fleet, after: &Fleet) {
        if !self.log.is_on() {
            return;
        }
        for backend in before.backends.iter().filter(|backend| after.get(backend.id).is_none()) {
            let mut told = backend.told.lock();
            told.configured = false;
            for concern in [SERVED, IN_MEMORY] {
                self.tell_models(backend, concern, &mut told, None);
            }
        }
        for backend in &after.backends {
            let mut told = backend.told.lock();
            told.configured = true;
            self.tell_models(backend, SERVED, &mut told, backend.available.last());
            let loaded = if backend.kind == Speaks::OpenAi { None } else { backend.loaded.last() };
            self.tell_models(backend, IN_MEMORY, &mut told, loaded);
        }
    }

    /// Logs the models that are in one listing of an endpoint and not in the other.
    fn tell_models(&self, backend: &Backend, concern: Concern, told: &mut Told, after: Option<Arc<Listing>>) {
        let before = core::mem::replace((concern.told)(told), after.clone());
        let none = Arc::default();
        let (before, after) = (before.as_ref().unwrap_or(&none), after.as_ref().unwrap_or(&none));
        if Arc::ptr_eq(before, after) {
            return;
        }
        for (kind, listing, other) in [(concern.came, after, before), (concern.went, before, after)] {
            for model in listing.models().filter(|model| other.find(&model.name).is_none()) {
                let (endpoint, model) = (Some(backend.name.as_str().into()), Some((&*model.name).into()));
                self.note(kind, Fields { endpoint, model, ..Fields::default() });
            }
        }
    }
}
