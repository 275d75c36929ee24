//! Who is at the other end: the peer's address, or what a trusted proxy says of its client.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use tokio::sync::Notify;

use crate::config::Network;
use crate::core::sync::Arc;

/// Where a connection comes from, and how to end it. Only requests that ask for it have it among their
/// extensions.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) cut: Cut,
}

/// Ends a connection from outside, whatever it is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut(Arc<Notify>);

impl Cut {
    /// Ends it.
    pub(super) fn cut(&self) {
        self.0.notify_one();
    }

    /// Completes when it is to end.
    pub(super) async fn wanted(&self) {
        self.0.notified().await;
    }
}

/// The client's address: the peer's, unless that is a trusted proxy. Then it is the right-most address of
/// `x-forwarded-for` that is not one, because a client can write whatever it likes to the left of it.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        for item in value.to_str().unwrap_or_default().rsplit(',') {
            if !is_trusted(client) {
                return client;
            }
            match address(item.trim()) {
                Some(address) => client = address.to_canonical(),
                // What stands further to the left was passed on by nobody we know.
                None => return client,
            }
        }
    }
    client
}

/// An address, perhaps with a port or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_address_counts_as_far_as_proxies_are_trusted() {
        let trusted: Vec<Network> =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|text| Network::parse(text).unwrap()).collect();
        for (peer, forwarded, expected) in [
            ("1.2.3.4", &["9.9.9.9"][..], "1.2.3.4"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9"], "9.9.9.9"),
            ("::ffff:10.0.0.1", &["::ffff:9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", &["6.6.6.6, 9.9.9.9 , 10.0.0.2"], "9.9.9.9"),
            ("10.0.0.1", &["6.6.6.6", "9.9.9.9", "10.0.0.2"], "9.9.9.9"),
            ("10.0.0.1", &["10.0.0.3,10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["9.9.9.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9:4711"], "9.9.9.9"),
            ("fd00::1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("fd00::1", &["[2001:db8::1]"], "2001:db8::1"),
        ] {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let client = client(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
        }
    }
}
