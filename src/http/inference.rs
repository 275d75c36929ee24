//! The inference routes: read the body, route it, pass the answer on.

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;

use crate::flow::answer::{Answer, Outcome};
use crate::flow::infer::Inference;
use crate::wire::request::{Ask, Shape};

use super::app::App;
use super::request_id::X_REQUEST_ID;
use super::{body, reply};

/// Answers one request on `path`, whose body looks like `shape`.
pub(super) async fn answer(app: App, path: &'static str, shape: Shape, request: Request) -> Response {
    let (parts, stream) = request.into_parts();
    let ports = app.router.ports();
    let id = parts.headers.get(&X_REQUEST_ID).cloned();
    let began = ports.clock.now();
    let family = shape.family();
    let answered = async {
        let config = &app.router.fleet().config;
        let bytes = body::read(&parts.headers, stream, config.body_limit_bytes, config.header_timeout)
            .await
            .map_err(|error| {
                (reply::error(family, error.status(), &error.to_string(), Some(error.code())), error.code())
            })?;
        let ask = Ask::parse(shape, &bytes).map_err(|bad| {
            (
                reply::error(family, StatusCode::BAD_REQUEST, &bad.to_string(), Some("bad_request")),
                "bad_request",
            )
        })?;
        let inference = Inference { shape, path, headers: parts.headers, body: bytes, ask };
        app.router.infer(inference).await.map_err(|failure| {
            tracing::info!(request_id = ?id, path, error = %failure, "request failed");
            (reply::failure(family, &failure), failure.code())
        })
    };
    match answered.await {
        Ok(answer) => {
            let metrics = app.metrics.clone();
            metrics.first_byte(ports.clock.now().since(began));
            let clock = ports.clock.clone();
            passed_on(answer, move |outcome| {
                let took = clock.now().since(began);
                metrics.ended(path, outcome_name(outcome), took);
                tracing::debug!(request_id = ?id, path, outcome = outcome_name(outcome), ?took, "request ended");
            })
        }
        Err((response, code)) => {
            app.metrics.ended(path, code, ports.clock.now().since(began));
            response
        }
    }
}

/// An endpoint's answer as a response; `on_end` runs when its body ends, whichever way.
pub(super) fn passed_on(answer: Answer, on_end: impl FnOnce(Outcome) + Send + 'static) -> Response {
    let Answer { status, headers, mut body } = answer;
    body.on_end(Box::new(on_end));
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered => "answered",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
        Outcome::Refused => "refused",
    }
}
