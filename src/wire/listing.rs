//! What endpoints list, and the lists the router shows: each a union over endpoints without duplicates,
//! first come first kept. An item goes on byte for byte where the client's family is the endpoint's, and
//! is rebuilt whole where it is not, so that strict clients of either family can read every list.
//! Called by the refresh of the catalog (parsing) and by the listing routes (unions).

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use thiserror::Error;

use super::{Kind, dates};

/// The most models taken from one listing; the rest is read and dropped.
pub const MODELS_MAX: usize = 10_000;

/// When a model whose server names no end is said to leave memory: far off, yet within reach of every
/// client's date arithmetic.
const NEVER: &str = "2300-01-01T00:00:00Z";

/// One listed model.
#[derive(Debug, Clone)]
pub struct Model {
    /// As the endpoint lists it; never empty.
    pub name: String,
    /// Whether it is in memory. An Ollama `/api/tags` cannot say, so false there.
    pub loaded: bool,
    /// The item as it was listed, members unknown to us included.
    pub raw: Box<RawValue>,
}

/// Why a listing cannot be used. Each sentence is meant to follow the endpoint's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's sentence is its documentation")]
pub enum BadListing {
    #[error("the listing is empty")]
    Empty,
    #[error("the listing is not valid: {reason}")]
    NotJson { reason: String },
    #[error("the listing has no `{member}`")]
    Missing { member: &'static str },
}

/// Ollama `/api/tags`: `{"models": [{"name": ...}]}`. Items without a name are left out.
pub fn parse_tags(body: &[u8]) -> Result<Vec<Model>, BadListing> {
    parse(body, "models", |raw| ollama_model(raw, false))
}

/// Ollama `/api/ps`: shaped like `/api/tags`, and every model in it is loaded.
pub fn parse_ps(body: &[u8]) -> Result<Vec<Model>, BadListing> {
    parse(body, "models", |raw| ollama_model(raw, true))
}

/// OpenAI-style `/v1/models`: `{"data": [{"id": ...}]}`. llama-server adds a `status`, a word or
/// `{"value": word}`: a model with any other word than `loaded` is not loaded; without a word it is.
pub fn parse_models(body: &[u8]) -> Result<Vec<Model>, BadListing> {
    parse(body, "data", |raw| {
        #[derive(Deserialize)]
        struct Item {
            id: String,
            #[serde(default)]
            status: Value,
        }
        let item: Item = object(&raw)?;
        let word = item.status.as_str().or_else(|| item.status.get("value")?.as_str());
        let loaded = word.is_none_or(|word| word == "loaded");
        (!item.id.is_empty()).then_some(Model { name: item.id, loaded, raw })
    })
}

/// An item read as an object; an array, which serde would take for one, is none.
fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok()).flatten()
}

fn ollama_model(raw: Box<RawValue>, loaded: bool) -> Option<Model> {
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        name: Value,
        #[serde(default)]
        model: Value,
    }
    let item: Item = object(&raw)?;
    let name = [item.name, item.model].into_iter().find_map(|value| match value {
        Value::String(name) if !name.is_empty() => Some(name),
        _ => None,
    })?;
    Some(Model { name, loaded, raw })
}

fn parse(
    body: &[u8],
    member: &'static str,
    take: impl Fn(Box<RawValue>) -> Option<Model>,
) -> Result<Vec<Model>, BadListing> {
    if body.trim_ascii().is_empty() {
        return Err(BadListing::Empty);
    }
    let not_json = |e: serde_json::Error| BadListing::NotJson { reason: e.to_string() };
    let mut json = serde_json::Deserializer::from_slice(body);
    let list = json.deserialize_map(Listing { member, take: &take }).map_err(not_json)?;
    json.end().map_err(not_json)?;
    list.ok_or(BadListing::Missing { member })
}

/// Reads the object around the list.
struct Listing<'a, F> {
    member: &'static str,
    take: &'a F,
}

impl<'de, F: Fn(Box<RawValue>) -> Option<Model>> Visitor<'de> for Listing<'_, F> {
    type Value = Option<Vec<Model>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with `{}`", self.member)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut list = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == self.member {
                list = Some(map.next_value_seed(Items { member: self.member, take: self.take })?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(list)
    }
}

/// Reads the list item by item, so that what is over the limit is never kept.
struct Items<'a, F> {
    member: &'static str,
    take: &'a F,
}

impl<'de, F: Fn(Box<RawValue>) -> Option<Model>> DeserializeSeed<'de> for Items<'_, F> {
    type Value = Vec<Model>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<Model>, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, F: Fn(Box<RawValue>) -> Option<Model>> Visitor<'de> for Items<'_, F> {
    type Value = Vec<Model>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in `{}`", self.member)
    }

    /// Servers written in Go say null for an empty list.
    fn visit_unit<E>(self) -> Result<Vec<Model>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Model>, A::Error> {
        let mut models = Vec::new();
        while models.len() < MODELS_MAX {
            match seq.next_element::<Box<RawValue>>()? {
                Some(raw) => models.extend((self.take)(raw)),
                None => return Ok(models),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(models)
    }
}

/// The body of `/api/tags` over all endpoints: one item per name, the first.
pub fn tags_union<'a>(models: impl IntoIterator<Item = (Kind, &'a Model)>) -> Vec<u8> {
    union(r#"{"models":["#, models, |kind, model| match kind {
        Kind::Ollama => None,
        Kind::LlamaServer | Kind::OpenAi => Some(as_tag(model)),
    })
}

/// The body of `/api/ps` over all endpoints: one item per name, the first. Models that are not loaded are
/// left out.
pub fn ps_union<'a>(models: impl IntoIterator<Item = (Kind, &'a Model)>) -> Vec<u8> {
    let loaded = models.into_iter().filter(|(_, model)| model.loaded);
    union(r#"{"models":["#, loaded, |kind, model| match kind {
        Kind::Ollama => None,
        Kind::LlamaServer | Kind::OpenAi => {
            let mut item = as_tag(model);
            item["expires_at"] = NEVER.into();
            item["size_vram"] = 0.into();
            Some(item)
        }
    })
}

/// The body of `/v1/models` over all endpoints: one item per name, the first.
pub fn models_union<'a>(models: impl IntoIterator<Item = (Kind, &'a Model)>) -> Vec<u8> {
    union(r#"{"object":"list","data":["#, models, |kind, model| match kind {
        Kind::Ollama => Some(as_openai_model(model)),
        Kind::LlamaServer | Kind::OpenAi => None,
    })
}

/// One entry of that list by itself, the body of `/v1/models/MODEL`.
pub fn openai_model(kind: Kind, model: &Model) -> Vec<u8> {
    match kind {
        Kind::Ollama => as_openai_model(model).to_string().into_bytes(),
        Kind::LlamaServer | Kind::OpenAi => model.raw.get().as_bytes().to_vec(),
    }
}

/// Writes `head`, the items and the closing brackets. `rebuild` says what stands for an item, `None` being
/// the item as it was listed.
fn union<'a>(
    head: &str,
    models: impl IntoIterator<Item = (Kind, &'a Model)>,
    rebuild: impl Fn(Kind, &Model) -> Option<Value>,
) -> Vec<u8> {
    let mut out = head.as_bytes().to_vec();
    let mut names = BTreeSet::new();
    for (kind, model) in models {
        if !names.insert(model.name.as_str()) {
            continue;
        }
        if names.len() > 1 {
            out.push(b',');
        }
        match rebuild(kind, model) {
            Some(item) => out.extend_from_slice(item.to_string().as_bytes()),
            None => out.extend_from_slice(model.raw.get().as_bytes()),
        }
    }
    out.extend_from_slice(b"]}");
    out
}

/// A full entry of Ollama's `/api/tags`, with nothing in it but the name and, if listed, the date.
fn as_tag(model: &Model) -> Value {
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        created: Value,
    }
    let created = serde_json::from_str::<Item>(model.raw.get()).map_or(Value::Null, |item| item.created);
    // A float is cut to seconds; a negative one saturates to 1970.
    let created = created.as_u64().or_else(|| created.as_f64().map(|s| s as u64)).unwrap_or(0);
    json!({
        "name": model.name,
        "model": model.name,
        "modified_at": dates::to_rfc3339(created),
        "size": 0,
        "digest": "",
        "details": {
            "parent_model": "",
            "format": "",
            "family": "",
            "families": [],
            "parameter_size": "",
            "quantization_level": "",
        },
    })
}

/// A full entry of OpenAI's `/v1/models`.
fn as_openai_model(model: &Model) -> Value {
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        modified_at: Value,
    }
    let modified = serde_json::from_str::<Item>(model.raw.get()).map_or(Value::Null, |item| item.modified_at);
    let created = modified.as_str().and_then(dates::from_rfc3339).unwrap_or(0);
    json!({ "id": model.name, "object": "model", "created": created, "owned_by": "library" })
}

/// Ollama `/api/version`: the `version` of `{"version": "0.5.1"}`.
pub fn parse_version(body: &[u8]) -> Result<String, BadListing> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        version: Value,
    }
    if body.trim_ascii().is_empty() {
        return Err(BadListing::Empty);
    }
    let answer: Answer =
        serde_json::from_slice(body).map_err(|e| BadListing::NotJson { reason: e.to_string() })?;
    match answer.version {
        Value::String(version) if !version.is_empty() => Ok(version),
        _ => Err(BadListing::Missing { member: "version" }),
    }
}

/// The lowest of several versions, as it was written. Numbers compare as numbers, a missing one is 0, and
/// a pre-release (`0.5.1-rc1`) comes before its release. Text that begins with no number is passed over.
pub fn lowest_version<'a>(versions: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let ranked = versions.into_iter().filter_map(|version| Some((rank(version)?, version)));
    ranked.min().map(|(_, version)| version.to_string())
}

/// Sorts as the version does: the numbers, then whether it is a release.
fn rank(version: &str) -> Option<(Vec<u64>, bool)> {
    let bare = version.trim().trim_start_matches(['v', 'V']);
    let bare = bare.split('+').next().unwrap_or(bare);
    let (numbers, pre) = bare.split_once('-').map_or((bare, None), |(numbers, pre)| (numbers, Some(pre)));
    let mut parts = numbers.split('.').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    while parts.last() == Some(&0) {
        parts.pop();
    }
    Some((parts, pre.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(models: &[Model]) -> Vec<(&str, bool)> {
        models.iter().map(|m| (m.name.as_str(), m.loaded)).collect()
    }

    fn model(name: &str, raw: Value) -> Model {
        Model { name: name.into(), loaded: true, raw: serde_json::value::to_raw_value(&raw).unwrap() }
    }

    fn value(bytes: Vec<u8>) -> Value {
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn ollama_lists_are_read_by_name_or_model() {
        let body = br#"{"x":1,"models":[{"name":"a:latest","size":3},{"model":"b"},{"name":7,"model":"c"}]}"#;
        assert_eq!(names(&parse_tags(body).unwrap()), [("a:latest", false), ("b", false), ("c", false)]);
        assert!(parse_ps(body).unwrap().iter().all(|m| m.loaded));
        assert_eq!(parse_tags(body).unwrap()[0].raw.get(), r#"{"name":"a:latest","size":3}"#);
        assert!(parse_tags(br#"{"models":null}"#).unwrap().is_empty());
    }

    #[test]
    fn a_llama_server_status_says_what_is_loaded() {
        let body = br#"{"object":"list","data":[
            {"id":"plain"}, {"id":"word","status":"loaded"}, {"id":"not","status":"unloaded"},
            {"id":"value","status":{"value":"loaded","args":[]}}, {"id":"asleep","status":{"value":"sleeping"}},
            {"id":"nothing","status":null}]}"#;
        assert_eq!(
            names(&parse_models(body).unwrap()),
            [
                ("plain", true),
                ("word", true),
                ("not", false),
                ("value", true),
                ("asleep", false),
                ("nothing", true)
            ]
        );
    }

    #[test]
    fn one_bad_item_does_not_spoil_the_list() {
        let tags = br#"{"models":[null,1,"x",{},{"name":""},{"name":null},[],{"name":"good"}]}"#;
        assert_eq!(names(&parse_tags(tags).unwrap()), [("good", false)]);
        let models = br#"{"data":[null,1,"x",{},{"id":""},{"id":5},[],{"id":"good"}]}"#;
        assert_eq!(names(&parse_models(models).unwrap()), [("good", true)]);
    }

    #[test]
    fn what_is_no_listing_is_refused_with_a_reason() {
        for (body, sentence) in [
            ("", "the listing is empty"),
            ("{}", "the listing has no `models`"),
            ("<html>", "the listing is not valid: expected value at line 1 column 1"),
            (
                "[]",
                "the listing is not valid: invalid type: sequence, expected an object with `models` at line 1 column 0",
            ),
            (
                r#"{"models":"x"}"#,
                "the listing is not valid: invalid type: string \"x\", expected a list in `models` at line 1 column 13",
            ),
            (
                r#"{"models":[{"name":"a"}"#,
                "the listing is not valid: EOF while parsing a list at line 1 column 23",
            ),
        ] {
            assert_eq!(parse_tags(body.as_bytes()).unwrap_err().to_string(), sentence);
        }
        assert_eq!(parse_models(b"{}").unwrap_err(), BadListing::Missing { member: "data" });
    }

    #[test]
    fn a_listing_is_taken_up_to_its_limit() {
        let items = vec!["{\"name\":\"m\"}"; MODELS_MAX + 5].join(",");
        let body = format!("{{\"models\":[{items}]}}");
        assert_eq!(parse_tags(body.as_bytes()).unwrap().len(), MODELS_MAX);
    }

    #[test]
    fn tags_show_every_model_once_as_a_full_entry() {
        let own = model("a:latest", json!({"name": "a:latest", "size": 9, "details": {"family": "x"}}));
        let again = model("a:latest", json!({"id": "a:latest"}));
        let foreign = model("gpt", json!({"id": "gpt", "created": 1_700_000_000}));
        let undated = model("odd", json!({"id": "odd", "created": "yesterday"}));
        let union = value(tags_union([
            (Kind::Ollama, &own),
            (Kind::OpenAi, &again),
            (Kind::OpenAi, &foreign),
            (Kind::LlamaServer, &undated),
        ]));
        let list = union["models"].as_array().unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list[0]["size"], 9);
        let expected = json!({
            "name": "gpt", "model": "gpt", "modified_at": "2023-11-14T22:13:20Z", "size": 0, "digest": "",
            "details": {"parent_model": "", "format": "", "family": "", "families": [],
                        "parameter_size": "", "quantization_level": ""},
        });
        assert_eq!(list[1], expected);
        assert_eq!(list[2]["modified_at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn ps_shows_loaded_models_only() {
        let mut asleep = model("asleep", json!({"id": "asleep"}));
        asleep.loaded = false;
        let awake = model("awake", json!({"id": "awake"}));
        let union = value(ps_union([(Kind::LlamaServer, &asleep), (Kind::LlamaServer, &awake)]));
        let list = union["models"].as_array().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((&list[0]["name"], &list[0]["expires_at"]), (&json!("awake"), &json!(NEVER)));
    }

    #[test]
    fn the_openai_list_rebuilds_ollama_items_and_keeps_the_others() {
        let theirs = model("gpt", json!({"id": "gpt", "owned_by": "them", "extra": true}));
        let ours =
            model("a:latest", json!({"name": "a:latest", "modified_at": "2023-11-14T14:13:20.5-08:00"}));
        let undated = model("b", json!({"name": "b"}));
        let union =
            value(models_union([(Kind::OpenAi, &theirs), (Kind::Ollama, &ours), (Kind::Ollama, &undated)]));
        let expected = json!({"object": "list", "data": [
            {"id": "gpt", "owned_by": "them", "extra": true},
            {"id": "a:latest", "object": "model", "created": 1_700_000_000, "owned_by": "library"},
            {"id": "b", "object": "model", "created": 0, "owned_by": "library"},
        ]});
        assert_eq!(union, expected);
    }

    #[test]
    fn an_empty_union_is_still_a_list() {
        assert_eq!(tags_union([]), br#"{"models":[]}"#);
        assert_eq!(ps_union([]), br#"{"models":[]}"#);
        assert_eq!(models_union([]), br#"{"object":"list","data":[]}"#);
    }

    #[test]
    fn an_item_that_is_an_array_is_no_model() {
        assert!(parse_models(br#"{"data":[["x","loaded"]]}"#).unwrap().is_empty());
        assert!(parse_tags(br#"{"models":[["x","x"]]}"#).unwrap().is_empty());
    }

    #[test]
    fn versions_compare_as_numbers() {
        let lowest = |versions: &[&str]| lowest_version(versions.iter().copied());
        assert_eq!(lowest(&["0.10.0", "0.9.3", "0.11.0"]).as_deref(), Some("0.9.3"));
        assert_eq!(lowest(&["0.5.1", "0.5.1-rc2", "v0.6"]).as_deref(), Some("0.5.1-rc2"));
        assert_eq!(lowest(&["0.5.1", "0.5"]).as_deref(), Some("0.5"));
        assert_eq!(lowest(&["unknown", "1.2"]).as_deref(), Some("1.2"));
        assert_eq!(lowest(&["unknown"]), None);
        assert_eq!(lowest(&[]), None);
    }

    #[test]
    fn a_version_is_read_from_its_answer() {
        assert_eq!(parse_version(br#"{"version":"0.5.1"}"#).unwrap(), "0.5.1");
        assert_eq!(parse_version(br#"{"version":5}"#), Err(BadListing::Missing { member: "version" }));
        assert!(parse_version(b"nope").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC*") {
            for body in [&bytes[..], text.as_bytes()] {
                let _ = (parse_tags(body), parse_ps(body), parse_models(body), parse_version(body));
            }
            lowest_version([text.as_str(), "1.0"]);
        }

        #[test]
        fn every_union_is_json_with_unique_names(
            listed in proptest::collection::vec(("[a-c\"\\\\]{1,2}", 0usize..3, -1e19f64..1e19), 0..8),
        ) {
            let kinds = [Kind::Ollama, Kind::LlamaServer, Kind::OpenAi];
            let models: Vec<(Kind, Model)> = listed
                .into_iter()
                .map(|(name, kind, created)| {
                    let raw = json!({"name": name, "id": name, "created": created, "modified_at": created});
                    (kinds[kind], model(&name, raw))
                })
                .collect();
            let items = || models.iter().map(|(kind, model)| (*kind, model));
            let expected: BTreeSet<&str> = models.iter().map(|(_, model)| model.name.as_str()).collect();
            for (union, list, key) in
                [(tags_union(items()), "models", "name"), (models_union(items()), "data", "id")]
            {
                let union = value(union);
                let shown: Vec<&str> =
                    union[list].as_array().unwrap().iter().map(|m| m[key].as_str().unwrap()).collect();
                prop_assert_eq!(shown.len(), expected.len());
                prop_assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), expected.clone());
            }
        }
    }
}
