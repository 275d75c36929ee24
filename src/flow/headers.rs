//! Which headers travel on: end-to-end ones do, hop-by-hop ones do not (RFC 9110, 7.6.1), in either
//! direction.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    // A header that `Connection` names belongs to this hop as well.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| *name != CONNECTION)
        .collect();
    for name in &named {
        headers.remove(name);
    }
    for name in [
        &CONNECTION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &PROXY_AUTHENTICATE,
        &PROXY_AUTHORIZATION,
        &TE,
        &TRAILER,
        &TRANSFER_ENCODING,
        &UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// A client's headers, made ready to go upstream. The adapter writes `host` and the length; answers
/// must come uncompressed, because usage is read out of them in passing.
pub(super) fn to_upstream(headers: &mut HeaderMap, authorization: Option<&HeaderValue>) {
    drop_hop_by_hop(headers);
    for name in [HOST, CONTENT_LENGTH, EXPECT, ACCEPT_ENCODING] {
        headers.remove(name);
    }
    if let Some(value) = authorization {
        headers.insert(AUTHORIZATION, value.clone());
    }
}

/// An endpoint's headers, made ready for the client. `same_bytes`: the body goes through as it is,
/// so its length still holds.
pub(super) fn to_client(headers: &mut HeaderMap, same_bytes: bool) {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    drop_hop_by_hop(headers);
    if chunked || !same_bytes {
        headers.remove(CONTENT_LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_and_those_connection_names_stay_behind() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-secret-hop"),
            ("x-secret-hop", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-kept", "2"),
            ("host", "router"),
        ]);
        to_upstream(&mut headers, None);
        assert_eq!(headers, map(&[("x-kept", "2")]));
    }

    #[test]
    fn an_endpoints_key_replaces_the_clients() {
        let mut headers = map(&[("authorization", "Bearer client")]);
        to_upstream(&mut headers, Some(&HeaderValue::from_static("Bearer endpoint")));
        assert_eq!(headers, map(&[("authorization", "Bearer endpoint")]));
    }

    #[test]
    fn a_length_is_kept_only_with_the_bytes_it_counts() {
        let answer = map(&[("content-length", "10"), ("content-type", "application/json")]);
        let (mut same, mut changed) = (answer.clone(), answer.clone());
        to_client(&mut same, true);
        to_client(&mut changed, false);
        assert_eq!(same, answer);
        assert_eq!(changed, map(&[("content-type", "application/json")]));
    }
}
