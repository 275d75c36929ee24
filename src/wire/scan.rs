//! A JSON scanner that can stop at any byte and go on at the next: it remembers where it stands, the
//! facts found so far and nothing else, so an embedding answer of many megabytes costs it no memory.
//! It looks into the five containers that carry facts (`Level`) and leaps over all others with SIMD
//! searches. On valid JSON it agrees with a full parser (last duplicate wins); on broken JSON it never
//! closes or reports what it saw. Called by `lines` for stream records and by `usage` for whole bodies.

use memchr::{memchr2, memchr3};

/// Counts above this (2^53, where JSON numbers stop being exact) are ignored.
const COUNT_MAX: u64 = 1 << 53;
/// The longest member name anybody asks for: `prompt_eval_count`, `completion_tokens`.
const NAME_MAX: usize = 17;

/// A count of input and of output tokens; `None` is "not said, or not a count".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub input: Option<u64>,
    pub output: Option<u64>,
}

/// What one JSON document said, as far as the router cares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Ollama: top-level `prompt_eval_count` and `eval_count`.
    pub eval: Counts,
    /// OpenAI: `usage.prompt_tokens` and `usage.completion_tokens`.
    pub usage: Counts,
    /// llama.cpp: `timings.prompt_n` and `timings.predicted_n`.
    pub timings: Counts,
    /// A top-level `usage` that is an object.
    pub has_usage: bool,
    /// A top-level `choices` that is an empty array.
    pub no_choices: bool,
    /// Some `choices[].finish_reason` is a non-empty string.
    pub finished: bool,
    /// A top-level `done` that is `true`.
    pub done: bool,
    /// A top-level `error` that is a string or an object.
    pub error: bool,
}

/// The containers the scanner looks into; all others are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Usage,
    Timings,
    Choices,
    Choice,
}

/// What the value that comes next is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    Input(Level),
    Output(Level),
    Enter(Level),
    Done,
    Error,
    Finish,
}

const WANTED: &[(Level, &[u8], Want)] = &[
    (Level::Root, b"done", Want::Done),
    (Level::Root, b"error", Want::Error),
    (Level::Root, b"prompt_eval_count", Want::Input(Level::Root)),
    (Level::Root, b"eval_count", Want::Output(Level::Root)),
    (Level::Root, b"usage", Want::Enter(Level::Usage)),
    (Level::Root, b"timings", Want::Enter(Level::Timings)),
    (Level::Root, b"choices", Want::Enter(Level::Choices)),
    (Level::Usage, b"prompt_tokens", Want::Input(Level::Usage)),
    (Level::Usage, b"completion_tokens", Want::Output(Level::Usage)),
    (Level::Timings, b"prompt_n", Want::Input(Level::Timings)),
    (Level::Timings, b"predicted_n", Want::Output(Level::Timings)),
    (Level::Choice, b"finish_reason", Want::Finish),
];

/// Where in the text the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A value must start: at the top, after `:`, or in an array.
    Value,
    /// In an object: a name or `}` must follow.
    Key,
    /// Inside a name.
    Name,
    /// After a name.
    Colon,
    /// Inside a string value.
    Text,
    /// Inside a number or a literal.
    Scalar,
    /// Inside a container that nobody asked for.
    Skip,
    /// Inside a string of such a container.
    SkipText,
    /// After a value: `,` or the end of the container.
    Next,
    /// The top-level value ended. Of what follows it is only noted whether it is blank.
    Closed,
    /// This is not JSON.
    Broken,
}

/// How much of an escape in a name has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    No,
    Backslash,
    /// Inside `\uXXXX`: digits still to come, value so far.
    Hex(u8, u32),
}

/// The scanner; see the file's head. About 150 bytes, and no allocation ever.
#[derive(Debug, Clone)]
pub(super) struct Scanner {
    facts: Facts,
    step: Step,
    /// The container the scanner stands in; `None` outside the top-level value.
    level: Option<Level>,
    want: Want,
    /// The name being read, as far as it could still be a wanted one.
    name: [u8; NAME_MAX],
    /// Its length; `NAME_MAX + 1` once it can no longer be a wanted name.
    name_len: usize,
    /// Escape being read inside a name.
    escape: Escape,
    /// A backslash was the last byte of a string value so far.
    backslash: bool,
    /// The string value being read holds at least one byte.
    filled: bool,
    /// The number being read, while it is still a whole one in range.
    number: Option<u64>,
    /// How many bytes of `true` the literal being read has matched; 0 is "another word".
    truth: usize,
    /// Bracket pair and depth of the container being skipped.
    skip: (u8, u8, u64),
    /// The choice being read has a finish reason.
    choice_finished: bool,
    /// Something other than blanks followed the top-level value.
    litter: bool,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Scanner {
            facts: Facts::default(),
            step: Step::Value,
            level: None,
            want: Want::Nothing,
            name: [0; NAME_MAX],
            name_len: 0,
            escape: Escape::No,
            backslash: false,
            filled: false,
            number: None,
            truth: 0,
            skip: (0, 0, 0),
            choice_finished: false,
            litter: false,
        }
    }

    /// What was found so far. Final once [`Scanner::closed`] says so.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the top-level value has ended.
    pub(super) fn closed(&self) -> bool {
        self.step == Step::Closed
    }

    /// Whether it has ended and nothing but blanks followed.
    pub(super) fn closed_clean(&self) -> bool {
        self.closed() && !self.litter
    }

    /// Says that no byte follows, which is the only end a bare top-level number has.
    pub(super) fn end(&mut self) {
        if self.step == Step::Scalar && self.level.is_none() {
            self.end_scalar();
        }
    }

    /// Reads on. The document may be cut at any byte.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match self.step {
                Step::Closed => {
                    self.litter |= !rest.trim_ascii_start().is_empty();
                    return;
                }
                Step::Broken => return,
                Step::Text | Step::SkipText => rest = self.read_text(rest),
                Step::Skip => rest = self.read_skipped(rest),
                Step::Name => rest = self.read_name(rest),
                Step::Scalar => rest = self.read_scalar(rest),
                Step::Value | Step::Key | Step::Colon | Step::Next => {
                    if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                        self.read_mark(byte);
                    }
                    rest = after;
                }
            }
        }
    }

    /// One byte between names and values; never whitespace.
    fn read_mark(&mut self, byte: u8) {
        self.step = match (self.step, byte) {
            (Step::Key, b'"') => {
                self.name_len = 0;
                self.escape = Escape::No;
                Step::Name
            }
            (Step::Colon, b':') => Step::Value,
            (Step::Next, b',') if self.level == Some(Level::Choices) => Step::Value,
            (Step::Next, b',') => Step::Key,
            (Step::Key | Step::Next, b'}') if self.level != Some(Level::Choices) => self.leave(),
            (Step::Value | Step::Next, b']') if self.level == Some(Level::Choices) => self.leave(),
            (Step::Value, _) => self.open_value(byte),
            _ => Step::Broken,
        }
    }

    /// The first byte of a value.
    fn open_value(&mut self, byte: u8) -> Step {
        if self.level == Some(Level::Choices) {
            self.facts.no_choices = false;
        }
        match byte {
            b'{' => match (self.level, self.want) {
                (None, _) => self.enter(Level::Root),
                (Some(Level::Choices), _) => self.enter(Level::Choice),
                (_, Want::Enter(level @ (Level::Usage | Level::Timings))) => self.enter(level),
                (_, want) => {
                    self.facts.error |= want == Want::Error;
                    self.skip = (b'{', b'}', 1);
                    Step::Skip
                }
            },
            b'[' if self.want == Want::Enter(Level::Choices) => self.enter(Level::Choices),
            b'[' => {
                self.skip = (b'[', b']', 1);
                Step::Skip
            }
            b'"' => {
                self.filled = false;
                self.backslash = false;
                Step::Text
            }
            b'0'..=b'9' => {
                self.number = Some(u64::from(byte - b'0'));
                self.truth = 0;
                Step::Scalar
            }
            b'-' | b'a'..=b'z' | b'A'..=b'Z' => {
                self.number = None;
                self.truth = usize::from(byte == b't');
                Step::Scalar
            }
            _ => Step::Broken,
        }
    }

    fn enter(&mut self, level: Level) -> Step {
        self.level = Some(level);
        self.want = Want::Nothing;
        match level {
            Level::Usage => self.facts.has_usage = true,
            Level::Choice => self.choice_finished = false,
            Level::Choices => {
                self.facts.no_choices = true;
                return Step::Value;
            }
            Level::Root | Level::Timings => {}
        }
        Step::Key
    }

    fn leave(&mut self) -> Step {
        self.level = match self.level {
            None | Some(Level::Root) => None,
            Some(Level::Usage | Level::Timings | Level::Choices) => Some(Level::Root),
            Some(Level::Choice) => {
                self.facts.finished |= self.choice_finished;
                Some(Level::Choices)
            }
        };
        self.after_value()
    }

    fn after_value(&mut self) -> Step {
        self.want = Want::Nothing;
        if self.level.is_none() { Step::Closed } else { Step::Next }
    }

    /// Reads a name up to its closing quote, its next escape or the end of `bytes`.
    fn read_name<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        if self.escape == Escape::No {
            let plain = bytes.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(bytes.len());
            self.push_name(&bytes[..plain]);
            rest = &bytes[plain..];
        }
        let Some((&byte, rest)) = rest.split_first() else { return &[] };
        match self.escape {
            Escape::No if byte == b'"' => self.close_name(),
            Escape::No => self.escape = Escape::Backslash,
            Escape::Backslash if byte == b'u' => self.escape = Escape::Hex(4, 0),
            // No wanted name holds a character that the short escapes can write.
            Escape::Backslash => {
                self.escape = Escape::No;
                self.name_len = NAME_MAX + 1;
            }
            Escape::Hex(left, value) => match (byte as char).to_digit(16) {
                None => self.step = Step::Broken,
                Some(digit) if left > 1 => self.escape = Escape::Hex(left - 1, value * 16 + digit),
                Some(digit) => {
                    self.escape = Escape::No;
                    // Wanted names are ASCII; any other character spoils the name.
                    self.push_name(&[u8::try_from(value * 16 + digit).unwrap_or(0)]);
                }
            },
        }
        rest
    }

    fn push_name(&mut self, part: &[u8]) {
        let end = self.name_len + part.len();
        match self.name.get_mut(self.name_len..end) {
            Some(place) => {
                place.copy_from_slice(part);
                self.name_len = end;
            }
            None => self.name_len = NAME_MAX + 1,
        }
    }

    fn close_name(&mut self) {
        self.step = Step::Colon;
        self.want = match (self.name.get(..self.name_len), self.level) {
            (Some(name), Some(level)) => WANTED
                .iter()
                .find(|(at, wanted, _)| *at == level && *wanted == name)
                .map_or(Want::Nothing, |(_, _, want)| *want),
            _ => Want::Nothing,
        };
        // A repeated member replaces the earlier one, so what that one said is forgotten.
        match self.want {
            Want::Nothing => {}
            Want::Input(level) => self.counts(level).input = None,
            Want::Output(level) => self.counts(level).output = None,
            Want::Enter(Level::Usage) => {
                self.facts.usage = Counts::default();
                self.facts.has_usage = false;
            }
            Want::Enter(Level::Timings) => self.facts.timings = Counts::default(),
            Want::Enter(_) => {
                self.facts.no_choices = false;
                self.facts.finished = false;
            }
            Want::Done => self.facts.done = false,
            Want::Error => self.facts.error = false,
            Want::Finish => self.choice_finished = false,
        }
    }

    fn counts(&mut self, level: Level) -> &mut Counts {
        match level {
            Level::Usage => &mut self.facts.usage,
            Level::Timings => &mut self.facts.timings,
            Level::Root | Level::Choices | Level::Choice => &mut self.facts.eval,
        }
    }

    /// Reads a number or a literal up to its delimiter, which is left, or the end of `bytes`.
    fn read_scalar<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, &byte) in bytes.iter().enumerate() {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')) {
                self.end_scalar();
                return &bytes[at..];
            }
            self.number = match (self.number, byte) {
                (Some(n), b'0'..=b'9') => {
                    n.checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')))
                }
                _ => None,
            };
            let matches = self.truth > 0 && b"true".get(self.truth) == Some(&byte);
            self.truth = if matches { self.truth + 1 } else { 0 };
        }
        &[]
    }

    fn end_scalar(&mut self) {
        let count = self.number.filter(|n| *n <= COUNT_MAX);
        match self.want {
            Want::Input(level) => self.counts(level).input = count,
            Want::Output(level) => self.counts(level).output = count,
            Want::Done => self.facts.done = self.truth == b"true".len(),
            Want::Nothing | Want::Enter(_) | Want::Error | Want::Finish => {}
        }
        self.step = self.after_value();
    }

    /// Reads a string up to its closing quote or the end of `bytes`; returns what is left.
    fn read_text<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut at = usize::from(self.backslash);
        self.filled |= self.backslash;
        self.backslash = false;
        while let Some(found) = memchr2(b'"', b'\\', &bytes[at..]) {
            self.filled |= found > 0;
            at += found;
            if bytes[at] == b'"' {
                self.close_text();
                return &bytes[at + 1..];
            }
            self.filled = true;
            if at + 1 == bytes.len() {
                self.backslash = true;
                return &[];
            }
            at += 2;
        }
        self.filled |= at < bytes.len();
        &[]
    }

    fn close_text(&mut self) {
        if self.step == Step::SkipText {
            self.step = Step::Skip;
            return;
        }
        match self.want {
            Want::Error => self.facts.error = true,
            Want::Finish => self.choice_finished = self.filled,
            _ => {}
        }
        self.step = self.after_value();
    }

    /// Leaps to the next quote or bracket of the skipped kind. The other kind of bracket need not be
    /// counted: in JSON the two nest properly.
    fn read_skipped<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (open, close, mut depth) = self.skip;
        let mut at = 0;
        while let Some(found) = memchr3(b'"', open, close, &bytes[at..]) {
            at += found + 1;
            match bytes[at - 1] {
                b'"' => {
                    self.backslash = false;
                    self.step = Step::SkipText;
                    break;
                }
                byte if byte == open => depth += 1,
                _ => depth -= 1,
            }
            if depth == 0 {
                self.step = self.after_value();
                break;
            }
        }
        self.skip.2 = depth;
        if self.step == Step::Skip { &[] } else { &bytes[at..] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn scan(text: &[u8]) -> Scanner {
        let mut scanner = Scanner::new();
        scanner.push(text);
        scanner.end();
        scanner
    }

    fn count(value: Option<&Value>) -> Option<u64> {
        value.and_then(Value::as_u64).filter(|n| *n <= COUNT_MAX)
    }

    fn pair(object: Option<&Value>, input: &str, output: &str) -> Counts {
        let of = |key| count(object.and_then(|o| o.as_object()).and_then(|o| o.get(key)));
        Counts { input: of(input), output: of(output) }
    }

    /// The same facts by way of a full parser.
    fn facts_by_serde(doc: &Value) -> Facts {
        let choices = doc.get("choices").and_then(Value::as_array);
        let reason = |c: &Value| {
            c.as_object()
                .and_then(|c| c.get("finish_reason"))
                .and_then(Value::as_str)
                .is_some_and(|s| !s.is_empty())
        };
        Facts {
            eval: pair(Some(doc), "prompt_eval_count", "eval_count"),
            usage: pair(doc.get("usage"), "prompt_tokens", "completion_tokens"),
            timings: pair(doc.get("timings"), "prompt_n", "predicted_n"),
            has_usage: doc.get("usage").is_some_and(Value::is_object),
            no_choices: choices.is_some_and(Vec::is_empty),
            finished: choices.is_some_and(|c| c.iter().any(reason)),
            done: doc.get("done") == Some(&Value::Bool(true)),
            error: doc.get("error").is_some_and(|e| e.is_string() || e.is_object()),
        }
    }

    fn names() -> impl Strategy<Value = String> {
        let known = WANTED.iter().map(|(_, name, _)| String::from_utf8_lossy(name).into_owned());
        prop_oneof![
            6 => proptest::sample::select(known.collect::<Vec<_>>()),
            1 => "\\PC{0,24}",
            1 => Just("completion_tokens_".to_string()),
        ]
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (0u64..5000).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9f64..1e9).prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            Just(Value::from("\"usage\":{\"prompt_tokens\":9}\\")),
            Just(Value::from("")),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((names(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Writes every letter of every name as `\u00XX`, which says the same.
    fn with_escaped_names(value: &Value) -> String {
        match value {
            Value::Object(members) => {
                let one = |(name, value): (&String, &Value)| {
                    let name: String = name
                        .chars()
                        .map(|c| match c {
                            'a'..='z' | '_' | '"' | '\\' => format!("\\u{:04X}", c as u32),
                            c => c.to_string(),
                        })
                        .collect();
                    format!("\"{name}\" :\t{}", with_escaped_names(value))
                };
                format!("{{ {} }}", members.iter().map(one).collect::<Vec<_>>().join(" ,\n"))
            }
            Value::Array(items) => {
                format!("[{}]", items.iter().map(with_escaped_names).collect::<Vec<_>>().join(", "))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn the_scanner_agrees_with_a_full_parser(doc in documents()) {
            for text in [doc.to_string(), serde_json::to_string_pretty(&doc).unwrap()] {
                let scanner = scan(text.as_bytes());
                prop_assert!(scanner.closed());
                prop_assert_eq!(*scanner.facts(), facts_by_serde(&doc));
            }
        }

        #[test]
        fn escaped_names_are_the_same_names(doc in documents()) {
            let text = with_escaped_names(&doc);
            let same: Value = serde_json::from_str(&text).unwrap();
            let scanner = scan(text.as_bytes());
            prop_assert!(scanner.closed());
            prop_assert_eq!(*scanner.facts(), facts_by_serde(&same));
        }

        #[test]
        fn where_the_text_is_cut_makes_no_difference(doc in documents(), cut in 1usize..9) {
            let text = doc.to_string();
            let mut scanner = Scanner::new();
            for part in text.as_bytes().chunks(cut) {
                scanner.push(part);
            }
            scanner.end();
            prop_assert!(scanner.closed());
            prop_assert_eq!(*scanner.facts(), facts_by_serde(&doc));
        }

        #[test]
        fn a_prefix_never_closes(doc in documents(), at in any::<proptest::sample::Index>()) {
            let text = format!("{{\"usage\":{doc}}}");
            let cut = at.index(text.len());
            prop_assert!(!scan(&text.as_bytes()[..cut]).closed());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            scan(&bytes);
        }

        #[test]
        fn bytes_that_look_like_json_never_panic(text in "[\\[\\]{}\",:\\\\ut0-9a-f. \n-]{0,200}") {
            scan(text.as_bytes());
            scan(format!("{{\"usage\":{text}").as_bytes());
            scan(format!("{{\"choices\":[{text}").as_bytes());
        }
    }

    #[test]
    fn counts_that_are_no_counts_are_ignored() {
        for bad in ["-1", "1.5", "1e3", "9007199254740993", "99999999999999999999", "\"7\"", "null", "[7]"] {
            let text = format!("{{\"eval_count\":{bad},\"prompt_eval_count\":9007199254740992}}");
            assert_eq!(
                scan(text.as_bytes()).facts().eval,
                Counts { input: Some(1 << 53), output: None },
                "{bad}"
            );
        }
    }

    #[test]
    fn the_last_of_repeated_members_wins() {
        let twice = scan(br#"{"usage":{"prompt_tokens":1,"prompt_tokens":2,"completion_tokens":5},"eval_count":1,"eval_count":null,"done":true,"done":false}"#);
        assert_eq!(twice.facts().usage, Counts { input: Some(2), output: Some(5) });
        assert_eq!(twice.facts().eval, Counts::default());
        assert!(!twice.facts().done);
        let gone = scan(br#"{"usage":{"prompt_tokens":1},"usage":null,"error":"x","error":null}"#);
        assert_eq!(*gone.facts(), Facts::default());
    }

    #[test]
    fn any_choice_that_finished_counts() {
        for (choices, finished) in [
            (r#"[{"finish_reason":"stop"},{"finish_reason":null}]"#, true),
            (r#"[{"finish_reason":null},{"delta":{"finish_reason":"stop"}},7]"#, false),
            (r#"[{"finish_reason":"stop","finish_reason":null}]"#, false),
            (r#"[{"finish_reason":""}]"#, false),
            (r#"[[{"finish_reason":"stop"}]]"#, false),
        ] {
            let text = format!("{{\"choices\":{choices}}}");
            assert_eq!(scan(text.as_bytes()).facts().finished, finished, "{choices}");
        }
    }

    #[test]
    fn text_that_is_not_json_is_never_closed() {
        for text in ["", " ", "{", "{,}", "{\"a\" 1}", "{\"a\":}", "{\"usage\":{]}", "}", "{1:2}", "\"abc"] {
            assert!(!scan(text.as_bytes()).closed(), "{text}");
        }
    }

    #[test]
    fn bodies_that_are_not_objects_close_too() {
        for text in ["[1,[2,{\"a\":\"]\"}]]", "\"a\\\"b\"", "12.5", "true", " null\n"] {
            let scanner = scan(text.as_bytes());
            assert!(scanner.closed(), "{text}");
            assert_eq!(*scanner.facts(), Facts::default());
        }
    }
}
