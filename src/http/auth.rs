//! The gate: with a router key configured, every route but a few asks for it.
//!
//! The key comes as `Authorization: Bearer KEY` or `?api_key=KEY`. Keys are compared in constant
//! time, never logged, and never travel on to an endpoint. What the event log has of a key, the router's or a
//! client's own, is the beginning of its hash.

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::{Origin, Url};

use crate::config::Secret;
use crate::flow::infer::ClientKey;

use super::reply;

/// Takes the key off a request that may pass; the answer to one that may not: 401 (no key) or 403 (a
/// wrong one).
pub(super) fn refusal(key: &Secret, request: &mut Request) -> Option<Response> {
    let path = request.uri().path();
    if is_open(request.method(), path) {
        return None;
    }
    let family = reply::family_of(path);
    let given = given(request);
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

/// Who asks, by the key the request came with. Hashed anew each time: keys are short, and none is remembered.
pub(super) fn client_key(request: &Request) -> Option<ClientKey> {
    let digest = Sha256::digest(given(request)?.as_bytes());
    digest.first_chunk().map(|first| ClientKey::from_digest(*first))
}

fn given(request: &Request) -> Option<Cow<'_, str>> {
    bearer(request).map(Cow::Borrowed).or_else(|| query_key(request.uri().query()?).map(Cow::Owned))
}

/// The web page that asks, if it is none of this host's and is not `allowed` (origins as `Config` has them). A
/// browser lets any page open a WebSocket and read it, to a router on the user's own machine too, but says
/// from which origin it comes; other programs say nothing.
pub(super) fn stranger<'h>(headers: &'h HeaderMap, allowed: &[String]) -> Option<&'h str> {
    let said = headers.get(header::ORIGIN)?.to_str().unwrap_or_default();
    let Some(from) = Url::parse(said).ok().map(|url| (url.origin(), url)) else { return Some(said) };
    let (origin @ Origin::Tuple(..), url) = from else { return Some(said) };
    if allowed.contains(&origin.ascii_serialization()) {
        return None;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // The page's scheme is not ours where TLS ends before us; it tells which port goes without saying.
    let here = Url::parse(&format!("{}://{host}/", url.scheme()));
    here.map_or(true, |here| here.origin() != origin).then_some(said)
}

fn is_open(method: &Method, path: &str) -> bool {
    method == Method::OPTIONS
        || matches!(path, "/" | "/favicon.ico" | "/static")
        || path.starts_with("/static/")
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn query_key(query: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    pairs.into_iter().find_map(|(name, value)| (name == "api_key").then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_host_is_a_stranger_unless_it_is_allowed() {
        let allowed = ["https://dash.example".to_owned()];
        for (origin, host, expected) in [
            (None, "router:12434", None),
            (Some("http://router:12434"), "router:12434", None),
            (Some("http://ROUTER:12434"), "Router:12434", None),
            (Some("http://router"), "router", None),
            (Some("http://router"), "router:80", None),
            (Some("https://router"), "router", None),
            (Some("http://[::1]:12434"), "[::1]:12434", None),
            (Some("https://dash.example"), "router:12434", None),
            (Some("http://dash.example"), "router:12434", Some("http://dash.example")),
            (Some("https://dash.example:8443"), "router:12434", Some("https://dash.example:8443")),
            (Some("http://evil.example"), "127.0.0.1:12434", Some("http://evil.example")),
            (Some("http://127.0.0.1:3000"), "127.0.0.1:12434", Some("http://127.0.0.1:3000")),
            (
                Some("http://router.evil.example:12434"),
                "router:12434",
                Some("http://router.evil.example:12434"),
            ),
            (Some("null"), "router", Some("null")),
            (Some("file://"), "", Some("file://")),
            (Some(""), "router", Some("")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(stranger(&headers, &allowed), expected, "{origin:?} at {host}");
        }
    }
}
