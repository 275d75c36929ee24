//! OpenAI-style answers: server-sent events, completions, vectors, listings and errors, with llama.cpp's and
//! Ollama's own ways where theirs differ.
//!
//! Sources: OpenAI's API reference; llama.cpp's `tools/server/README.md`. Pure functions from facts to bytes.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::account::Account;
use super::answer;
use super::ask::{Ask, Task};
use super::profile::{Kind, Model};
use super::reply::{Shape, Whole, media};
use super::stamp::Stamp;

/// The stream of a chat or a completion.
pub(super) fn shape(kind: Kind, task: Task, account: &Account<'_>, include_usage: bool) -> Shape {
    let chat = task == Task::ChatCompletions;
    let lead = lead(task, account, true);
    // With usage asked for, every chunk but the last says that it has none.
    let tail = if include_usage { r#","usage":null}"# } else { "}" };
    let event = |choice: &str, more: &str| format!("data: {lead},\"choices\":[{choice}]{more}{tail}\n\n");
    let mut shape = Shape {
        media: media::EVENTS,
        opening: Vec::new(),
        before: format!(r#"data: {lead},"choices":[{{"index":0,"text":"#),
        after: format!(",\"logprobs\":null,\"finish_reason\":null}}]{tail}\n\n"),
        closing: Vec::new(),
    };
    let mut nothing = r#""text":"""#;
    if chat {
        shape.opening.push(event(
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
            "",
        ));
        shape.before = format!(r#"data: {lead},"choices":[{{"index":0,"delta":{{"content":"#);
        shape.after = format!("}},\"logprobs\":null,\"finish_reason\":null}}]{tail}\n\n");
        nothing = r#""delta":{}"#;
    }
    let reason = account.finish_reason();
    let timings = match kind {
        Kind::LlamaServer => format!(",\"timings\":{}", timings(account)),
        Kind::Ollama | Kind::OpenAi => String::new(),
    };
    shape.closing.push(event(
        &format!(r#"{{"index":0,{nothing},"logprobs":null,"finish_reason":"{reason}"}}"#),
        if include_usage { "" } else { &timings },
    ));
    if include_usage {
        shape
            .closing
            .push(format!("data: {lead},\"choices\":[],\"usage\":{}{timings}}}\n\n", usage(account)));
    }
    shape.closing.push("data: [DONE]\n\n".to_owned());
    shape
}

/// The answer of a chat or a completion that is not streamed.
pub(super) fn whole(kind: Kind, task: Task, account: &Account<'_>, tokens: &[Cow<'_, str>]) -> Whole {
    let lead = lead(task, account, false);
    let text = Value::from(tokens.concat());
    let said = match task {
        Task::ChatCompletions => {
            format!(r#""message":{{"role":"assistant","content":{text},"refusal":null}}"#)
        }
        _ => format!(r#""text":{text}"#),
    };
    let reason = account.finish_reason();
    let usage = usage(account);
    let timings = match kind {
        Kind::LlamaServer => format!(",\"timings\":{}", timings(account)),
        Kind::Ollama | Kind::OpenAi => String::new(),
    };
    let body = format!(
        r#"{lead},"choices":[{{"index":0,{said},"logprobs":null,"finish_reason":"{reason}"}}],"usage":{usage}{timings}}}"#
    );
    Whole { status: 200, media: media::JSON, body: body.into_bytes() }
}

/// The fields every object of an answer begins with, left open for more.
fn lead(task: Task, account: &Account<'_>, streamed: bool) -> String {
    let (id, object) = match (task, streamed) {
        (Task::ChatCompletions, true) => ("chatcmpl", "chat.completion.chunk"),
        (Task::ChatCompletions, false) => ("chatcmpl", "chat.completion"),
        _ => ("cmpl", "text_completion"),
    };
    let (serial, created, model) = (account.serial, account.created.unix(), Value::from(account.model));
    format!(
        r#"{{"id":"{id}-{serial}","object":"{object}","created":{created},"model":{model},"system_fingerprint":"fp_pretend""#
    )
}

fn usage(account: &Account<'_>) -> Value {
    json!({
        "prompt_tokens": account.input_tokens,
        "completion_tokens": account.output_tokens,
        "total_tokens": account.input_tokens.saturating_add(account.output_tokens),
    })
}

/// llama.cpp's own measures, in milliseconds.
fn timings(account: &Account<'_>) -> Value {
    let prompt_ms = account.prompt.as_secs_f64().max(1e-6) * 1e3;
    let predicted_ms = account.eval.as_secs_f64().max(1e-6) * 1e3;
    json!({
        "cache_n": 0,
        "prompt_n": account.input_tokens,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / f64::from(account.input_tokens.max(1)),
        "prompt_per_second": f64::from(account.input_tokens) * 1e3 / prompt_ms,
        "predicted_n": account.output_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / f64::from(account.output_tokens.max(1)),
        "predicted_per_second": f64::from(account.output_tokens) * 1e3 / predicted_ms,
    })
}

/// The vectors of `/v1/embeddings`.
pub(super) fn embeddings(account: &Account<'_>, ask: &Ask) -> Whole {
    let vector = |text: &str| {
        let floats = answer::embedding(text);
        if ask.base64 { base64(&floats).into() } else { json!(floats) }
    };
    let data: Vec<Value> = ask
        .texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": vector(text)}))
        .collect();
    let usage = json!({"prompt_tokens": account.input_tokens, "total_tokens": account.input_tokens});
    Whole::json(200, &json!({"object": "list", "data": data, "model": account.model, "usage": usage}))
}

/// `/v1/models`: every model, with its state on a llama.cpp server.
pub(super) fn models<'a>(kind: Kind, models: impl Iterator<Item = (&'a Model, bool)>, now: Stamp) -> Whole {
    let data: Vec<Value> = models.map(|(listed, loaded)| model(kind, listed, loaded, now)).collect();
    Whole::json(200, &json!({"object": "list", "data": data}))
}

/// One item of `/v1/models`.
pub(super) fn model(kind: Kind, model: &Model, loaded: bool, now: Stamp) -> Value {
    let owner = match kind {
        Kind::Ollama => "library",
        Kind::OpenAi => "pretend",
        Kind::LlamaServer => "llamacpp",
    };
    let mut item = json!({"id": model.name, "object": "model", "created": now.unix(), "owned_by": owner});
    if kind == Kind::LlamaServer {
        item["status"] = json!({"value": if loaded { "loaded" } else { "unloaded" }});
        item["meta"] = json!({"n_ctx": model.context_length, "n_ctx_train": model.context_length});
    }
    item
}

/// An error as `/v1` routes of this family tell it.
pub(super) fn error(kind: Kind, status: u16, message: &str) -> Whole {
    let name = match status {
        401 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        503 => "unavailable_error",
        _ => "server_error",
    };
    let error = match (kind, status) {
        (Kind::LlamaServer, _) => json!({"code": status, "message": message, "type": name}),
        (Kind::OpenAi, 404) => {
            json!({"message": message, "type": "invalid_request_error", "param": null, "code": "model_not_found"})
        }
        _ => json!({"message": message, "type": name, "param": null, "code": null}),
    };
    Whole::json(status, &json!({ "error": error }))
}

/// Little-endian floats in standard base64 with padding (RFC 4648), as OpenAI's clients unpack them.
fn base64(floats: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at)) as usize & 63;
            text.push(if at <= group.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648_over_little_endian_floats() {
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
        assert_eq!(base64(&[0.0, 0.0, 0.0]), "AAAAAAAAAAAAAAAA");
    }
}
