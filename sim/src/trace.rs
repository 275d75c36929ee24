//! What happened, in order: a rolling hash always, the readable lines only when somebody will read.
//!
//! A line is an actor, a sentence with places for two numbers, and the numbers. The hash covers time,
//! actor, sentence and numbers, and nothing that could differ between two runs of one seed.

use core::fmt;

use serde::Serialize;

use crate::streams::finish;

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    /// The simulator itself.
    World,
    /// Whoever configures and restarts instances.
    Operator,
    /// An instance of the router.
    Instance(usize),
    /// A backend.
    Endpoint(usize),
    /// An instance's store.
    Store(usize),
    /// A client, by its request.
    Client(usize),
    /// A subscriber of the event log.
    Subscriber(usize),
}

impl Actor {
    fn code(self) -> u64 {
        let (kind, number) = match self {
            Actor::World => (0, 0),
            Actor::Operator => (1, 0),
            Actor::Instance(index) => (2, index),
            Actor::Endpoint(index) => (3, index),
            Actor::Store(index) => (4, index),
            Actor::Client(index) => (5, index),
            Actor::Subscriber(index) => (6, index),
        };
        (kind << 32) | number as u64
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::World => f.write_str("world"),
            Actor::Operator => f.write_str("operator"),
            Actor::Instance(index) => write!(f, "instance {index}"),
            Actor::Endpoint(index) => write!(f, "endpoint {index}"),
            Actor::Store(index) => write!(f, "store {index}"),
            Actor::Client(index) => write!(f, "client {index}"),
            Actor::Subscriber(index) => write!(f, "subscriber {index}"),
        }
    }
}

/// One line of a timeline.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// Nanoseconds since the world began.
    pub(crate) at: u64,
    /// Who.
    pub(crate) actor: String,
    /// What.
    pub(crate) text: String,
}

/// Spread a line's numbers over all bits before they meet, so that all of them go through the hash at once.
const ODD: [u64; 5] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
    0xff51_afd7_ed55_8ccd,
];

/// The hash so far, and the lines if they are kept.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<Line>>,
}

impl Trace {
    /// A trace that keeps its lines if `keep`.
    pub(crate) fn new(keep: bool) -> Self {
        Trace { hash: 0, lines: keep.then(Vec::new) }
    }

    /// Takes a number into the hash.
    pub(crate) fn mix(&mut self, number: u64) {
        self.hash = finish(self.hash.rotate_left(23) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    /// `{a}` and `{b}` in `what` stand for the numbers.
    pub(crate) fn note(&mut self, at: u64, actor: Actor, what: &'static str, a: u64, b: u64) {
        let mut said = what.len() as u64;
        let (words, rest) = what.as_bytes().as_chunks();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain((!rest.is_empty()).then_some(&last)) {
            said = said.rotate_left(9) ^ u64::from_le_bytes(*word);
        }
        let numbers = [at, actor.code(), said, a, b].into_iter().zip(ODD);
        self.mix(numbers.fold(0, |sum, (number, odd)| sum.rotate_left(13) ^ number.wrapping_mul(odd)));
        if let Some(lines) = &mut self.lines {
            let text = what.replace("{a}", &a.to_string()).replace("{b}", &b.to_string());
            lines.push(Line { at, actor: actor.to_string(), text });
        }
    }

    /// A remark for readers, outside the hash.
    pub(crate) fn remark(&mut self, at: u64, actor: Actor, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(Line { at, actor: actor.to_string(), text: text() });
        }
    }

    /// The hash over everything noted so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines, if they were kept.
    pub(crate) fn take_lines(&mut self) -> Vec<Line> {
        self.lines.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(notes: &[(u64, Actor, &'static str, u64)]) -> u64 {
        let mut trace = Trace::new(false);
        notes.iter().for_each(|(at, actor, what, a)| trace.note(*at, *actor, what, *a, 0));
        trace.hash()
    }

    #[test]
    fn the_hash_covers_time_actor_sentence_numbers_and_order() {
        let first = (1, Actor::Client(1), "leaves", 1);
        let base = hash(&[first]);
        for other in [
            (2, Actor::Client(1), "leaves", 1),
            (1, Actor::Client(2), "leaves", 1),
            (1, Actor::Endpoint(1), "leaves", 1),
            (1, Actor::Client(1), "asks", 1),
            (1, Actor::Client(1), "leaves", 2),
        ] {
            assert_ne!(base, hash(&[other]));
            assert_ne!(hash(&[first, other]), hash(&[other, first]));
        }
    }

    #[test]
    fn keeping_lines_does_not_change_the_hash() {
        let mut kept = Trace::new(true);
        kept.note(1, Actor::Client(1), "leaves {a}", 1, 0);
        assert_eq!(kept.hash(), hash(&[(1, Actor::Client(1), "leaves {a}", 1)]));
        assert_eq!(kept.take_lines()[0].text, "leaves 1");
    }
}
