//! Which paths a pretend backend knows, as one table.
//!
//! A row holds for the families it names; `HEAD` is looked up as `GET`.

use super::ask::Task;
use super::profile::Kind;

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// A request to a model.
    Ask(Task),
    /// Ollama's models.
    Tags,
    /// Ollama's models in memory.
    Ps,
    /// OpenAI-style models.
    Models,
    /// One OpenAI-style model, named by the rest of the path.
    Model,
    /// One of Ollama's models in detail.
    Show,
    /// Ollama's version.
    Version,
    /// "I am here", as text.
    Root,
    /// "I am here", as JSON.
    Health,
}

impl Route {
    /// Whether a listing fault hits it.
    pub(super) fn lists(self) -> bool {
        matches!(self, Route::Tags | Route::Ps | Route::Models)
    }
}

struct Row(&'static str, &'static str, &'static [Kind], Route);

const OLLAMA: &[Kind] = &[Kind::Ollama];
const LLAMA: &[Kind] = &[Kind::LlamaServer];
const OTHERS: &[Kind] = &[Kind::OpenAi, Kind::LlamaServer];
const ALL: &[Kind] = &[Kind::Ollama, Kind::OpenAi, Kind::LlamaServer];

const ROUTES: &[Row] = &[
    Row("POST", "/api/chat", OLLAMA, Route::Ask(Task::Chat)),
    Row("POST", "/api/generate", OLLAMA, Route::Ask(Task::Generate)),
    Row("POST", "/api/embed", OLLAMA, Route::Ask(Task::Embed)),
    Row("POST", "/api/embeddings", OLLAMA, Route::Ask(Task::Embeddings)),
    Row("POST", "/v1/chat/completions", ALL, Route::Ask(Task::ChatCompletions)),
    Row("POST", "/v1/completions", ALL, Route::Ask(Task::Completions)),
    Row("POST", "/v1/embeddings", ALL, Route::Ask(Task::V1Embeddings)),
    Row("GET", "/api/tags", OLLAMA, Route::Tags),
    Row("GET", "/api/ps", OLLAMA, Route::Ps),
    Row("POST", "/api/show", OLLAMA, Route::Show),
    Row("GET", "/api/version", OLLAMA, Route::Version),
    Row("GET", "/v1/models", ALL, Route::Models),
    Row("GET", "/models", LLAMA, Route::Models),
    Row("GET", "/", OLLAMA, Route::Root),
    Row("GET", "/health", OTHERS, Route::Health),
];

/// The route of a request, if this family has one there.
pub(super) fn find(kind: Kind, method: &str, path: &str) -> Option<Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    let row = ROUTES.iter().find(|row| row.0 == method && row.1 == path && row.2.contains(&kind));
    let one_model = method == "GET" && path.strip_prefix("/v1/models/").is_some_and(|name| !name.is_empty());
    row.map(|row| row.3).or(one_model.then_some(Route::Model))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_knows_its_own_paths_only() {
        assert_eq!(find(Kind::Ollama, "POST", "/api/chat"), Some(Route::Ask(Task::Chat)));
        assert_eq!(find(Kind::OpenAi, "POST", "/api/chat"), None);
        assert_eq!(find(Kind::Ollama, "GET", "/api/chat"), None);
        assert_eq!(find(Kind::Ollama, "HEAD", "/"), Some(Route::Root));
        assert_eq!(find(Kind::OpenAi, "GET", "/v1/models/gpt"), Some(Route::Model));
    }
}
