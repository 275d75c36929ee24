//! Events as this program writes them, read without a parser: when, of which kind, and where in the text the names
//! stand that filters ask for.
//!
//! It takes what [`Event::new`](super::event::Event::new) writes as long as no string needs an escape: the members
//! of [`Fields`](super::event::Fields) in their order, and no space. Whatever it takes, a parser takes too and reads
//! the same; of anything else it says so, and [`super::event`] asks the parser.

use core::ops::Range;

use memchr::memchr2;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skimmed<'a> {
    pub(super) time_ms: u64,
    pub(super) kind: &'a str,
    pub(super) endpoint: Option<Range<usize>>,
    pub(super) model: Option<Range<usize>>,
    pub(super) asked: Option<Range<usize>>,
}

/// What a member holds.
#[derive(Clone, Copy)]
enum Holds {
    Endpoint,
    Model,
    Asked,
    Text,
    Count,
}

/// All members behind `time_ms` and `kind`, in their order.
const MEMBERS: [(&[u8], Holds); 17] = [
    (b",\"request_id\":", Holds::Text),
    (b",\"endpoint\":", Holds::Endpoint),
    (b",\"model\":", Holds::Model),
    (b",\"asked\":", Holds::Asked),
    (b",\"client_key\":", Holds::Text),
    (b",\"input_tokens\":", Holds::Count),
    (b",\"output_tokens\":", Holds::Count),
    (b",\"duration_ms\":", Holds::Count),
    (b",\"outcome\":", Holds::Text),
    (b",\"reason\":", Holds::Text),
    (b",\"endpoints\":", Holds::Count),
    (b",\"events\":", Holds::Count),
    (b",\"total_tokens\":", Holds::Count),
    (b",\"admitted\":", Holds::Count),
    (b",\"finished\":", Holds::Count),
    (b",\"in_flight\":", Holds::Count),
    (b",\"queued\":", Holds::Count),
];

/// Reads an event; `None` if a parser must.
pub(super) fn skim(json: &[u8]) -> Option<Skimmed<'_>> {
    let text = core::str::from_utf8(json).ok()?;
    let mut rest = Rest { json, at: 0 };
    rest.word(b"{\"time_ms\":")?;
    let time_ms = rest.count()?;
    rest.word(b",\"kind\":")?;
    let kind = &text[rest.string()?];
    let mut found = Skimmed { time_ms, kind, endpoint: None, model: None, asked: None };
    for (member, holds) in MEMBERS {
        if rest.word(member).is_none() {
            continue;
        }
        match holds {
            Holds::Endpoint => found.endpoint = Some(rest.string()?),
            Holds::Model => found.model = Some(rest.string()?),
            Holds::Asked => found.asked = Some(rest.string()?),
            Holds::Text => {
                rest.string()?;
            }
            Holds::Count => {
                rest.count()?;
            }
        }
    }
    (rest.left() == b"}").then_some(found)
}

/// The text from `at` on is still to be read.
struct Rest<'a> {
    json: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    fn left(&self) -> &[u8] {
        &self.json[self.at..]
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.left().starts_with(word).then(|| self.at += word.len())
    }

    /// A whole number from 0 on.
    fn count(&mut self) -> Option<u64> {
        let (mut number, mut digits) = (0_u64, 0);
        for digit in self.left().iter().take_while(|byte| byte.is_ascii_digit()) {
            number = number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            digits += 1;
        }
        // JSON has no leading zeros.
        let is_number = digits == 1 || (digits > 1 && self.left()[0] != b'0');
        self.at += digits;
        is_number.then_some(number)
    }

    /// A string without escapes: where it stands, without its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        self.word(b"\"")?;
        let from = self.at;
        let to = from + memchr2(b'"', b'\\', self.left())?;
        // What JSON does not take as it is in a string.
        if self.json[from..to].iter().any(|byte| *byte < 0x20) {
            return None;
        }
        self.at = to;
        self.word(b"\"")?;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::event::{Event, Fields, Kind};
    use proptest::prelude::*;

    /// Every member there is.
    fn full() -> Fields<'static> {
        Fields {
            time_ms: 1_790_000_000_123,
            kind: "request.finished".into(),
            request_id: Some("r1".into()),
            endpoint: Some("http://a".into()),
            model: Some("mü:8b".into()),
            asked: Some("mü".into()),
            client_key: Some("01234567".into()),
            input_tokens: Some(3),
            output_tokens: Some(0),
            duration_ms: Some(u64::MAX),
            outcome: Some("answered".into()),
            reason: Some("it's {so}, [so]: 1".into()),
            endpoints: Some(1),
            events: Some(2),
            total_tokens: Some(10),
            admitted: Some(11),
            finished: Some(12),
            in_flight: Some(13),
            queued: Some(14),
        }
    }

    /// Bytes that mean something.
    const COMMON: &[u8] = b"\"\\,:{}0123 e.-";

    /// What a parser reads, and what skimming says about it.
    fn compare(json: &[u8]) -> bool {
        let Some(skimmed) = skim(json) else { return false };
        let parsed: Fields<'_> = serde_json::from_slice(json).expect("what is taken is JSON");
        let text = core::str::from_utf8(json).expect("and UTF-8");
        let at = |range: &Option<Range<usize>>| range.clone().map(|range| text[range].to_owned());
        let names = [parsed.endpoint, parsed.model, parsed.asked].map(|name| name.map(String::from));
        assert_eq!([at(&skimmed.endpoint), at(&skimmed.model), at(&skimmed.asked)], names, "{text}");
        assert_eq!((skimmed.time_ms, skimmed.kind), (parsed.time_ms, &*parsed.kind), "{text}");
        true
    }

    #[test]
    fn what_is_written_here_needs_no_parser() {
        for kind in Kind::ALL {
            assert!(compare(&Event::new(kind, full()).json), "{kind:?}");
            assert!(compare(&Event::new(kind, Fields::default()).json), "{kind:?}");
        }
        // Each without one of its members.
        let json = String::from_utf8(Event::new(Kind::LogLost, full()).json.to_vec()).unwrap();
        for (member, _) in MEMBERS {
            let from = json.find(core::str::from_utf8(member).unwrap()).unwrap();
            let to = json[from + 1..].find(",\"").map_or(json.len() - 1, |at| from + 1 + at);
            let less = [&json[..from], &json[to..]].concat();
            assert!(compare(less.as_bytes()), "{less}");
        }
    }

    #[test]
    fn what_it_does_not_know_is_left_to_the_parser() {
        for json in [
            r#"{"time_ms":1,"kind":"x","model":"a\"b"}"#,
            r#"{"time_ms":1,"kind":"x","model":null}"#,
            r#"{"time_ms":1,"kind":"x","job":"j"}"#,
            r#"{"time_ms":1,"kind":"x","model":"m","model":"m"}"#,
            r#"{"time_ms":1,"kind":"x","model":"m","endpoint":"e"}"#,
            r#"{"time_ms":1,"kind":"x","events":1.5}"#,
            r#"{"time_ms":1,"kind":"x","events":18446744073709551616}"#,
            r#"{"time_ms":01,"kind":"x"}"#,
            r#"{"time_ms":,"kind":"x"}"#,
            r#"{"kind":"x","time_ms":1}"#,
            r#"{"time_ms":1, "kind":"x"}"#,
            r#"{"time_ms":1,"kind":"x"} "#,
            r#"{"time_ms":1,"kind":"x""#,
            "{\"time_ms\":1,\"kind\":\"x\ty\"}",
        ] {
            assert_eq!(skim(json.as_bytes()), None, "{json}");
        }
        assert_eq!(skim(b"{\"time_ms\":1,\"kind\":\"\xff\"}"), None);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_a_parser_reads(
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, any::<u8>(), any::<bool>()), 1..4),
        ) {
            let mut json = Event::new(Kind::RequestFinished, full()).json.to_vec();
            for (at, edit, byte, common) in edits {
                let at = at.index(json.len());
                let byte = if common { COMMON[usize::from(byte) % COMMON.len()] } else { byte };
                match edit {
                    0 => json[at] = byte,
                    1 => json.insert(at, byte),
                    _ => drop(json.remove(at)),
                }
            }
            compare(&json);
        }
    }
}
