//! The configuration: bytes and an environment in, settings out. No file, no clock, no sockets.
//!
//! The file is the seed router's, as it is, with keys of our own added. The environment goes before the file, the file before the defaults. Wrong
//! values refuse the whole file, all of them named at once; what is merely odd is a [`Warning`].
//! Secrets never show in either. `main` calls [`Config::parse`] at start, on `check-config`, and
//! on SIGHUP, where an error leaves the old configuration in force.
//!
//! ```yaml
//! endpoints:
//!   - http://localhost:11434
//!   - https://api.example.com/v1
//! api_keys:
//!   https://api.example.com/v1: ${EXAMPLE_KEY}
//! max_concurrent_connections: 2
//! ```

mod complaint;
mod document;
mod endpoint;
mod key;
mod network;
mod secret;

use core::time::Duration;
use std::path::PathBuf;

pub use self::complaint::{ConfigError, Place, Warning};
pub use self::endpoint::{ENDPOINT_DEFAULT, ENDPOINTS_MAX, EndpointConfig};
pub use self::network::Network;
pub use self::secret::Secret;

use self::document::{Node, Value};
use self::key::{Draft, KEYS, Key};

/// How long a subscriber that was cut off may take to read why.
pub const STALL_GRACE: Duration = Duration::from_secs(10);

/// Everything that can be configured, each field with the key, the unit and the default.
///
/// Every key is also an environment variable: `NOMYO_ROUTER_` and the key in upper case, except
/// that `router_api_key` is `NOMYO_ROUTER_API_KEY`. An empty variable counts as not set. Lists are
/// written with commas, or like maps in YAML's brackets. Durations are positive numbers of
/// seconds, fractions allowed.
#[derive(Clone, Debug)]
pub struct Config {
    /// From `endpoints`, `llama_server_endpoints` and `api_keys`: the backends in the order they
    /// are listed, each server once. Default: [`ENDPOINT_DEFAULT`] alone.
    pub endpoints: Vec<EndpointConfig>,
    /// `max_concurrent_connections`: slots per endpoint and model. Default 1.
    pub max_concurrent_connections: u32,
    /// `router_api_key` (also `nomyo-router-api-key`): the key clients must present. Default none:
    /// the router is open.
    pub router_api_key: Option<Secret>,
    /// `db_path`: the seed router's token database, if the file names one. This router keeps its
    /// counts in its own store and not there.
    pub db_path: Option<PathBuf>,
    /// `cache_*`: the response cache, which is not there yet.
    pub cache: CacheConfig,
    /// `queue`: whether requests beyond every candidate's slots wait instead of overloading one.
    /// Default true.
    pub queue: bool,
    /// `queue_max`: the most requests that wait at a time, over all models. Default 1000.
    pub queue_max: usize,
    /// `queue_timeout_secs`: the longest that one waits for a slot. Default 300 s.
    pub queue_timeout: Duration,
    /// `attempts_max`: the most endpoints that are tried for one request before its first byte, the
    /// first try included. Default 3.
    pub attempts_max: u32,
    /// `connect_timeout_secs`: to connect to an endpoint. Default 5 s.
    pub connect_timeout: Duration,
    /// `first_byte_timeout_secs`: from the request sent to the head of the answer; loading a large
    /// model happens in here. Default 300 s.
    pub first_byte_timeout: Duration,
    /// `idle_timeout_secs`: between two chunks of an answer. Default 300 s.
    pub idle_timeout: Duration,
    /// `listing_timeout_secs`: for an endpoint to say which models it serves or has loaded.
    /// Default 5 s.
    pub listing_timeout: Duration,
    /// `header_timeout_secs`: for a client to send the head of its next request, the idle time before it
    /// included, and the longest pause while it sends a body. Default 75 s.
    pub header_timeout: Duration,
    /// `body_limit_bytes`: the largest request body. Default 64 MiB.
    pub body_limit_bytes: usize,
    /// `drain_grace_secs`: for running streams to end after SIGTERM. Default 30 s.
    pub drain_grace: Duration,
    /// `flush_interval_secs`: between two writes of token counts to the store. Default 10 s.
    pub flush_interval: Duration,
    /// `breaker_failures`: so many failures in a row take an endpoint out. Default 3.
    pub breaker_failures: u32,
    /// `breaker_open_secs`: until an endpoint that was taken out is probed. Default 10 s.
    pub breaker_open: Duration,
    /// `wedged_after_secs`: an endpoint whose slots are held while no byte moved for so long is
    /// taken out, whatever its listing says. Default 300 s.
    pub wedged_after: Duration,
    /// `event_log`: whether events are logged, and what that promises. Default group.
    pub event_log: EventLogMode,
    /// `event_log_max_events`: more are trimmed, the oldest first. Default 1,000,000. Says nothing in mode none.
    pub event_log_max_events: u64,
    /// `event_log_max_age_secs`: older ones are trimmed. Default 604,800 s, a week. Says nothing in mode none.
    pub event_log_max_age: Duration,
    /// `event_ring`: so many of the newest events are held in memory, for subscribers who are nearly up
    /// to date. Default 16,384; read at start only.
    pub event_ring: usize,
    /// `subscribers_max`: so many may be connected at a time, over all addresses; 0 is no limit. Default 10,000.
    pub subscribers_max: usize,
    /// `per_ip_connections`: so many subscribers may be connected from one address (IPv6: one /64 network);
    /// 0 is no limit. Default 1,000.
    pub per_ip_connections: usize,
    /// `per_ip_limit`: events per second delivered to all subscribers at one address (IPv6: one /64
    /// network) together; 0 is no limit. Default 5,000.
    pub per_ip_limit: u32,
    /// `per_ip_idle`: so many connections from one address (IPv6: one /64 network) may be open without a request
    /// under way; one more is answered 429 and closed. 0 is no limit; `trusted_proxies` have none. Default 1,000.
    pub per_ip_idle: usize,
    /// `trusted_proxies`: addresses and networks whose `x-forwarded-for` names the client. Default none.
    pub trusted_proxies: Vec<Network>,
    /// `allowed_origins`: web pages that may open `/subscribe` beside those of the router's own host, by their
    /// origin as a browser says it: scheme, host, and the port unless it is the scheme's. Default none.
    pub allowed_origins: Vec<String>,
    /// `subscriber_stall_secs`: a subscriber that takes not a byte for so long is cut off, and told so once
    /// it reads again, within [`STALL_GRACE`]. Holds as far as `idle_timeout` lets the connection be. Default 30 s.
    pub subscriber_stall: Duration,
    /// `subscriber_min_rate`: a subscriber whose lag grows while it takes fewer events per second than
    /// this is cut off. Default 10.
    pub subscriber_min_rate: u32,
}

/// Whether events are logged, when they can be seen, and what of them a crash leaves. Whatever the mode, and
/// whichever follows at the next start, no two events ever have the same number. Read at start only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventLogMode {
    /// Events become durable in groups, as many at a time as came while the disk was busy, and are seen
    /// once they are: what was seen survives any crash.
    #[default]
    Group,
    /// The same, one by one: more writes, and no event waits for another's.
    Each,
    /// Events are seen at once and never stored: the newest `event_ring` of them are kept, whatever their age,
    /// and they end with the process. A subscriber who falls further behind, or comes back with a number of
    /// an earlier start, is told what is gone. Only their numbers are durable: leased in advance, one write
    /// for as many as the ring holds, so they jump at a start. Stored events of an earlier mode cannot be
    /// read meanwhile, and are given up once events are stored again.
    None,
    /// There is no log.
    Off,
}

/// The response cache's settings: read and checked, not used yet.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// `cache_enabled`. Default false.
    pub enabled: bool,
    /// `cache_backend`. Default memory.
    pub backend: CacheBackend,
    /// `cache_similarity`: from 0 to 1; 1 answers only the very same question. Default 1.
    pub similarity: f64,
    /// `cache_ttl` in seconds; `null` (`None`) is for ever. Default 3600 s.
    pub ttl: Option<Duration>,
    /// `cache_db_path`, for sqlite.
    pub db_path: Option<PathBuf>,
    /// `cache_redis_url`, which may hold a password.
    pub redis_url: Option<Secret>,
    /// `cache_history_weight`: from 0 to 1. Default 0.3.
    pub history_weight: f64,
}

/// Where cached responses are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheBackend {
    /// In the router's memory.
    Memory,
    /// In a file.
    Sqlite,
    /// In Redis.
    Redis,
}

impl Default for Config {
    /// The defaults, but for the endpoints: none.
    fn default() -> Self {
        Config {
            endpoints: Vec::new(),
            max_concurrent_connections: 1,
            router_api_key: None,
            db_path: None,
            cache: CacheConfig::default(),
            queue: true,
            queue_max: 1000,
            queue_timeout: Duration::from_secs(300),
            attempts_max: 3,
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(300),
            listing_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(75),
            body_limit_bytes: 64 << 20,
            drain_grace: Duration::from_secs(30),
            flush_interval: Duration::from_secs(10),
            breaker_failures: 3,
            breaker_open: Duration::from_secs(10),
            wedged_after: Duration::from_secs(300),
            event_log: EventLogMode::Group,
            event_log_max_events: 1_000_000,
            event_log_max_age: Duration::from_secs(7 * 86_400),
            event_ring: 16_384,
            subscribers_max: 10_000,
            per_ip_connections: 1_000,
            per_ip_limit: 5_000,
            per_ip_idle: 1_000,
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
            subscriber_stall: Duration::from_secs(30),
            subscriber_min_rate: 10,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            enabled: false,
            backend: CacheBackend::Memory,
            similarity: 1.0,
            ttl: Some(Duration::from_secs(3600)),
            db_path: None,
            redis_url: None,
            history_weight: 0.3,
        }
    }
}

impl Config {
    /// Reads a configuration from the text of a YAML file (empty if there is none) and from `env`,
    /// which answers with the value of an environment variable.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, never nothing: a file that cannot be parsed, else each wrong value.
    pub fn parse(
        yaml: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
        let root =
            document::parse(yaml.strip_prefix('\u{feff}').unwrap_or(yaml)).map_err(|error| vec![error])?;
        let pairs = match root.value {
            Value::Map(pairs) => pairs,
            Value::Null => Vec::new(),
            _ => return Err(vec![ConfigError::NotSettings { found: root.describe(true) }]),
        };
        let mut reader = Reader { env, draft: Draft::default(), errors: Vec::new(), warnings: Vec::new() };
        reader.read_file(pairs);
        reader.read_environment();
        reader.finish()
    }
}

/// One run of [`Config::parse`].
struct Reader<'e> {
    env: &'e dyn Fn(&str) -> Option<String>,
    draft: Draft,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
}

impl Reader<'_> {
    fn read_file(&mut self, pairs: Vec<(String, Node)>) {
        let mut seen: Vec<&'static str> = Vec::new();
        for (name, mut node) in pairs {
            let Some(key) = key::find(&name) else {
                let (key, nearest) = (key::quoted(&name), key::nearest(&name));
                self.warnings.push(Warning::UnknownKey { key, place: node.place, nearest });
                continue;
            };
            self.substitute(&mut node);
            // Nothing is not a value, so it does not undo an earlier one either.
            if matches!(node.value, Value::Null) && !key.nullable {
                continue;
            }
            if seen.contains(&key.name) {
                self.warnings.push(Warning::Repeated { key: key.name.to_owned(), place: node.place.clone() });
            }
            seen.push(key.name);
            self.take(key, &node);
        }
    }

    fn read_environment(&mut self) {
        for key in KEYS {
            let variable = key.variable();
            let Some(text) = (self.env)(&variable).filter(|text| !text.trim().is_empty()) else { continue };
            match document::from_variable(&variable, &text) {
                Some(node) => self.take(key, &node),
                None => {
                    self.refuse(key, Place::Variable(variable), "brackets that are not valid YAML".to_owned())
                }
            }
        }
    }

    fn take(&mut self, key: &Key, node: &Node) {
        if let Err(wrong) = (key.take)(&mut self.draft, node) {
            let (place, found) = (wrong.place.clone(), wrong.describe(key.secret));
            self.refuse(key, place, found);
        } else if key.name == "router_api_key" && self.draft.config.router_api_key.is_none() {
            let (key, variable) = (key.name.to_owned(), node.variable.clone());
            self.warnings.push(Warning::EmptyApiKey { key, variable });
        }
    }

    fn refuse(&mut self, key: &Key, place: Place, found: String) {
        let (key, expected) = (key.name.to_owned(), key.expects.to_owned());
        self.errors.push(ConfigError::Value { key, place, found, expected });
    }

    /// Replaces every text that is exactly `${NAME}`, at any depth; one that is not set is empty.
    fn substitute(&self, node: &mut Node) {
        match &mut node.value {
            Value::Text(text) => {
                let name = text.trim().strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
                if let Some(name) = name.filter(|name| is_variable(name)) {
                    node.variable = Some(name.to_owned());
                    *text = (self.env)(name).unwrap_or_default();
                }
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.substitute(item)),
            Value::Map(pairs) => pairs.iter_mut().for_each(|(_, value)| self.substitute(value)),
            Value::Null => {}
        }
    }

    fn finish(mut self) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
        let Draft { mut config, endpoints, llama, api_keys, empty_keys } = self.draft;
        config.endpoints =
            endpoint::endpoints(&endpoints, &llama, &api_keys, &mut self.errors, &mut self.warnings);
        for (key, variable) in empty_keys {
            self.warnings.push(Warning::EmptyApiKey { key, variable });
        }
        let (stall, idle) = (config.subscriber_stall.saturating_add(STALL_GRACE), config.idle_timeout);
        if stall > idle {
            self.warnings.push(Warning::StallBehindIdle { stall, idle });
        }
        if config.cache.enabled {
            self.warnings.push(Warning::NoCacheYet);
        }
        if self.errors.is_empty() { Ok((config, self.warnings)) } else { Err(self.errors) }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests;
