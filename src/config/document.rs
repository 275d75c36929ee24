//! A YAML document as a small tree in which every value knows its line.
//!
//! It exists because a wrong value must be named with its line, and an API key that looks like a
//! number must keep its spelling. Scalars therefore stay text; `key` says what each must be.
//! `super` parses the file through here, and environment variables that hold a list or a map.

use core::fmt;

use serde::de::{Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Options, Spanned, UserMessageFormatter};

use super::complaint::{ConfigError, Place};

/// The most bytes a configuration file may have.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// A line of the file, or the environment variable that goes before it.
    pub(super) place: Place,
    /// The environment variable that a `${NAME}` was replaced from.
    pub(super) variable: Option<String>,
    /// The value itself.
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Any other scalar, quoted or not, as it is spelled.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the file's order; keys may repeat.
    Map(Vec<(String, Node)>),
}

/// Parses one document. Without any, the root is [`Value::Null`].
pub(super) fn parse(yaml: &str) -> Result<Node, ConfigError> {
    if yaml.len() > BYTES_MAX {
        return Err(ConfigError::TooLarge { bytes: yaml.len(), max: BYTES_MAX });
    }
    if yaml.lines().all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node { place: Place::Unknown, variable: None, value: Value::Null });
    }
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(yaml, options()) {
        Ok(root) => Ok(node(root, yaml)),
        Err(error) => {
            let place = error.location();
            // The problem in the parser's words for users, without the snippet of the file that
            // it would add: a file with API keys is not to be quoted.
            let said = error.without_snippet().render_with_formatter(&UserMessageFormatter);
            let problem = without_quotations(said.split(" at line ").next().unwrap_or_default());
            let (line, column) = place.map_or((0, 0), |place| (place.line(), place.column()));
            Err(ConfigError::Syntax { line, column, problem })
        }
    }
}

/// The text without what it quotes in backticks, which may come from the file; punctuation stays.
fn without_quotations(text: &str) -> String {
    let shown = |(index, part): (usize, &str)| match (index % 2, part.len()) {
        (0, _) => part.to_owned(),
        (_, 0..=3) => format!("`{part}`"),
        _ => "...".to_owned(),
    };
    text.split('`').enumerate().map(shown).collect()
}

/// The value of an environment variable: a list or a map in YAML's (or JSON's) brackets, or a text.
/// `None` if the brackets are not valid.
pub(super) fn from_variable(name: &str, text: &str) -> Option<Node> {
    let place = Place::Variable(name.to_owned());
    if text.trim_start().starts_with(['[', '{']) {
        let mut node = parse(text).ok()?;
        relocate(&mut node, &place);
        return Some(node);
    }
    Some(Node { place, variable: None, value: Value::Text(text.to_owned()) })
}

fn relocate(node: &mut Node, place: &Place) {
    node.place = place.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| relocate(item, place)),
        Value::Map(pairs) => pairs.iter_mut().for_each(|(_, value)| relocate(value, place)),
        Value::Null | Value::Text(_) => {}
    }
}

/// Small budgets: the largest honest file has ten thousand endpoints, each with a key.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: 16,
            max_nodes: 100_000,
            max_events: 200_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 100,
            max_total_scalar_bytes: BYTES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        // Python's YAML takes the last of several; so do we, with a warning.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // They may be keys: `1e400` has a spelling, and that is what is asked for.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    }
}

/// A value as the parser hands it over: scalars with a type have lost their spelling.
enum Raw {
    Null,
    Text(String),
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Raw, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, yaml: &str) -> Node {
    let place = match raw.referenced.line() {
        0 => Place::Unknown,
        line => Place::Line(line),
    };
    let spelled = || {
        let span = raw.defined.span();
        let from = usize::try_from(span.byte_offset()?).ok()?;
        let to = from.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
        yaml.get(from..to).map(str::trim).filter(|text| !text.is_empty())
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Text(text),
        Raw::Typed(text) => Value::Text(spelled().map_or(text, str::to_owned)),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, yaml)).collect()),
        Raw::Map(pairs) => {
            Value::Map(pairs.into_iter().map(|(key, value)| (key.into_key(), node(value, yaml))).collect())
        }
    };
    Node { place, variable: None, value }
}

impl Raw {
    /// A key that is not a scalar matches nothing we know.
    fn into_key(self) -> String {
        match self {
            Raw::Text(text) | Raw::Typed(text) => text,
            Raw::Null => "null".to_owned(),
            Raw::List(_) => "[...]".to_owned(),
            Raw::Map(_) => "{...}".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Raw, E> {
        Ok(Raw::Text(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(pair) = pairs.next_entry()? {
            map.push(pair);
        }
        Ok(Raw::Map(map))
    }

    /// A tag of somebody's own: the value counts, the tag does not.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Raw, A::Error> {
        let (_tag, value): (serde::de::IgnoredAny, A::Variant) = data.variant()?;
        value.newtype_variant()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(yaml: &str, key: &str) -> Node {
        let Value::Map(pairs) = parse(yaml).unwrap().value else { panic!("{yaml} is no map") };
        pairs.into_iter().find(|(name, _)| name == key).unwrap().1
    }

    fn text(yaml: &str) -> String {
        match get(yaml, "k").value {
            Value::Text(text) => text,
            other => panic!("{yaml}: {other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_spelling() {
        for (yaml, expected) in [
            ("k: 0123", "0123"),
            ("k: 1.10", "1.10"),
            ("k: 12_3 # a comment", "12_3"),
            ("k: 0x1F", "0x1F"),
            (
                "k: 123456789012345678901234567890123456789012345678901234567890",
                "123456789012345678901234567890123456789012345678901234567890",
            ),
            ("k: 1e400", "1e400"),
            ("k: Yes", "Yes"),
            ("k: 'true'", "true"),
            ("k: \"a\\tb\"", "a\tb"),
            ("k: ${NAME}", "${NAME}"),
            ("é: 1\nk: 007", "007"),
            ("a: &x 010\nk: *x", "010"),
        ] {
            assert_eq!(text(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let yaml = "# first\na:\n  - x\n  - y\nb:\n\n  c: 1\n";
        let Value::List(items) = get(yaml, "a").value else { panic!() };
        assert_eq!([&items[0].place, &items[1].place], [&Place::Line(3), &Place::Line(4)]);
        let Value::Map(pairs) = get(yaml, "b").value else { panic!() };
        assert_eq!((pairs[0].0.as_str(), &pairs[0].1.place), ("c", &Place::Line(7)));
    }

    #[test]
    fn nothing_is_null() {
        for yaml in ["", "\n  \n", "# only\n   # comments\n", "---\n", "~", "--- # nothing\n..."] {
            assert!(matches!(parse(yaml).unwrap().value, Value::Null), "{yaml:?}");
        }
        assert!(matches!(get("k:", "k").value, Value::Null));
        assert!(matches!(get("k: ~", "k").value, Value::Null));
    }

    #[test]
    fn a_syntax_error_has_a_line_and_a_column_and_quotes_nothing() {
        for yaml in [
            "a: 1\nb: [sk-secret",
            "a: 1\n  b: sk-secret\n c: 2",
            "a: 1\nb: 'sk-secret",
            "a: 1\n\tb: sk-secret",
        ] {
            let error = parse(yaml).unwrap_err();
            let ConfigError::Syntax { line, column, .. } = &error else { panic!("{error}") };
            assert!(*line >= 1 && *column >= 1, "{yaml:?}: {error}");
            assert!(!error.to_string().contains("secret"), "{yaml:?}: {error}");
        }
    }

    #[test]
    fn a_hostile_document_is_refused_not_unfolded() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(b'b'..=b'j')
                .map(|c| {
                    let (this, last) = (c as char, (c - 1) as char);
                    format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(","))
                })
                .collect::<String>();
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        for yaml in [bomb, deep, "a: &a [*a]".to_owned(), "a: 1\n---\nb: 2".to_owned()] {
            assert!(matches!(parse(&yaml), Err(ConfigError::Syntax { .. })), "{yaml:.40}");
        }
        assert!(matches!(parse(&" ".repeat(BYTES_MAX + 1)), Err(ConfigError::TooLarge { .. })));
    }

    #[test]
    fn repeated_keys_are_all_there_in_order() {
        let Value::Map(pairs) = parse("a: 1\nb: 2\na: 3\n").unwrap().value else { panic!() };
        let names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "a"]);
    }
}
