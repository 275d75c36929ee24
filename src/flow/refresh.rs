//! Asking endpoints about themselves: which models they serve, which are in memory, are they there.
//!
//! Each question goes through its catalog cell. A fetch runs in a task of its own, so that a waiter
//! who leaves does not end it for the others (`catalog-single-flight`); an invalidation does end it.

use core::pin::pin;
use core::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};
use http::{HeaderMap, Method, header};

use crate::core::catalog::{Cell, Look, Refresh, Wait};
use crate::core::sync::Arc;
use crate::core::time::Instant;
use crate::ports::{UpstreamRequest, UpstreamResponse};
use crate::wire::{Kind, listing};

use super::deadline::{Elapsed, until, within};
use super::fleet::{Backend, Listing};
use super::news::{IN_MEMORY, SERVED};
use super::router::Router;

/// The largest listing that is read, in bytes.
const LISTING_MAX: usize = 16 << 20;

/// A question every endpoint can be asked, and the cell that remembers its answer.
pub(super) struct Question<T> {
    cell: fn(&Backend) -> &Cell<T>,
    path: fn(Kind) -> &'static str,
    read: fn(Kind, &[u8]) -> Result<T, String>,
    /// Logs what is new in an answer.
    tell: fn(&Router, &Backend, &Arc<T>),
}

/// Which models it serves.
pub(super) const AVAILABLE: Question<Listing> = Question {
    cell: |backend| &backend.available,
    path: |kind| if kind == Kind::Ollama { "/api/tags" } else { "/v1/models" },
    read: |kind, body| {
        let models =
            if kind == Kind::Ollama { listing::parse_tags(body) } else { listing::parse_models(body) };
        models.map(|models| Listing::new(kind, models)).map_err(|bad| bad.to_string())
    },
    tell: |router, backend, after| router.tell_listing(backend, SERVED, after),
};

/// Which models it has in memory. A plain OpenAI-style service does not say: all of them.
pub(super) const LOADED: Question<Listing> = Question {
    cell: |backend| &backend.loaded,
    path: |kind| if kind == Kind::Ollama { "/api/ps" } else { "/v1/models" },
    read: |kind, body| {
        let models = if kind == Kind::Ollama { listing::parse_ps(body) } else { listing::parse_models(body) };
        let mut models = models.map_err(|bad| bad.to_string())?;
        models.retain(|model| model.loaded);
        Ok(Listing::new(kind, models))
    },
    tell: |router, backend, after| {
        // A plain OpenAI-style service does not say what it has in memory.
        if backend.kind != Kind::OpenAi {
            router.tell_listing(backend, IN_MEMORY, after);
        }
    },
};

/// Its version, or that it is there if it has none.
pub(super) const STATUS: Question<String> = Question {
    cell: |backend| &backend.status,
    path: |kind| if kind == Kind::Ollama { "/api/version" } else { "/v1/models" },
    read: |kind, body| match kind {
        Kind::Ollama => listing::parse_version(body).map_err(|bad| bad.to_string()),
        Kind::OpenAi | Kind::LlamaServer => {
            listing::parse_models(body).map(|_| "ok".to_owned()).map_err(|bad| bad.to_string())
        }
    },
    tell: |_, _, _| {},
};

/// What an endpoint answered, or why it did not.
pub(super) enum Known<T> {
    /// Its answer and how old that is.
    Answer(Arc<T>, Duration),
    /// It has not answered, for this reason.
    Failed(Arc<str>),
}

impl Router {
    /// What is known without waiting; `Err` to wait for. Starts the fetch where one is due.
    pub(super) fn glance<T: Send + Sync + 'static>(
        &self,
        question: &Question<T>,
        backend: &Arc<Backend>,
    ) -> Result<Known<T>, Wait<T>> {
        match (question.cell)(backend).look(self.ports.clock.now()) {
            Look::Known { value, age, refresh } => {
                self.fetch(question, backend, refresh);
                Ok(Known::Answer(value, age))
            }
            Look::Failed { reason, refresh } => {
                self.fetch(question, backend, refresh);
                Ok(Known::Failed(reason))
            }
            Look::Pending { wait, refresh } => {
                self.fetch(question, backend, refresh);
                Err(wait)
            }
        }
    }

    /// The answer, waiting for a fetch if nothing is known; `Err` if `deadline` comes first.
    pub(super) async fn ask<T: Send + Sync + 'static>(
        &self,
        question: &Question<T>,
        backend: &Arc<Backend>,
        deadline: Instant,
    ) -> Result<Known<T>, Elapsed> {
        loop {
            match self.glance(question, backend) {
                Ok(known) => return Ok(known),
                Err(wait) => until(self.ports.clock.as_ref(), deadline, wait.ended()).await?,
            }
        }
    }

    /// The answers of several endpoints, each with its endpoint. All fetches run at once; those that
    /// take longer than a listing may are reported as failed.
    pub(super) async fn ask_all<'a, T: Send + Sync + 'static>(
        &self,
        question: &Question<T>,
        backends: impl IntoIterator<Item = &'a Arc<Backend>>,
        limit: Duration,
    ) -> Vec<(&'a Arc<Backend>, Known<T>)> {
        let deadline = self.ports.clock.now() + limit;
        // Look at everybody before waiting for anybody: that starts every fetch. Then each is waited for by
        // itself: an answer may grow too old while another endpoint's is waited for.
        let started: Vec<_> =
            backends.into_iter().map(|backend| (backend, self.glance(question, backend))).collect();
        let answers = started.into_iter().map(|(backend, seen)| async move {
            let known = match seen {
                Ok(known) => known,
                Err(_) => self.ask(question, backend, deadline).await.unwrap_or_else(|Elapsed| {
                    Known::Failed(format!("no answer within {} s", limit.as_secs_f64()).into())
                }),
            };
            (backend, known)
        });
        join_all(answers).await
    }

    /// Makes an endpoint's listing anew if it is older than `age`, and waits for that.
    pub(super) async fn doubt<T: Send + Sync + 'static>(
        &self,
        question: &Question<T>,
        backend: &Arc<Backend>,
        age: Duration,
        deadline: Instant,
    ) {
        let Some((wait, refresh)) = (question.cell)(backend).renew(self.ports.clock.now(), age) else {
            return;
        };
        self.fetch(question, backend, refresh);
        // Late is no different from failed here: what is known then is looked at next.
        let _ = until(self.ports.clock.as_ref(), deadline, wait.ended()).await;
    }

    /// Runs a fetch in a task of its own, if there is a permit for one.
    fn fetch<T: Send + Sync + 'static>(
        &self,
        question: &Question<T>,
        backend: &Arc<Backend>,
        refresh: Option<Refresh<T>>,
    ) {
        let Some(refresh) = refresh else { return };
        // Whoever is early may hold an endpoint as it was before a reload; what it says now must be asked for as
        // the reload says. A reload from here on makes the permit worthless (`catalog-age`).
        let (router, backend) = (self.arc(), Arc::clone(self.fleet().latest(backend)));
        let (path, read, tell) = ((question.path)(backend.kind), question.read, question.tell);
        let limit = self.fleet().config.listing_timeout;
        let answered_before = (question.cell)(&backend).answered();
        let task = async move {
            let fetched = {
                let get = within(router.ports.clock.as_ref(), limit, router.get(&backend, path));
                match select(pin!(get), pin!(refresh.superseded())).await {
                    Either::Left((fetched, _)) => Some(fetched),
                    Either::Right(((), _)) => None,
                }
            };
            let Some(fetched) = fetched else { return };
            let result = match fetched {
                Ok(Ok(body)) => read(backend.kind, &body),
                Ok(Err(why)) => Err(why),
                Err(Elapsed) => Err(format!("no answer within {} s", limit.as_secs_f64())),
            };
            if let Err(why) = &result {
                tracing::warn!(endpoint = %backend.name, path, why, "endpoint could not be asked");
            }
            let answered = result.is_ok();
            if let Some(after) = refresh.settle(router.ports.clock.now(), result.map_err(Arc::from)) {
                tell(&router, &backend, &after);
            }
            if answered != answered_before {
                router.answered.notify();
            }
        };
        self.ports.spawn.spawn(Box::pin(task)).detach();
    }

    /// The whole body of `path` at one endpoint, which must answer 200.
    async fn get(&self, backend: &Backend, path: &str) -> Result<Vec<u8>, String> {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &backend.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let request = UpstreamRequest {
            method: Method::GET,
            url: backend.url(path),
            headers,
            body: Default::default(),
        };
        let response = self.ports.upstream.send(request).await.map_err(|error| error.to_string())?;
        if response.status != http::StatusCode::OK {
            return Err(format!("{path} answered {}", response.status));
        }
        whole(response).await
    }
}

/// The whole body of a small answer.
async fn whole(mut response: UpstreamResponse) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.body.next().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if body.len() + chunk.len() > LISTING_MAX {
            return Err(format!("the listing is larger than {LISTING_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
