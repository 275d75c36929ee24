//! What goes over the wire in each load: the request a client sends and the exact bytes it must get back.
//!
//! The backend serves these answers and the load generator compares against them byte for byte, so a proxy
//! that loses, repeats or rewrites anything is caught here and not only slow. Pure data, no I/O.

use serde::{Deserialize, Serialize};

/// Tokens of a streamed answer.
pub(crate) const TOKENS: usize = 64;
/// From one token of a paced answer to the next, in milliseconds.
pub(crate) const GAP_MS: u64 = 5;

/// The four loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Load {
    /// One JSON answer of a few hundred bytes.
    Json,
    /// `TOKENS` chunks in a single write.
    Burst,
    /// `TOKENS` chunks, `GAP_MS` apart: how models really answer.
    Paced,
    /// Streams that say one token and then nothing.
    Idle,
}

impl Load {
    /// All of them, in the order they are run.
    pub(crate) const ALL: [Load; 4] = [Load::Json, Load::Burst, Load::Paced, Load::Idle];

    /// The name on the command line and in reports; also the name of the model asked for.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::Json => "json",
            Load::Burst => "burst",
            Load::Paced => "paced",
            Load::Idle => "idle",
        }
    }

    /// Connections that send requests at the same time.
    pub(crate) fn connections(self) -> usize {
        if self == Load::Paced { 128 } else { 64 }
    }

    /// Whether the answer is a stream.
    pub(crate) fn streams(self) -> bool {
        self != Load::Json
    }
}

/// Which API the clients and the backend speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Style {
    /// `/v1/chat/completions`, server-sent events.
    OpenAi,
    /// `/api/chat`, NDJSON.
    Ollama,
}

impl Style {
    /// The name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Style::OpenAi => "openai",
            Style::Ollama => "ollama",
        }
    }

    /// The path of a chat.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Style::OpenAi => "/v1/chat/completions",
            Style::Ollama => "/api/chat",
        }
    }

    /// The media type of a stream.
    pub(crate) fn stream_media(self) -> &'static str {
        match self {
            Style::OpenAi => "text/event-stream",
            Style::Ollama => "application/x-ndjson",
        }
    }
}

/// A whole request, head and body, of the size a chat client sends.
pub(crate) fn request(load: Load, style: Style, host: &str) -> Vec<u8> {
    let system = "You are a helpful assistant on a small railway. Answer in one short paragraph, in plain words, \
        and say so when you do not know.";
    let user = "A freight train and a passenger train come towards the same junction from two sides. Which of \
        them has to wait, who decides that, and how does the driver learn of it in time?";
    let body = serde_json::json!({
        "model": load.name(),
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "temperature": 0.7,
        "stream": load.streams(),
    })
    .to_string();
    let mut bytes = format!(
        "POST {} HTTP/1.1\r\nhost: {host}\r\nuser-agent: pointsman-bench\r\naccept: */*\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        style.path(),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

/// An answer as its frames: one body, or one frame per chunk with everything after the last token at the end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Frames that carry one token each; a single one for a JSON answer.
    pub(crate) tokens: Vec<Vec<u8>>,
    /// Frames after the last token.
    pub(crate) closing: Vec<Vec<u8>>,
}

impl Answer {
    /// Every byte of the body.
    pub(crate) fn body(&self) -> Vec<u8> {
        self.tokens.iter().chain(&self.closing).flatten().copied().collect()
    }

    /// How long the body is once each token is whole.
    pub(crate) fn marks(&self) -> Vec<usize> {
        let mut length = 0;
        let ends = self.tokens.iter().map(|frame| {
            length += frame.len();
            length
        });
        ends.collect()
    }
}

/// The answer to a load; `usage` is whether an OpenAI-style stream was asked to report it.
pub(crate) fn answer(load: Load, style: Style, usage: bool) -> Answer {
    let model = load.name();
    let token = |index: usize| format!(" word{index:02}");
    let frames = |frames: Vec<String>| frames.into_iter().map(String::into_bytes).collect();
    let counts = r#"{"prompt_tokens":52,"completion_tokens":64,"total_tokens":116}"#;
    let done = r#""total_duration":320000000,"load_duration":1000000,"prompt_eval_count":52,"prompt_eval_duration":4000000,"eval_count":64,"eval_duration":315000000"#;
    let text =
        "The signaller decides: the passenger train keeps its road and the freight train waits at red.";
    match (style, load) {
        (Style::OpenAi, Load::Json) => Answer {
            tokens: frames(vec![format!(
                r#"{{"id":"chatcmpl-8f3a2c91","object":"chat.completion","created":1760000000,"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{counts}}}"#
            )]),
            closing: Vec::new(),
        },
        (Style::Ollama, Load::Json) => Answer {
            tokens: frames(vec![format!(
                r#"{{"model":"{model}","created_at":"2026-01-01T00:00:00.000000Z","message":{{"role":"assistant","content":"{text}"}},"done":true,"done_reason":"stop",{done}}}"#
            )]),
            closing: Vec::new(),
        },
        (Style::OpenAi, _) => {
            let event = |choices: &str, more: &str| {
                format!(
                    "data: {{\"id\":\"chatcmpl-8f3a2c91\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"{model}\",\"choices\":[{choices}]{more}}}\n\n"
                )
            };
            let say = |index: usize| {
                let delta =
                    format!(r#"{{"index":0,"delta":{{"content":"{}"}},"finish_reason":null}}"#, token(index));
                event(&delta, "")
            };
            let mut closing = vec![event(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, "")];
            if usage {
                closing.push(event("", &format!(",\"usage\":{counts}")));
            }
            closing.push("data: [DONE]\n\n".to_owned());
            Answer { tokens: frames((0..TOKENS).map(say).collect()), closing: frames(closing) }
        }
        (Style::Ollama, _) => {
            let line = |content: &str, more: &str| {
                format!(
                    "{{\"model\":\"{model}\",\"created_at\":\"2026-01-01T00:00:00.000000Z\",\"message\":{{\"role\":\"assistant\",\"content\":\"{content}\"}},{more}}}\n"
                )
            };
            let say = |index: usize| line(&token(index), "\"done\":false");
            let last = line("", &format!("\"done\":true,\"done_reason\":\"stop\",{done}"));
            Answer { tokens: frames((0..TOKENS).map(say).collect()), closing: frames(vec![last]) }
        }
    }
}
