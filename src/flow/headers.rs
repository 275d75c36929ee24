//! Which headers travel on: end-to-end ones do, hop-by-hop ones do not (RFC 9110, 7.6.1), in either
//! direction.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Written anew upstream, or not wanted there.
static NOT_UPSTREAM: [HeaderName; 4] = [HOST, CONTENT_LENGTH, EXPECT, ACCEPT_ENCODING];

/// Drops these and whatever belongs to this hop. Most messages have few headers, and none of these.
fn drop_hop_by_hop_and(headers: &mut HeaderMap, others: &[HeaderName]) {
    // A header that `Connection` names belongs to this hop as well.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    let goes =
        |name: &&HeaderName| [&HOP_BY_HOP[..], others, &named].iter().any(|names| names.contains(name));
    let here: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    for name in &here {
        headers.remove(name);
    }
}

/// A client's headers, made ready to go upstream. The adapter writes `host` and the length; answers
/// must come uncompressed, because usage is read out of them in passing.
pub(super) fn to_upstream(headers: &mut HeaderMap, authorization: Option<&HeaderValue>) {
    drop_hop_by_hop_and(headers, &NOT_UPSTREAM);
    if let Some(value) = authorization {
        headers.insert(AUTHORIZATION, value.clone());
    }
}

/// An endpoint's headers, made ready for the client. `same_bytes`: the body goes through as it is,
/// so its length still holds.
pub(super) fn to_client(headers: &mut HeaderMap, same_bytes: bool) {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    let length: &[HeaderName] = if chunked || !same_bytes { &[CONTENT_LENGTH] } else { &[] };
    drop_hop_by_hop_and(headers, length);
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
