//! What the fleet serves and how it is: listings, versions, configuration, health.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::flow::overview::EndpointStatus;
use crate::wire::request::{Ask, Shape};
use crate::wire::{Family, Kind};

use super::app::App;
use super::{body, inference, reply};

pub(super) async fn tags(State(app): State<App>) -> Response {
    reply::json(StatusCode::OK, app.router.tags().await)
}

pub(super) async fn ps(State(app): State<App>) -> Response {
    reply::json(StatusCode::OK, app.router.ps().await)
}

pub(super) async fn models(State(app): State<App>) -> Response {
    reply::json(StatusCode::OK, app.router.models().await)
}

/// One entry of the list, by its id.
pub(super) async fn model(State(app): State<App>, Path(model): Path<String>) -> Response {
    match app.router.model(&model).await {
        Ok(entry) => reply::json(StatusCode::OK, entry),
        Err(failure) => reply::failure(Family::OpenAi, &failure),
    }
}

pub(super) async fn version(State(app): State<App>) -> Response {
    match app.router.version().await {
        Ok(version) => reply::value(StatusCode::OK, &json!({ "version": version })),
        Err(failure) => reply::failure(Family::Ollama, &failure),
    }
}

pub(super) async fn show(State(app): State<App>, request: Request) -> Response {
    let (parts, stream) = request.into_parts();
    let config = &app.router.fleet().config;
    let read = body::read(&parts.headers, stream, config.body_limit_bytes, config.header_timeout).await;
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => {
            return reply::error(Family::Ollama, error.status(), &error.to_string(), Some(error.code()));
        }
    };
    let ask = match Ask::parse(Shape::OllamaShow, &bytes) {
        Ok(ask) => ask,
        Err(bad) => return reply::error(Family::Ollama, StatusCode::BAD_REQUEST, &bad.to_string(), None),
    };
    match app.router.show(&ask.model, parts.headers, bytes).await {
        Ok(answer) => inference::passed_on(answer, |_| ()),
        Err(failure) => reply::failure(Family::Ollama, &failure),
    }
}

/// Every endpoint with its state, and the limits in force.
pub(super) async fn config(State(app): State<App>) -> Response {
    let endpoints: Vec<Value> = app.router.endpoints().await.iter().map(endpoint).collect();
    let fleet = app.router.fleet();
    let config = &fleet.config;
    reply::value(
        StatusCode::OK,
        &json!({
            "endpoints": endpoints,
            "max_concurrent_connections": config.max_concurrent_connections,
            "queue": config.queue,
            "queue_max": config.queue_max,
            "require_router_api_key": config.router_api_key.is_some(),
        }),
    )
}

/// 200 while at least one endpoint can take requests, 503 when none can. One that is half-open is not up, but
/// only a request can make it so.
pub(super) async fn health(State(app): State<App>) -> Response {
    let endpoints = app.router.endpoints().await;
    let (status, word) = if !endpoints.iter().any(EndpointStatus::takes_requests) {
        (StatusCode::SERVICE_UNAVAILABLE, "error")
    } else if endpoints.iter().all(|endpoint| endpoint.up) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::OK, "degraded")
    };
    let by_name: Map<String, Value> = endpoints.iter().map(|e| (e.name.clone(), state(e))).collect();
    reply::value(status, &json!({ "status": word, "endpoints": by_name }))
}

fn endpoint(endpoint: &EndpointStatus) -> Value {
    let mut value = json!({ "url": endpoint.name, "kind": kind_name(endpoint.kind) });
    if let (Value::Object(value), Value::Object(state)) = (&mut value, state(endpoint)) {
        value.extend(state);
    }
    value
}

fn state(endpoint: &EndpointStatus) -> Value {
    let mut value = json!({
        "status": if endpoint.up { "ok" } else { "error" },
        "breaker": endpoint.health.name(),
        "wedged": endpoint.wedged,
        "in_flight": endpoint.in_flight,
    });
    match &endpoint.answer {
        Ok(version) => value["version"] = Value::from(version.as_str()),
        Err(why) => value["detail"] = Value::from(why.as_str()),
    }
    value
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Ollama => "ollama",
        Kind::LlamaServer => "llama-server",
        Kind::OpenAi => "openai",
    }
}
