//! What a request to a model asks for, read from its JSON body.
//!
//! Reading is as strict as the real servers are about what they need (a model, the right types) and as
//! forgiving about the rest. A body that cannot be read gives the sentence for its 400.

use serde_json::{Map, Value};

use super::answer;

/// The seven ways to ask a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Ollama `/api/chat`.
    Chat,
    /// Ollama `/api/generate`.
    Generate,
    /// Ollama `/api/embed`.
    Embed,
    /// Ollama `/api/embeddings`, the older form.
    Embeddings,
    /// OpenAI `/v1/chat/completions`.
    ChatCompletions,
    /// OpenAI `/v1/completions`.
    Completions,
    /// OpenAI `/v1/embeddings`.
    V1Embeddings,
}

impl Task {
    /// Whether this is one of Ollama's own forms, rather than OpenAI's.
    pub(super) fn native(self) -> bool {
        matches!(self, Task::Chat | Task::Generate | Task::Embed | Task::Embeddings)
    }

    /// Whether the answer is a vector and never a stream.
    pub(super) fn embeds(self) -> bool {
        matches!(self, Task::Embed | Task::Embeddings | Task::V1Embeddings)
    }

    /// The field that holds the text, and whether it must be there.
    fn text_field(self) -> (&'static str, bool) {
        match self {
            Task::Chat => ("messages", false),
            Task::Generate | Task::Embeddings => ("prompt", false),
            Task::Embed => ("input", false),
            Task::ChatCompletions => ("messages", true),
            Task::Completions => ("prompt", true),
            Task::V1Embeddings => ("input", true),
        }
    }
}

/// A request that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    /// The model's name as asked.
    pub(super) model: String,
    /// Every text in the request: messages in order, the prompt, or the inputs to embed.
    pub(super) texts: Vec<String>,
    /// Whether the answer is to be streamed.
    pub(super) stream: bool,
    /// The most tokens the client wants.
    pub(super) tokens_max: Option<u32>,
    /// OpenAI: whether a stream ends with a usage chunk.
    pub(super) include_usage: bool,
    /// OpenAI: embeddings as base64 instead of numbers.
    pub(super) base64: bool,
    /// Ollama: `keep_alive` is zero, so the model leaves memory afterwards.
    pub(super) unload: bool,
}

impl Ask {
    /// Reads `body` as a request for `task`. The error is what is wrong with it.
    pub(super) fn parse(task: Task, body: &[u8]) -> Result<Ask, String> {
        let body: Value = serde_json::from_slice(body).map_err(|error| format!("invalid JSON: {error}"))?;
        let Value::Object(body) = body else { return Err("the body must be a JSON object".to_owned()) };
        let model = match body.get("model") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            None | Some(Value::Null | Value::String(_)) => return Err("model is required".to_owned()),
            Some(_) => return Err("model must be a string".to_owned()),
        };
        let limits = body.get("options").and_then(Value::as_object).unwrap_or(&body);
        let limit = ["num_predict", "max_completion_tokens", "max_tokens"]
            .into_iter()
            .find_map(|key| limits.get(key).and_then(Value::as_u64));
        Ok(Ask {
            model,
            texts: texts(task, &body)?,
            stream: flag(&body, "stream")?.unwrap_or(matches!(task, Task::Chat | Task::Generate)),
            tokens_max: limit.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            include_usage: match body.get("stream_options").and_then(Value::as_object) {
                Some(options) => flag(options, "include_usage")?.unwrap_or(false),
                None => false,
            },
            base64: body.get("encoding_format").and_then(Value::as_str) == Some("base64"),
            unload: matches!(body.get("keep_alive"), Some(Value::Number(n)) if n.as_f64() == Some(0.0)),
        })
    }

    /// Words in all the texts.
    pub(super) fn input_tokens(&self) -> u32 {
        self.texts.iter().map(|text| answer::count(text)).sum()
    }

    /// What the model answers to: the last text.
    pub(super) fn prompt(&self) -> &str {
        self.texts.last().map_or("", String::as_str)
    }
}

fn flag(object: &Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(format!("{key} must be true or false")),
    }
}

fn texts(task: Task, body: &Map<String, Value>) -> Result<Vec<String>, String> {
    let (field, required) = task.text_field();
    let mut texts = Vec::new();
    if let Some(Value::String(system)) = body.get("system") {
        texts.push(system.clone());
    }
    match (body.get(field), field) {
        (None | Some(Value::Null), _) if required => return Err(format!("{field} is required")),
        (None | Some(Value::Null), _) => {}
        (Some(Value::Array(messages)), "messages") => {
            for message in messages {
                let Value::Object(message) = message else {
                    return Err("every message must be an object".to_owned());
                };
                if !matches!(message.get("role"), Some(Value::String(_))) {
                    return Err("every message needs a role".to_owned());
                }
                texts.push(message_text(message.get("content"))?);
            }
        }
        (Some(Value::String(text)), "prompt" | "input") => texts.push(text.clone()),
        (Some(Value::Array(items)), "prompt" | "input")
            if task != Task::Generate && task != Task::Embeddings =>
        {
            for item in items {
                texts.push(item_text(item).ok_or_else(|| format!("{field} must hold strings"))?);
            }
        }
        (Some(_), "messages") => return Err("messages must be an array".to_owned()),
        (Some(_), _) => return Err(format!("{field} must be a string")),
    }
    Ok(texts)
}

/// The text of one item of an input list: a string, a token number, or a list of token numbers.
fn item_text(item: &Value) -> Option<String> {
    match item {
        Value::String(text) => Some(text.clone()),
        Value::Number(token) => Some(token.to_string()),
        Value::Array(tokens) => Some(tokens.iter().map(|token| format!("{token} ")).collect()),
        _ => None,
    }
}

/// The text of a message: plain, or the text parts of a list, or none (a tool call).
fn message_text(content: Option<&Value>) -> Result<String, String> {
    match content {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
            Ok(texts.collect::<Vec<_>>().join(" "))
        }
        Some(_) => Err("a message's content must be a string or an array of parts".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_tokens_are_the_words_of_every_message() {
        let body = br#"{"model":"m","messages":[{"role":"system","content":"be brief"},
            {"role":"user","content":[{"type":"text","text":"what is this"},{"type":"image_url"}]}]}"#;
        let ask = Ask::parse(Task::ChatCompletions, body).unwrap();
        assert_eq!((ask.input_tokens(), ask.prompt()), (5, "what is this"));
    }

    #[test]
    fn ollama_streams_unless_told_not_to_and_openai_does_not() {
        let streams = |task, body: &str| Ask::parse(task, body.as_bytes()).unwrap().stream;
        assert!(streams(Task::Generate, r#"{"model":"m"}"#));
        assert!(!streams(Task::Generate, r#"{"model":"m","stream":false}"#));
        assert!(!streams(Task::Completions, r#"{"model":"m","prompt":"x"}"#));
    }

    #[test]
    fn a_bad_body_is_told_what_is_wrong_with_it() {
        let wrong = |body: &str| Ask::parse(Task::ChatCompletions, body.as_bytes()).unwrap_err();
        assert!(wrong("{").starts_with("invalid JSON"));
        assert_eq!(wrong("[]"), "the body must be a JSON object");
        assert_eq!(wrong("{}"), "model is required");
        assert_eq!(wrong(r#"{"model":7}"#), "model must be a string");
        assert_eq!(wrong(r#"{"model":"m"}"#), "messages is required");
        assert_eq!(wrong(r#"{"model":"m","messages":"hi"}"#), "messages must be an array");
        assert_eq!(wrong(r#"{"model":"m","messages":[],"stream":"yes"}"#), "stream must be true or false");
    }
}
