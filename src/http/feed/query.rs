//! What a subscriber asks for: where to begin and which events, from the URL, the header that browsers send
//! when they come again, and the messages of a WebSocket.

use axum::http::{HeaderMap, HeaderName, Uri};
use serde::Deserialize;
use thiserror::Error;

use crate::core::time::Timestamp;
use crate::core::timeline::Seq;
use crate::flow::follow::Begin;
use crate::flow::pump::Wish;
use crate::wire::dates;
use crate::wire::filter::{BadFilter, Filter, Pattern};

static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What a subscriber asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) begin: Begin,
    pub(super) encoding: Encoding,
    pub(super) wish: Wish,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As JSON.
    Text,
    /// As zstd data, by `pack`.
    Zstd,
}

/// Why a subscriber gets nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum BadQuery {
    #[error(
        "`{0}` is not known here; known are after, kinds, endpoints, models, max_message_bytes, compress and api_key"
    )]
    Unknown(String),
    #[error("`{0}` may be given once")]
    Twice(&'static str),
    #[error(
        "{source_name} is '{text}': expected the number of an event (0 for all that are kept) or an RFC 3339 time like 2026-01-31T08:00:00Z (in a URL `+` is written %2B)"
    )]
    Cursor { source_name: &'static str, text: String },
    #[error("`{name}`: {why}")]
    Filter { name: &'static str, why: BadFilter },
    #[error("`max_message_bytes` is '{0}': expected a whole number from 1 on")]
    Bytes(String),
    #[error("`compress` is '{0}': expected zstd")]
    Compress(String),
    #[error("`compress` is for messages of a WebSocket: ask for /subscribe, or leave it out")]
    NotHere,
    #[error("the message is not JSON: {0}")]
    NotJson(String),
    #[error(
        "the message is not understood: {0}; expected {{\"type\":\"options_update\"}} with any of kinds, endpoints, models and max_message_bytes"
    )]
    NotUnderstood(String),
}

impl Query {
    /// From a request's URL and headers.
    pub(super) fn parse(uri: &Uri, headers: &HeaderMap) -> Result<Query, BadQuery> {
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(uri.query().unwrap_or_default()).unwrap_or_default();
        let (mut after, mut bytes, mut compress) = (None, None, None);
        let mut filter = Filter::default();
        for (name, value) in pairs {
            let once = |given: &mut Option<String>, name, value| match given.replace(value) {
                None => Ok(()),
                Some(_) => Err(BadQuery::Twice(name)),
            };
            let pattern = |list: &mut Vec<Pattern>, name, value| {
                list.push(Pattern::try_from(value).map_err(|why| BadQuery::Filter { name, why })?);
                Ok(())
            };
            match name.as_str() {
                "after" => once(&mut after, "after", value)?,
                "max_message_bytes" => once(&mut bytes, "max_message_bytes", value)?,
                "compress" => once(&mut compress, "compress", value)?,
                "kinds" => pattern(&mut filter.kinds, "kinds", value)?,
                "endpoints" => pattern(&mut filter.endpoints, "endpoints", value)?,
                "models" => pattern(&mut filter.models, "models", value)?,
                "api_key" => {}
                _ => return Err(BadQuery::Unknown(name)),
            }
        }
        let message_bytes_max = match bytes {
            None => None,
            Some(text) => match text.parse() {
                Ok(bytes) if bytes > 0 => Some(bytes),
                _ => return Err(BadQuery::Bytes(text)),
            },
        };
        let encoding = match compress {
            None => Encoding::Text,
            Some(text) if text == "zstd" => Encoding::Zstd,
            Some(text) => return Err(BadQuery::Compress(text)),
        };
        let wish = checked(filter, message_bytes_max)?;
        // Browsers come again with the URL they began with: what they read last counts.
        if let Some(id) = headers.get(&LAST_EVENT_ID) {
            let text = String::from_utf8_lossy(id.as_bytes());
            let after = number(&text);
            let begin = Begin::After(after.ok_or_else(|| bad_cursor("`Last-Event-ID`", &text))?);
            return Ok(Query { begin, encoding, wish });
        }
        let begin = match after {
            None => Begin::Live,
            Some(text) => match (number(&text), dates::millis_from_rfc3339(&text)) {
                (Some(0), _) => Begin::Kept,
                (Some(after), _) => Begin::After(after),
                (None, Some(millis)) => Begin::Since(Timestamp::from_millis(millis)),
                (None, None) => return Err(bad_cursor("`after`", &text)),
            },
        };
        Ok(Query { begin, encoding, wish })
    }
}

fn bad_cursor(source_name: &'static str, text: &str) -> BadQuery {
    BadQuery::Cursor { source_name, text: text.to_owned() }
}

/// Digits only: no sign, no space.
fn number(text: &str) -> Option<Seq> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// What a WebSocket's client may say.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    OptionsUpdate {
        #[serde(default)]
        kinds: Vec<Pattern>,
        #[serde(default)]
        endpoints: Vec<Pattern>,
        #[serde(default)]
        models: Vec<Pattern>,
        max_message_bytes: Option<usize>,
    },
}

/// The wish in a message `options_update`. It says all that is wanted: what it leaves out is not limited.
pub(super) fn wish(text: &str) -> Result<Wish, BadQuery> {
    let said = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => BadQuery::NotUnderstood(error.to_string()),
        _ => BadQuery::NotJson(error.to_string()),
    })?;
    let Said::OptionsUpdate { kinds, endpoints, models, max_message_bytes } = said;
    if max_message_bytes == Some(0) {
        return Err(BadQuery::Bytes("0".to_owned()));
    }
    checked(Filter { kinds, endpoints, models }, max_message_bytes)
}

fn checked(filter: Filter, message_bytes_max: Option<usize>) -> Result<Wish, BadQuery> {
    let name = "kinds, endpoints, models";
    let filter = filter.check().map_err(|why| BadQuery::Filter { name, why })?;
    Ok(Wish { filter, message_bytes_max: message_bytes_max.unwrap_or(usize::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str, last_event_id: Option<&str>) -> Result<Query, BadQuery> {
        let mut headers = HeaderMap::new();
        if let Some(id) = last_event_id {
            headers.insert(LAST_EVENT_ID.clone(), id.parse().unwrap());
        }
        Query::parse(&format!("/api/events?{query}").parse().unwrap(), &headers)
    }

    #[test]
    fn a_beginning_is_a_number_a_time_or_now_and_the_header_wins() {
        let since = Begin::Since(Timestamp::from_millis(1_700_000_000_250));
        for (query, header, begin) in [
            ("", None, Begin::Live),
            ("after=0", None, Begin::Kept),
            ("after=17&api_key=secret", None, Begin::After(17)),
            ("after=2023-11-14T22:13:20.25Z", None, since),
            ("after=2023-11-14T23:13:20.25%2B01:00", None, since),
            ("after=17", Some("40"), Begin::After(40)),
            ("", Some("0"), Begin::After(0)),
        ] {
            assert_eq!(parse(query, header).unwrap().begin, begin, "{query} {header:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (query, header, words) in [
            ("after=", None, "`after` is ''"),
            ("after=-1", None, "'-1'"),
            ("after=%2B1", None, "'+1'"),
            ("after=99999999999999999999", None, "RFC 3339"),
            ("after=yesterday", None, "RFC 3339"),
            ("after=1&after=2", None, "once"),
            ("after=1", Some("2x"), "`Last-Event-ID` is '2x'"),
            ("after=1", Some("2023-11-14T22:13:20Z"), "`Last-Event-ID`"),
            ("afer=1", None, "after, kinds, endpoints, models, max_message_bytes, compress"),
            ("kinds=", None, "`kinds`: a pattern must have"),
            ("models=a*b", None, "end of a pattern"),
            ("max_message_bytes=0", None, "'0'"),
            ("max_message_bytes=1k", None, "'1k'"),
            ("compress=true", None, "expected zstd"),
            ("compress=zstd&compress=zstd", None, "once"),
            ("max_message_bytes=1&max_message_bytes=2", None, "once"),
            (&"endpoints=e&".repeat(101), None, "at most 100"),
        ] {
            let said = parse(query, header).unwrap_err().to_string();
            assert!(said.contains(words), "{query}: {said}");
        }
    }

    #[test]
    fn an_update_says_all_that_is_wanted() {
        let update = r#"{"type":"options_update","kinds":["a","b*"],"max_message_bytes":9}"#;
        assert_eq!(wish(update).unwrap(), parse("kinds=a&kinds=b*&max_message_bytes=9", None).unwrap().wish);
        let all = wish(r#"{"type":"options_update"}"#).unwrap();
        assert_eq!(all, parse("", None).unwrap().wish);
        for (text, not_json) in [
            ("", true),
            ("{\"type\":", true),
            ("[]", false),
            ("{}", false),
            ("{\"type\":\"hello\"}", false),
            ("{\"type\":\"options_update\",\"kind\":[\"a\"]}", false),
            ("{\"type\":\"options_update\",\"kinds\":\"a\"}", false),
            ("{\"type\":\"options_update\",\"kinds\":[\"*a\"]}", false),
            ("{\"type\":\"options_update\",\"max_message_bytes\":-1}", false),
            ("{\"type\":\"options_update\",\"max_message_bytes\":0}", false),
        ] {
            let error = wish(text).unwrap_err();
            assert_eq!(matches!(error, BadQuery::NotJson(_)), not_json, "{text}: {error}");
        }
    }
}
