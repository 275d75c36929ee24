//! Listings: no endpoint's answer, however odd, spoils the lists that the router shows.

use std::collections::BTreeSet;

use pointsman::wire::Kind;
use pointsman::wire::listing::{
    BadListing, Model, lowest_version, models_union, openai_model, parse_models, parse_ps, parse_tags,
    parse_version, ps_union, tags_union,
};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Grammar;

pub(crate) const WORDS: &[&str] = &[
    "\n\n",
    "{\"models\":[",
    "{\"data\":[",
    "{\"name\":\"a\"}",
    "{\"model\":\"b\"}",
    "{\"id\":\"c\"}",
    "[\"x\",\"y\"]",
    "\"status\":",
    "\"loaded\"",
    "{\"value\":\"sleeping\"}",
    "\"created\":",
    "\"modified_at\":",
    "\"2024-01-02T03:04:05.6+07:00\"",
    "\"version\":",
    "0.5.1-rc1",
    "null",
    "[]",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "1e999",
    "-1",
    "\\ud800",
    "\u{c}",
];

pub(crate) const GRAMMAR: Grammar = Grammar {
    opens: &["{\"models\":[", "{\"data\":[", "{\"object\":\"list\",\"data\":["],
    records: &[
        "{\"name\":\"a\",\"modified_at\":\"2024-05-04T14:56:49.2-07:00\"}",
        "{\"model\":\"b\"}",
        "{\"id\":\"a\",\"created\":1.5e9}",
        "{\"id\":\"c\",\"status\":{\"value\":\"sleeping\"}}",
        "{\"id\":\"d\",\"name\":\"d\",\"status\":\"loaded\"}",
        "{\"id\":\"\\ud800\",\"name\":\"\\u0000\"}",
        "[\"x\",\"y\"]",
        "null",
    ],
    joints: &[
        ",",
        ",",
        ",",
        "]}\n\n{\"models\":[",
        "]}\n\n{\"data\":[",
        "]}\n\n{\"version\":\"0.5.1\"}\n\n{\"models\":[",
    ],
    closes: &["]}", "]}", "]}\n\n{\"version\":\"0.5.1-rc1\"}"],
};

type Parse = fn(&[u8]) -> Result<Vec<Model>, BadListing>;

/// Reads the input as the answers of several endpoints, with an empty line between two of them.
pub fn listing(data: &[u8]) {
    let answers = split_at_empty_lines(data);
    let mut listed: Vec<(Kind, Model)> = Vec::new();
    for answer in &answers {
        let read = |parse: Parse| parse(answer).unwrap_or_default();
        let (tags, ps, models) = (read(parse_tags), read(parse_ps), read(parse_models));
        assert!(tags.iter().all(|model| !model.loaded), "what is served need not be in memory");
        assert!(ps.iter().all(|model| model.loaded));
        listed.extend(tags.into_iter().chain(ps).map(|model| (Kind::Ollama, model)));
        listed.extend(models.iter().map(|model| (Kind::LlamaServer, model.clone())));
        listed.extend(models.into_iter().map(|model| (Kind::OpenAi, model)));
    }
    assert!(listed.iter().all(|(_, model)| !model.name.is_empty()));

    // In both orders, so that each kind's items come first once.
    for _ in 0..2 {
        let all = || listed.iter().map(|(kind, model)| (*kind, model));
        shows(&tags_union(all()), all(), parse_tags, "/models");
        shows(&models_union(all()), all(), parse_models, "/data");
        shows(&ps_union(all()), all().filter(|(_, model)| model.loaded), parse_ps, "/models");
        listed.reverse();
    }
    for (kind, model) in &listed {
        is_object(&openai_model(*kind, model));
    }
    versions(&answers);
}

/// A list is valid, each of its items is an object, and it names each model once, in order of first listing.
fn shows<'a>(list: &[u8], models: impl Iterator<Item = (Kind, &'a Model)>, parse: Parse, at: &str) {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow, alias = "models")]
        data: Vec<&'a RawValue>,
    }
    is_object(list);
    let items: List<'_> = serde_json::from_slice(list).expect("the list is there");
    items.data.iter().for_each(|item| is_object(item.get().as_bytes()));

    let mut seen = BTreeSet::new();
    let names: Vec<&str> =
        models.map(|(_, model)| model.name.as_str()).filter(|name| seen.insert(*name)).collect();
    let shown = parse(list).expect("the router can read its own list");
    assert_eq!(shown.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), names);
    if let Ok(list) = serde_json::from_slice::<Value>(list) {
        assert_eq!(list.pointer(at).and_then(Value::as_array).map(Vec::len), Some(names.len()));
    }
}

fn is_object(json: &[u8]) {
    let text = std::str::from_utf8(json).expect("JSON is UTF-8");
    assert!(text.starts_with('{'), "not an object: {text}");
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        panic!("not JSON: {error}: {text}");
    }
}

/// The lowest version is one of those that were told, and does not depend on the order.
fn versions(answers: &[&[u8]]) {
    let told: Vec<String> = answers.iter().filter_map(|answer| parse_version(answer).ok()).collect();
    assert!(told.iter().all(|version| !version.is_empty()));
    let Some(lowest) = lowest_version(told.iter().map(String::as_str)) else { return };
    assert!(told.contains(&lowest));
    let reversed = lowest_version(told.iter().rev().map(String::as_str));
    assert_eq!(reversed, Some(lowest.clone()));
    assert_eq!(lowest_version([lowest.as_str()]), Some(lowest));
}

fn split_at_empty_lines(data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\n\n") {
        parts.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    parts.push(rest);
    parts
}
