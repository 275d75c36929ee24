//! Model names: the rules of `serves`, each as an equation over text.

use pointsman::wire::Kind;
use pointsman::wire::names::{serves, tracked};

use crate::Grammar;

pub(crate) const WORDS: &[&str] =
    &[":latest", ":", "/", "\n", "llama3", "ggml-org/", ":Q4_K_M", "host:5000/", "::", "latest"];

pub(crate) const GRAMMAR: Grammar = Grammar {
    opens: &["", "host:5000/", "owner/"],
    records: &["gemma-3", "gemma", "lib/m", "m", "m:8b", "latest"],
    joints: &["\n", "\n", "\nowner/", ":latest\n", ":Q4_K_M\n", ":", "/"],
    closes: &["", ":latest", ":Q4_K_M", ":", "/"],
};

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
    if serves(Kind::Ollama, listed, asked) && !exact {
        assert_eq!(listed, format!("{asked}:latest"), "an Ollama answers to no other name");
        assert_eq!(Parts::of(asked).tag, None, "and to none with another tag");
    }
    let openai = serves(Kind::OpenAi, listed, asked);
    if openai && !exact {
        assert_eq!(asked, format!("{listed}:latest"), "an OpenAI-style service answers to no other name");
    }
    let llama = serves(Kind::LlamaServer, listed, asked);
    assert!(llama || !openai, "a llama-server is an OpenAI-style service");
    let tracked = tracked(Kind::LlamaServer, listed);
    let untagged = asked.strip_suffix(":latest").unwrap_or(asked);
    if llama && ![listed, tracked].iter().any(|name| [asked, untagged].contains(name)) {
        let (asked, listed) = (Parts::of(untagged), Parts::of(listed));
        assert_eq!(asked.base, listed.base, "a llama-server answers to no other model's name");
        assert!(asked.owner.is_none() || asked.owner == listed.owner, "nor to another owner's");
        assert!(asked.tag.is_none() || asked.tag == listed.tag, "nor to another quantisation's");
    }
}

/// `owner/base:tag`.
struct Parts<'a> {
    owner: Option<&'a str>,
    base: &'a str,
    tag: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(name: &'a str) -> Self {
        let (owner, segment) =
            name.rsplit_once('/').map_or((None, name), |(owner, rest)| (Some(owner), rest));
        match segment.rsplit_once(':') {
            Some((base, tag)) if !tag.is_empty() => Parts { owner, base, tag: Some(tag) },
            _ => Parts { owner, base: segment, tag: None },
        }
    }
}
