//! The promises of the design, judged from outside: against what endpoints, clients and stores saw,
//! never against the router's own opinion alone.
//!
//! - `calls`: what a single call proves: slot-limit, catalog-single-flight, catalog-age, reload-heeded.
//! - `counts`: after each step of an instance: slot-conservation, slot-limit, admitted-adds-up,
//!   snapshot-whole, token-conservation.
//! - `breakers`: after each step, too: breaker-honest.
//! - `overviews`: what clients are told of endpoints and their models: catalog-age, catalog-isolation.
//! - `answers`: what clients got: answer-pure, answer-ends, catalog-isolation.
//! - `feed`: what subscribers were given: feed-exact, feed-durable, feed-explicit, feed-progress, feed-independent.
//! - `books`: what the store holds: token-conservation, token-minute.
//!
//! Two names are not in the design's list: `breaker-honest` (an open breaker lets nobody in, a half-open
//! one a single probe; enough faults in a row open it, only a probe of its own closes it), and
//! `reload-heeded` (whatever is sent after a reload is sent as the new configuration says).

mod answers;
mod books;
pub(crate) mod breakers;
pub(crate) mod calls;
pub(crate) mod counts;
pub(crate) mod feed;
mod overviews;

pub(crate) use answers::{ended, failed, got, headed};
pub(crate) use books::{after_crash, after_stop};
pub(crate) use calls::{Closed, call_closed, call_opened, call_took};
pub(crate) use counts::{after_step, at_rest, published};
pub(crate) use overviews::{endpoints_told, models_told, version_told};

pub(crate) const ADMITTED_ADDS_UP: &str = "admitted-adds-up";
pub(crate) const ANSWER_ENDS: &str = "answer-ends";
pub(crate) const ANSWER_PURE: &str = "answer-pure";
pub(crate) const BREAKER_HONEST: &str = "breaker-honest";
pub(crate) const CATALOG_AGE: &str = "catalog-age";
pub(crate) const CATALOG_ISOLATION: &str = "catalog-isolation";
pub(crate) const CATALOG_SINGLE_FLIGHT: &str = "catalog-single-flight";
pub(crate) const FEED_DURABLE: &str = "feed-durable";
pub(crate) const FEED_EXACT: &str = "feed-exact";
pub(crate) const FEED_EXPLICIT: &str = "feed-explicit";
pub(crate) const FEED_INDEPENDENT: &str = "feed-independent";
pub(crate) const FEED_PROGRESS: &str = "feed-progress";
pub(crate) const RELOAD_HEEDED: &str = "reload-heeded";
pub(crate) const SLOT_CONSERVATION: &str = "slot-conservation";
pub(crate) const SLOT_LIMIT: &str = "slot-limit";
pub(crate) const SNAPSHOT_WHOLE: &str = "snapshot-whole";
pub(crate) const TOKEN_CONSERVATION: &str = "token-conservation";
pub(crate) const TOKEN_MINUTE: &str = "token-minute";

/// All names a violation can have, for the zoo's headers and for panics that begin with one.
pub(crate) const PROMISES: [&str; 18] = [
    ADMITTED_ADDS_UP,
    ANSWER_ENDS,
    ANSWER_PURE,
    BREAKER_HONEST,
    CATALOG_AGE,
    CATALOG_ISOLATION,
    CATALOG_SINGLE_FLIGHT,
    FEED_DURABLE,
    FEED_EXACT,
    FEED_EXPLICIT,
    FEED_INDEPENDENT,
    FEED_PROGRESS,
    RELOAD_HEEDED,
    SLOT_CONSERVATION,
    SLOT_LIMIT,
    SNAPSHOT_WHOLE,
    TOKEN_CONSERVATION,
    TOKEN_MINUTE,
];

/// What is wrong: the promise that is broken, and why.
type Judged = Result<(), (&'static str, String)>;
