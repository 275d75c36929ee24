//! A world before it begins, as data: who is there, who asks when, what is done to whom.
//!
//! Everything random about *what* happens is decided here; the seed's streams decide only *how* it
//! goes (schedule, delays, which call a fault strikes). `scenario` writes plans, `shrink` takes parts
//! out of them, `corpus` keeps them when seeds have lost their meaning.

use core::cell::RefCell;
use core::time::Duration;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use pointsman::config::{Config, EventLogMode};
use pointsman::wire::request::Shape;

use crate::faults::Switches;

/// One world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// What all streams are derived from.
    pub(crate) seed: u64,
    /// By whom it was written.
    pub(crate) scenario: String,
    /// Faults and workload end here and healing begins, in milliseconds.
    pub(crate) duration_ms: u64,
    pub(crate) endpoints: Vec<EndpointPlan>,
    pub(crate) instances: Vec<InstancePlan>,
    pub(crate) settings: Settings,
    pub(crate) requests: Vec<RequestPlan>,
    pub(crate) actions: Vec<ActionPlan>,
    #[serde(default)]
    pub(crate) subscribers: Vec<SubscriberPlan>,
    pub(crate) faults: Switches,
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Speaks {
    Ollama,
    LlamaServer,
    OpenAi,
}

impl Speaks {
    /// It has a native interface of its own, and names models with their tags.
    pub(crate) fn tags(self) -> bool {
        self == Speaks::Ollama
    }
}

/// How a configuration has an endpoint asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskedAs {
    /// As what.
    pub(crate) speaks: Speaks,
    /// With which key; 0 is none.
    pub(crate) key: u32,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EndpointPlan {
    pub(crate) speaks: Speaks,
    /// By model number: it lists it; it has it in memory.
    pub(crate) models: Vec<(bool, bool)>,
    /// From the request to the head, in milliseconds, at least and at most.
    pub(crate) first_token_ms: (u64, u64),
    /// Between two tokens.
    pub(crate) gap_ms: (u64, u64),
    /// To bring a model into memory.
    pub(crate) load_ms: u64,
    /// To answer with a listing.
    pub(crate) listing_ms: (u64, u64),
}

impl EndpointPlan {
    /// The URL under which endpoint `index` is configured.
    pub(crate) fn url(&self, index: usize) -> String {
        match self.speaks {
            Speaks::Ollama => format!("http://e{index}:11434"),
            Speaks::LlamaServer => format!("http://e{index}:8080/v1"),
            Speaks::OpenAi => format!("http://e{index}:8000/v1"),
        }
    }

    /// Model `number` as this endpoint lists it.
    pub(crate) fn listed(&self, number: usize) -> String {
        match self.speaks {
            Speaks::Ollama => format!("m{number}:latest"),
            Speaks::LlamaServer => format!("org/m{number}:Q4"),
            Speaks::OpenAi => format!("m{number}"),
        }
    }

    /// Which model the router counts under this name, and whether as an Ollama's, if it is one that
    /// [`tracked`] gives. Asked after every step, so it makes no strings.
    pub(crate) fn number_of(&self, tracked: &str) -> Option<(usize, bool)> {
        let number = tracked.strip_prefix('m')?;
        let bare = number.strip_suffix(":latest");
        let number: usize = bare.unwrap_or(number).parse().ok()?;
        (number < self.models.len()).then_some((number, bare.is_some()))
    }

    /// How endpoint `index` is asked where the configuration has these keys and llama.cpp servers.
    pub(crate) fn asked_as(&self, index: usize, keys: &[u32], llamas: &[usize]) -> AskedAs {
        let speaks = if llamas.contains(&index) { Speaks::LlamaServer } else { self.speaks };
        AskedAs { speaks, key: keys.get(index).copied().unwrap_or(0) }
    }
}

/// Model `number` as the router must count it where it is asked as that: the naming rules, written a second time.
pub(crate) fn tracked(number: usize, asked_as: Speaks) -> String {
    if asked_as.tags() { format!("m{number}:latest") } else { format!("m{number}") }
}

/// One router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct InstancePlan {
    /// By how much its wall clock is off at first, in milliseconds.
    pub(crate) wall_offset_ms: i64,
    /// What its wall clock gains in a million parts of time.
    #[serde(default)]
    pub(crate) drift_ppm: i64,
    /// The endpoints in its first configuration.
    pub(crate) endpoints: Vec<usize>,
}

/// The configuration, but for the endpoints. The same for all instances at first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) limit: u32,
    pub(crate) queue: bool,
    pub(crate) queue_max: usize,
    pub(crate) queue_timeout_ms: u64,
    pub(crate) attempts_max: u32,
    pub(crate) first_byte_timeout_ms: u64,
    pub(crate) idle_timeout_ms: u64,
    pub(crate) listing_timeout_ms: u64,
    pub(crate) flush_interval_ms: u64,
    pub(crate) breaker_failures: u32,
    pub(crate) breaker_open_ms: u64,
    pub(crate) wedged_after_ms: u64,
    pub(crate) drain_grace_ms: u64,
    #[serde(default)]
    pub(crate) log: Option<LogSettings>,
}

/// The event log, if there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogSettings {
    /// Each event is appended by itself.
    pub(crate) each: bool,
    pub(crate) ring: usize,
    pub(crate) max_age_ms: u64,
    /// Events are not stored; in the first life, that is, if it `switches`.
    #[serde(default)]
    pub(crate) none: bool,
    /// Each life has the other kind of log.
    #[serde(default)]
    pub(crate) switches: bool,
    /// A subscriber that takes nothing for so long is cut off.
    #[serde(default = "stall_ms")]
    pub(crate) stall_ms: u64,
    /// Events per second to all subscribers of one address; 0 is no limit.
    #[serde(default)]
    pub(crate) per_ip_limit: u32,
}

/// As configured where nothing else is said.
fn stall_ms() -> u64 {
    30_000
}

impl Settings {
    /// The configuration with these endpoints, asked like this.
    pub(crate) fn config(&self, all: &[EndpointPlan], chosen: &[usize], asked: &[AskedAs]) -> Config {
        let list = |llama: bool| -> String {
            let urls = chosen.iter().filter(|index| (asked[**index].speaks == Speaks::LlamaServer) == llama);
            let urls: Vec<String> = urls.map(|index| all[*index].url(*index)).collect();
            urls.join(", ")
        };
        let keyed = chosen.iter().filter(|index| asked[**index].key > 0);
        let keys = keyed.map(|index| format!("\"{}\": k{}", all[*index].url(*index), asked[*index].key));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let yaml = format!(
            "endpoints: [{}]\nllama_server_endpoints: [{}]\napi_keys: {{{keys}}}\n",
            list(false),
            list(true)
        );
        let mut config = parsed(yaml);
        let millis = Duration::from_millis;
        config.max_concurrent_connections = self.limit;
        config.queue = self.queue;
        config.queue_max = self.queue_max;
        config.queue_timeout = millis(self.queue_timeout_ms);
        config.attempts_max = self.attempts_max;
        config.first_byte_timeout = millis(self.first_byte_timeout_ms);
        config.idle_timeout = millis(self.idle_timeout_ms);
        config.listing_timeout = millis(self.listing_timeout_ms);
        config.flush_interval = millis(self.flush_interval_ms);
        config.breaker_failures = self.breaker_failures;
        config.breaker_open = millis(self.breaker_open_ms);
        config.wedged_after = millis(self.wedged_after_ms);
        config.drain_grace = millis(self.drain_grace_ms);
        config.event_log = EventLogMode::Off;
        if let Some(log) = &self.log {
            config.event_log = match (log.none, log.each) {
                (true, _) => EventLogMode::None,
                (false, true) => EventLogMode::Each,
                (false, false) => EventLogMode::Group,
            };
            config.event_ring = log.ring;
            config.event_log_max_age = millis(log.max_age_ms);
            config.subscriber_stall = millis(log.stall_ms);
            config.per_ip_limit = log.per_ip_limit;
        }
        config
    }
}

thread_local! {
    /// Texts that were parsed before: there are few, and parsing one takes as long as a hundred steps.
    static PARSED: RefCell<BTreeMap<String, Config>> = const { RefCell::new(BTreeMap::new()) };
}

/// The endpoints go through the text a user would write: which interface a URL has is told there.
fn parsed(yaml: String) -> Config {
    PARSED.with_borrow_mut(|parsed| {
        let known = parsed.entry(yaml).or_insert_with_key(|yaml| {
            let parsed = Config::parse(yaml, &|_| None);
            parsed.expect("the simulator writes configurations that are valid").0
        });
        known.clone()
    })
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Call {
    OllamaChat,
    OllamaGenerate,
    OllamaEmbed,
    OpenAiChat,
    OpenAiCompletion,
    OpenAiEmbedding,
    Show,
    Tags,
    Ps,
    Models,
    Version,
    Endpoints,
}

impl Call {
    /// Only an Ollama answers it.
    pub(crate) fn is_native(self) -> bool {
        matches!(self, Call::OllamaChat | Call::OllamaGenerate | Call::OllamaEmbed | Call::Show)
    }

    /// Route and shape of an inference; `None` for the rest.
    pub(crate) fn inference(self) -> Option<(&'static str, Shape)> {
        Some(match self {
            Call::OllamaChat => ("/api/chat", Shape::OllamaChat),
            Call::OllamaGenerate => ("/api/generate", Shape::OllamaGenerate),
            Call::OllamaEmbed => ("/api/embed", Shape::OllamaEmbed),
            Call::OpenAiChat => ("/v1/chat/completions", Shape::OpenAiChat),
            Call::OpenAiCompletion => ("/v1/completions", Shape::OpenAiCompletion),
            Call::OpenAiEmbedding => ("/v1/embeddings", Shape::OpenAiEmbedding),
            Call::Show | Call::Tags | Call::Ps | Call::Models | Call::Version | Call::Endpoints => {
                return None;
            }
        })
    }
}

/// One request of one client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RequestPlan {
    /// A name that stays when others are taken out of the plan.
    pub(crate) id: u64,
    pub(crate) at_us: u64,
    pub(crate) instance: usize,
    pub(crate) call: Call,
    /// A model number; one that nobody has is an unknown model.
    pub(crate) model: usize,
    /// It names the model with its `:latest`.
    pub(crate) tagged: bool,
    pub(crate) stream: bool,
    pub(crate) wants_usage: bool,
    /// The client leaves after this time, wherever the answer is.
    pub(crate) leaves_after_us: Option<u64>,
    /// The client leaves after so many chunks.
    pub(crate) leaves_after_chunks: Option<u32>,
    /// The client rests for so long after each chunk.
    pub(crate) rests_us: u64,
    /// Tokens of the answer, each about a chunk.
    pub(crate) tokens: u64,
}

/// One follower of the event log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SubscriberPlan {
    pub(crate) at_us: u64,
    pub(crate) instance: usize,
    pub(crate) begin: BeginPlan,
    /// Kinds it wants; all if empty.
    pub(crate) kinds: Vec<String>,
    /// It rests for so long before each event.
    pub(crate) rests_us: u64,
    /// It leaves after so many events, and comes back.
    pub(crate) leaves_after: Option<u64>,
    /// Its connection breaks after so many events.
    pub(crate) cut_after: Option<u64>,
    /// After so many events it wants these kinds instead.
    pub(crate) changes_after: Option<u64>,
    pub(crate) then: Vec<String>,
    /// Its server learns at once when a piece is written, as over a WebSocket, and gives up a write in the
    /// middle; else only when it is asked for the next.
    #[serde(default)]
    pub(crate) over_socket: bool,
    /// It takes no longer messages than this.
    #[serde(default)]
    pub(crate) message_bytes_max: Option<usize>,
}

/// Where it begins the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BeginPlan {
    All,
    Live,
    Since { back_ms: u64 },
}

/// Something the operator, or fate, does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ActionPlan {
    pub(crate) at_us: u64,
    pub(crate) what: Action,
}

impl Action {
    /// To which instance it is done, if to one.
    pub(crate) fn instance(&mut self) -> Option<&mut usize> {
        match self {
            Action::Reload { instance, .. }
            | Action::Crash { instance, .. }
            | Action::Restart { instance, .. }
            | Action::Pause { instance, .. }
            | Action::WallStep { instance, .. }
            | Action::Partition { instance, .. }
            | Action::ClientPartition { instance, .. }
            | Action::DiskFull { instance, .. } => Some(instance),
            Action::Down { .. } | Action::Vanish { .. } | Action::Serve { .. } | Action::Load { .. } => None,
        }
    }
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    Reload {
        instance: usize,
        endpoints: Vec<usize>,
        limit: u32,
        queue: bool,
        /// By endpoint: its key; none is 0.
        #[serde(default)]
        keys: Vec<u32>,
        /// Endpoints that are listed as llama.cpp servers, though they speak something else, too.
        #[serde(default)]
        llamas: Vec<usize>,
    },
    Crash {
        instance: usize,
        down_us: u64,
        /// Not before so many writes are under way to its disk.
        #[serde(default)]
        writes: usize,
    },
    Restart {
        instance: usize,
        down_us: u64,
    },
    Pause {
        instance: usize,
        for_us: u64,
    },
    WallStep {
        instance: usize,
        by_ms: i64,
    },
    Partition {
        instance: usize,
        endpoint: usize,
        for_us: u64,
        #[serde(default)]
        way: Way,
    },
    ClientPartition {
        instance: usize,
        for_us: u64,
    },
    Down {
        endpoint: usize,
        for_us: u64,
    },
    /// As down, but nobody is told.
    Vanish {
        endpoint: usize,
        for_us: u64,
    },
    DiskFull {
        instance: usize,
        for_us: u64,
    },
    /// The endpoint no longer has the model, or has it again.
    Serve {
        endpoint: usize,
        model: usize,
        listed: bool,
    },
    /// The model is brought into memory or taken out.
    Load {
        endpoint: usize,
        model: usize,
        loaded: bool,
    },
}

/// In which direction nothing passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    #[default]
    Both,
    Requests,
    Answers,
}
