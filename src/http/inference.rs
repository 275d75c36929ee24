//! The inference routes: read the body, route it, pass the answer on.

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;

use crate::flow::answer::{Answer, Outcome};
use crate::flow::infer::{ClientKey, Inference};
use crate::wire::request::{Ask, Shape};

use super::app::App;
use super::{body, reply, request_id};

/// Answers one request on `path`, whose body looks like `shape`.
pub(super) async fn answer(app: App, path: &'static str, shape: Shape, request: Request) -> Response {
    let running = app.metrics.begin(path);
    let (parts, stream) = request.into_parts();
    let client_key = parts.extensions.get::<ClientKey>().copied();
    let id = request_id::of(&parts.headers);
    let family = shape.family();
    let answered = async {
        let config = &app.router.fleet().config;
        let bytes = body::read(&parts.headers, stream, config.body_limit_bytes, config.header_timeout).await;
        let bytes = bytes.map_err(|error| {
            (reply::error(family, error.status(), &error.to_string(), Some(error.code())), error.code())
        })?;
        let ask = Ask::parse(shape, &bytes).map_err(|bad| {
            let code = "bad_request";
            (reply::error(family, StatusCode::BAD_REQUEST, &bad.to_string(), Some(code)), code)
        })?;
        let headers = parts.headers;
        let inference = Inference { shape, path, headers, body: bytes, ask, id: id.clone(), client_key };
        app.router.infer(inference).await.map_err(|failure| {
            tracing::info!(request_id = %id, path, error = %failure, "request failed");
            (reply::failure(family, &failure), failure.code())
        })
    };
    match answered.await {
        Ok(answer) => {
            running.first_byte();
            passed_on(answer, move |outcome| {
                let (outcome, took) = (outcome.name(), running.took());
                tracing::debug!(request_id = %id, path, outcome, ?took, "request ended");
                running.end(outcome);
            })
        }
        Err((response, code)) => {
            running.end(code);
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
