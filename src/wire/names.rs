//! Model names: when a model that an endpoint lists answers to the name a client asks for. Pure
//! functions over text; the rules are the seed router's, read off its Routing section, made exact.
//! Called by the catalog's users when they collect candidates, and by accounting for the tracked name.
//! A tag is what follows the last `:` of the last path segment: `host:5000/lib/m` has none.

use super::Kind;

/// Whether an endpoint of this kind that lists `listed` serves a request for `asked`.
///
/// * Every kind: the exact name.
/// * Ollama: a name without a tag means its `:latest`.
/// * The others know no tags: `name:latest` is `name`.
/// * llama-server lists `owner/name:quant`; the asked name may leave out the owner, the quant or both,
///   but what it does name must agree.
pub fn serves(kind: Kind, listed: &str, asked: &str) -> bool {
    if listed == asked || tracked(kind, listed) == asked {
        return true;
    }
    match kind {
        Kind::Ollama => split_tag(asked).1.is_none() && split_tag(listed) == (asked, Some("latest")),
        Kind::OpenAi => without_latest(asked) == listed,
        Kind::LlamaServer => {
            let asked = without_latest(asked);
            asked == listed
                || asked == tracked(kind, listed)
                || Parts::of(asked).agree_with(&Parts::of(listed))
        }
    }
}

/// The name under which an endpoint's model is counted and shown: for llama-server without the
/// `owner/` prefix and the `:quant` suffix, for the others as listed. Never empty unless `listed` is.
pub fn tracked(kind: Kind, listed: &str) -> &str {
    match kind {
        Kind::Ollama | Kind::OpenAi => listed,
        Kind::LlamaServer => match Parts::of(listed).base {
            "" => listed,
            base => base,
        },
    }
}

/// `(name, tag)`; an empty tag is none.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((before, tag)) if !tag.is_empty() && !tag.contains('/') => (before, Some(tag)),
        _ => (name, None),
    }
}

fn without_latest(name: &str) -> &str {
    match split_tag(name) {
        (before, Some("latest")) => before,
        _ => name,
    }
}

/// `owner/base:quant`.
struct Parts<'a> {
    owner: Option<&'a str>,
    base: &'a str,
    quant: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(name: &'a str) -> Self {
        let (path, quant) = split_tag(name);
        match path.rsplit_once('/') {
            Some((owner, base)) => Parts { owner: Some(owner), base, quant },
            None => Parts { owner: None, base: path, quant },
        }
    }

    fn agree_with(&self, listed: &Parts<'_>) -> bool {
        !self.base.is_empty()
            && self.base == listed.base
            && (self.owner.is_none() || self.owner == listed.owner)
            && (self.quant.is_none() || self.quant == listed.quant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Kind; 3] = [Kind::Ollama, Kind::LlamaServer, Kind::OpenAi];

    #[test]
    fn a_listed_model_answers_to_these_names_and_no_others() {
        use Kind::*;
        for (kind, listed, asked, expected) in [
            (Ollama, "llama3:latest", "llama3", true),
            (Ollama, "llama3:latest", "llama3:latest", true),
            (Ollama, "llama3:8b", "llama3", false),
            (Ollama, "llama3:8b", "llama3:latest", false),
            (Ollama, "llama3", "llama3:latest", false),
            (Ollama, "host:5000/lib/m:latest", "host:5000/lib/m", true),
            (Ollama, "host:5000/lib/m:latest", "host", false),
            (Ollama, "lib/m:latest", "m", false),
            (OpenAi, "gpt-4o", "gpt-4o:latest", true),
            (OpenAi, "gpt-4o:latest", "gpt-4o", false),
            (OpenAi, "gpt-4o", "gpt-4o:8b", false),
            (OpenAi, "org/m", "m", false),
            (OpenAi, "org/m", "org/m:latest", true),
            (LlamaServer, "ggml-org/gemma-3:Q4_K_M", "gemma-3", true),
            (LlamaServer, "ggml-org/gemma-3:Q4_K_M", "gemma-3:latest", true),
            (LlamaServer, "ggml-org/gemma-3:Q4_K_M", "ggml-org/gemma-3", true),
            (LlamaServer, "ggml-org/gemma-3:Q4_K_M", "gemma-3:Q4_K_M", true),
            (LlamaServer, "ggml-org/gemma-3:Q4_K_M", "gemma-3:Q8_0", false),
            (LlamaServer, "ggml-org/gemma-3:Q4_K_M", "unsloth/gemma-3", false),
            (LlamaServer, "gemma-3", "gemma-3:latest", true),
            (LlamaServer, "a/:q", "", false),
        ] {
            assert_eq!(serves(kind, listed, asked), expected, "{kind:?}: {listed} asked as {asked}");
        }
    }

    #[test]
    fn llama_server_names_are_tracked_without_owner_and_quant() {
        for (listed, expected) in [
            ("ggml-org/gemma-3:Q4_K_M", "gemma-3"),
            ("gemma-3", "gemma-3"),
            ("/models/a/gemma.gguf", "gemma.gguf"),
            ("host:5000/lib/m", "m"),
            ("owner/", "owner/"),
            (":q", ":q"),
            ("gemma:", "gemma:"),
        ] {
            assert_eq!(tracked(Kind::LlamaServer, listed), expected);
            assert_eq!(tracked(Kind::Ollama, listed), listed);
        }
    }

    proptest! {
        #[test]
        fn a_model_always_answers_to_its_own_and_its_tracked_name(listed in "[a:/]{1,8}|\\PC{0,12}") {
            for kind in KINDS {
                prop_assert!(serves(kind, &listed, &listed));
                prop_assert!(serves(kind, &listed, tracked(kind, &listed)));
            }
        }

        #[test]
        fn arbitrary_names_never_panic(listed in "[a:/]{0,8}|\\PC*", asked in "[a:/]{0,8}|\\PC*") {
            for kind in KINDS {
                serves(kind, &listed, &asked);
            }
        }
    }
}
