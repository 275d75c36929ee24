//! What can be wrong with a configuration, as sentences a user can act on.
//!
//! Errors refuse the file; warnings let it pass and say what was ignored. Neither ever holds a
//! secret: the values of secret keys, URLs with a password and the values behind `${NAME}` are
//! described, not shown. `main` prints them at start, on `check-config` and on a reload.

use core::fmt;
use core::time::Duration;

use thiserror::Error;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, on this line (from 1).
    Line(u64),
    /// In this environment variable.
    Variable(String),
    /// The parser could not say.
    Unknown,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, " (line {line})"),
            Place::Variable(name) => write!(f, " (environment variable {name})"),
            Place::Unknown => Ok(()),
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The file is larger than any honest one.
    #[error("the file has {bytes} bytes; at most {max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The file is not YAML.
    #[error("line {line}, column {column}: not valid YAML: {problem}")]
    Syntax {
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// In the parser's words.
        problem: String,
    },
    /// The file is YAML, but not a mapping.
    #[error("the file must hold settings as lines of `key: value`, and holds {found}")]
    NotSettings {
        /// What it holds.
        found: String,
    },
    /// A value is not what its key takes.
    #[error("{key}{place}: found {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Where the value stands.
        place: Place,
        /// The value, or what kind of value it is if it must not be shown.
        found: String,
        /// What the key takes.
        expected: String,
    },
    /// Too many endpoints.
    #[error("{count} endpoints are listed; at most {max} are allowed")]
    TooManyEndpoints {
        /// How many are listed.
        count: usize,
        /// The limit.
        max: usize,
    },
}

/// What was ignored or is likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Nobody knows this key; it is ignored.
    UnknownKey {
        /// As it is spelled in the file.
        key: String,
        /// Where it stands.
        place: Place,
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// A key is there more than once; the last one counts.
    Repeated {
        /// The key.
        key: String,
        /// Where the one that counts stands.
        place: Place,
    },
    /// One server is listed twice; it becomes one endpoint.
    SameServer {
        /// The URL that was left out.
        url: String,
        /// The URL under which the server is kept.
        kept: String,
    },
    /// A key for a server that is not listed; it is ignored.
    UnusedApiKey {
        /// The server.
        url: String,
        /// Where it stands.
        place: Place,
    },
    /// A key to protect or to present is named, and empty.
    EmptyApiKey {
        /// The setting.
        key: String,
        /// The environment variable it was to come from.
        variable: Option<String>,
    },
    /// A subscriber's connection is cut before the subscriber has had its time.
    StallBehindIdle {
        /// `subscriber_stall_secs` and the time to read why.
        stall: Duration,
        /// `idle_timeout_secs`, which holds for any connection.
        idle: Duration,
    },
    /// `cache_enabled` is accepted, but there is no response cache yet.
    NoCacheYet,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownKey { key, place, nearest: Some(nearest) } => {
                write!(f, "{key}{place} is not a known key and is ignored; did you mean {nearest}?")
            }
            Warning::UnknownKey { key, place, nearest: None } => {
                write!(f, "{key}{place} is not a known key and is ignored")
            }
            Warning::Repeated { key, place } => {
                write!(f, "{key} is set more than once; the last one{place} counts")
            }
            Warning::SameServer { url, kept } => {
                write!(f, "{url} is the same server as {kept}; it is used once, as {kept}")
            }
            Warning::UnusedApiKey { url, place } => {
                write!(
                    f,
                    "api_keys{place} has a key for {url}, which is not a listed endpoint; it is ignored"
                )
            }
            Warning::EmptyApiKey { key, variable: Some(variable) } => {
                write!(
                    f,
                    "{key} is empty because the environment variable {variable} is not set: no key is used"
                )
            }
            Warning::EmptyApiKey { key, variable: None } => write!(f, "{key} is empty: no key is used"),
            Warning::StallBehindIdle { stall, idle } => write!(
                f,
                "a connection whose client takes nothing is cut after idle_timeout_secs, {} s, which leaves no time \
                 for subscriber_stall_secs and the {} s to read why after it: set idle_timeout_secs to {} or more, or \
                 subscriber_stall_secs to less",
                idle.as_secs_f64(),
                super::STALL_GRACE.as_secs(),
                stall.as_secs_f64(),
            ),
            Warning::NoCacheYet => f.write_str(
                "cache_enabled is true, but this version has no response cache yet; requests are not cached",
            ),
        }
    }
}
