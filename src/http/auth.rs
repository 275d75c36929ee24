//! The gate: with a router key configured, every route but a few asks for it.
//!
//! The key comes as `Authorization: Bearer KEY` or `?api_key=KEY`. Keys are compared in constant
//! time, never logged, and never travel on to an endpoint.

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use subtle::ConstantTimeEq;

use crate::config::Secret;

use super::reply;

/// Takes the key off a request that may pass; the answer to one that may not: 401 (no key) or 403 (a
/// wrong one).
pub(super) fn refusal(key: &Secret, request: &mut Request) -> Option<Response> {
    let path = request.uri().path();
    if is_open(request.method(), path) {
        return None;
    }
    let family = reply::family_of(path);
    let given = bearer(request).or_else(|| query_key(request.uri().query()?));
    match given {
        None => {
            let message = "an API key is required: send it as `Authorization: Bearer KEY`";
            Some(reply::error(family, StatusCode::UNAUTHORIZED, message, Some("missing_api_key")))
        }
        Some(given) if bool::from(given.as_bytes().ct_eq(key.expose().as_bytes())) => {
            // It has done its work: endpoints have keys of their own.
            request.headers_mut().remove(header::AUTHORIZATION);
            None
        }
        Some(_) => {
            Some(reply::error(family, StatusCode::FORBIDDEN, "the API key is wrong", Some("wrong_api_key")))
        }
    }
}

fn is_open(method: &Method, path: &str) -> bool {
    method == Method::OPTIONS
        || matches!(path, "/" | "/favicon.ico" | "/static")
        || path.starts_with("/static/")
}

fn bearer(request: &Request) -> Option<String> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
}

fn query_key(query: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    pairs.into_iter().find_map(|(name, value)| (name == "api_key").then_some(value))
}
