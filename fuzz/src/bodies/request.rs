//! Request bodies: what is accepted is what a full parser sees, and a rewritten body differs from the client's
//! by the edits alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use pointsman::wire::Family;
use pointsman::wire::request::{Ask, MODEL_BYTES_MAX, Shape};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Grammar;

pub(crate) const WORDS: &[&str] = &[
    "\"model\":",
    "\"m\"",
    "\"name\":",
    "\"Model\":",
    "\"messages\":",
    "\"prompt\":",
    "\"input\":",
    "\"stream\":",
    "\"stream_options\":",
    "\"include_usage\":",
    "true",
    "false",
    "null",
    "{}",
    "[]",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u006d",
    "\\ud800",
    "\\",
    " ",
    "1e999",
    "\u{c}",
];

pub(crate) const GRAMMAR: Grammar = Grammar {
    opens: &[
        "{",
        " {\n",
        "{\"model\":\"m\",\"messages\":[],",
        "{\"stream\":true,\"prompt\":\"p\",\"messages\":[],\"model\":\"a\\u0062\",",
    ],
    records: &[
        "\"model\": \"m\"",
        "\"name\":\"n:8b\"",
        "\"messages\":[{\"content\":\"\\\"model\\\":1\"}]",
        "\"prompt\":\"p\"",
        "\"input\":[\"a\"]",
        "\"stream\":true",
        "\"stream\":null",
        "\"stream_options\":{}",
        "\"stream_options\": { }",
        "\"stream_options\":null",
        "\"stream_options\":{\"include_usage\":true}",
        "\"stream_options\":{\"x\":1,\"include_usage\":false}",
        "\"stream_options\":{\"include_usage\" : null}",
        "\"stream_options\":{\"x\":[]}",
        "\"Stream\":true",
        "\"x\":1e999",
    ],
    joints: &[",", ",", ",\n"],
    closes: &["}", "}", "} "],
};

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

/// A name that has to be escaped.
const OTHER: &str = "o/\"\\é:8b";

/// Reads the input as the body of every call there is.
pub fn request(data: &[u8]) {
    for shape in SHAPES {
        match Ask::parse(shape, data) {
            Ok(ask) => Accepted::new(shape, data, ask).check(),
            Err(refusal) => assert!(!refusal.to_string().is_empty()),
        }
    }
}

/// A body that was accepted, next to what a full parser makes of it.
struct Accepted<'a> {
    shape: Shape,
    body: Bytes,
    ask: Ask,
    members: BTreeMap<Cow<'a, str>, &'a RawValue>,
    text: &'a str,
    /// `None` where only the grammar can be read: numbers out of range, half surrogates, deep nesting.
    value: Option<Value>,
}

impl<'a> Accepted<'a> {
    fn new(shape: Shape, data: &'a [u8], ask: Ask) -> Self {
        let text = std::str::from_utf8(data).expect("an accepted body is UTF-8");
        let members = serde_json::from_str(text).expect("an accepted body is a JSON object");
        let value = serde_json::from_str(text).ok();
        Accepted { shape, body: Bytes::copy_from_slice(data), ask, members, text, value }
    }

    fn check(&self) {
        let Accepted { shape, ask, .. } = self;
        assert!((1..=MODEL_BYTES_MAX).contains(&ask.model.len()));
        assert!(!ask.model.contains(char::is_control));
        self.is_read_right();

        self.is_shared(None, false);
        self.is_shared(Some(&ask.model), false);
        let model_at = self.model_at();
        let renamed = self.ask.rewrite(&self.body, Some(OTHER), false);
        let name = Value::from(OTHER).to_string();
        let spliced = [&self.body[..model_at.start], name.as_bytes(), &self.body[model_at.end..]].concat();
        assert_eq!(renamed, spliced, "{shape:?}: only the name changes");

        if self.asks_usage() {
            let asking = self.ask.rewrite(&self.body, None, true);
            let untouched =
                common(self.body.iter(), asking.iter()) + common(self.body.iter().rev(), asking.iter().rev());
            assert!(untouched + "false".len() >= self.body.len(), "{shape:?}: only the option changes");
        } else {
            self.is_shared(None, true);
        }
        self.reads_back(Some(OTHER), true);
        self.reads_back(None, true);
        self.reads_back(Some(OTHER), false);

        let other = Bytes::from([&self.body[..], b" "].concat());
        assert_eq!(ask.rewrite(&other, Some(OTHER), true), other, "a body of another length is left alone");
    }

    /// What the router believes is what a full parser says.
    fn is_read_right(&self) {
        let Some(value) = &self.value else { return };
        let streams = value["stream"].as_bool().unwrap_or(self.shape.family() == Family::Ollama);
        assert_eq!(self.ask.stream, streams && self.can_stream());
        if matches!(self.shape, Shape::OpenAiChat | Shape::OpenAiCompletion) {
            assert_eq!(self.ask.usage_wanted(), value["stream_options"]["include_usage"] == true);
        }
    }

    fn can_stream(&self) -> bool {
        use Shape::{OllamaChat, OllamaGenerate, OpenAiChat, OpenAiCompletion};
        matches!(self.shape, OllamaChat | OllamaGenerate | OpenAiChat | OpenAiCompletion)
    }

    /// Whether the body changes when usage is asked for.
    fn asks_usage(&self) -> bool {
        self.ask.stream && self.shape.family() == Family::OpenAi && !self.ask.usage_wanted()
    }

    fn is_shared(&self, model: Option<&str>, ask_usage: bool) {
        let same = self.ask.rewrite(&self.body, model, ask_usage);
        assert_eq!(
            same.as_ptr(),
            self.body.as_ptr(),
            "{:?}: nothing changes, so nothing is copied",
            self.shape
        );
        assert_eq!(same.len(), self.body.len());
    }

    /// Where the model's name stands: in `model`, or in `/api/show`'s old spelling of it.
    fn model_at(&self) -> Range<usize> {
        let model = self.members.get("model").filter(|raw| !matches!(raw.get(), "null" | "\"\""));
        let raw = model.or_else(|| self.members.get("name")).expect("an accepted body names a model");
        let decoded: String = serde_json::from_str(raw.get()).expect("the name is a string");
        assert_eq!(decoded, self.ask.model);
        let start = raw.get().as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + raw.get().len()
    }

    /// The rewritten body is accepted again, says what was asked of it, and nothing else in it has changed.
    fn reads_back(&self, model: Option<&str>, ask_usage: bool) {
        let out = self.ask.rewrite(&self.body, model, ask_usage);
        let model = model.unwrap_or(&self.ask.model);
        let again = Ask::parse(self.shape, &out).expect("what was accepted is accepted again");
        assert_eq!(again.model, model);
        assert_eq!(again.stream, self.ask.stream);
        let asked = ask_usage && self.asks_usage();
        assert_eq!(again.usage_wanted(), self.ask.usage_wanted() || asked);

        let Some(value) = &self.value else { return };
        let mut expected = value.clone();
        let member = if expected["model"].as_str().is_none_or(str::is_empty) { "name" } else { "model" };
        expected[member] = model.into();
        if asked {
            expected["stream_options"]["include_usage"] = true.into();
        }
        let out: Value = serde_json::from_slice(&out).expect("a rewritten body is JSON");
        assert_eq!(out, expected);
    }
}

/// How many of the first items are the same in both.
fn common<'a>(a: impl Iterator<Item = &'a u8>, b: impl Iterator<Item = &'a u8>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}
