//! The event feed: `GET /api/events` as server-sent events, `GET /subscribe` as a WebSocket, and the bounds
//! of the log. Both streams ask a [`Pump`] what to write; all else they have is an encoding.

mod ending;
mod leash;
mod pack;
mod query;
mod socket;
mod sse;

use std::net::{IpAddr, Ipv4Addr};

use core::time::Duration;

use axum::RequestExt;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::core::sync::Arc;
use crate::flow::follow::{Begin, FollowError};
use crate::flow::pump::{self, Pump};
use crate::flow::seats::NoSeat;
use crate::wire::Family;
use crate::wire::errors::error_body;

use self::leash::Leash;
pub(super) use self::pack::Packer;
use self::query::{BadQuery, Encoding, Query};
use super::app::App;
use super::peer::{self, Peer};
use super::{auth, reply};

/// The routes whose handlers need to know their peer.
pub(super) const ROUTES: [&str; 2] = ["/api/events", "/subscribe"];

/// How long a subscriber may take over what it has once the server stops, which waits for it.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Seconds after which a client that found no seat may try again.
const RETRY_AFTER_SECS: u64 = 5;

pub(super) async fn bounds(State(app): State<App>) -> Response {
    let log = app.router.log();
    if !log.is_on() {
        return refused(&FollowError::Off);
    }
    let bounds = log.bounds();
    reply::value(StatusCode::OK, &json!({ "floor": bounds.floor, "tip": bounds.tip }))
}

/// What a client needs besides to read compressed messages.
pub(super) async fn dictionary() -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], pack::DICTIONARY).into_response()
}

pub(super) async fn events(State(app): State<App>, parts: Parts) -> Response {
    let query = match Query::parse(&parts.uri, &parts.headers) {
        Ok(query) if query.encoding == Encoding::Text => query,
        Ok(_) => return bad(&app, &BadQuery::NotHere),
        Err(why) => return bad(&app, &why),
    };
    match subscribe(&app, &parts, query).await {
        Ok(pump) => {
            let cut = parts.extensions.get().map(|peer: &Peer| peer.cut.clone()).unwrap_or_default();
            let leash = Leash::new(Arc::clone(&app.router.ports().clock), pump.stall(), cut, app.stopping());
            sse::answer(pump, leash, app.stopping())
        }
        Err(refused) => refused,
    }
}

pub(super) async fn socket(State(app): State<App>, mut request: Request) -> Response {
    if let Some(origin) = auth::stranger(request.headers(), &app.router.fleet().config.allowed_origins) {
        app.metrics.refused("origin");
        let message = format!(
            "a web page of {origin} may not read this router's events: add its origin to `allowed_origins` in the \
             configuration to let it"
        );
        return error(StatusCode::FORBIDDEN, &message, &[]);
    }
    let upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection> = request.extract_parts().await;
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let message = format!(
                "this route speaks WebSocket: {}; without one, follow events at /api/events",
                rejection.body_text()
            );
            return error(rejection.into_response().status(), &message, &[]);
        }
    };
    let (parts, _) = request.into_parts();
    let query = match Query::parse(&parts.uri, &parts.headers) {
        Ok(query) => query,
        Err(why) => return bad(&app, &why),
    };
    let packer = (query.encoding == Encoding::Zstd).then(|| Arc::clone(&app.packer));
    match subscribe(&app, &parts, query).await {
        Ok(pump) => socket::answer(upgrade, pump, packer, app.stopping()),
        Err(refused) => refused,
    }
}

/// The answer that says what is wrong with what is asked for.
fn bad(app: &App, why: &BadQuery) -> Response {
    app.metrics.refused("bad");
    error(StatusCode::BAD_REQUEST, &why.to_string(), &[])
}

/// A subscriber with a seat and a place in the log, or the answer that says why not.
async fn subscribe(app: &App, parts: &Parts, query: Query) -> Result<Pump, Response> {
    let (router, headers) = (&app.router, &parts.headers);
    let Query { begin, wish, .. } = query;
    let fleet = router.fleet();
    let config = &fleet.config;
    let clock = Arc::clone(&router.ports().clock);
    let peer = parts.extensions.get().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer: &Peer| peer.address);
    let client = peer::client(peer, headers, &config.trusted_proxies);
    let seat = app.seats.take(client, config, clock.now()).map_err(|full| {
        app.metrics.refused(full.name());
        no_seat(&full)
    })?;
    let reader = router.follow(begin, wish.filter.clone()).await.map_err(|why| {
        app.metrics.refused(reason(&why));
        refused(&why)
    })?;
    Ok(Pump::new(pump::Parts {
        reader,
        wish,
        seat,
        clock,
        stopping: app.stop_begun(),
        stall: config.subscriber_stall,
        min_rate: config.subscriber_min_rate,
        greet: matches!(begin, Begin::Live | Begin::Since(_)),
    }))
}

/// The reason's name in the metrics.
fn reason(why: &FollowError) -> &'static str {
    match why {
        FollowError::Off => "off",
        FollowError::Gone { .. } => "gone",
        FollowError::Future { .. } | FollowError::NotYet { .. } => "future",
        FollowError::Store(_) => "failed",
    }
}

fn refused(why: &FollowError) -> Response {
    let (status, extra) = match why {
        // Unlike the other two that are answered so, this does not pass: a client sees it by this member.
        FollowError::Off => (StatusCode::SERVICE_UNAVAILABLE, Some(("event_log", Value::from("off")))),
        FollowError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, None),
        FollowError::Gone { floor } => (StatusCode::GONE, Some(("floor", Value::from(*floor)))),
        FollowError::NotYet { now, .. } => {
            (StatusCode::BAD_REQUEST, Some(("now_ms", Value::from(now.as_millis()))))
        }
        FollowError::Future { tip, .. } => (StatusCode::BAD_REQUEST, Some(("tip", Value::from(*tip)))),
    };
    error(status, &why.to_string(), extra.as_slice())
}

fn no_seat(why: &NoSeat) -> Response {
    let status = match why {
        NoSeat::Full { .. } => StatusCode::SERVICE_UNAVAILABLE,
        NoSeat::Address { .. } => StatusCode::TOO_MANY_REQUESTS,
    };
    let mut response = error(status, &why.to_string(), &[]);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
    response
}

fn error(status: StatusCode, message: &str, extra: &[(&str, Value)]) -> Response {
    reply::json(status, error_body(Family::Ollama, status.as_u16(), message, None, extra))
}
