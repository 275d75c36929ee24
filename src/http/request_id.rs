//! One name per request, in the answer, upstream and in logs: the client's `x-request-id` if it is
//! fit for that, else one of the router's own.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::core::sync::Arc;
use crate::ports::Entropy;

pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest name taken from a client, in bytes.
const LENGTH_MAX: usize = 128;

/// The request's name, written into its headers.
pub(super) fn assign(headers: &mut HeaderMap, entropy: &dyn Entropy) -> HeaderValue {
    let fit =
        |value: &&HeaderValue| value.len() <= LENGTH_MAX && value.as_bytes().iter().all(u8::is_ascii_graphic);
    if let Some(given) = headers.get(&X_REQUEST_ID).filter(fit) {
        return given.clone();
    }
    let own =
        HeaderValue::from_str(&format!("{:016x}", entropy.next_u64())).expect("hex digits fit a header");
    headers.insert(X_REQUEST_ID.clone(), own.clone());
    own
}

/// The name that was assigned, as text for logs.
pub(super) fn of(headers: &HeaderMap) -> Arc<str> {
    headers.get(&X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().into()
}
