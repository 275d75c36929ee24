//! Why a request got no answer: one variant per reason, each a sentence its user can act on, with
//! the status it maps to. Rendered in the client's own protocol by `http`.

use core::time::Duration;

use http::StatusCode;
use thiserror::Error;

use crate::core::names::EndpointName;
use crate::ports::UpstreamError;

/// A request that ended without an answer from any endpoint.
#[derive(Clone, Debug, Error)]
pub enum Failure {
    /// Endpoints answered, and none of them serves the model.
    #[error("model '{model}' is not served by any endpoint (asked: {}){}", join(.asked), unreachable(.failed))]
    UnknownModel {
        /// As the client named it.
        model: String,
        /// Who was asked and answered.
        asked: Vec<EndpointName>,
        /// Who could not be asked, and why.
        failed: Vec<(EndpointName, String)>,
    },
    /// No endpoint could say what it serves.
    #[error("no endpoint can be asked for model '{model}'{}", unreachable(.failed))]
    NobodyAnswers {
        /// As the client named it.
        model: String,
        /// Who could not be asked, and why.
        failed: Vec<(EndpointName, String)>,
    },
    /// The model is there, but its endpoints do not speak this protocol.
    #[error(
        "model '{model}' is served by {} only, which does not speak Ollama's API, and translating between the two is not supported: \
         use the /v1 routes for it",
        join(.endpoints)
    )]
    WrongFamily {
        /// As the client named it.
        model: String,
        /// Who serves it.
        endpoints: Vec<EndpointName>,
    },
    /// Every slot is taken and the queue is full.
    #[error("every slot for model '{model}' is taken and {waiting} requests wait already: try again later")]
    QueueFull {
        /// As the client named it.
        model: String,
        /// How many wait, for any model.
        waiting: usize,
    },
    /// No slot came free in time.
    #[error("no slot for model '{model}' came free within {} s: try again later", .waited.as_secs_f64())]
    QueueTimeout {
        /// As the client named it.
        model: String,
        /// How long the request waited.
        waited: Duration,
    },
    /// Every endpoint with the model failed recently.
    #[error("every endpoint for model '{model}' failed recently ({}): try again later", join(.endpoints))]
    Unhealthy {
        /// As the client named it.
        model: String,
        /// Who serves it.
        endpoints: Vec<EndpointName>,
        /// When the first of them is tried again.
        retry_after: Duration,
    },
    /// The endpoint gave no answer.
    #[error("{endpoint} gave no answer: {error}")]
    Upstream {
        /// Who was asked last.
        endpoint: EndpointName,
        /// What happened.
        error: UpstreamError,
    },
    /// The endpoint answered with something else than its protocol says.
    #[error("{endpoint} answered with {what}")]
    Nonsense {
        /// Who was asked last.
        endpoint: EndpointName,
        /// What came instead.
        what: &'static str,
    },
    /// No first byte came in time.
    #[error("{endpoint} sent no byte within {} s", .after.as_secs_f64())]
    FirstByteTimeout {
        /// Who was asked.
        endpoint: EndpointName,
        /// The limit, as configured.
        after: Duration,
    },
    /// No endpoint of the needed kind is configured or answers.
    #[error("no endpoint answers{}", unreachable(.failed))]
    NobodyThere {
        /// Who was asked, and why that failed.
        failed: Vec<(EndpointName, String)>,
    },
}

impl Failure {
    /// The HTTP status that says this.
    pub fn status(&self) -> StatusCode {
        match self {
            Failure::UnknownModel { .. } => StatusCode::NOT_FOUND,
            Failure::WrongFamily { .. } => StatusCode::NOT_IMPLEMENTED,
            Failure::NobodyAnswers { .. }
            | Failure::QueueFull { .. }
            | Failure::QueueTimeout { .. }
            | Failure::Unhealthy { .. }
            | Failure::NobodyThere { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Upstream { .. } | Failure::Nonsense { .. } => StatusCode::BAD_GATEWAY,
            Failure::FirstByteTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// How long a client should wait before it tries again, in whole seconds, at least 1; for 503 only.
    pub fn retry_after_secs(&self) -> Option<u64> {
        match self {
            Failure::QueueFull { .. } | Failure::QueueTimeout { .. } => Some(1),
            Failure::Unhealthy { retry_after, .. } => Some(retry_after.as_secs_f64().ceil().max(1.0) as u64),
            Failure::NobodyAnswers { .. } | Failure::NobodyThere { .. } => Some(5),
            _ => None,
        }
    }

    /// Whether an endpoint that was tried is to blame.
    pub fn is_of_an_endpoint(&self) -> bool {
        matches!(self, Failure::Upstream { .. } | Failure::Nonsense { .. } | Failure::FirstByteTimeout { .. })
    }

    /// A short word for metrics and the `code` of an OpenAI error.
    pub fn code(&self) -> &'static str {
        match self {
            Failure::UnknownModel { .. } => "model_not_found",
            Failure::NobodyAnswers { .. } | Failure::NobodyThere { .. } => "no_endpoint",
            Failure::WrongFamily { .. } => "not_translated",
            Failure::QueueFull { .. } => "queue_full",
            Failure::QueueTimeout { .. } => "queue_timeout",
            Failure::Unhealthy { .. } => "endpoints_unhealthy",
            Failure::Upstream { .. } => "upstream_failed",
            Failure::Nonsense { .. } => "upstream_nonsense",
            Failure::FirstByteTimeout { .. } => "upstream_timeout",
        }
    }
}

/// At most twenty are named.
fn join(endpoints: &[EndpointName]) -> String {
    let mut names: Vec<String> = endpoints.iter().take(20).map(EndpointName::to_string).collect();
    if endpoints.len() > names.len() {
        names.push(format!("and {} more", endpoints.len() - names.len()));
    }
    names.join(", ")
}

/// At most five are named: `/health` shows all of them.
fn unreachable(failed: &[(EndpointName, String)]) -> String {
    if failed.is_empty() {
        return String::new();
    }
    let mut each: Vec<String> = failed.iter().take(5).map(|(name, why)| format!("{name}: {why}")).collect();
    if failed.len() > each.len() {
        each.push(format!("and {} more", failed.len() - each.len()));
    }
    format!("; could not be asked: {}", each.join("; "))
}
