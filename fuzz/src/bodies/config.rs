//! The configuration: any file is accepted or refused in words, and in neither case is a secret shown.

use core::fmt::Debug;
use core::time::Duration;

use pointsman::config::{Config, ConfigError, ENDPOINTS_MAX, Secret, Warning};
use serde_json::Value;

use crate::Grammar;

pub(crate) const WORDS: &[&str] = &[
    "endpoints:",
    "llama_server_endpoints:",
    "api_keys:",
    "router_api_key:",
    "nomyo-router-api-key:",
    "cache_redis_url:",
    "max_concurrent_connections:",
    "queue:",
    "cache_ttl:",
    "db_path:",
    "\n",
    "\n  ",
    "\n  - ",
    "- ",
    ": ",
    "http://a:11434",
    "https://b/v1",
    "http://u:KEY#x@h",
    "http://KEY@h",
    "KEY",
    "${NAME}",
    "${KEY}",
    "NOMYO_ROUTER_API_KEYS=",
    "NOMYO_ROUTER_QUEUE=",
    "&a",
    "*a",
    "*KEY",
    "!KEY",
    "%KEY",
    "<<:",
    "|\n  ",
    "\"",
    "'",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    "#",
    "---\n",
    "...",
    "~",
    "1e400",
    "0x1F",
    "\u{feff}",
    "\t",
    "?",
    "@",
];

pub(crate) const GRAMMAR: Grammar = Grammar {
    opens: &["", "\u{feff}", "NOMYO_ROUTER_API_KEY=KEY\n", "NOMYO_ROUTER_ENDPOINTS=http://a, http://b/v1/\n"],
    records: &[
        "endpoints: [http://a, http://a/v1, HTTP://A/]",
        "endpoints:\n  - http://b:11434/v1\n  - ${NAME}",
        "llama_server_endpoints: http://a/v1",
        "api_keys: {\"http://a\": KEY, \"KEY\": x}",
        "api_keys:\n  http://c: ${KEY}",
        "router_api_key: \"a KEY\"",
        "cache_ttl: null",
        "queue: ${NAME}",
        "queue_max: 1_000",
        "wedged_after_secs: .5",
        "db_path: *KEY",
        "qeue: &KEY [KEY",
        "cache_similarity: 1.5",
    ],
    joints: &["\n", "\n", "\n", "\n  ", "\n- ", ": "],
    closes: &["", "\n", "\n---\n", "]", "\"", "\n\t"],
};

/// Nothing else in any document holds this.
const SECRET: &str = "Zq8-secret-Xw3";

/// Stands for the secret in the input.
const PLACEHOLDER: &str = "KEY";

type Parsed = Result<(Config, Vec<Warning>), Vec<ConfigError>>;

/// Reads the input as a file, and as the choices that make up a file with secrets in its secret places.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    whatever(&text);
    if text.contains(PLACEHOLDER) {
        whatever(&text.replace(PLACEHOLDER, SECRET));
    }
    in_their_places(data);
}

/// Any file. Lines that set one of our environment variables are taken out of it; any other variable is
/// a secret.
fn whatever(text: &str) {
    let is_variable = |line: &&str| line.starts_with("NOMYO_ROUTER_") && line.contains('=');
    let (variables, lines): (Vec<&str>, Vec<&str>) = text.split_inclusive('\n').partition(is_variable);
    let env = |name: &str| {
        if !name.starts_with("NOMYO_ROUTER_") {
            return Some(SECRET.to_owned());
        }
        let set = variables.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        set.map(|value| value.trim_end().to_owned())
    };
    let yaml = lines.concat();
    let parsed = Config::parse(&yaml, &env);
    assert_eq!(seen(&parsed), seen(&Config::parse(&yaml, &env)), "the same file means the same twice");
    match &parsed {
        Ok((config, _)) => is_in_range(config),
        Err(errors) => {
            assert!(!errors.is_empty(), "a refusal says why");
            for error in errors.iter().filter(|error| matches!(error, ConfigError::Syntax { .. })) {
                hides(error, &error.to_string());
            }
        }
    }
    // Where the file itself holds the text, it may stand in a place that is no secret's.
    if !text.contains(SECRET) {
        hides_all(&parsed);
    }
}

/// A file whose lines are the right kind of thing, with the secret only where secrets belong.
fn in_their_places(data: &[u8]) {
    let mut choices = Choices(data);
    let mut yaml = String::new();
    let mut variables: Vec<(&str, String)> = Vec::new();
    for _ in 0..8 {
        match choices.next() % 8 {
            0 => yaml += &format!("{}: {}\n", choices.of(OPEN_KEYS), choices.value()),
            1 => yaml += &format!("{}: {}\n", choices.of(SECRET_KEYS), choices.secret()),
            2 => yaml += &format!("api_keys: {}\n", choices.secret()),
            3 => yaml += &format!("api_keys:\n  {}: {}\n", choices.server(), choices.secret()),
            4 => yaml += &format!("{}:\n  - {}\n", choices.of(LISTS), choices.server()),
            5 => yaml += &format!("{}: {}\n", choices.of(LISTS), choices.server()),
            6 => variables.push((choices.of(SECRET_VARIABLES), choices.secret())),
            _ => variables.push((choices.of(LIST_VARIABLES), choices.server().trim_matches('"').to_owned())),
        }
    }
    let env = |name: &str| match variables.iter().find(|(variable, _)| *variable == name) {
        Some((_, value)) => Some(value.clone()),
        None => (name == "NAME").then(|| format!("with a blank {SECRET}")),
    };
    let parsed = Config::parse(&yaml, &env);
    hides_all(&parsed);
    if let Ok((config, _)) = &parsed {
        is_in_range(config);
    }
}

const OPEN_KEYS: &[&str] =
    &["queue", "cache_ttl", "max_concurrent_connections", "db_path", "no_such_key", "Queue-Max"];
const SECRET_KEYS: &[&str] = &["router_api_key", "nomyo-router-api-key", "cache_redis_url", "Router-API-Key"];
const LISTS: &[&str] = &["endpoints", "llama_server_endpoints"];
const SECRET_VARIABLES: &[&str] =
    &["NOMYO_ROUTER_API_KEY", "NOMYO_ROUTER_API_KEYS", "NOMYO_ROUTER_CACHE_REDIS_URL"];
const LIST_VARIABLES: &[&str] = &["NOMYO_ROUTER_ENDPOINTS", "NOMYO_ROUTER_LLAMA_SERVER_ENDPOINTS"];

/// The input, read as choices; once it is used up, the first of everything.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, table: &[T]) -> T {
        table[usize::from(self.next()) % table.len()]
    }

    /// A text of the input's own bytes, in quotes that nothing in it can end.
    fn text(&mut self) -> String {
        let (text, rest) = self.0.split_at(self.0.len().min(6));
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn value(&mut self) -> String {
        match self.next() % 2 {
            0 => Value::from(self.text()).to_string(),
            _ => self.of(&["true", "7", "0.5", "~", "[]", "{a: b}", "${NAME}", "${UNSET}"]).to_owned(),
        }
    }

    /// A secret, well-formed or not.
    fn secret(&mut self) -> String {
        let form = self.of(&[
            "S",
            "\"S\"",
            "\"with a blank S\"",
            "'S\tS'",
            "\"S\\n\"",
            "[S]",
            "{S: S}",
            "{\"http://a\": S}",
            "{\"http://a\": [S, S]}",
            "{\"S\": \"http://a\"}",
            "{\"http://a\": \"a S\"}",
            "|\n    S\n    S",
            "&S S",
            "*S",
            "!S S",
            "${NAME}",
            "\"S",
            "[S",
            "{S: ",
            "0S",
            "- S",
            "? S",
            "@S",
            "`S`",
            "\"\\S\"",
            "%S",
        ]);
        form.replace('S', SECRET)
    }

    /// A server's URL, with a secret where user names, passwords and queries are.
    fn server(&mut self) -> String {
        let form = self.of(&[
            "http://a",
            "http://b:11434/v1",
            "http://u:S@h",
            "http://S@h/v1",
            "https://u:S@h:1/v1?x",
            "http://u:p@S@h",
            "http://h/v1?key=S",
            "http://h/#S",
            "http://u:S#x@h",
            "http://S#x@h",
            "http://u:p@S#x@h",
            "http://u:x#S@h",
            "http://u:S?x@h",
            "http://u:x?S@h",
            "http://u:S/x@h",
            "http://u:S\\x@h",
            "HTTP://u:S@h",
            "u:S@h",
            "//u:S@h",
            "http:/u:S@h",
            "ftp://u:S@h",
            "http://h:port",
            "${NAME}",
        ]);
        Value::from(form.replace('S', SECRET)).to_string()
    }
}

/// Every limit that the documentation of `Config` names.
fn is_in_range(config: &Config) {
    let Config { endpoints, max_concurrent_connections, queue_max, attempts_max, cache, .. } = config;
    assert!((1..=ENDPOINTS_MAX).contains(&endpoints.len()));
    for (index, endpoint) in endpoints.iter().enumerate() {
        let same = endpoints[..index].iter().find(|earlier| earlier.base == endpoint.base);
        assert!(same.is_none(), "one server is one endpoint: {endpoint:?} and {same:?}");
        for url in [&endpoint.url, &endpoint.base, &endpoint.openai_base] {
            assert!(url.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("http")), "{url}");
            assert!(!url.ends_with('/') && !url.contains(['?', '#', ' ', '\n']), "{url}");
        }
        let server = endpoint.base.split('/').nth(2);
        assert!(server.is_some_and(|server| !server.is_empty() && !server.contains('@')), "{server:?}");
        assert!(endpoint.api_key.as_ref().is_none_or(can_be_a_header));
    }
    assert!(config.router_api_key.as_ref().is_none_or(can_be_a_header));
    assert!((1..=1_000_000).contains(max_concurrent_connections) && *queue_max <= 1_000_000);
    assert!((1..=100).contains(attempts_max) && (1..=1_000_000).contains(&config.breaker_failures));
    assert!((0.0..=1.0).contains(&cache.similarity) && (0.0..=1.0).contains(&cache.history_weight));
    assert!((1..=1 << 32).contains(&config.body_limit_bytes));
    let times = [
        config.queue_timeout,
        config.connect_timeout,
        config.first_byte_timeout,
        config.idle_timeout,
        config.listing_timeout,
        config.header_timeout,
        config.drain_grace,
        config.flush_interval,
        config.breaker_open,
        config.wedged_after,
        cache.ttl.unwrap_or(Duration::from_secs(1)),
    ];
    assert!(times.iter().all(|time| (0.001..=31_536_000.0).contains(&time.as_secs_f64())));
}

fn can_be_a_header(secret: &Secret) -> bool {
    !secret.expose().is_empty() && !secret.expose().contains(|c: char| c.is_control() || c.is_whitespace())
}

fn seen(parsed: &Parsed) -> String {
    format!("{parsed:?}")
}

fn hides_all(parsed: &Parsed) {
    match parsed {
        Err(errors) => errors.iter().for_each(|error| hides(error, &error.to_string())),
        Ok((config, warnings)) => {
            warnings.iter().for_each(|warning| hides(warning, &warning.to_string()));
            // A path or a URL without a password is no secret, wherever it comes from.
            let mut config = config.clone();
            config.db_path = None;
            config.cache.db_path = None;
            for endpoint in &mut config.endpoints {
                endpoint.url.clear();
                endpoint.base.clear();
                endpoint.openai_base.clear();
            }
            hides(&config, "");
        }
    }
}

fn hides(shown: &impl Debug, display: &str) {
    let debug = format!("{shown:?}");
    assert!(!display.contains(SECRET), "a secret is shown: {display}");
    assert!(!debug.contains(SECRET), "a secret is shown: {debug}");
}
