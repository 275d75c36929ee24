//! A request body as far as the router must know it: which model, whether streamed, whether the client
//! asked for usage. The body is checked whole, in one pass, and nothing of it is copied but the model's
//! name; it goes upstream byte for byte, save for the splices of [`Ask::rewrite`].
//! Called by the routes before a request is admitted; every error here is the client's (status 400).

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use super::Family;

/// The longest model name, in bytes.
pub const MODEL_BYTES_MAX: usize = 1024;

/// The calls whose bodies the router reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// `POST /api/chat`
    OllamaChat,
    /// `POST /api/generate`
    OllamaGenerate,
    /// `POST /api/embed`
    OllamaEmbed,
    /// `POST /api/embeddings`
    OllamaEmbeddings,
    /// `POST /api/show`; takes `name`, the old spelling of `model`, too
    OllamaShow,
    /// `POST /v1/chat/completions`
    OpenAiChat,
    /// `POST /v1/completions`
    OpenAiCompletion,
    /// `POST /v1/embeddings`
    OpenAiEmbedding,
}

/// What the router reads of one shape. Members that are not named here pass unread.
struct Spec {
    family: Family,
    /// `Some(default)` where the call can stream.
    stream: Option<bool>,
    /// The member that carries the content, and the types it may have.
    content: Option<(&'static str, &'static [Type])>,
    /// Everything read, in the order of `Found::values`.
    reads: &'static [&'static str],
}

impl Shape {
    /// The family whose bodies, streams and errors this call uses.
    pub fn family(self) -> Family {
        self.spec().family
    }

    fn spec(self) -> Spec {
        use Family::{Ollama, OpenAi};
        use Type::{Array, Text};
        let (family, stream, content, reads): (_, _, _, &'static [&'static str]) = match self {
            Shape::OllamaChat => {
                (Ollama, Some(true), Some(("messages", &[Array][..])), &["model", "messages", "stream"])
            }
            Shape::OllamaGenerate => {
                (Ollama, Some(true), Some(("prompt", &[Text][..])), &["model", "prompt", "stream"])
            }
            Shape::OllamaEmbed => (Ollama, None, Some(("input", &[Text, Array][..])), &["model", "input"]),
            Shape::OllamaEmbeddings => (Ollama, None, Some(("prompt", &[Text][..])), &["model", "prompt"]),
            Shape::OllamaShow => (Ollama, None, None, &["model", "name"]),
            Shape::OpenAiChat => (
                OpenAi,
                Some(false),
                Some(("messages", &[Array][..])),
                &["model", "messages", "stream", "stream_options"],
            ),
            Shape::OpenAiCompletion => (
                OpenAi,
                Some(false),
                Some(("prompt", &[Text, Array][..])),
                &["model", "prompt", "stream", "stream_options"],
            ),
            Shape::OpenAiEmbedding => {
                (OpenAi, None, Some(("input", &[Text, Array][..])), &["model", "input"])
            }
        };
        Spec { family, stream, content, reads }
    }
}

/// Why a body is refused. Each sentence is meant for the client.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's sentence is its documentation")]
pub enum BadRequest {
    #[error("the request body is empty; send a JSON object")]
    Empty,
    #[error("the request body is not UTF-8 text: byte {offset} is out of place")]
    NotUtf8 { offset: usize },
    #[error("the request body is not valid JSON: {reason} at line {line}, column {column}")]
    NotJson { line: usize, column: usize, reason: String },
    #[error("the request body must be a JSON object, but it is {found}")]
    NotObject { found: Type },
    #[error("`{field}` is missing; this call requires it")]
    Missing { field: &'static str },
    #[error("`{field}` must be {expected}, but it is {found}")]
    WrongType { field: &'static str, expected: &'static str, found: Type },
    #[error("`{field}` appears twice; send it once")]
    Duplicate { field: &'static str },
    #[error("`{found}` must be written `{field}`: some backends would take one for the other")]
    Miscased { field: &'static str, found: String },
    #[error("`{field}` holds a broken \\u escape")]
    BrokenText { field: &'static str },
    #[error("`model` is empty; name a model")]
    ModelEmpty,
    #[error("`model` is {len} bytes long; at most {MODEL_BYTES_MAX} are allowed")]
    ModelTooLong { len: usize },
    #[error("`model` holds a control character")]
    ModelControl,
}

/// The types of JSON, for error sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are JSON's types")]
pub enum Type {
    Null,
    Bool,
    Number,
    Text,
    Array,
    Object,
}

impl Type {
    /// The type of a valid JSON value, told by its first byte.
    fn of(json: &str) -> Type {
        match json.trim_ascii_start().as_bytes().first() {
            Some(b'{') => Type::Object,
            Some(b'[') => Type::Array,
            Some(b'"') => Type::Text,
            Some(b't' | b'f') => Type::Bool,
            Some(b'n') => Type::Null,
            _ => Type::Number,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Null => "null",
            Type::Bool => "a boolean",
            Type::Number => "a number",
            Type::Text => "a string",
            Type::Array => "an array",
            Type::Object => "an object",
        })
    }
}

/// What a client asks for. The private fields are places in the body it was parsed from, so that
/// [`Ask::rewrite`] need not parse again.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The model's name as the client wrote it: 1 to [`MODEL_BYTES_MAX`] bytes, no control characters.
    pub model: String,
    /// Whether the answer is to be streamed. Always false for calls that cannot stream.
    pub stream: bool,
    /// Length of the body; a guard against splicing another one.
    body_len: usize,
    model_at: Range<usize>,
    /// Where usage would be asked for; `None` unless this is a streamed OpenAI call.
    usage_at: Option<UsageAt>,
    usage_wanted: bool,
}

/// The splice that asks for usage.
#[derive(Debug, Clone)]
enum UsageAt {
    /// No `stream_options`: a member goes in at this place, right after the body's opening brace.
    Body(usize),
    /// `stream_options` is null: it is replaced.
    Options(Range<usize>),
    /// No `include_usage`: a member goes in right after the opening brace of `stream_options`.
    Inside { at: usize, empty: bool },
    /// `include_usage` is false or null: it is replaced.
    Value(Range<usize>),
}

impl Ask {
    /// Reads and checks a body. Blocks for about a second per gigabyte and copies none of it.
    pub fn parse(shape: Shape, body: &[u8]) -> Result<Ask, BadRequest> {
        if body.trim_ascii().is_empty() {
            return Err(BadRequest::Empty);
        }
        let body = std::str::from_utf8(body).map_err(|e| BadRequest::NotUtf8 { offset: e.valid_up_to() })?;
        if Type::of(body) != Type::Object {
            serde_json::from_str::<IgnoredAny>(body).map_err(|e| not_json(&e))?;
            return Err(BadRequest::NotObject { found: Type::of(body) });
        }
        let spec = shape.spec();
        let found = read_members(body, spec.reads).map_err(|e| not_json(&e))?;
        let found = found.check()?;

        // `name` stands in for a `model` that is absent, null or empty.
        let stands_in = |raw: Option<&RawValue>| raw.is_none_or(|raw| raw.get() == "\"\"");
        let (model_field, model_raw) = match (found.get("model"), found.get("name")) {
            (model, Some(name)) if stands_in(model) => ("name", Some(name)),
            (model, _) => ("model", model),
        };
        let model_raw = model_raw.ok_or(BadRequest::Missing { field: "model" })?;
        let model = model_name(model_field, model_raw)?;

        if let Some((field, types)) = spec.content {
            let raw = found.get(field).ok_or(BadRequest::Missing { field })?;
            let of = Type::of(raw.get());
            if !types.contains(&of) {
                return Err(BadRequest::WrongType { field, expected: expected(types), found: of });
            }
        }
        let stream = match (found.get("stream"), spec.stream) {
            (Some(raw), _) => boolean("stream", raw)?,
            (None, default) => default.unwrap_or(false),
        };
        let (usage_at, usage_wanted) = match spec.family {
            Family::Ollama => (None, false),
            Family::OpenAi => find_usage(body, found.get_even_null("stream_options"))?,
        };
        Ok(Ask {
            model,
            stream,
            body_len: body.len(),
            model_at: span(body, model_raw),
            usage_at: usage_at.filter(|_| stream),
            usage_wanted,
        })
    }

    /// Whether the client itself asked for `stream_options.include_usage`.
    pub fn usage_wanted(&self) -> bool {
        self.usage_wanted
    }

    /// The body to send upstream: with another model's name, and asking for usage if `ask_usage` (heeded
    /// for streamed OpenAI calls only; elsewhere usage comes unasked and the option is an error). All
    /// other bytes stay as they are, and if nothing changes the result shares `body`'s memory.
    /// `body` must be the one this was parsed from; one of another length is returned unchanged.
    pub fn rewrite(&self, body: &Bytes, model: Option<&str>, ask_usage: bool) -> Bytes {
        let mut splices: Vec<(Range<usize>, String)> = Vec::new();
        if let Some(model) = model.filter(|model| *model != self.model) {
            splices.push((self.model_at.clone(), serde_json::Value::from(model).to_string()));
        }
        if let Some(at) = self.usage_at.as_ref().filter(|_| ask_usage && !self.usage_wanted) {
            splices.push(match at {
                UsageAt::Body(at) => (*at..*at, r#""stream_options":{"include_usage":true},"#.into()),
                UsageAt::Options(range) => (range.clone(), r#"{"include_usage":true}"#.into()),
                UsageAt::Inside { at, empty: true } => (*at..*at, r#""include_usage":true"#.into()),
                UsageAt::Inside { at, empty: false } => (*at..*at, r#""include_usage":true,"#.into()),
                UsageAt::Value(range) => (range.clone(), "true".into()),
            });
        }
        if splices.is_empty() || body.len() != self.body_len {
            return body.clone();
        }
        splices.sort_by_key(|(range, _)| range.start);
        let grown: usize = splices.iter().map(|(_, text)| text.len()).sum();
        let mut out = Vec::with_capacity(body.len() + grown);
        let mut at = 0;
        for (range, text) in splices {
            out.extend_from_slice(&body[at..range.start]);
            out.extend_from_slice(text.as_bytes());
            at = range.end;
        }
        out.extend_from_slice(&body[at..]);
        Bytes::from(out)
    }
}

fn not_json(error: &serde_json::Error) -> BadRequest {
    let (line, column) = (error.line(), error.column());
    let full = error.to_string();
    let reason = full.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&full);
    BadRequest::NotJson { line, column, reason: reason.to_string() }
}

fn model_name(field: &'static str, raw: &RawValue) -> Result<String, BadRequest> {
    let found = Type::of(raw.get());
    if found != Type::Text {
        return Err(BadRequest::WrongType { field, expected: "a string", found });
    }
    let model: String = serde_json::from_str(raw.get()).map_err(|_| BadRequest::BrokenText { field })?;
    if model.is_empty() {
        return Err(BadRequest::ModelEmpty);
    }
    if model.len() > MODEL_BYTES_MAX {
        return Err(BadRequest::ModelTooLong { len: model.len() });
    }
    if model.chars().any(char::is_control) {
        return Err(BadRequest::ModelControl);
    }
    Ok(model)
}

fn boolean(field: &'static str, raw: &RawValue) -> Result<bool, BadRequest> {
    match raw.get() {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(BadRequest::WrongType { field, expected: "true or false", found: Type::of(other) }),
    }
}

fn expected(types: &[Type]) -> &'static str {
    match types {
        [Type::Array] => "an array",
        [Type::Text] => "a string",
        _ => "a string or an array",
    }
}

/// Where usage is, or would be, asked for, and whether it already is.
fn find_usage(body: &str, options: Option<&RawValue>) -> Result<(Option<UsageAt>, bool), BadRequest> {
    const FIELD: &str = "stream_options";
    let Some(options) = options else {
        // The first byte that is not blank is the brace: the body is an object.
        let brace = body.len() - body.trim_ascii_start().len();
        return Ok((Some(UsageAt::Body(brace + 1)), false));
    };
    match Type::of(options.get()) {
        Type::Null => return Ok((Some(UsageAt::Options(span(body, options))), false)),
        Type::Object => {}
        found => return Err(BadRequest::WrongType { field: FIELD, expected: "an object", found }),
    }
    let inner = read_members(options.get(), &["include_usage"])
        .map_err(|_| BadRequest::BrokenText { field: FIELD })?
        .check()?;
    match inner.get_even_null("include_usage") {
        Some(raw) if raw.get() == "null" => Ok((Some(UsageAt::Value(span(body, raw))), false)),
        Some(raw) => Ok((Some(UsageAt::Value(span(body, raw))), boolean("include_usage", raw)?)),
        None => {
            let empty = options.get()[1..].trim_ascii_start().starts_with('}');
            Ok((Some(UsageAt::Inside { at: span(body, options).start + 1, empty }), false))
        }
    }
}

/// Where in `body` a value borrowed from it stands.
fn span(body: &str, raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
    start..start + raw.get().len()
}

/// The members of an object that were asked for.
struct Found<'a> {
    reads: &'static [&'static str],
    values: Vec<Option<&'a RawValue>>,
    /// The first thing wrong with a name, told only if the whole text is valid JSON.
    fault: Option<BadRequest>,
}

impl<'a> Found<'a> {
    fn check(self) -> Result<Self, BadRequest> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self),
        }
    }

    /// A member's value; null counts as absent.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.get_even_null(name).filter(|raw| raw.get() != "null")
    }

    fn get_even_null(&self, name: &str) -> Option<&'a RawValue> {
        let index = self.reads.iter().position(|read| *read == name)?;
        self.values[index]
    }
}

fn read_members<'a>(object: &'a str, reads: &'static [&'static str]) -> Result<Found<'a>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(object);
    let found = json.deserialize_map(Members { reads })?;
    json.end()?;
    Ok(found)
}

struct Members {
    reads: &'static [&'static str],
}

impl<'de> Visitor<'de> for Members {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let reads = self.reads;
        let mut found = Found { reads, values: vec![None; reads.len()], fault: None };
        while let Some(name) = map.next_key_seed(Name { reads })? {
            let index = match name {
                Named::Read(index) => index,
                Named::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Named::Miscased(fault) => {
                    map.next_value::<IgnoredAny>()?;
                    found.fault.get_or_insert(fault);
                    continue;
                }
            };
            if found.values[index].replace(map.next_value()?).is_some() {
                found.fault.get_or_insert(BadRequest::Duplicate { field: reads[index] });
            }
        }
        Ok(found)
    }
}

/// Reads a member's name without copying it.
struct Name {
    reads: &'static [&'static str],
}

enum Named {
    Read(usize),
    Miscased(BadRequest),
    Other,
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Named;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Named, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Named;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Named, E> {
        if let Some(index) = self.reads.iter().position(|read| *read == name) {
            return Ok(Named::Read(index));
        }
        // Ollama's JSON reader ignores case, so `Model` would quietly override `model` there.
        let miscased = self.reads.iter().find(|read| read.eq_ignore_ascii_case(name));
        Ok(miscased.map_or(Named::Other, |field| {
            Named::Miscased(BadRequest::Miscased { field, found: name.to_string() })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const SHAPES: [Shape; 8] = [
        Shape::OllamaChat,
        Shape::OllamaGenerate,
        Shape::OllamaEmbed,
        Shape::OllamaEmbeddings,
        Shape::OllamaShow,
        Shape::OpenAiChat,
        Shape::OpenAiCompletion,
        Shape::OpenAiEmbedding,
    ];

    fn parse(shape: Shape, body: &str) -> Result<Ask, BadRequest> {
        Ask::parse(shape, body.as_bytes())
    }

    fn refusal(shape: Shape, body: &str) -> String {
        parse(shape, body).unwrap_err().to_string()
    }

    fn rewritten(body: &str, model: Option<&str>, ask_usage: bool) -> String {
        let ask = parse(Shape::OpenAiChat, body).unwrap();
        let bytes = ask.rewrite(&Bytes::copy_from_slice(body.as_bytes()), model, ask_usage);
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn each_call_has_its_own_content_and_stream_default() {
        for (shape, content, streams) in [
            (Shape::OllamaChat, r#","messages":[]"#, true),
            (Shape::OllamaGenerate, r#","prompt":"""#, true),
            (Shape::OllamaEmbed, r#","input":["a"]"#, false),
            (Shape::OllamaEmbeddings, r#","prompt":"a""#, false),
            (Shape::OllamaShow, "", false),
            (Shape::OpenAiChat, r#","messages":[]"#, false),
            (Shape::OpenAiCompletion, r#","prompt":["a"]"#, false),
            (Shape::OpenAiEmbedding, r#","input":"a""#, false),
        ] {
            let ask = parse(shape, &format!("{{\"model\":\"m\"{content}}}")).unwrap();
            assert_eq!((ask.model.as_str(), ask.stream), ("m", streams), "{shape:?}");
            let null = parse(shape, &format!("{{\"model\":\"m\",\"stream\":null{content}}}")).unwrap();
            assert_eq!(null.stream, streams, "{shape:?}");
            if !content.is_empty() {
                assert!(refusal(shape, "{\"model\":\"m\"}").contains("is missing"), "{shape:?}");
            }
            assert_eq!(refusal(shape, "{}"), "`model` is missing; this call requires it");
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_where() {
        let chat = Shape::OpenAiChat;
        for (body, sentence) in [
            ("", "the request body is empty; send a JSON object"),
            (" \r\n", "the request body is empty; send a JSON object"),
            (
                "{\"model\":\n \"m\",,}",
                "the request body is not valid JSON: key must be a string at line 2, column 6",
            ),
            (
                "{\"model\":\"m\"",
                "the request body is not valid JSON: EOF while parsing an object at line 1, column 12",
            ),
            ("[nope", "the request body is not valid JSON: expected ident at line 1, column 3"),
            ("[1]", "the request body must be a JSON object, but it is an array"),
            (
                "{\"model\":\"m\"} x",
                "the request body is not valid JSON: trailing characters at line 1, column 15",
            ),
            ("{\"model\":7,\"messages\":[]}", "`model` must be a string, but it is a number"),
            ("{\"model\":null,\"messages\":[]}", "`model` is missing; this call requires it"),
            ("{\"model\":\"\",\"messages\":[]}", "`model` is empty; name a model"),
            ("{\"model\":\"a\\nb\",\"messages\":[]}", "`model` holds a control character"),
            ("{\"model\":\"\\ud800\",\"messages\":[]}", "`model` holds a broken \\u escape"),
            ("{\"model\":\"m\",\"messages\":\"hi\"}", "`messages` must be an array, but it is a string"),
            ("{\"model\":\"m\",\"messages\":null}", "`messages` is missing; this call requires it"),
            (
                "{\"model\":\"m\",\"messages\":[],\"stream\":1}",
                "`stream` must be true or false, but it is a number",
            ),
            ("{\"model\":\"m\",\"messages\":[],\"model\":\"n\"}", "`model` appears twice; send it once"),
            (
                "{\"model\":\"m\",\"messages\":[],\"m\\u006fdel\":\"n\"}",
                "`model` appears twice; send it once",
            ),
            (
                "{\"model\":\"m\",\"messages\":[],\"Model\":\"n\"}",
                "`Model` must be written `model`: some backends would take one for the other",
            ),
            (
                "{\"model\":\"m\",\"messages\":[],\"stream_options\":[]}",
                "`stream_options` must be an object, but it is an array",
            ),
            (
                "{\"model\":\"m\",\"messages\":[],\"stream_options\":{\"include_usage\":1}}",
                "`include_usage` must be true or false, but it is a number",
            ),
            (
                "{\"model\":\"m\",\"messages\":[],\"stream_options\":{\"include_usage\":true,\"include_usage\":false}}",
                "`include_usage` appears twice; send it once",
            ),
        ] {
            assert_eq!(refusal(chat, body), sentence, "{body}");
        }
        let prompt = refusal(Shape::OllamaGenerate, "{\"model\":\"m\",\"prompt\":[]}");
        assert_eq!(prompt, "`prompt` must be a string, but it is an array");
        let input = refusal(Shape::OpenAiEmbedding, "{\"model\":\"m\",\"input\":{}}");
        assert_eq!(input, "`input` must be a string or an array, but it is an object");
        assert_eq!(
            Ask::parse(chat, b"{\"model\":\"\xff\"}").unwrap_err(),
            BadRequest::NotUtf8 { offset: 10 }
        );
        let long = format!("{{\"model\":\"{}\"}}", "m".repeat(1025));
        assert_eq!(parse(Shape::OllamaShow, &long).unwrap_err(), BadRequest::ModelTooLong { len: 1025 });
    }

    #[test]
    fn show_takes_the_old_spelling() {
        for (body, model) in [
            (r#"{"name":"old"}"#, "old"),
            (r#"{"model":"new"}"#, "new"),
            (r#"{"name":"old","model":"new"}"#, "new"),
            (r#"{"name":"old","model":""}"#, "old"),
            (r#"{"name":"old","model":null}"#, "old"),
        ] {
            assert_eq!(parse(Shape::OllamaShow, body).unwrap().model, model, "{body}");
        }
        let body = Bytes::from_static(br#"{"name":"old"}"#);
        let ask = Ask::parse(Shape::OllamaShow, &body).unwrap();
        assert_eq!(ask.rewrite(&body, Some("new"), false), r#"{"name":"new"}"#);
    }

    #[test]
    fn calls_that_cannot_stream_never_do() {
        assert!(!parse(Shape::OllamaEmbed, r#"{"model":"m","input":"","stream":true}"#).unwrap().stream);
        assert!(parse(Shape::OpenAiChat, r#"{"model":"m","messages":[],"stream":true}"#).unwrap().stream);
    }

    #[test]
    fn a_deeply_nested_body_does_not_exhaust_the_stack() {
        let deep = format!("{{\"model\":\"m\",\"messages\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(parse(Shape::OpenAiChat, &deep).is_ok());
    }

    #[test]
    fn nothing_to_change_means_nothing_is_copied() {
        let body = Bytes::from_static(
            br#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#,
        );
        let ask = Ask::parse(Shape::OpenAiChat, &body).unwrap();
        assert!(ask.usage_wanted());
        assert_eq!(ask.rewrite(&body, Some("m"), true).as_ptr(), body.as_ptr());
        let unstreamed = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
        let ask = Ask::parse(Shape::OpenAiChat, &unstreamed).unwrap();
        assert_eq!(ask.rewrite(&unstreamed, None, true).as_ptr(), unstreamed.as_ptr());
    }

    #[test]
    fn another_body_is_left_alone() {
        let body = Bytes::from_static(br#"{"model":"m","messages":[],"stream":true}"#);
        let ask = Ask::parse(Shape::OpenAiChat, &body).unwrap();
        let other = Bytes::from_static(b"{}");
        assert_eq!(ask.rewrite(&other, Some("n"), true), other);
    }

    #[test]
    fn only_the_asked_for_bytes_change() {
        for (options, expected) in [
            (r#""stream_options":null"#, r#""stream_options":{"include_usage":true}"#),
            (r#""stream_options": { }"#, r#""stream_options": {"include_usage":true }"#),
            (
                r#""stream_options":{"include_usage":false,"x":1}"#,
                r#""stream_options":{"include_usage":true,"x":1}"#,
            ),
            (r#""stream_options":{"include_usage" : null}"#, r#""stream_options":{"include_usage" : true}"#),
            (r#""stream_options":{ "x":{} }"#, r#""stream_options":{"include_usage":true, "x":{} }"#),
        ] {
            let around =
                |middle: &str| format!(r#" {{"model" : "m", {middle},"stream":true,"messages":[]}} "#);
            assert_eq!(rewritten(&around(options), None, true), around(expected));
        }
        assert_eq!(
            rewritten(r#" { "stream":true,"messages":[],"model":"m"}"#, Some("a\"\\b"), true),
            r#" {"stream_options":{"include_usage":true}, "stream":true,"messages":[],"model":"a\"\\b"}"#
        );
    }

    fn bodies() -> impl Strategy<Value = Value> {
        let options = prop_oneof![
            Just(None),
            Just(Some(Value::Null)),
            Just(Some(json!({}))),
            any::<bool>().prop_map(|b| Some(json!({"include_usage": b, "include_obfuscation": false}))),
            Just(Some(json!({"aa": [{"include_usage": 1}], "include_usage": null}))),
            Just(Some(json!({"zz": "\"}"}))),
        ];
        let extra = proptest::collection::btree_map("[a-z{}\"\\\\]{0,6}", "\\PC{0,9}", 0..4);
        ("[^\\p{Cc}]{1,20}", any::<bool>(), options, extra).prop_map(|(model, stream, options, extra)| {
            let mut body = json!({"messages": [{"content": "\"model\":\"x\""}]});
            for (name, value) in extra {
                body[name] = value.into();
            }
            body["model"] = model.into();
            body["stream"] = stream.into();
            if let Some(options) = options {
                body["stream_options"] = options;
            }
            body
        })
    }

    proptest! {
        #[test]
        fn a_rewritten_body_differs_by_the_edits_alone(
            body in bodies(),
            model in proptest::option::of("\\PC{0,20}|[\"\\\\\n]{1,4}"),
            ask_usage in any::<bool>(),
            pretty in any::<bool>(),
        ) {
            let text = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
            let after: Value = serde_json::from_str(&rewritten(&text, model.as_deref(), ask_usage)).unwrap();
            let mut expected = body.clone();
            if let Some(model) = model {
                expected["model"] = model.into();
            }
            if ask_usage && body["stream"] == true {
                expected["stream_options"]["include_usage"] = true.into();
            }
            prop_assert_eq!(after, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for shape in SHAPES {
                let _ = Ask::parse(shape, &bytes);
            }
        }

        #[test]
        fn arbitrary_edits_to_a_good_body_never_panic(
            body in bodies(),
            at in any::<proptest::sample::Index>(),
            byte in proptest::sample::select(&b"{}[]\",:\\ tn0\xff"[..]),
        ) {
            let mut bytes = body.to_string().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for shape in SHAPES {
                if let Ok(ask) = Ask::parse(shape, &bytes) {
                    let out = ask.rewrite(&Bytes::from(bytes.clone()), Some("other"), true);
                    prop_assert_eq!(Ask::parse(shape, &out).unwrap().model, "other");
                }
            }
        }
    }
}
