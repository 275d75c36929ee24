//! Answers of the router's own: JSON, and errors in the words of the client's protocol.

use std::any::Any;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::Value;

use crate::flow::failure::Failure;
use crate::wire::Family;
use crate::wire::errors::error_body;

/// The protocol a path belongs to: `/v1` and `/rerank` are OpenAI's, the rest Ollama's.
pub(super) fn family_of(path: &str) -> Family {
    if path.starts_with("/v1/") || path == "/v1" { Family::OpenAi } else { Family::Ollama }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON answer made of a value.
pub(super) fn value(status: StatusCode, value: &Value) -> Response {
    json(status, value.to_string().into_bytes())
}

/// An error answer. `code` is a short word for programs.
pub(super) fn error(family: Family, status: StatusCode, message: &str, code: Option<&str>) -> Response {
    json(status, error_body(family, status.as_u16(), message, code, &[]))
}

/// A request that ended without an answer. An unknown model names the endpoints that were asked.
pub(super) fn failure(family: Family, failure: &Failure) -> Response {
    let status = failure.status();
    let asked = match failure {
        Failure::UnknownModel { asked, .. } => {
            vec![("endpoints", asked.iter().map(|endpoint| Value::from(endpoint.as_str())).collect())]
        }
        _ => Vec::new(),
    };
    let message = failure.to_string();
    let mut response =
        json(status, error_body(family, status.as_u16(), &message, Some(failure.code()), &asked));
    if let Some(secs) = failure.retry_after_secs() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    response
}

/// A handler panicked: the client gets an error, its slot has been given back while unwinding.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!(why = why.unwrap_or("unknown"), "a handler panicked");
    let message = "the router failed on this request; its log says more";
    error(Family::Ollama, StatusCode::INTERNAL_SERVER_ERROR, message, Some("internal"))
}
