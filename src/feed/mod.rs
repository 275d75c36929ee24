//! A follower of a router's events: `GET /api/events`, resumed by itself until somebody stops it.
//!
//! Each event is given exactly once, in order, to a callback that stores what it makes of it together with the
//! event's number. The follower moves on only after the callback returned `Ok`: a program that begins again
//! behind the number it stored last misses nothing and gets nothing twice (`feed-exact`). A cut connection is
//! resumed; what cannot be healed is an error that names the numbers, never a skip (`feed-explicit`).
//! Used by `pointsman tail`, and made for programs of other people.
//!
//! ```no_run
//! use pointsman::feed::{Client, Delivery};
//!
//! # async fn follow() -> Result<(), Box<dyn std::error::Error>> {
//! let stored = 41; // what your program has stored last
//! let client = Client::new("http://127.0.0.1:12434")?.after(stored).kinds(["request.*"]);
//! let stopped = client
//!     .run(|delivery| async move {
//!         match delivery {
//!             Delivery::Event(event) => println!("store {} and {:?}", event.seq, event.json),
//!             Delivery::Checkpoint(seq) => println!("store {seq}"),
//!         }
//!         Ok::<(), std::io::Error>(())
//!     })
//!     .await;
//! println!("{stopped}");
//! # Ok(())
//! # }
//! ```
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a program on tokio, in real time")]

mod order;
pub mod sse;

use core::fmt;
use core::future::Future;
use core::time::Duration;

use bytes::Bytes;
use reqwest::{Response, StatusCode, header, redirect};
use serde::Deserialize;
use thiserror::Error;
use url::Url;

use crate::adapters::entropy::SeededEntropy;
use crate::adapters::upstream::install_tls;
use crate::core::timeline::Seq;
use crate::ports::Entropy;
use crate::wire::event::Fields;

pub use self::order::Disorder;
use self::order::Order;
use self::sse::{Message, Parser, TooLong};

/// How long a connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// A router says that it is there every 15 s; after three times that it is not.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// The pause after the first cut; it doubles with each further one that brought nothing.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause of our own making.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The longest pause that a server can ask for.
const ASKED_MAX: Duration = Duration::from_secs(3600);

/// The longest event, in bytes. A router's are shorter than 4 KiB.
const EVENT_MAX: usize = 1 << 20;

/// How much of a refusal's body is read, in bytes.
const REFUSAL_MAX: usize = 16 << 10;

/// What a follower is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The next event.
    Event(Event),
    /// There is nothing for this follower up to and with this number: it can be stored like an event's.
    Checkpoint(Seq),
}

impl Delivery {
    /// The number to store.
    pub fn seq(&self) -> Seq {
        match self {
            Delivery::Event(event) => event.seq,
            Delivery::Checkpoint(seq) => *seq,
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub seq: Seq,
    /// The number of the event given before it on the same connection.
    pub prev_seq: Option<Seq>,
    /// All of it: one JSON object, in UTF-8.
    pub json: Bytes,
}

impl Event {
    /// Its fields, those of newer routers left out.
    ///
    /// # Errors
    ///
    /// When it lacks a time or a kind, or a field has another type than here.
    pub fn fields(&self) -> Result<Fields<'_>, serde_json::Error> {
        serde_json::from_slice(&self.json)
    }
}

/// A connection ended or could not be made, and will be tried again.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Why, in a sentence.
    pub why: String,
    /// The number behind which it goes on; `None` if nothing was given yet.
    pub after: Option<Seq>,
    /// When.
    pub pause: Duration,
}

/// The router's address cannot be used.
#[derive(Debug, Error)]
pub enum SetupError {
    /// It is no URL.
    #[error("'{url}' is no address of a router ({why}): give one like http://127.0.0.1:12434")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The HTTP client.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(#[from] reqwest::Error),
}

/// Why a follower stopped: what trying again does not heal.
#[derive(Debug, Error)]
pub enum FeedError<E> {
    /// The callback said so.
    #[error("{0}")]
    Callback(E),
    /// Events that should come next are no longer kept.
    #[error(
        "events {} are no longer kept, the oldest is {floor}: what was missed is lost; begin again behind {} to go on",
        missed(.after, .floor), floor.saturating_sub(1)
    )]
    Gone {
        /// What was stored last, if anything was.
        after: Option<Seq>,
        /// The oldest number that is kept.
        floor: Seq,
    },
    /// No key, or a wrong one.
    #[error("the router refuses the key ({status}): {message}")]
    Key {
        /// 401 or 403.
        status: u16,
        /// What the router said.
        message: String,
    },
    /// The request is wrong: a number of the future, a filter that is none, a server without events or one
    /// that logs none (`event_log: off`).
    #[error("the router refuses to be followed ({status}): {message}")]
    Refused {
        /// The status.
        status: u16,
        /// What the router said.
        message: String,
    },
    /// Numbers are not what they must be.
    #[error(transparent)]
    Disorder(#[from] Disorder),
    /// What came is no feed of events.
    #[error("what came from the router is no feed of events: {0}")]
    Nonsense(String),
}

fn missed(after: &Option<Seq>, floor: &Seq) -> String {
    match after {
        Some(after) => format!("{} to {}", after + 1, floor.saturating_sub(1)),
        None => format!("before {floor}"),
    }
}

/// Where to begin.
#[derive(Clone, Debug)]
enum Begin {
    /// With what comes from now on.
    Live,
    /// Behind this number.
    After(Seq),
    /// With what is later than this, as the router understands it.
    Since(String),
}

type OnCut = Box<dyn Fn(&Cut) + Send + Sync>;

/// A follower of one router's events. See the module.
pub struct Client {
    base: Url,
    begin: Begin,
    filters: Vec<(&'static str, String)>,
    key: Option<String>,
    silence_max: Duration,
    on_cut: Option<OnCut>,
    http: reqwest::Client,
    entropy: SeededEntropy,
}

impl fmt::Debug for Client {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .field("begin", &self.begin)
            .field("filters", &self.filters)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A follower of the router at `base`, its address without `/api`, from the oldest event kept on.
    ///
    /// # Errors
    ///
    /// When `base` is no address of an HTTP server.
    pub fn new(base: &str) -> Result<Client, SetupError> {
        let bad = |why: String| SetupError::Url { url: base.to_owned(), why };
        let mut url = Url::parse(base).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad(format!("its scheme is '{}'", url.scheme())));
        }
        let path = format!("{}/api/events", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url.set_query(None);
        install_tls();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Client {
            base: url,
            begin: Begin::After(0),
            filters: Vec::new(),
            key: None,
            silence_max: SILENCE_MAX,
            on_cut: None,
            http,
            entropy: SeededEntropy::from_system(),
        })
    }

    /// Begins behind this number, the one stored last. 0, as without it: with the oldest event kept.
    pub fn after(mut self, seq: Seq) -> Client {
        self.begin = Begin::After(seq);
        self
    }

    /// Begins with the first event later than `time`, RFC 3339.
    pub fn since(mut self, time: impl Into<String>) -> Client {
        self.begin = Begin::Since(time.into());
        self
    }

    /// Begins with what comes from now on. Until something came, "now" is when a connection stands.
    pub fn live(mut self) -> Client {
        self.begin = Begin::Live;
        self
    }

    /// Only events of these kinds: names, or beginnings of names with a `*` behind.
    pub fn kinds<S: Into<String>>(self, kinds: impl IntoIterator<Item = S>) -> Client {
        self.filter("kinds", kinds)
    }

    /// Only events of these endpoints, by their URLs as configured.
    pub fn endpoints<S: Into<String>>(self, endpoints: impl IntoIterator<Item = S>) -> Client {
        self.filter("endpoints", endpoints)
    }

    /// Only events of these models.
    pub fn models<S: Into<String>>(self, models: impl IntoIterator<Item = S>) -> Client {
        self.filter("models", models)
    }

    fn filter<S: Into<String>>(
        mut self,
        name: &'static str,
        patterns: impl IntoIterator<Item = S>,
    ) -> Client {
        self.filters.extend(patterns.into_iter().map(|pattern| (name, pattern.into())));
        self
    }

    /// The router's key.
    pub fn api_key(mut self, key: impl Into<String>) -> Client {
        self.key = Some(key.into());
        self
    }

    /// A connection on which no byte came for so long is dead. 45 s, unless said otherwise.
    pub fn silence_max(mut self, silence: Duration) -> Client {
        self.silence_max = silence;
        self
    }

    /// Calls this whenever a connection was cut, or could not be made, and will be tried again.
    pub fn on_cut(mut self, on_cut: impl Fn(&Cut) + Send + Sync + 'static) -> Client {
        self.on_cut = Some(Box::new(on_cut));
        self
    }

    /// Gives every event to `deliver`, one after the other, until an error: `deliver`'s own, or one that
    /// trying again does not heal. To stop, drop the future.
    ///
    /// Each call begins where the client was made to begin, not where an earlier call ended: to go on behind
    /// what was stored last, make a new client with [`Client::after`].
    pub async fn run<E, F, Done>(&self, mut deliver: F) -> FeedError<E>
    where
        F: FnMut(Delivery) -> Done,
        Done: Future<Output = Result<(), E>>,
    {
        let cursor = match self.begin {
            Begin::After(seq) => Some(seq),
            Begin::Live | Begin::Since(_) => None,
        };
        let mut order = Order::new(cursor, self.filters.is_empty());
        let mut in_vain = 0;
        loop {
            order.resume();
            let before = order.cursor();
            let (why, asked) = match self.follow(&mut order, &mut deliver).await {
                Ended::Error(error) => return error,
                Ended::Cut { why, pause } => (why, pause),
            };
            in_vain = if order.cursor() == before { in_vain + 1 } else { 0 };
            let pause =
                backoff(in_vain, self.entropy.next_u64()).max(asked.unwrap_or_default().min(ASKED_MAX));
            if let Some(on_cut) = &self.on_cut {
                on_cut(&Cut { why, after: order.cursor(), pause });
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One connection, from its request to its end.
    async fn follow<E, F, Done>(&self, order: &mut Order, deliver: &mut F) -> Ended<E>
    where
        F: FnMut(Delivery) -> Done,
        Done: Future<Output = Result<(), E>>,
    {
        let mut response = match tokio::time::timeout(self.silence_max, self.request(order).send()).await {
            Err(_) => return self.silent(),
            Ok(Err(error)) => return Ended::cut(reason(&error)),
            Ok(Ok(response)) => response,
        };
        if response.status() != StatusCode::OK {
            return self.refused(response, order.cursor()).await;
        }
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Ended::nonsense(format!("its content type is '{}'", kind.unwrap_or_default()));
        }
        let (mut parser, mut messages) = (Parser::new(EVENT_MAX), Vec::new());
        loop {
            let parsed = match tokio::time::timeout(self.silence_max, response.chunk()).await {
                Err(_) => return self.silent(),
                Ok(Err(error)) => return Ended::cut(reason(&error)),
                Ok(Ok(None)) => return Ended::cut("the router ended the stream".to_owned()),
                Ok(Ok(Some(chunk))) => parser.push(&chunk, &mut messages),
            };
            for message in messages.drain(..) {
                if let Err(ended) = take(&message, order, deliver).await {
                    return ended;
                }
            }
            if let Err(error @ TooLong { .. }) = parsed {
                return Ended::nonsense(error.to_string());
            }
        }
    }

    fn request(&self, order: &Order) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        {
            let mut query = url.query_pairs_mut();
            match (order.cursor(), &self.begin) {
                (Some(cursor), _) => drop(query.append_pair("after", &cursor.to_string())),
                (None, Begin::Since(time)) => drop(query.append_pair("after", time)),
                (None, _) => {}
            }
            query.extend_pairs(&self.filters);
        }
        if url.query() == Some("") {
            url.set_query(None);
        }
        let mut request = self.http.get(url).header(header::ACCEPT, "text/event-stream");
        if let Some(told) = order.told() {
            // As a place to come back to, 0 is the place before event 1 and not all that is kept.
            request = request.header("last-event-id", told);
        }
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn silent<E>(&self) -> Ended<E> {
        Ended::cut(format!("no byte for {} s", self.silence_max.as_secs_f64()))
    }

    /// What an answer other than 200 means.
    async fn refused<E>(&self, mut response: Response, after: Option<Seq>) -> Ended<E> {
        let status = response.status();
        let header = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let pause = header.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let mut body = Vec::new();
        while body.len() < REFUSAL_MAX
            && let Ok(Ok(Some(chunk))) = tokio::time::timeout(self.silence_max, response.chunk()).await
        {
            body.extend_from_slice(&chunk);
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let message = refusal.message().unwrap_or_else(|| "it does not say why".to_owned());
        let status_code = status.as_u16();
        if refusal.event_log.as_deref() == Some("off") {
            // Its status says that this passes; the router's configuration says that it does not.
            return Ended::Error(FeedError::Refused { status: status_code, message });
        }
        match (status, refusal.floor) {
            (StatusCode::GONE, Some(floor)) => Ended::Error(FeedError::Gone { after, floor }),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                Ended::Error(FeedError::Key { status: status_code, message })
            }
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT, _) => {
                Ended::Cut { why: format!("{status_code}: {message}"), pause }
            }
            (status, _) if status.is_server_error() => {
                Ended::Cut { why: format!("{status_code}: {message}"), pause }
            }
            _ => Ended::Error(FeedError::Refused { status: status_code, message }),
        }
    }
}

/// How a connection ended.
enum Ended<E> {
    /// For good.
    Error(FeedError<E>),
    /// Until the next one; the router may have asked for a pause.
    Cut { why: String, pause: Option<Duration> },
}

impl<E> Ended<E> {
    fn cut(why: String) -> Ended<E> {
        Ended::Cut { why, pause: None }
    }

    fn nonsense(what: String) -> Ended<E> {
        Ended::Error(FeedError::Nonsense(what))
    }

    fn disorder(disorder: Disorder) -> Ended<E> {
        Ended::Error(disorder.into())
    }
}

/// The numbers of an event.
#[derive(Deserialize)]
struct Numbers {
    seq: Seq,
    #[serde(default)]
    prev_seq: Option<Seq>,
}

#[derive(Deserialize)]
struct Checkpoint {
    checkpoint: Seq,
}

/// An error of the feed, as an answer or in the stream.
#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    error: serde_json::Value,
    #[serde(default)]
    message: Option<String>,
    floor: Option<Seq>,
    retry_after_ms: Option<u64>,
    /// "off" if there is no log and will be none.
    event_log: Option<String>,
}

impl Refusal {
    /// `{"error":"..."}` or `{"error":{"message":"..."}}`.
    fn message(&self) -> Option<String> {
        let error = self.error.as_str().or_else(|| self.error.get("message")?.as_str());
        match (error, &self.message) {
            (Some(error), Some(message)) => Some(format!("{error}: {message}")),
            (error, message) => error.map(str::to_owned).or_else(|| message.clone()),
        }
    }
}

/// Gives one message on; an error ends the connection.
async fn take<E, F, Done>(message: &Message, order: &mut Order, deliver: &mut F) -> Result<(), Ended<E>>
where
    F: FnMut(Delivery) -> Done,
    Done: Future<Output = Result<(), E>>,
{
    let stopped = |error| Ended::Error(FeedError::Callback(error));
    match message.event.as_str() {
        "" | "message" => {
            let Numbers { seq, prev_seq } = read(message)?;
            same_number(message, seq)?;
            order.check(seq, prev_seq).map_err(Ended::disorder)?;
            let event = Event { seq, prev_seq, json: Bytes::copy_from_slice(&message.data) };
            deliver(Delivery::Event(event)).await.map_err(stopped)?;
            order.took(seq);
        }
        "checkpoint" => {
            let Checkpoint { checkpoint } = read(message)?;
            same_number(message, checkpoint)?;
            order.check_point(checkpoint).map_err(Ended::disorder)?;
            deliver(Delivery::Checkpoint(checkpoint)).await.map_err(stopped)?;
            order.took_point(checkpoint);
        }
        "error" => {
            let refusal: Refusal = read(message)?;
            let why = refusal.message().unwrap_or_else(|| "an error without a name".to_owned());
            return Err(match refusal.floor {
                Some(floor) if why.starts_with("Gone") => {
                    Ended::Error(FeedError::Gone { after: order.cursor(), floor })
                }
                _ => Ended::Cut { why, pause: refusal.retry_after_ms.map(Duration::from_millis) },
            });
        }
        // Of a newer router; what must be understood comes without a name.
        _ => {}
    }
    Ok(())
}

fn read<'a, T: Deserialize<'a>, E>(message: &'a Message) -> Result<T, Ended<E>> {
    serde_json::from_slice(&message.data).map_err(|error| {
        let shown: String = String::from_utf8_lossy(&message.data).chars().take(80).collect();
        Ended::nonsense(format!("{error}: {shown}"))
    })
}

/// The `id:` is what a browser resumes behind: it must be the event's number.
fn same_number<E>(message: &Message, seq: Seq) -> Result<(), Ended<E>> {
    match &message.id {
        Some(id) if *id != seq.to_string() => {
            Err(Ended::nonsense(format!("the message with id {id} says that it is {seq}")))
        }
        _ => Ok(()),
    }
}

/// The pause after so many connections in a row that brought nothing: between half and all of what doubles each
/// time, so that followers of one router do not come back at the same moment.
fn backoff(in_vain: u32, dice: u64) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << in_vain.min(16)).min(PAUSE_MAX);
    let share = (dice >> 32) as u32;
    full / 2 + (full / 2).mul_f64(f64::from(share) / f64::from(u32::MAX))
}

/// The innermost cause: the outer ones repeat the URL.
fn reason(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let what = if error.is_connect() { "could not connect" } else { "the connection broke" };
    format!("{what}: {innermost}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_ten_seconds_and_differ() {
        for (in_vain, full) in [(0, 100), (1, 200), (5, 3_200), (7, 10_000), (1_000, 10_000)] {
            let full = Duration::from_millis(full);
            assert_eq!(backoff(in_vain, 0), full / 2);
            assert_eq!(backoff(in_vain, u64::MAX), full);
        }
    }

    #[test]
    fn a_request_says_where_to_begin_and_what_is_wanted() {
        let url = |client: Client, cursor| {
            client.request(&Order::new(cursor, true)).build().unwrap().url().to_string()
        };
        let client = || Client::new("http://r:1/base/").unwrap();
        assert_eq!(url(client(), Some(7)), "http://r:1/base/api/events?after=7");
        assert_eq!(url(client().live(), None), "http://r:1/base/api/events");
        assert_eq!(
            url(client().since("2026-01-01T00:00:00+01:00").kinds(["a.*", "b"]).models(["m&n"]), None),
            "http://r:1/base/api/events?after=2026-01-01T00%3A00%3A00%2B01%3A00&kinds=a.*&kinds=b&models=m%26n"
        );
        for bad in ["", "localhost:12434", "ftp://r"] {
            assert!(Client::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        let client = Client::new("http://r").unwrap().api_key("sk-secret");
        assert!(!format!("{client:?}").contains("secret"));
    }
}
