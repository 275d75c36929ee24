//! Which servers are configured, of which kind, and with which key.
//!
//! The rule is the seed router's: a URL with `/v1` in its path is an OpenAI-compatible service,
//! unless it is a llama.cpp server, a listed Ollama's own `/v1`, or on Ollama's port 11434. One
//! server is one endpoint however often it is listed, so that its slots are counted once
//! (`slot-limit`). `super` calls this once all keys are read.

use url::Url;

use super::complaint::{ConfigError, Place, Warning};
use super::secret::Secret;
use crate::wire::Kind;

/// The most endpoints one configuration may list.
pub const ENDPOINTS_MAX: usize = 10_000;

/// Used when no endpoint is listed at all.
pub const ENDPOINT_DEFAULT: &str = "http://localhost:11434";

/// The port that Ollama listens on unless told otherwise.
const OLLAMA_PORT: u16 = 11434;

/// What a URL must look like, for errors.
const EXPECTED: &str = "a URL such as http://host:11434, without user name, password, query or fragment";

/// One backend server.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// The URL as it is configured, without a slash at its end: the endpoint's name in listings,
    /// counts and metrics.
    pub url: String,
    /// Which interface it has.
    pub kind: Kind,
    /// The server's root, normalised, without `/v1` and without a slash at its end: `/api/tags`
    /// and the like are appended to it.
    pub base: String,
    /// Where its OpenAI-style interface is, without a slash at its end: `/models` and the like are
    /// appended to it. [`EndpointConfig::base`] and `/v1`, except for services that put it elsewhere.
    pub openai_base: String,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<Secret>,
}

/// A URL as it is listed, with its place.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) url: String,
    pub(super) place: Place,
}

/// A key of `api_keys`.
#[derive(Clone, Debug)]
pub(super) struct ListedKey {
    pub(super) server: Listed,
    pub(super) key: Secret,
}

/// A URL that may be an endpoint, taken apart.
struct Server {
    url: String,
    base: String,
    /// The whole URL, normalised.
    whole: String,
    openai: bool,
    port: Option<u16>,
}

/// Makes endpoints of the three lists. Faults go to `errors` and `warnings`.
pub(super) fn endpoints(
    listed: &[Listed],
    llama: &[Listed],
    keys: &[ListedKey],
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) -> Vec<EndpointConfig> {
    let count = listed.len() + llama.len();
    if count > ENDPOINTS_MAX {
        errors.push(ConfigError::TooManyEndpoints { count, max: ENDPOINTS_MAX });
        return Vec::new();
    }
    let mut read = |key: &str, list: &[Listed]| -> Vec<Server> {
        list.iter().filter_map(|one| server(key, one).map_err(|error| errors.push(error)).ok()).collect()
    };
    let mut plain = read("endpoints", listed);
    let llama = read("llama_server_endpoints", llama);
    if count == 0 {
        let default = Listed { url: ENDPOINT_DEFAULT.to_owned(), place: Place::Unknown };
        plain.extend(server("endpoints", &default));
    }

    let mut found = merged(plain, llama, warnings);
    for ListedKey { server: listed, key } in keys {
        let Ok(Server { url, base, .. }) = server("api_keys", listed) else {
            // The name may be a key in the wrong place, so it is not shown.
            errors.push(ConfigError::Value {
                key: "api_keys".to_owned(),
                place: listed.place.clone(),
                found: "a name that is not a URL".to_owned(),
                expected: format!("{EXPECTED}, then a colon and the key"),
            });
            continue;
        };
        let exact = found.iter().position(|endpoint| endpoint.url == url);
        match exact.or_else(|| found.iter().position(|endpoint| endpoint.base == base)) {
            // A key under the very URL goes before one under another spelling of the server.
            Some(at) if exact.is_some() || found[at].api_key.is_none() => {
                found[at].api_key = Some(key.clone())
            }
            Some(_) => {}
            None => warnings.push(Warning::UnusedApiKey { url, place: listed.place.clone() }),
        }
    }
    found
}

/// One endpoint per server, in the order of their first listing.
fn merged(plain: Vec<Server>, llama: Vec<Server>, warnings: &mut Vec<Warning>) -> Vec<EndpointConfig> {
    use std::collections::BTreeMap;

    // A server that is also listed without `/v1`, or on Ollama's port, is an Ollama.
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    for server in &plain {
        let kind =
            if server.openai && server.port != Some(OLLAMA_PORT) { Kind::OpenAi } else { Kind::Ollama };
        let present = kinds.entry(server.base.clone()).or_insert(kind);
        if kind == Kind::Ollama {
            *present = kind;
        }
    }
    kinds.extend(llama.iter().map(|server| (server.base.clone(), Kind::LlamaServer)));

    let mut found: Vec<EndpointConfig> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for server in plain.into_iter().chain(llama) {
        let kind = kinds[&server.base];
        let Some(present) = at.get(&server.base).map(|at| &mut found[*at]) else {
            at.insert(server.base.clone(), found.len());
            found.push(server.into_endpoint(kind));
            continue;
        };
        // The shorter name of an Ollama is the one it goes by.
        if kind == Kind::Ollama && !server.openai && present.url.ends_with("/v1") {
            let url = std::mem::replace(&mut present.url, server.url);
            warnings.push(Warning::SameServer { url, kept: present.url.clone() });
        } else {
            warnings.push(Warning::SameServer { url: server.url, kept: present.url.clone() });
        }
    }
    found
}

impl Server {
    fn into_endpoint(self, kind: Kind) -> EndpointConfig {
        let elsewhere = kind == Kind::OpenAi && self.whole == self.base;
        let openai_base = if elsewhere { self.whole } else { format!("{}/v1", self.base) };
        EndpointConfig { url: self.url, kind, base: self.base, openai_base, api_key: None }
    }
}

fn server(key: &str, listed: &Listed) -> Result<Server, ConfigError> {
    let text = listed.url.trim();
    let refused = |why: &str| ConfigError::Value {
        key: key.to_owned(),
        place: listed.place.clone(),
        found: shown(text),
        expected: format!("{EXPECTED} ({why})"),
    };
    let schemed = ["http://", "https://"]
        .iter()
        .any(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    if !schemed {
        return Err(refused("it must begin with http:// or https://"));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(refused("it must not have spaces, control characters or backslashes"));
    }
    let url = Url::parse(text).map_err(|error| refused(&error.to_string()))?;
    let authority = text.split('/').nth(2).unwrap_or_default();
    if authority.contains('@') || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("put the key under api_keys instead"));
    }
    if text.contains(['?', '#']) {
        return Err(refused("nothing may follow the path"));
    }
    if url.host_str().is_none_or(str::is_empty) || url.port() == Some(0) {
        return Err(refused("it needs a host, and a port other than 0 if any"));
    }
    let whole = url.as_str().trim_end_matches('/').to_owned();
    // Of the path only: a host may be called `v1`.
    let versioned = url.path().trim_end_matches('/').ends_with("/v1");
    let root = if versioned { whole.strip_suffix("/v1").unwrap_or(&whole) } else { &whole };
    let base = root.trim_end_matches('/').to_owned();
    Ok(Server {
        url: text.trim_end_matches('/').to_owned(),
        base,
        whole,
        openai: url.path().contains("/v1"),
        port: url.port(),
    })
}

/// A URL for an error: without what may be a password or a key in it.
fn shown(text: &str) -> String {
    // What is not even meant as a URL may be a key that slipped into the wrong list.
    if !text.contains("://") {
        return format!("a text of {} characters", text.chars().count());
    }
    let scheme = text.find("://").map_or("", |end| &text[..end + 3]);
    let (kept, cut) = text.split_at(text.find(['?', '#']).unwrap_or(text.len()));
    let masked = match kept.rfind('@') {
        // The `?` or `#` may be a character of a password: then all that is kept may be a part of it.
        _ if cut.contains('@') => format!("{scheme}***"),
        Some(at) => format!("{scheme}***{}", &kept[at..]),
        None => without_false_port(kept),
    };
    super::key::quoted(&masked)
}

/// What stands where a port should be may be the password of a URL that lost its `@`.
fn without_false_port(text: &str) -> String {
    let host = text.find("://").map_or(0, |end| end + 3);
    let end = text[host..].find('/').map_or(text.len(), |slash| host + slash);
    match text[host..end].rfind(':').map(|colon| host + colon + 1) {
        Some(port) if text[port..end].parse::<u16>().is_err() => {
            format!("{}***{}", &text[..port], &text[end..])
        }
        _ => text.to_owned(),
    }
}
