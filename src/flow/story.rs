//! A request's place in the event log: one start, and exactly one end whatever becomes of it.

use crate::core::ledger::Tokens;
use crate::core::names::{EndpointName, ModelName};
use crate::core::sync::Arc;
use crate::core::time::Instant;
use crate::wire::event::{Fields, Kind};

use super::answer::Outcome;
use super::failure::Failure;
use super::infer::{ClientKey, Inference};
use super::router::Router;

/// A request that was started and has not ended. Dropped without a word, its client has left.
pub(super) struct Story {
    router: Arc<Router>,
    id: Arc<str>,
    began: Instant,
    ended: bool,
    /// As the client named it.
    model: Box<str>,
    client_key: Option<ClientKey>,
    /// Where it was sent last, and how the model is counted there.
    at: Option<(EndpointName, ModelName)>,
}

impl Router {
    /// Logs that a request was accepted; `None` if nothing is logged.
    pub(super) fn begin_story(&self, request: &Inference) -> Option<Story> {
        if !self.log.is_on() {
            return None;
        }
        let story = Story {
            router: self.arc(),
            id: Arc::clone(&request.id),
            began: self.ports.clock.now(),
            ended: false,
            model: request.ask.model.as_str().into(),
            client_key: request.client_key,
            at: None,
        };
        self.note(Kind::RequestStarted, story.fields());
        Some(story)
    }
}

impl Story {
    /// An endpoint was chosen, where the model has this name.
    pub(super) fn at(&mut self, endpoint: &EndpointName, model: &ModelName) {
        self.at = Some((endpoint.clone(), model.clone()));
    }

    /// That endpoint gave no answer, and another is tried.
    pub(super) fn retried(&self, reason: &'static str) {
        let fields = Fields { reason: Some(reason.into()), ..self.fields() };
        self.router.note(Kind::RequestRetried, fields);
    }

    /// It ended with an answer, whole or not.
    pub(super) fn end(mut self, outcome: Outcome, tokens: Option<Tokens>) {
        self.tell(outcome, tokens, None);
    }

    /// It ended without one.
    pub(super) fn failed(mut self, failure: &Failure) {
        let outcome = if failure.is_of_an_endpoint() { Outcome::Failed } else { Outcome::Refused };
        self.tell(outcome, None, Some(failure.code()));
    }

    fn tell(&mut self, outcome: Outcome, tokens: Option<Tokens>, reason: Option<&'static str>) {
        if core::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = self.router.ports.clock.now().since(self.began);
        let fields = Fields {
            input_tokens: tokens.map(|tokens| tokens.input),
            output_tokens: tokens.map(|tokens| tokens.output),
            duration_ms: Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            outcome: Some(outcome.name().into()),
            reason: reason.map(Into::into),
            ..self.fields()
        };
        self.router.note(Kind::RequestFinished, fields);
    }

    fn fields(&self) -> Fields<'_> {
        let at = self.at.as_ref();
        let model = at.map_or(&*self.model, |(_, model)| model.as_str());
        Fields {
            request_id: Some((&*self.id).into()),
            endpoint: at.map(|(endpoint, _)| endpoint.as_str().into()),
            model: Some(model.into()),
            asked: (model != &*self.model).then(|| (&*self.model).into()),
            client_key: self.client_key.as_ref().map(|key| key.as_str().into()),
            ..Fields::default()
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.tell(Outcome::Cancelled, None, None);
    }
}
