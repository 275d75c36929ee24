//! Ollama's own answers: NDJSON streams, listings and errors, field by field as the real server sends them.
//!
//! Source: Ollama's `docs/api.md`. Pure functions from facts to bytes; `serve` decides which to call.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Value, json};

use super::account::{Account, nanos};
use super::answer;
use super::ask::{Ask, Task};
use super::profile::Model;
use super::reply::{Shape, Whole, media};
use super::stamp::Stamp;

/// How long a model stays in memory after its last request, as `/api/ps` tells it.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

/// The stream of a chat or a generation.
pub(super) fn shape(task: Task, account: &Account<'_>) -> Shape {
    let model = Value::from(account.model);
    let created = account.created.rfc3339();
    let (before, after) = match task {
        Task::Chat => (
            format!(
                r#"{{"model":{model},"created_at":"{created}","message":{{"role":"assistant","content":"#
            ),
            "},\"done\":false}\n",
        ),
        _ => (format!(r#"{{"model":{model},"created_at":"{created}","response":"#), ",\"done\":false}\n"),
    };
    let done = format!("{}\n", last(task, account, ""));
    Shape { media: media::NDJSON, opening: Vec::new(), before, after: after.to_owned(), closing: vec![done] }
}

/// The answer of a chat or a generation that is not streamed.
pub(super) fn whole(task: Task, account: &Account<'_>, tokens: &[Cow<'_, str>]) -> Whole {
    Whole::json(200, &last(task, account, &tokens.concat()))
}

/// The object that ends an answer, holding `text`.
fn last(task: Task, account: &Account<'_>, text: &str) -> Value {
    let total = account.load + account.prompt + account.eval;
    let mut object = json!({
        "model": account.model,
        "created_at": account.created.after(total).rfc3339(),
        "done": true,
        "done_reason": account.finish_reason(),
        "total_duration": nanos(total),
        "load_duration": nanos(account.load),
        "prompt_eval_count": account.input_tokens,
        "prompt_eval_duration": nanos(account.prompt),
        "eval_count": account.output_tokens,
        "eval_duration": nanos(account.eval),
    });
    if task == Task::Chat {
        object["message"] = json!({"role": "assistant", "content": text});
    } else {
        object["response"] = text.into();
        object["context"] = json!([1, 2, 3]);
    }
    object
}

/// The answer to an empty prompt, which only loads a model or sends it away. Also correct as a one-line stream.
pub(super) fn touched(task: Task, account: &Account<'_>, unload: bool) -> Whole {
    let mut object = json!({
        "model": account.model,
        "created_at": account.created.rfc3339(),
        "done": true,
        "done_reason": if unload { "unload" } else { "load" },
    });
    if task == Task::Chat {
        object["message"] = json!({"role": "assistant", "content": ""});
    } else {
        object["response"] = "".into();
    }
    Whole::json(200, &object)
}

/// The vectors of `/api/embed`, or the one of `/api/embeddings`.
pub(super) fn embeddings(task: Task, account: &Account<'_>, ask: &Ask) -> Whole {
    let body = match task {
        Task::Embeddings => json!({"embedding": answer::embedding(ask.prompt())}),
        _ => json!({
            "model": account.model,
            "embeddings": ask.texts.iter().map(|text| answer::embedding(text)).collect::<Vec<_>>(),
            "total_duration": nanos(account.load + account.prompt),
            "load_duration": nanos(account.load),
            "prompt_eval_count": account.input_tokens,
        }),
    };
    Whole::json(200, &body)
}

/// `/api/tags`: every model.
pub(super) fn tags(models: &[Model], now: Stamp) -> Whole {
    let list: Vec<Value> = models
        .iter()
        .map(|model| {
            json!({
                "name": model.name,
                "model": model.name,
                "modified_at": now.rfc3339(),
                "size": size(model),
                "digest": digest(model),
                "details": details(),
            })
        })
        .collect();
    Whole::json(200, &json!({ "models": list }))
}

/// `/api/ps`: the models in memory.
pub(super) fn ps<'a>(loaded: impl Iterator<Item = &'a Model>, now: Stamp) -> Whole {
    let list: Vec<Value> = loaded
        .map(|model| {
            json!({
                "name": model.name,
                "model": model.name,
                "size": size(model),
                "digest": digest(model),
                "details": details(),
                "expires_at": now.after(KEEP_ALIVE).rfc3339(),
                "size_vram": size(model),
                "context_length": model.context_length,
            })
        })
        .collect();
    Whole::json(200, &json!({ "models": list }))
}

/// `/api/show`: one model in detail.
pub(super) fn show(model: &Model, now: Stamp) -> Whole {
    let body = json!({
        "license": "Nobody trained this model.",
        "modelfile": format!("FROM {}\n", model.name),
        "parameters": format!("num_ctx {}", model.context_length),
        "template": "{{ .Prompt }}",
        "details": details(),
        "model_info": {
            "general.architecture": "pretend",
            "general.parameter_count": 1_000_000_000u64,
            "pretend.context_length": model.context_length,
            "pretend.embedding_length": answer::DIMENSIONS,
        },
        "capabilities": ["completion", "embedding"],
        "modified_at": now.rfc3339(),
    });
    Whole::json(200, &body)
}

/// An error as Ollama's own routes tell it.
pub(super) fn error(status: u16, message: &str) -> Whole {
    Whole::json(status, &json!({ "error": message }))
}

fn size(model: &Model) -> u64 {
    1_000_000_000 + answer::fingerprint(&model.name) % 1_000_000_000
}

fn digest(model: &Model) -> String {
    format!("{:016x}", answer::fingerprint(&model.name)).repeat(4)
}

fn details() -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": "pretend",
        "families": ["pretend"],
        "parameter_size": "1B",
        "quantization_level": "Q4_0",
    })
}
