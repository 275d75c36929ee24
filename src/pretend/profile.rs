//! What a pretend backend claims to be: its family, its models, how much it says and how fast.
//!
//! A profile is plain data, fixed when the backend starts. Nothing here changes while it runs:
//! faults live in `fault`, counts in `stats`.

use std::time::Duration;

/// The family of API a backend speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ollama: `/api/...` in NDJSON, and its own `/v1/...`.
    Ollama,
    /// An OpenAI-compatible service: `/v1/...` with server-sent events.
    OpenAi,
    /// llama.cpp's server: OpenAI-style, with `status` in its listing and `timings` in its answers.
    LlamaServer,
}

/// One model a backend serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The name listed, with its tag. Ollama also answers to the name without `:latest`.
    pub name: String,
    /// Whether it is in memory when the backend starts. Asking for a model loads it.
    pub loaded: bool,
    /// How long the first request after an unload waits for the weights.
    pub load_time: Duration,
    /// The context window it reports, in tokens.
    pub context_length: u32,
}

impl Model {
    /// A model that is not loaded yet and loads at once.
    pub fn new(name: impl Into<String>) -> Model {
        Model { name: name.into(), loaded: false, load_time: Duration::ZERO, context_length: 8192 }
    }

    /// The same model, in memory from the start.
    pub fn loaded(self) -> Model {
        Model { loaded: true, ..self }
    }
}

impl From<&str> for Model {
    fn from(name: &str) -> Model {
        Model::new(name)
    }
}

impl From<String> for Model {
    fn from(name: String) -> Model {
        Model::new(name)
    }
}

/// What one backend is and how it behaves when nothing is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The API family.
    pub kind: Kind,
    /// The models it lists and answers for.
    pub models: Vec<Model>,
    /// Tokens in every answer, unless the request asks for fewer.
    pub tokens: u32,
    /// From the end of the request to the first token (and the response head).
    pub first_token: Duration,
    /// From one token to the next.
    pub token_gap: Duration,
    /// Send every chunk of a stream in a single write, each still its own HTTP chunk.
    pub chunks_in_one_burst: bool,
    /// Requests a model works on at the same time; more wait their turn, as with Ollama.
    pub max_parallel: Option<u32>,
    /// The bearer key every request must carry, if any; without it the answer is 401.
    pub api_key: Option<String>,
    /// What `/api/version` says.
    pub version: String,
}

impl Profile {
    fn new<M: Into<Model>>(kind: Kind, models: impl IntoIterator<Item = M>) -> Profile {
        Profile {
            kind,
            models: models.into_iter().map(Into::into).collect(),
            tokens: 16,
            first_token: Duration::ZERO,
            token_gap: Duration::ZERO,
            chunks_in_one_burst: false,
            max_parallel: None,
            api_key: None,
            version: "0.12.6".to_owned(),
        }
    }

    /// An Ollama with these models, 16 tokens an answer and no delay.
    pub fn ollama<M: Into<Model>>(models: impl IntoIterator<Item = M>) -> Profile {
        Profile::new(Kind::Ollama, models)
    }

    /// An OpenAI-compatible service with these models, 16 tokens an answer and no delay.
    pub fn openai<M: Into<Model>>(models: impl IntoIterator<Item = M>) -> Profile {
        Profile::new(Kind::OpenAi, models)
    }

    /// A llama.cpp server with these models, 16 tokens an answer and no delay.
    pub fn llama_server<M: Into<Model>>(models: impl IntoIterator<Item = M>) -> Profile {
        Profile::new(Kind::LlamaServer, models)
    }

    /// With this many tokens in every answer.
    pub fn tokens(self, tokens: u32) -> Profile {
        Profile { tokens, ..self }
    }

    /// With this wait before the first token and this gap between tokens.
    pub fn paced(self, first_token: Duration, token_gap: Duration) -> Profile {
        Profile { first_token, token_gap, ..self }
    }

    /// With all chunks of a stream in one write.
    pub fn in_one_burst(self) -> Profile {
        Profile { chunks_in_one_burst: true, ..self }
    }

    /// With at most this many requests at work per model.
    pub fn max_parallel(self, requests: u32) -> Profile {
        Profile { max_parallel: Some(requests), ..self }
    }

    /// Refusing whoever does not show this bearer key.
    pub fn api_key(self, key: impl Into<String>) -> Profile {
        Profile { api_key: Some(key.into()), ..self }
    }

    /// Where `asked` is in `models`. Ollama takes a missing tag as `:latest`.
    pub(super) fn find(&self, asked: &str) -> Option<usize> {
        let exact = |name: &str| self.models.iter().position(|model| model.name == name);
        exact(asked).or_else(|| match self.kind {
            Kind::Ollama if !asked.contains(':') => exact(&format!("{asked}:latest")),
            Kind::Ollama => asked.strip_suffix(":latest").and_then(exact),
            Kind::OpenAi | Kind::LlamaServer => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ollama_takes_a_missing_tag_as_latest() {
        let ollama = Profile::ollama(["llama3:latest", "qwen3:8b"]);
        assert_eq!(ollama.find("llama3"), Some(0));
        assert_eq!(ollama.find("llama3:latest"), Some(0));
        assert_eq!(ollama.find("qwen3"), None);
        assert_eq!(Profile::openai(["gpt:latest"]).find("gpt"), None);
    }
}
