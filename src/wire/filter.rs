//! Which events of the log a reader wants: by kind, endpoint and model.

use serde::Deserialize;
use thiserror::Error;

use super::event::Event;

/// The most patterns in one list.
const PATTERNS_MAX: usize = 100;

/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 512;

/// An event passes if it matches one pattern of every list that is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Kinds, `request.*`.
    pub kinds: Vec<Pattern>,
    /// Endpoints, as configured.
    pub endpoints: Vec<Pattern>,
    /// Models, as their clients named them or as they are counted.
    pub models: Vec<Pattern>,
}

/// A name, or the beginning of one: `request.finished`, `request.*`, `*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    text: Box<str>,
    prefix: bool,
}

/// Why a filter is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadFilter {
    /// A star in the middle.
    #[error("'{0}': a `*` may stand at the end of a pattern only")]
    Star(String),
    /// Nothing, or too much.
    #[error("a pattern must have 1 to {PATTERN_BYTES_MAX} bytes, one has {0}")]
    Length(usize),
    /// Too many of them.
    #[error("at most {PATTERNS_MAX} patterns of a kind, these are {0}")]
    TooMany(usize),
}

impl TryFrom<String> for Pattern {
    type Error = BadFilter;

    fn try_from(text: String) -> Result<Self, BadFilter> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err(BadFilter::Length(text.len()));
        }
        let (name, prefix) = text.strip_suffix('*').map_or((text.as_str(), false), |name| (name, true));
        if name.contains('*') {
            return Err(BadFilter::Star(text));
        }
        Ok(Pattern { text: name.into(), prefix })
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        if self.prefix { name.starts_with(&*self.text) } else { name == &*self.text }
    }
}

impl Filter {
    /// Refuses lists that are too long.
    pub fn check(self) -> Result<Filter, BadFilter> {
        let longest = self.kinds.len().max(self.endpoints.len()).max(self.models.len());
        if longest > PATTERNS_MAX { Err(BadFilter::TooMany(longest)) } else { Ok(self) }
    }

    /// Whether its reader wants this event.
    pub fn matches(&self, event: &Event) -> bool {
        let named = |patterns: &[Pattern], name: Option<&str>| {
            name.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        let passes = |patterns: &[Pattern], name| patterns.is_empty() || named(patterns, name);
        passes(&self.kinds, Some(&event.kind))
            && passes(&self.endpoints, event.endpoint())
            // One request has one start and one end under whichever name its client used.
            && (passes(&self.models, event.model()) || named(&self.models, event.asked()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::event::{Fields, Kind};

    fn filter(kinds: &[&str], endpoints: &[&str], models: &[&str]) -> Filter {
        let patterns =
            |list: &[&str]| list.iter().map(|text| Pattern::try_from((*text).to_owned()).unwrap()).collect();
        Filter { kinds: patterns(kinds), endpoints: patterns(endpoints), models: patterns(models) }
    }

    #[test]
    fn every_list_that_is_there_must_agree() {
        let fields =
            Fields { endpoint: Some("http://a".into()), model: Some("qwen3:4b".into()), ..Fields::default() };
        let event = Event::new(Kind::RequestFinished, fields);
        for (kinds, endpoints, models, passes) in [
            (&[][..], &[][..], &[][..], true),
            (&["request.finished"], &[], &[], true),
            (&["request.*"], &["http://a"], &["qwen*"], true),
            (&["*"], &["*"], &["*"], true),
            (&["request"], &[], &[], false),
            (&["model.*", "request.f*"], &[], &[], true),
            (&["request.*"], &["http://b"], &[], false),
            (&[], &[], &["qwen3"], false),
        ] {
            assert_eq!(
                filter(kinds, endpoints, models).matches(&event),
                passes,
                "{kinds:?} {endpoints:?} {models:?}"
            );
        }
        let elsewhere = Event::new(Kind::ConfigReloaded, Fields::default());
        assert!(!filter(&[], &["*"], &[]).matches(&elsewhere), "it concerns no endpoint");
    }

    #[test]
    fn a_request_is_found_by_its_clients_name_and_by_the_one_it_is_counted_under() {
        let of = |model: &'static str, asked: Option<&'static str>| {
            let fields =
                Fields { model: Some(model.into()), asked: asked.map(Into::into), ..Fields::default() };
            Event::new(Kind::RequestFinished, fields)
        };
        let ended = of("llama3:latest", Some("llama3"));
        let ended = Event::parse(ended.json).unwrap();
        for (pattern, passes) in
            [("llama3", true), ("llama3:latest", true), ("llama*", true), ("llama", false)]
        {
            assert_eq!(filter(&[], &[], &[pattern]).matches(&ended), passes, "{pattern}");
        }
        assert!(!filter(&[], &[], &["llama3"]).matches(&of("llama3:latest", None)));
    }

    #[test]
    fn a_pattern_says_what_is_wrong_with_it() {
        let refused = |text: String| Pattern::try_from(text).unwrap_err();
        assert_eq!(refused("a*b".to_owned()), BadFilter::Star("a*b".to_owned()));
        assert_eq!(refused(String::new()), BadFilter::Length(0));
        assert_eq!(refused("x".repeat(513)), BadFilter::Length(513));
        let many =
            Filter { kinds: vec![Pattern::try_from("a".to_owned()).unwrap(); 101], ..Filter::default() };
        assert_eq!(many.check(), Err(BadFilter::TooMany(101)));
    }
}
