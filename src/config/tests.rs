//! What the configuration promises: the seed router's file as it is, and clear words for mistakes.

use proptest::prelude::*;

use super::*;
use crate::wire::Kind;

type Parsed = Result<(Config, Vec<Warning>), Vec<ConfigError>>;

fn parse_with(yaml: &str, env: &[(&str, &str)]) -> Parsed {
    Config::parse(yaml, &|name| {
        env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn parse(yaml: &str) -> Parsed {
    parse_with(yaml, &[])
}

fn quiet(yaml: &str) -> Config {
    let (config, warnings) = parse(yaml).unwrap_or_else(|errors| panic!("{yaml}\n{errors:?}"));
    assert_eq!(warnings, [], "{yaml}");
    config
}

fn warned(yaml: &str) -> Vec<String> {
    parse(yaml).unwrap().1.iter().map(Warning::to_string).collect()
}

fn refused(yaml: &str) -> Vec<String> {
    parse(yaml).expect_err(yaml).iter().map(ConfigError::to_string).collect()
}

/// Kind, URL, base and where its OpenAI-style interface is.
fn summary(config: &Config) -> Vec<(Kind, &str, &str, &str)> {
    config.endpoints.iter().map(|e| (e.kind, &*e.url, &*e.base, &*e.openai_base)).collect()
}

fn kinds(yaml: &str) -> Vec<(Kind, String)> {
    quiet(yaml).endpoints.into_iter().map(|endpoint| (endpoint.kind, endpoint.url)).collect()
}

fn key_of(endpoint: &EndpointConfig) -> Option<&str> {
    endpoint.api_key.as_ref().map(Secret::expose)
}

#[test]
fn a_file_of_the_seed_router_is_read_as_it_is() {
    let yaml = r#"
# Backends
endpoints:
  - http://192.168.0.50:11434
  - http://192.168.0.51:11434/
  - https://api.openai.com/v1
llama_server_endpoints:
  - http://192.168.0.52:8889/v1

max_concurrent_connections: 2
nomyo-router-api-key: ""

api_keys:
  "http://192.168.0.50:11434": "ollama"
  "http://192.168.0.51:11434": "ollama"
  "https://api.openai.com/v1": "${OPENAI_KEY}"
  "http://192.168.0.52:8889/v1": "llama"

db_path: token_counts.db
cache_enabled: false
cache_backend: sqlite
cache_similarity: 0.9
cache_ttl: null
cache_db_path: llm_cache.db
cache_redis_url: "redis://localhost:6379/0"
cache_history_weight: 0.3
"#;
    let (config, warnings) = parse_with(yaml, &[("OPENAI_KEY", "sk-1")]).unwrap();
    assert_eq!(warnings, [Warning::EmptyApiKey { key: "router_api_key".to_owned(), variable: None }]);
    assert_eq!(
        summary(&config),
        [
            (
                Kind::Ollama,
                "http://192.168.0.50:11434",
                "http://192.168.0.50:11434",
                "http://192.168.0.50:11434/v1"
            ),
            (
                Kind::Ollama,
                "http://192.168.0.51:11434",
                "http://192.168.0.51:11434",
                "http://192.168.0.51:11434/v1"
            ),
            (
                Kind::OpenAi,
                "https://api.openai.com/v1",
                "https://api.openai.com",
                "https://api.openai.com/v1"
            ),
            (
                Kind::LlamaServer,
                "http://192.168.0.52:8889/v1",
                "http://192.168.0.52:8889",
                "http://192.168.0.52:8889/v1"
            ),
        ]
    );
    let keys: Vec<_> = config.endpoints.iter().map(key_of).collect();
    assert_eq!(keys, [Some("ollama"), Some("ollama"), Some("sk-1"), Some("llama")]);
    assert_eq!(config.max_concurrent_connections, 2);
    assert_eq!(config.db_path, Some("token_counts.db".into()));
    assert!(config.router_api_key.is_none() && !config.cache.enabled);
    assert_eq!(config.cache.backend, CacheBackend::Sqlite);
    assert_eq!((config.cache.similarity, config.cache.ttl, config.cache.history_weight), (0.9, None, 0.3));
}

#[test]
fn an_empty_file_is_all_defaults() {
    for yaml in
        ["", "# nothing\n", "\u{feff}", "endpoints:\n", "endpoints: []", "queue: ~\nendpoints: null\n"]
    {
        let config = quiet(yaml);
        assert_eq!(
            summary(&config),
            [(Kind::Ollama, ENDPOINT_DEFAULT, ENDPOINT_DEFAULT, "http://localhost:11434/v1")],
            "{yaml:?}"
        );
        let defaults = Config { endpoints: config.endpoints.clone(), ..Config::default() };
        assert_eq!(format!("{config:?}"), format!("{defaults:?}"), "{yaml:?}");
    }
}

#[test]
fn a_list_of_llama_servers_needs_no_other_endpoints() {
    for yaml in
        ["endpoints: []\nllama_server_endpoints: [http://h:1]", "llama_server_endpoints: [http://h:1/v1]"]
    {
        let config = quiet(yaml);
        let [only] = &config.endpoints[..] else { panic!("{:?}", config.endpoints) };
        assert_eq!((only.kind, &*only.base), (Kind::LlamaServer, "http://h:1"));
    }
}

/// One row per key: values it takes with what then is there, values it refuses.
struct Case {
    key: &'static str,
    good: &'static [(&'static str, &'static str)],
    bad: &'static [&'static str],
    show: fn(&Config) -> String,
}

const BAD_SECONDS: &[&str] =
    &["0", "-1", "soon", "inf", ".nan", "31536001", "[1]", "{a: 1}", "''", "1s", "true"];
const GOOD_SECONDS: &[(&str, &str)] =
    &[("7", "7s"), ("0.25", "250ms"), ("'1.5'", "1.5s"), ("31536000", "31536000s")];
const BAD_BOOL: &[&str] = &["2", "maybe", "[true]", "{}", "''"];
const GOOD_BOOL: &[(&str, &str)] = &[
    ("true", "true"),
    ("False", "false"),
    ("yes", "true"),
    ("off", "false"),
    ("'1'", "true"),
    ("0", "false"),
];
const BAD_COUNT: &[&str] =
    &["-1", "1.5", "many", "[1]", "{a: 1}", "''", "1000001", "99999999999999999999999"];

fn cases() -> Vec<Case> {
    fn seconds(key: &'static str, show: fn(&Config) -> String) -> Case {
        Case { key, good: GOOD_SECONDS, bad: BAD_SECONDS, show }
    }
    vec![
        Case {
            key: "endpoints",
            good: &[
                ("[http://a:1, http://b:2]", "http://a:1 http://b:2"),
                ("http://a:1/", "http://a:1"),
                ("'http://a:1, http://b:2'", "http://a:1 http://b:2"),
            ],
            bad: &[
                "[5]",
                "{a: b}",
                "[http://a, [http://b]]",
                "[~]",
                "true",
                "h:11434",
                "ftp://h",
                "[http://]",
            ],
            show: |c| c.endpoints.iter().map(|e| &*e.url).collect::<Vec<_>>().join(" "),
        },
        Case {
            key: "llama_server_endpoints",
            good: &[("[http://a:1/v1]", "http://a:1/v1")],
            bad: &["[http://u:p@h]", "['']", "{}"],
            show: |c| c.endpoints.iter().map(|e| &*e.url).collect::<Vec<_>>().join(" "),
        },
        Case {
            key: "max_concurrent_connections",
            good: &[("1", "1"), ("'16'", "16"), ("1_000", "1000"), ("1000000", "1000000")],
            bad: &["0", "-1", "1.5", "many", "[1]", "''", "1000001", "true"],
            show: |c| c.max_concurrent_connections.to_string(),
        },
        Case {
            key: "api_keys",
            good: &[("{}", "[None]"), ("{'http://localhost:11434': 123}", r#"[Some("123")]"#)],
            bad: &["sk-1", "[sk-1]", "{'http://h': [sk-1]}", "{'http://h': 'a b'}", "{sk-1: x}", "5"],
            show: |c| format!("{:?}", c.endpoints.iter().map(key_of).collect::<Vec<_>>()),
        },
        Case {
            key: "router_api_key",
            good: &[("sk-1", "sk-1"), ("'sk-1'", "sk-1"), ("007", "007"), ("1e5", "1e5"), ("true", "true")],
            bad: &["[sk-1]", "{sk: 1}", "'a b'", "\"a\\nb\""],
            show: |c| c.router_api_key.as_ref().unwrap().expose().to_owned(),
        },
        Case {
            key: "db_path",
            good: &[("a.db", "Some(\"a.db\")"), ("''", "None"), ("5", "Some(\"5\")")],
            bad: &["[a]", "{a: b}", "\"a\\0\""],
            show: |c| format!("{:?}", c.db_path),
        },
        Case {
            key: "cache_enabled",
            good: &[("no", "false")],
            bad: BAD_BOOL,
            show: |c| c.cache.enabled.to_string(),
        },
        Case {
            key: "cache_backend",
            good: &[("memory", "Memory"), ("SQLite", "Sqlite"), ("'redis'", "Redis")],
            bad: &["disk", "''", "[memory]"],
            show: |c| format!("{:?}", c.cache.backend),
        },
        Case {
            key: "cache_similarity",
            good: &[("1", "1"), ("0.95", "0.95"), ("0", "0")],
            bad: &["1.01", "-0.1", "high", ".nan", "[]"],
            show: |c| c.cache.similarity.to_string(),
        },
        Case {
            key: "cache_ttl",
            good: &[("60", "Some(60s)"), ("null", "None"), ("", "None"), ("none", "None")],
            bad: BAD_SECONDS,
            show: |c| format!("{:?}", c.cache.ttl),
        },
        Case {
            key: "cache_db_path",
            good: &[("c.db", "Some(\"c.db\")")],
            bad: &["[]"],
            show: |c| format!("{:?}", c.cache.db_path),
        },
        Case {
            key: "cache_redis_url",
            good: &[("redis://:pw@h/0", "redis://:pw@h/0")],
            bad: &["[redis://h]", "'a b'"],
            show: |c| c.cache.redis_url.as_ref().unwrap().expose().to_owned(),
        },
        Case {
            key: "cache_history_weight",
            good: &[("0.5", "0.5")],
            bad: &["2", "x"],
            show: |c| c.cache.history_weight.to_string(),
        },
        Case { key: "queue", good: GOOD_BOOL, bad: BAD_BOOL, show: |c| c.queue.to_string() },
        Case {
            key: "queue_max",
            good: &[("0", "0"), ("5", "5")],
            bad: BAD_COUNT,
            show: |c| c.queue_max.to_string(),
        },
        Case {
            key: "attempts_max",
            good: &[("1", "1"), ("100", "100")],
            bad: &["0", "101", "x", "1.5"],
            show: |c| c.attempts_max.to_string(),
        },
        Case {
            key: "body_limit_bytes",
            good: &[("1", "1"), ("1048576", "1048576"), ("4294967296", "4294967296")],
            bad: &["0", "64MB", "4294967297", "1.5"],
            show: |c| c.body_limit_bytes.to_string(),
        },
        Case {
            key: "breaker_failures",
            good: &[("1", "1"), ("9", "9")],
            bad: &["0", "-1", "x"],
            show: |c| c.breaker_failures.to_string(),
        },
        seconds("queue_timeout_secs", |c| format!("{:?}", c.queue_timeout)),
        seconds("connect_timeout_secs", |c| format!("{:?}", c.connect_timeout)),
        seconds("first_byte_timeout_secs", |c| format!("{:?}", c.first_byte_timeout)),
        // Less leaves subscribers no time, which is warned of.
        Case {
            key: "idle_timeout_secs",
            good: &[("40", "40s"), ("40.25", "40.25s"), ("'60.5'", "60.5s"), ("31536000", "31536000s")],
            bad: BAD_SECONDS,
            show: |c| format!("{:?}", c.idle_timeout),
        },
        seconds("listing_timeout_secs", |c| format!("{:?}", c.listing_timeout)),
        seconds("header_timeout_secs", |c| format!("{:?}", c.header_timeout)),
        seconds("drain_grace_secs", |c| format!("{:?}", c.drain_grace)),
        seconds("flush_interval_secs", |c| format!("{:?}", c.flush_interval)),
        seconds("breaker_open_secs", |c| format!("{:?}", c.breaker_open)),
        seconds("wedged_after_secs", |c| format!("{:?}", c.wedged_after)),
        Case {
            key: "event_log",
            good: &[("group", "Group"), ("EACH", "Each"), ("none", "None"), ("'off'", "Off")],
            bad: &["always", "[]", "''"],
            show: |c| format!("{:?}", c.event_log),
        },
        Case {
            key: "event_log_max_events",
            good: &[("1000", "1000"), ("5000000", "5000000")],
            bad: &["0", "999", "x"],
            show: |c| c.event_log_max_events.to_string(),
        },
        Case {
            key: "event_ring",
            good: &[("16", "16"), ("1000", "1000")],
            bad: &["0", "15", "x"],
            show: |c| c.event_ring.to_string(),
        },
        Case {
            key: "subscribers_max",
            good: &[("0", "0"), ("5", "5")],
            bad: BAD_COUNT,
            show: |c| c.subscribers_max.to_string(),
        },
        Case {
            key: "per_ip_connections",
            good: &[("0", "0"), ("5", "5")],
            bad: BAD_COUNT,
            show: |c| c.per_ip_connections.to_string(),
        },
        Case {
            key: "per_ip_limit",
            good: &[("0", "0"), ("5", "5")],
            bad: BAD_COUNT,
            show: |c| c.per_ip_limit.to_string(),
        },
        Case {
            key: "per_ip_idle",
            good: &[("0", "0"), ("5", "5")],
            bad: BAD_COUNT,
            show: |c| c.per_ip_idle.to_string(),
        },
        Case {
            key: "allowed_origins",
            good: &[
                ("'http://a.example, HTTPS://B.example:443/'", "http://a.example https://b.example"),
                ("['http://127.0.0.1:3000']", "http://127.0.0.1:3000"),
            ],
            bad: &[
                "a.example",
                "'*'",
                "'https://*'",
                "https://a.example/page",
                "file:///",
                "http://me@a",
                "{a: b}",
            ],
            show: |c| c.allowed_origins.join(" "),
        },
        Case {
            key: "subscriber_min_rate",
            good: &[("0", "0"), ("5", "5")],
            bad: BAD_COUNT,
            show: |c| c.subscriber_min_rate.to_string(),
        },
        Case {
            key: "trusted_proxies",
            good: &[("'127.0.0.1, 10.0.0.0/8'", "2"), ("['::1']", "1")],
            bad: &["localhost", "10.0.0.0/40", "{a: b}"],
            show: |c| c.trusted_proxies.len().to_string(),
        },
        seconds("event_log_max_age_secs", |c| format!("{:?}", c.event_log_max_age)),
        Case {
            key: "subscriber_stall_secs",
            good: &[("7", "7s"), ("0.25", "250ms"), ("'1.5'", "1.5s"), ("290", "290s")],
            bad: BAD_SECONDS,
            show: |c| format!("{:?}", c.subscriber_stall),
        },
    ]
}

#[test]
fn every_key_takes_what_it_should_and_refuses_the_rest_by_name_and_line() {
    let cases = cases();
    for key in KEYS {
        assert!(cases.iter().any(|case| case.key == key.name), "no case for {}", key.name);
    }
    for Case { key, good, bad, show } in cases {
        for (value, expected) in good {
            let config = quiet(&format!("# a file\n{key}: {value}\n"));
            assert_eq!(show(&config), *expected, "{key}: {value}");
        }
        for value in bad {
            let errors = parse(&format!("# a file\n{key}: {value}\n")).expect_err(&format!("{key}: {value}"));
            let [ConfigError::Value { key: named, place, expected, .. }] = &errors[..] else {
                panic!("{key}: {value}: {errors:?}")
            };
            assert_eq!((&**named, place), (key, &Place::Line(2)), "{key}: {value}");
            assert!(!expected.is_empty());
        }
    }
}

#[test]
fn every_key_has_an_environment_variable_that_goes_before_the_file() {
    for Case { key, good, bad, show } in cases() {
        let variable = key::find(key).unwrap().variable();
        let (value, expected) = good[0];
        let value = value.trim_matches('\'');
        let (config, warnings) =
            parse_with(&format!("{key}: {}\n", good[good.len() - 1].0), &[(&variable, value)])
                .unwrap_or_else(|errors| panic!("{variable}={value}: {errors:?}"));
        assert_eq!((show(&config).as_str(), &warnings[..]), (expected, &[][..]), "{variable}={value}");
        let bad = bad.iter().find(|value| !["", "''"].contains(*value)).unwrap();
        let errors = parse_with("", &[(&variable, bad.trim_matches('\''))]).expect_err(&variable);
        assert!(errors[0].to_string().contains(&format!("(environment variable {variable})")), "{errors:?}");
    }
}

#[test]
fn the_environment_is_spelled_as_documented() {
    let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
    for expected in
        ["NOMYO_ROUTER_API_KEY", "NOMYO_ROUTER_DB_PATH", "NOMYO_ROUTER_ENDPOINTS", "NOMYO_ROUTER_API_KEYS"]
    {
        assert!(variables.contains(&expected.to_owned()), "{expected}");
    }
    let (config, _) = parse_with(
        "endpoints: [http://file:1]\nrouter_api_key: from-file",
        &[
            ("NOMYO_ROUTER_ENDPOINTS", "http://a:1, http://b:2/v1"),
            ("NOMYO_ROUTER_API_KEYS", r#"{"http://a:1": "ka", "http://b:2/v1": "kb"}"#),
            ("NOMYO_ROUTER_API_KEY", " "),
        ],
    )
    .unwrap();
    assert_eq!(config.endpoints.iter().map(key_of).collect::<Vec<_>>(), [Some("ka"), Some("kb")]);
    assert_eq!(config.router_api_key.unwrap().expose(), "from-file", "an empty variable is not set");
}

#[test]
fn letter_case_hyphens_and_underscores_do_not_count() {
    for name in [
        "nomyo-router-api-key",
        "nomyo_router_api_key",
        "NOMYO_ROUTER_API_KEY",
        "NOMYO-ROUTER-API-KEY",
        "router_api_key",
        "router-api-key",
        "Router_API_Key",
    ] {
        assert_eq!(quiet(&format!("{name}: k")).router_api_key.unwrap().expose(), "k", "{name}");
    }
    assert_eq!(quiet("Max-Concurrent-Connections: 4").max_concurrent_connections, 4);
}

#[test]
fn a_url_says_what_kind_of_server_it_is() {
    use Kind::{LlamaServer, Ollama, OpenAi};
    let table: &[(&str, &[(Kind, &str)])] = &[
        ("endpoints: [http://h]", &[(Ollama, "http://h")]),
        ("endpoints: [http://h:8080]", &[(Ollama, "http://h:8080")]),
        ("endpoints: [http://h:8080/v1]", &[(OpenAi, "http://h:8080/v1")]),
        ("endpoints: [http://h:11434/v1]", &[(Ollama, "http://h:11434/v1")]),
        ("endpoints: ['https://h/api/v1/']", &[(OpenAi, "https://h/api/v1")]),
        ("endpoints: [https://h/v1beta/openai]", &[(OpenAi, "https://h/v1beta/openai")]),
        ("endpoints: [http://v1.example:80]", &[(Ollama, "http://v1.example:80")]),
        ("endpoints: [https://h:443/proxy]", &[(Ollama, "https://h:443/proxy")]),
        ("endpoints: ['http://[::1]:11434']", &[(Ollama, "http://[::1]:11434")]),
        ("endpoints: ['http://h/@me']", &[(Ollama, "http://h/@me")]),
        (
            "endpoints: [http://h:1/v1]\nllama_server_endpoints: [http://h:2/v1, http://i:3]",
            &[(OpenAi, "http://h:1/v1"), (LlamaServer, "http://h:2/v1"), (LlamaServer, "http://i:3")],
        ),
    ];
    for (yaml, expected) in table {
        let expected: Vec<_> = expected.iter().map(|(kind, url)| (*kind, (*url).to_owned())).collect();
        assert_eq!(kinds(yaml), expected, "{yaml}");
    }
}

#[test]
fn paths_are_appended_where_the_service_is() {
    let config = quiet("endpoints: [HTTP://Host:80/, http://h:1/v1/, https://h/v1beta/openai, http://h/x]");
    let bases: Vec<_> = config.endpoints.iter().map(|e| (&*e.base, &*e.openai_base)).collect();
    assert_eq!(
        bases,
        [
            ("http://host", "http://host/v1"),
            ("http://h:1", "http://h:1/v1"),
            ("https://h/v1beta/openai", "https://h/v1beta/openai"),
            ("http://h/x", "http://h/x/v1"),
        ]
    );
    assert_eq!(config.endpoints[0].url, "HTTP://Host:80", "the name stays as it is configured");
}

#[test]
fn a_server_listed_twice_is_one_endpoint() {
    use Kind::{LlamaServer, Ollama, OpenAi};
    let table: &[(&str, Kind, &str, &str)] = &[
        ("endpoints: [http://h:11434, http://h:11434/v1]", Ollama, "http://h:11434", "http://h:11434/v1"),
        ("endpoints: [http://h:11434/v1, http://h:11434]", Ollama, "http://h:11434", "http://h:11434/v1"),
        ("endpoints: [http://h:8080/v1, http://h:8080]", Ollama, "http://h:8080", "http://h:8080/v1"),
        ("endpoints: [http://h:1, http://H:1/]", Ollama, "http://h:1", "http://H:1"),
        ("endpoints: [http://h, http://h:80]", Ollama, "http://h", "http://h:80"),
        ("endpoints: [https://h/v1, https://h/v1]", OpenAi, "https://h/v1", "https://h/v1"),
        (
            "endpoints: [http://h:8080]\nllama_server_endpoints: [http://h:8080/v1]",
            LlamaServer,
            "http://h:8080",
            "http://h:8080/v1",
        ),
    ];
    for (yaml, kind, kept, url) in table {
        let (config, warnings) = parse(yaml).unwrap();
        let [only] = &config.endpoints[..] else { panic!("{yaml}: {:?}", config.endpoints) };
        assert_eq!((only.kind, &*only.url), (*kind, *kept), "{yaml}");
        assert_eq!(
            warnings,
            [Warning::SameServer { url: (*url).to_owned(), kept: (*kept).to_owned() }],
            "{yaml}"
        );
    }
}

#[test]
fn a_url_that_is_none_is_refused_with_the_reason() {
    for (url, reason) in [
        ("localhost:11434", "must begin with http://"),
        ("ftp://h", "must begin with http://"),
        ("http:/h", "must begin with http://"),
        ("''", "must begin with http://"),
        ("http://", "host"),
        ("http://h:0", "port other than 0"),
        ("http://h:99999", "port"),
        ("http://h?x=1", "nothing may follow the path"),
        ("'http://h#x'", "nothing may follow the path"),
        ("'http://h /x'", "spaces"),
        ("'http:\\\\h'", "must begin with http://"),
        ("'http://h\\x'", "backslashes"),
        ("http://user@h", "api_keys"),
        ("http://user:password@h/x", "api_keys"),
        ("http://@h", "api_keys"),
        ("http://[::1", "IPv6"),
        ("http://a b", "spaces"),
    ] {
        let said = refused(&format!("endpoints:\n  - {url}\n")).join("\n");
        assert!(said.starts_with("endpoints (line 2): found ") && said.contains(reason), "{url}: {said}");
    }
}

#[test]
fn a_key_reaches_its_server_however_the_url_is_spelled() {
    let list = "endpoints: [http://h:11434, https://o/v1]\n";
    for (keys, expected) in [
        ("{'http://h:11434': a, 'https://o/v1': b}", [Some("a"), Some("b")]),
        ("{'http://H:11434/': a, 'https://o:443/v1/': b}", [Some("a"), Some("b")]),
        ("{'http://h:11434/v1': a}", [Some("a"), None]),
        ("{'http://h:11434/v1': x, 'http://h:11434': a}", [Some("a"), None]),
        ("{'http://h:11434': a, 'http://h:11434/v1': x}", [Some("a"), None]),
        ("{'http://h:11434': ~, 'https://o/v1': ''}", [None, None]),
    ] {
        let config = quiet(&format!("{list}api_keys: {keys}"));
        assert_eq!(config.endpoints.iter().map(key_of).collect::<Vec<_>>(), expected, "{keys}");
    }
    assert_eq!(
        warned(&format!("{list}api_keys:\n  http://other: sk-1\n")),
        ["api_keys (line 3) has a key for http://other, which is not a listed endpoint; it is ignored"]
    );
}

#[test]
fn a_reference_is_replaced_only_where_it_is_the_whole_value() {
    let env = [("A", "http://a:1"), ("N", "5"), ("LIST", "http://x:1,http://y:2")];
    let (config, _) =
        parse_with("endpoints: ['${A}', http://b:2]\nmax_concurrent_connections: ${N}", &env).unwrap();
    assert_eq!((config.endpoints[0].url.as_str(), config.max_concurrent_connections), ("http://a:1", 5));
    assert_eq!(parse_with("endpoints: ${LIST}", &env).unwrap().0.endpoints.len(), 2);
    for literal in ["x${N}", "${N}x", "$N", "${}", "${N M}"] {
        let (config, _) = parse_with(&format!("db_path: '{literal}'"), &env).unwrap();
        assert_eq!(config.db_path, Some(literal.into()));
    }
    assert_eq!(parse_with("endpoints: ['${NOT_SET}', http://b:2]", &env).unwrap().0.endpoints.len(), 1);
}

#[test]
fn a_reference_to_nothing_is_named() {
    assert_eq!(
        refused("queue_max: ${NOT_SET}"),
        ["queue_max (line 1): found ${NOT_SET}, and that environment variable is not set, \
          expected a whole number from 0 to 1000000"]
    );
    assert_eq!(
        warned("router_api_key: ${NOT_SET}"),
        ["router_api_key is empty because the environment variable NOT_SET is not set: no key is used"]
    );
    assert_eq!(
        warned("api_keys: {'http://localhost:11434': '${NOT_SET}'}"),
        ["api_keys is empty because the environment variable NOT_SET is not set: no key is used"]
    );
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    for (key, nearest) in [
        ("endpoint", Some("endpoints")),
        ("max_concurent_connections", Some("max_concurrent_connections")),
        ("idle_timeout_sec", Some("idle_timeout_secs")),
        ("Router-API-Keys", Some("router_api_key")),
        ("queu", Some("queue")),
        ("colour", None),
        ("x", None),
    ] {
        let (_, warnings) = parse(&format!("queue: true\n{key}: 1\n")).unwrap();
        let [Warning::UnknownKey { key: named, place, nearest: found }] = &warnings[..] else {
            panic!("{key}: {warnings:?}")
        };
        assert_eq!((&**named, place, *found), (&*format!("{key:?}"), &Place::Line(2), nearest));
    }
    assert_eq!(
        warned("endpoint: http://h"),
        [r#""endpoint" (line 1) is not a known key and is ignored; did you mean endpoints?"#]
    );
}

#[test]
fn the_last_of_several_counts_and_nothing_does_not_undo_something() {
    let (config, warnings) = parse("queue_max: 1\nqueue-max: 2\n").unwrap();
    assert_eq!((config.queue_max, warnings.len()), (2, 1));
    assert_eq!(warnings[0].to_string(), "queue_max is set more than once; the last one (line 2) counts");
    let (config, _) = parse("router_api_key: k\nnomyo-router-api-key:\n").unwrap();
    assert_eq!(config.router_api_key.unwrap().expose(), "k", "an open router must be asked for");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let said = refused("queue: maybe\nendpoints: [h, 'http://ok:1', 7]\nqueue_max: -1\nunknown: 1\n");
    assert_eq!(said.len(), 4, "{said:#?}");
    assert_eq!(said[0], r#"queue (line 1): found "maybe", expected true or false"#);
    assert_eq!(said[1], r#"queue_max (line 3): found "-1", expected a whole number from 0 to 1000000"#);
}

#[test]
fn a_file_that_is_no_map_is_refused() {
    for yaml in ["- a\n- b", "just a text", "5"] {
        assert!(
            refused(yaml)[0].starts_with("the file must hold settings as lines of `key: value`"),
            "{yaml}"
        );
    }
}

#[test]
fn the_cache_that_is_not_there_yet_is_said() {
    assert_eq!(parse("cache_enabled: true").unwrap().1, [Warning::NoCacheYet]);
}

#[test]
fn a_subscriber_whose_connection_is_cut_before_its_time_is_said() {
    for yaml in ["subscriber_stall_secs: 600", "idle_timeout_secs: 39.5"] {
        let [warning] = &warned(yaml)[..] else { panic!("{yaml}: {:?}", warned(yaml)) };
        for name in ["subscriber_stall_secs", "idle_timeout_secs"] {
            assert!(warning.contains(name), "{yaml}: {warning}");
        }
    }
    let advised = warned("subscriber_stall_secs: 600");
    assert!(advised[0].contains("set idle_timeout_secs to 610 or more"), "{advised:?}");
    quiet("subscriber_stall_secs: 600\nidle_timeout_secs: 610");
    quiet("subscriber_stall_secs: 290");
}

#[test]
fn more_endpoints_than_anybody_has_are_refused() {
    let list = |n: usize| (0..n).map(|i| format!("- http://h:{}/{i}\n", i % 9 + 1)).collect::<String>();
    assert_eq!(quiet(&format!("endpoints:\n{}", list(ENDPOINTS_MAX))).endpoints.len(), ENDPOINTS_MAX);
    assert_eq!(
        refused(&format!("endpoints:\n{}", list(ENDPOINTS_MAX + 1))),
        ["10001 endpoints are listed; at most 10000 are allowed"]
    );
    let large = format!("# {}", "x".repeat(1 << 20));
    assert_eq!(refused(&large), ["the file has 1048578 bytes; at most 1048576 are allowed"]);
}

/// A file with a secret in every place that takes one.
const SECRETIVE: &str = "\
endpoints:
  - http://localhost:11434
  - https://o/v1
router_api_key: sk-51cc2e7
api_keys:
  http://localhost:11434: sk-51cc2e7
  'https://o/v1': \"sk-51cc2e7\"
cache_redis_url: redis://:sk-51cc2e7@h/0
queue_max: 5
";

fn assert_silent(yaml: &str, parsed: &Parsed) {
    let said = match parsed {
        Ok((config, warnings)) => {
            let warnings: Vec<_> = warnings.iter().map(Warning::to_string).collect();
            format!("{config:?} {warnings:?}")
        }
        Err(errors) => {
            format!("{errors:?} {:?}", errors.iter().map(ConfigError::to_string).collect::<Vec<_>>())
        }
    };
    assert!(!said.contains("51cc2e7"), "{yaml}\n{said}");
}

#[test]
fn a_secret_is_never_told() {
    assert_silent(SECRETIVE, &parse(SECRETIVE));
    for yaml in [
        "api_keys: sk-51cc2e7",
        "api_keys: [sk-51cc2e7]",
        "api_keys: {sk-51cc2e7: http://h}",
        "api_keys: {'http://h': 'sk-51cc2e7 x'}",
        "api_keys: {'http://h': {a: sk-51cc2e7}}",
        "api_keys: {'http://u:sk-51cc2e7@h': x}",
        "router_api_key: 'sk-51cc2e7 x'",
        "router_api_key: [sk-51cc2e7]",
        "cache_redis_url: 'redis://:sk-51cc2e7@ h'",
        "endpoints: ['http://u:sk-51cc2e7@h']",
        "endpoints: ['http://h?key=sk-51cc2e7']",
        "endpoints: ['http://h#sk-51cc2e7']",
        "endpoints: ['u:sk-51cc2e7@h']",
        "queue_max: ${SECRET}",
        "sk-51cc2e7",
        "- sk-51cc2e7",
        "router_api_key: sk-51cc2e7: x",
        "router_api_key: 'sk-51cc2e7",
        "router_api_key: *sk-51cc2e7",
        "router_api_key: !!int sk-51cc2e7",
        "router_api_key: !!binary sk-51cc2e7",
    ] {
        assert_silent(yaml, &parse_with(yaml, &[("SECRET", "sk-51cc2e7")]));
    }
    for variable in ["NOMYO_ROUTER_API_KEY", "NOMYO_ROUTER_API_KEYS", "NOMYO_ROUTER_CACHE_REDIS_URL"] {
        for value in ["sk-51cc2e7 x", "[sk-51cc2e7]", "[sk-51cc2e7", "{sk-51cc2e7: 1}"] {
            assert_silent(value, &parse_with("", &[(variable, value)]));
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(yaml: String) {
        let _ = parse(&yaml);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_yaml_makes_it_panic(yaml in r#"([a-z_]{1,6}|endpoints|api_keys|queue_max|[-:?,\[\]{}#&*!|>'"%@` \n]|\$\{A\}|http://h|[0-9.e]){0,40}"#) {
        let _ = parse_with(&yaml, &[("A", "x")]);
    }

    #[test]
    fn no_value_of_a_known_key_makes_it_panic(at in 0..KEYS.len(), value: String) {
        let key = &KEYS[at];
        let value = format!("{value:?}");
        let _ = parse(&format!("{}: {value}", key.name));
        let _ = parse_with("", &[(&key.variable(), &value)]);
    }

    /// A file broken by a slip: a character gone, doubled or replaced anywhere but in the secret.
    #[test]
    fn a_slip_of_the_keyboard_tells_no_secret(at in 0..SECRETIVE.len(), slip in "[ \n:'\"\\[{#*&-]?", cut in 0..3usize) {
        let cut = at..(at + cut).min(SECRETIVE.len());
        let hits = |secret: (usize, &str)| cut.start < secret.0 + secret.1.len() && cut.end > secret.0 + 3;
        prop_assume!(!SECRETIVE.match_indices("sk-51cc2e7").any(hits));
        let mut yaml = SECRETIVE.to_owned();
        yaml.replace_range(cut, &slip);
        assert_silent(&yaml, &parse(&yaml));
    }
}

#[test]
fn a_key_in_a_url_is_never_shown_wherever_its_marks_fall() {
    for url in [
        "http://sk-1@h",
        "http://sk-1#x@h",
        "http://u:sk-1#x@h",
        "http://u:x#sk-1@h",
        "http://sk-1?x@h",
        "http://h/?key=sk-1",
        "http://h/?key=a@sk-1",
        "http://u:sk-1",
        "sk-1",
    ] {
        let errors = refused(&format!("endpoints: ['{url}']\n"));
        assert!(!errors.concat().contains("sk-1"), "{url}: {errors:?}");
    }
}
