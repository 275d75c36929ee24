//! The table of keys: names, environment variables, what each takes, where it goes.
//!
//! A key is one row of [`KEYS`]; nothing else in the house knows a key's name. Spelling is
//! tolerant: letter case does not count, and hyphens are underscores. `super` walks the table for
//! the file and then for the environment.

use core::ops::RangeInclusive;
use core::time::Duration;

use url::Url;

use super::complaint::Place;
use super::document::{Node, Value};
use super::endpoint::{Listed, ListedKey};
use super::secret::Secret;
use super::{CacheBackend, Config, EventLogMode, Network};

/// What is read before endpoints are made of it.
#[derive(Default)]
pub(super) struct Draft {
    /// Everything but the endpoints.
    pub(super) config: Config,
    pub(super) endpoints: Vec<Listed>,
    pub(super) llama: Vec<Listed>,
    pub(super) api_keys: Vec<ListedKey>,
    /// Keys of `api_keys` that are empty: the server and the variable it was to come from.
    pub(super) empty_keys: Vec<(String, Option<String>)>,
}

/// The node that a key cannot take; it is the value itself or something inside it.
pub(super) type Taken<'n> = Result<(), &'n Node>;

/// One key of the file.
pub(super) struct Key {
    /// Its name, in lower case with underscores.
    pub(super) name: &'static str,
    /// Other names it goes by.
    pub(super) also: &'static [&'static str],
    /// What it takes, for errors.
    pub(super) expects: &'static str,
    /// Its value is never shown.
    pub(super) secret: bool,
    /// Nothing (`null`) is a value of its own; elsewhere it means "the default".
    pub(super) nullable: bool,
    /// Reads the value into its place.
    pub(super) take: for<'n> fn(&mut Draft, &'n Node) -> Taken<'n>,
}

impl Key {
    const fn new(
        name: &'static str,
        expects: &'static str,
        take: for<'n> fn(&mut Draft, &'n Node) -> Taken<'n>,
    ) -> Key {
        Key { name, also: &[], expects, secret: false, nullable: false, take }
    }

    /// The environment variable that goes before the file.
    pub(super) fn variable(&self) -> String {
        match self.name {
            "router_api_key" => "NOMYO_ROUTER_API_KEY".to_owned(),
            name => format!("NOMYO_ROUTER_{}", name.to_uppercase()),
        }
    }
}

const BOOL: &str = "true or false";
const URLS: &str = "a list of URLs";
const SECONDS: &str = "a number of seconds from 0.001 to 31536000";
const TEXT: &str = "a text";

fn set<T>(place: &mut T, value: T) -> Taken<'static> {
    *place = value;
    Ok(())
}

/// Every key there is.
pub(super) static KEYS: &[Key] = &[
    Key::new("endpoints", URLS, |draft, node| set(&mut draft.endpoints, node.urls()?)),
    Key::new("llama_server_endpoints", URLS, |draft, node| set(&mut draft.llama, node.urls()?)),
    Key::new("max_concurrent_connections", "a whole number from 1 to 1000000", |draft, node| {
        set(&mut draft.config.max_concurrent_connections, node.whole(1..=1_000_000)? as u32)
    }),
    Key {
        secret: true,
        ..Key::new("api_keys", "a map from endpoint URLs to keys of visible characters", |draft, node| {
            node.api_keys(draft)
        })
    },
    Key {
        secret: true,
        also: &["nomyo_router_api_key"],
        ..Key::new("router_api_key", "a key of visible characters", |draft, node| {
            set(&mut draft.config.router_api_key, node.secret()?)
        })
    },
    Key::new("db_path", "a path", |draft, node| set(&mut draft.config.db_path, node.path()?)),
    Key::new("cache_enabled", BOOL, |draft, node| set(&mut draft.config.cache.enabled, node.boolean()?)),
    Key::new("cache_backend", "memory, sqlite or redis", |draft, node| {
        set(
            &mut draft.config.cache.backend,
            node.one_of(&[
                ("memory", CacheBackend::Memory),
                ("sqlite", CacheBackend::Sqlite),
                ("redis", CacheBackend::Redis),
            ])?,
        )
    }),
    Key::new("cache_similarity", "a number from 0 to 1", |draft, node| {
        set(&mut draft.config.cache.similarity, node.number(0.0..=1.0)?)
    }),
    Key {
        nullable: true,
        ..Key::new(
            "cache_ttl",
            "a number of seconds from 0.001 to 31536000, or null for ever",
            |draft, node| {
                set(&mut draft.config.cache.ttl, if node.is_null() { None } else { Some(node.seconds()?) })
            },
        )
    },
    Key::new("cache_db_path", "a path", |draft, node| set(&mut draft.config.cache.db_path, node.path()?)),
    Key {
        secret: true,
        ..Key::new("cache_redis_url", TEXT, |draft, node| {
            set(&mut draft.config.cache.redis_url, node.secret()?)
        })
    },
    Key::new("cache_history_weight", "a number from 0 to 1", |draft, node| {
        set(&mut draft.config.cache.history_weight, node.number(0.0..=1.0)?)
    }),
    Key::new("queue", BOOL, |draft, node| set(&mut draft.config.queue, node.boolean()?)),
    Key::new("queue_max", "a whole number from 0 to 1000000", |draft, node| {
        set(&mut draft.config.queue_max, node.whole(0..=1_000_000)? as usize)
    }),
    Key::new("queue_timeout_secs", SECONDS, |draft, node| {
        set(&mut draft.config.queue_timeout, node.seconds()?)
    }),
    Key::new("attempts_max", "a whole number from 1 to 100", |draft, node| {
        set(&mut draft.config.attempts_max, node.whole(1..=100)? as u32)
    }),
    Key::new("connect_timeout_secs", SECONDS, |draft, node| {
        set(&mut draft.config.connect_timeout, node.seconds()?)
    }),
    Key::new("first_byte_timeout_secs", SECONDS, |draft, node| {
        set(&mut draft.config.first_byte_timeout, node.seconds()?)
    }),
    Key::new("idle_timeout_secs", SECONDS, |draft, node| {
        set(&mut draft.config.idle_timeout, node.seconds()?)
    }),
    Key::new("listing_timeout_secs", SECONDS, |draft, node| {
        set(&mut draft.config.listing_timeout, node.seconds()?)
    }),
    Key::new("header_timeout_secs", SECONDS, |draft, node| {
        set(&mut draft.config.header_timeout, node.seconds()?)
    }),
    Key::new("body_limit_bytes", "a whole number of bytes from 1 to 4294967296", |draft, node| {
        set(&mut draft.config.body_limit_bytes, node.whole(1..=1 << 32)? as usize)
    }),
    Key::new("drain_grace_secs", SECONDS, |draft, node| set(&mut draft.config.drain_grace, node.seconds()?)),
    Key::new("flush_interval_secs", SECONDS, |draft, node| {
        set(&mut draft.config.flush_interval, node.seconds()?)
    }),
    Key::new("breaker_failures", "a whole number from 1 to 1000000", |draft, node| {
        set(&mut draft.config.breaker_failures, node.whole(1..=1_000_000)? as u32)
    }),
    Key::new("breaker_open_secs", SECONDS, |draft, node| {
        set(&mut draft.config.breaker_open, node.seconds()?)
    }),
    Key::new("wedged_after_secs", SECONDS, |draft, node| {
        set(&mut draft.config.wedged_after, node.seconds()?)
    }),
    Key::new("event_log", "group, each, none or off", |draft, node| {
        let modes = [
            ("group", EventLogMode::Group),
            ("each", EventLogMode::Each),
            ("none", EventLogMode::None),
            ("off", EventLogMode::Off),
        ];
        set(&mut draft.config.event_log, node.one_of(&modes)?)
    }),
    Key::new("event_log_max_events", "a whole number from 1000 to 1000000000", |draft, node| {
        set(&mut draft.config.event_log_max_events, node.whole(1_000..=1_000_000_000)?)
    }),
    Key::new("event_log_max_age_secs", SECONDS, |draft, node| {
        set(&mut draft.config.event_log_max_age, node.seconds()?)
    }),
    Key::new("event_ring", "a whole number from 16 to 1000000", |draft, node| {
        set(&mut draft.config.event_ring, node.whole(16..=1_000_000)? as usize)
    }),
    Key::new("subscribers_max", "a whole number from 0 to 1000000", |draft, node| {
        set(&mut draft.config.subscribers_max, node.whole(0..=1_000_000)? as usize)
    }),
    Key::new("per_ip_connections", "a whole number from 0 to 1000000", |draft, node| {
        set(&mut draft.config.per_ip_connections, node.whole(0..=1_000_000)? as usize)
    }),
    Key::new("per_ip_limit", "a whole number from 0 to 1000000", |draft, node| {
        set(&mut draft.config.per_ip_limit, node.whole(0..=1_000_000)? as u32)
    }),
    Key::new("per_ip_idle", "a whole number from 0 to 1000000", |draft, node| {
        set(&mut draft.config.per_ip_idle, node.whole(0..=1_000_000)? as usize)
    }),
    Key::new("trusted_proxies", "a list of addresses or networks like 10.0.0.0/8", |draft, node| {
        set(&mut draft.config.trusted_proxies, node.networks()?)
    }),
    Key::new("allowed_origins", "a list of origins like https://example.com", |draft, node| {
        set(&mut draft.config.allowed_origins, node.origins()?)
    }),
    Key::new("subscriber_stall_secs", SECONDS, |draft, node| {
        set(&mut draft.config.subscriber_stall, node.seconds()?)
    }),
    Key::new("subscriber_min_rate", "a whole number from 0 to 1000000", |draft, node| {
        set(&mut draft.config.subscriber_min_rate, node.whole(0..=1_000_000)? as u32)
    }),
];

/// A key's spelling in the table.
fn canonical(name: &str) -> String {
    name.trim().to_lowercase().replace('-', "_")
}

/// The key of this name, however it is spelled.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    let name = canonical(name);
    KEYS.iter().find(|key| key.name == name || key.also.contains(&name.as_str()))
}

/// The known key that is most like an unknown one, if it could be a slip of the keyboard.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let name = canonical(name);
    let close = |known: &str| {
        let distance = strsim::damerau_levenshtein(&name, known);
        (distance <= 1 + known.len() / 6).then_some(distance)
    };
    let names = KEYS.iter().flat_map(|key| core::iter::once(&key.name).chain(key.also));
    // A name longer than any key is no slip, and comparing it would be slow.
    let names = names.filter(|_| name.len() <= 64);
    names
        .filter_map(|known| Some((close(known)?, *known)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// A text in quotes, cut to a length that fits a line.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

/// Reading a value as what its key takes.
impl Node {
    /// The value for an error. What came from the environment through `${NAME}` may be meant to be
    /// secret, so it goes by its name.
    pub(super) fn describe(&self, secret: bool) -> String {
        match (&self.value, &self.variable) {
            (Value::Null, _) => "nothing".to_owned(),
            (Value::List(_), _) => "a list".to_owned(),
            (Value::Map(_), _) => "a map".to_owned(),
            (Value::Text(text), Some(variable)) if text.is_empty() => {
                format!("${{{variable}}}, and that environment variable is not set")
            }
            (Value::Text(_), Some(variable)) => format!("the value of ${{{variable}}}"),
            (Value::Text(_), None) if secret => "a text that is not shown here".to_owned(),
            (Value::Text(text), None) => quoted(text),
        }
    }

    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Text(text) => ["null", "none", "~"].contains(&text.to_lowercase().as_str()),
            _ => false,
        }
    }

    fn text(&self) -> Result<&str, &Node> {
        match &self.value {
            Value::Text(text) => Ok(text.trim()),
            _ => Err(self),
        }
    }

    /// An empty path is as good as none.
    fn path(&self) -> Result<Option<std::path::PathBuf>, &Node> {
        let text = self.text()?;
        if text.contains('\0') { Err(self) } else { Ok((!text.is_empty()).then(|| text.into())) }
    }

    /// Something that can stand in a header; an empty one is none.
    fn secret(&self) -> Result<Option<Secret>, &Node> {
        let text = self.text()?;
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(self);
        }
        Ok((!text.is_empty()).then(|| Secret::new(text)))
    }

    /// With YAML 1.1's words, as Python reads them, and digits, as environments write them.
    fn boolean(&self) -> Result<bool, &Node> {
        match self.text()?.to_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Ok(true),
            "false" | "no" | "off" | "n" | "0" => Ok(false),
            _ => Err(self),
        }
    }

    fn number(&self, range: RangeInclusive<f64>) -> Result<f64, &Node> {
        let number: f64 = self.text()?.replace('_', "").parse().map_err(|_| self)?;
        if range.contains(&number) { Ok(number) } else { Err(self) }
    }

    fn whole(&self, range: RangeInclusive<u64>) -> Result<u64, &Node> {
        let number: u64 = self.text()?.replace('_', "").parse().map_err(|_| self)?;
        if range.contains(&number) { Ok(number) } else { Err(self) }
    }

    fn seconds(&self) -> Result<Duration, &Node> {
        let seconds = self.number(0.001..=31_536_000.0)?;
        Duration::try_from_secs_f64(seconds).map_err(|_| self)
    }

    fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, &Node> {
        let text = self.text()?.to_lowercase();
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or(self)
    }

    /// A list, or a text with commas or spaces between the items.
    fn urls(&self) -> Result<Vec<Listed>, &Node> {
        let split = |text: &str, place: Place| {
            let items = text.split([',', ' ', '\t', '\n']).filter(|item| !item.is_empty());
            items.map(|item| Listed { url: item.to_owned(), place: place.clone() }).collect()
        };
        match &self.value {
            Value::Text(text) => Ok(split(text, self.place.clone())),
            Value::List(items) => {
                let mut urls = Vec::with_capacity(items.len());
                for item in items {
                    // An item from an environment variable that is not set is left out.
                    match item.text()? {
                        "" if item.variable.is_some() => {}
                        url => urls.push(Listed { url: url.to_owned(), place: item.place.clone() }),
                    }
                }
                Ok(urls)
            }
            Value::Null | Value::Map(_) => Err(self),
        }
    }

    /// The same, of networks.
    fn networks(&self) -> Result<Vec<Network>, &Node> {
        self.urls()?.iter().map(|listed| Network::parse(&listed.url).ok_or(self)).collect()
    }

    /// The same, of web origins: no path, no wildcard.
    fn origins(&self) -> Result<Vec<String>, &Node> {
        let origin = |listed: &Listed| {
            let url = Url::parse(&listed.url).ok().filter(|_| !listed.url.contains('*'))?;
            let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
            (bare && matches!(url.scheme(), "http" | "https") && url.username().is_empty())
                .then(|| url.origin().ascii_serialization())
        };
        self.urls()?.iter().map(|listed| origin(listed).ok_or(self)).collect()
    }

    fn api_keys<'n>(&'n self, draft: &mut Draft) -> Taken<'n> {
        let Value::Map(pairs) = &self.value else { return Err(self) };
        draft.api_keys.clear();
        draft.empty_keys.clear();
        for (server, node) in pairs {
            let key = if matches!(node.value, Value::Null) { None } else { node.secret()? };
            match key {
                Some(key) => {
                    let server = Listed { url: server.clone(), place: node.place.clone() };
                    draft.api_keys.push(ListedKey { server, key });
                }
                None if node.variable.is_some() => {
                    draft.empty_keys.push(("api_keys".to_owned(), node.variable.clone()));
                }
                None => {}
            }
        }
        Ok(())
    }
}
