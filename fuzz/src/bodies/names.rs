//! Model names: the rules of `serves`, each as an equation over text.

use pointsman::wire::Kind;
use pointsman::wire::names::{serves, tracked};

pub(crate) const WORDS: &[&str] =
    &[":latest", ":", "/", "\n", "llama3", "ggml-org/", ":Q4_K_M", "host:5000/", "::", "latest"];

/// The input's first line is what an endpoint lists, the rest what a client asks for.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (listed, asked) = text.split_once('\n').unwrap_or((&text, &text));
    for kind in [Kind::Ollama, Kind::LlamaServer, Kind::OpenAi] {
        let tracked = tracked(kind, listed);
        assert!(serves(kind, listed, listed), "{kind:?}: a model answers to its own name");
        assert!(serves(kind, listed, tracked), "{kind:?}: and to the one it is counted under");
        assert!(listed.contains(tracked));
        assert_eq!(tracked.is_empty(), listed.is_empty(), "{kind:?}: a name stays a name");
    }

    let exact = listed == asked;
    let short = serves(Kind::Ollama, listed, asked);
    if short && !exact {
        assert_eq!(listed, format!("{asked}:latest"), "an Ollama answers to no other name");
    }
    let long = serves(Kind::OpenAi, listed, asked);
    if long && !exact {
        assert_eq!(asked, format!("{listed}:latest"), "an OpenAI-style service answers to no other name");
    }
    let llama = serves(Kind::LlamaServer, listed, asked);
    assert!(llama || !long, "a llama-server is an OpenAI-style service");
    let asked = asked.strip_suffix(":latest").unwrap_or(asked);
    if llama && !exact && asked != listed {
        assert!(
            listed.contains(asked.rsplit(['/', ':']).next().unwrap_or(asked)),
            "{listed:?} is not {asked:?}"
        );
    }
}
