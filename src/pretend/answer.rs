//! What a pretend model says: words that depend on the prompt and nothing else, and vectors likewise.
//!
//! A token is a word, so that anyone can count what an answer should have cost.

use std::borrow::Cow;

/// Floats in every embedding.
pub(super) const DIMENSIONS: usize = 64;

/// Words of the prompt an answer repeats.
const ECHOED_MAX: usize = 8;
/// Characters of each of them.
const ECHOED_CHARS_MAX: usize = 24;

const OPENING: [&str; 2] = ["You", "said"];
const REST: [&str; 24] = [
    "and",
    "the",
    "pointsman",
    "set",
    "the",
    "switch,",
    "so",
    "one",
    "train",
    "took",
    "the",
    "left",
    "track",
    "while",
    "another",
    "waited",
    "at",
    "the",
    "signal",
    "until",
    "its",
    "road",
    "was",
    "clear.",
];

/// The first `count` words of the answer to `prompt`; every word but the first begins with its space.
pub(super) fn words(prompt: &str, count: u32) -> Vec<Cow<'static, str>> {
    let echoed = prompt
        .split_whitespace()
        .take(ECHOED_MAX)
        .map(|word| Cow::Owned(word.chars().take(ECHOED_CHARS_MAX).collect::<String>()));
    let said = OPENING.into_iter().map(Cow::Borrowed);
    said.chain(echoed)
        .chain(REST.into_iter().cycle().map(Cow::Borrowed))
        .take(count as usize)
        .enumerate()
        .map(|(index, word)| if index == 0 { word } else { Cow::Owned(format!(" {word}")) })
        .collect()
}

/// The input tokens of a text: its words.
pub(super) fn count(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
}

/// A vector that only `text` decides, every component in -1..1.
pub(super) fn embedding(text: &str) -> Vec<f32> {
    let mut state = fingerprint(text);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Twenty bits keep the number exact in an f32 and its text short.
        ((state >> 44) as f32) / 524_288.0 - 1.0
    };
    (0..DIMENSIONS).map(|_| next()).collect()
}

/// A hash of `text` that is the same on every machine and never zero (FNV-1a, 64 bits).
pub(super) fn fingerprint(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_exactly_the_words_asked_for_and_repeats_the_prompt() {
        for n in [0, 1, 2, 5, 100] {
            assert_eq!(count(&words("why is the sky blue?", n).concat()), n);
        }
        assert!(words("why is the sky blue?", 16).concat().starts_with("You said why is the sky blue? and"));
    }

    #[test]
    fn embeddings_depend_on_the_text_alone() {
        assert_eq!(embedding("a"), embedding("a"));
        assert_ne!(embedding("a"), embedding("b"));
        assert!(embedding("a").iter().all(|x| (-1.0..1.0).contains(x)));
    }
}
