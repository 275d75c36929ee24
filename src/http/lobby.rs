//! Connections without a request under way, counted by the address they come from.
//!
//! Such a connection costs its client nothing and the server an open file, so one address may hold only so many
//! (`per_ip_idle`): those that have not sent their first request yet, and those between two. Whoever would be
//! one more is told so and closed; nobody who is in is thrown out. Called by `server`; `metrics` reads the total.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::Config;
use crate::core::sync::{Arc, AtomicU64, Lock, Ordering, Rank};

use crate::flow::seats::site;

/// All connections.
#[derive(Debug)]
pub(super) struct Lobby {
    by_address: Lock<BTreeMap<IpAddr, Place>>,
    refused: AtomicU64,
}

/// The connections from one address.
#[derive(Debug)]
struct Place {
    connections: usize,
    /// How many of them have no request under way; shared with each of them.
    idle: Arc<AtomicU64>,
}

impl Lobby {
    pub(super) fn new() -> Lobby {
        Lobby { by_address: Lock::new(Rank::Subscribers, BTreeMap::new()), refused: AtomicU64::new(0) }
    }

    /// Connections that were refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A new connection from this peer, idle until it says otherwise; `None` if there are too many such.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, config: &Config) -> Option<Arc<Visitor>> {
        let most = config.per_ip_idle as u64;
        let is_bound = most > 0 && !config.trusted_proxies.iter().any(|network| network.contains(peer));
        let address = site(peer);
        let mut by_address = self.by_address.lock();
        if is_bound
            && by_address.get(&address).is_some_and(|place| place.idle.load(Ordering::Relaxed) >= most)
        {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let place = by_address
            .entry(address)
            .or_insert_with(|| Place { connections: 0, idle: Arc::new(AtomicU64::new(0)) });
        place.connections += 1;
        place.idle.fetch_add(1, Ordering::Relaxed);
        Some(Arc::new(Visitor { lobby: Arc::clone(self), address, idle: Arc::clone(&place.idle) }))
    }
}

/// One connection, until it ends.
#[derive(Debug)]
pub(super) struct Visitor {
    lobby: Arc<Lobby>,
    address: IpAddr,
    idle: Arc<AtomicU64>,
}

impl Visitor {
    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.idle.fetch_sub(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut by_address = self.lobby.by_address.lock();
        self.idle.fetch_sub(1, Ordering::Relaxed);
        if let Some(place) = by_address.get_mut(&self.address) {
            place.connections -= 1;
            if place.connections == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// A request under way; dropped with the end of its answer.
#[derive(Debug)]
pub(super) struct Busy(Arc<Visitor>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_idle_connections_and_another_its_own() {
        let lobby = Arc::new(Lobby::new());
        let config = Config { per_ip_idle: 2, ..Config::default() };
        let enter = |text: &str| lobby.enter(address(text), &config);
        let (first, second) = (enter("10.0.0.1").unwrap(), enter("::ffff:10.0.0.1").unwrap());
        assert!(enter("10.0.0.1").is_none());
        assert!(enter("10.0.0.2").is_some());
        let busy = first.begin();
        let third = enter("10.0.0.1").expect("one of the two is at work");
        assert!(enter("10.0.0.1").is_none());
        drop(busy);
        drop(third);
        assert!(enter("10.0.0.1").is_none(), "it is idle again");
        drop(second);
        assert!(enter("10.0.0.1").is_some());
        assert_eq!(lobby.refused(), 3);
        drop(first);
        assert!(lobby.by_address.lock().is_empty(), "who has left is forgotten");
    }

    #[test]
    fn a_connection_that_ends_in_the_middle_of_a_request_is_counted_once() {
        let lobby = Arc::new(Lobby::new());
        let config = Config { per_ip_idle: 1, ..Config::default() };
        let visitor = lobby.enter(address("2001:db8::1"), &config).unwrap();
        let busy = visitor.begin();
        let other = lobby.enter(address("2001:db8::2"), &config).expect("the other one is at work");
        drop(visitor);
        drop(busy);
        assert!(lobby.enter(address("2001:db8::3"), &config).is_none(), "a network is one address");
        drop(other);
        assert!(lobby.enter(address("2001:db8::3"), &config).is_some());
    }

    #[test]
    fn nought_is_no_limit_and_a_trusted_proxy_has_none() {
        let (any, proxy) = (Arc::new(Lobby::new()), Arc::new(Lobby::new()));
        let unlimited = Config { per_ip_idle: 0, ..Config::default() };
        let trusted_proxies = vec![Network::parse("10.0.0.0/8").unwrap()];
        let trusting = Config { per_ip_idle: 1, trusted_proxies, ..Config::default() };
        let all: Vec<_> = (0..50)
            .flat_map(|_| {
                [any.enter(address("::1"), &unlimited), proxy.enter(address("10.1.1.1"), &trusting)]
            })
            .collect();
        assert!(all.iter().all(Option::is_some));
    }
}
