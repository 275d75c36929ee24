//! What the router needs from the world: time, chance, tasks, backends and a disk.
//!
//! `flow` is written against these traits only. Production implements them in `adapters`
//! (tokio, reqwest, sled); the simulator implements them with virtual time and faults. Whoever
//! implements one keeps the contract written here, because the promises are proved against it.

use core::future::Future;
use core::pin::Pin;
use core::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, Method, StatusCode};
use thiserror::Error;

use crate::core::time::{Instant, Timestamp};
pub use crate::core::timeline::{Bounds, Seq};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Time.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time: never steps back, measures every age and deadline.
    fn now(&self) -> Instant;

    /// Wall time: for labels only; may step in either direction.
    fn wall(&self) -> Timestamp;

    /// Completes at or after `deadline`.
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;

    /// Completes `duration` from now, or later.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now() + duration)
    }
}

/// Chance. One value of this trait is one named stream, so that one more draw by one user
/// does not shift what another draws.
pub trait Entropy: Send + Sync + 'static {
    /// The next 64 uniformly distributed bits of this stream.
    fn next_u64(&self) -> u64;
}

/// Tasks.
pub trait Spawn: Send + Sync + 'static {
    /// Starts `task`. Dropping the handle cancels it at its next suspension; see [`Task::detach`].
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task;
}

/// A running task, cancelled when this handle is dropped.
#[must_use = "dropping a task cancels it; call `detach` to let it run on its own"]
pub struct Task {
    cancel: Option<Box<dyn FnOnce() + Send>>,
}

impl Task {
    /// A handle that calls `cancel` when it is dropped.
    pub fn new(cancel: impl FnOnce() + Send + 'static) -> Self {
        Task { cancel: Some(Box::new(cancel)) }
    }

    /// Lets the task run to its own end, without anybody holding it.
    pub fn detach(mut self) {
        self.cancel = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}

/// A request to one endpoint.
#[derive(Clone, Debug)]
pub struct UpstreamRequest {
    /// GET, POST or DELETE.
    pub method: Method,
    /// The absolute URL.
    pub url: String,
    /// End-to-end headers; the adapter adds `host` and the length.
    pub headers: HeaderMap,
    /// The whole request body.
    pub body: Bytes,
}

/// The head of an answer and the body still to come. Dropping it cancels the request upstream.
pub struct UpstreamResponse {
    /// The status line's code.
    pub status: StatusCode,
    /// Headers as the endpoint sent them.
    pub headers: HeaderMap,
    /// The chunks, in order, each as it arrived. Ends after `None` or the first error.
    pub body: ByteStream,
}

/// Byte chunks in order; the stream ends after `None` or the first error.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, UpstreamError>> + Send>>;

/// Backends.
pub trait Upstream: Send + Sync + 'static {
    /// Sends a request and completes with the head of the answer. Dropping the future cancels the request.
    /// Timeouts are the caller's, except that connecting is bounded by the adapter.
    fn send(&self, request: UpstreamRequest) -> BoxFuture<'_, Result<UpstreamResponse, UpstreamError>>;
}

/// Why an endpoint gave no (whole) answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UpstreamError {
    /// No connection: refused, unreachable, name unknown, TLS failure, or it took too long.
    #[error("could not connect: {0}")]
    Connect(String),
    /// The connection ended or broke before the answer was whole.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// What came back is not HTTP.
    #[error("the answer is not valid HTTP: {0}")]
    Protocol(String),
}

/// A version of one key's value. Never used twice for the same key, across deletions and restarts too.
pub type Revision = u64;

/// One value of the key-value map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Its version, to be named in the next `put` or `delete`.
    pub revision: Revision,
    /// The bytes as they were put.
    pub value: Bytes,
}

/// A disk: a log and a key-value map with revisions, on which everything durable is built.
///
/// Whatever returned `Ok` has been made durable and survives a crash. After an
/// [`StoreError::Unavailable`] the write may or may not have happened: ask before you repeat it.
pub trait Store: Send + Sync + 'static {
    /// Appends `records` as numbers `at..`, all or none. `at` must be `tip + 1`, else
    /// [`StoreError::Conflict`]: somebody else appends too. An empty list only checks `at`.
    fn append(&self, at: Seq, records: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Up to `max` records from number `from` on, in order and without holes. Empty past the tip.
    /// Below the floor: [`StoreError::Trimmed`].
    fn read(&self, from: Seq, max: usize) -> BoxFuture<'_, Result<Vec<Bytes>, StoreError>>;

    /// Floor and tip now.
    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, StoreError>>;

    /// Forgets records below `floor`; the tip stays, numbers are never reused. Trimming below the
    /// present floor changes nothing; above `tip + 1` trims up to there.
    fn trim(&self, floor: Seq) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The value of `key`, if there is one.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>>;

    /// Puts `value` if the key's revision is `expected` (`None`: the key must not exist), else
    /// [`StoreError::Conflict`]. Returns the new revision.
    fn put<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, StoreError>>;

    /// Deletes `key` if its revision is `expected`, else [`StoreError::Conflict`].
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Up to `max` pairs whose key starts with `prefix` and sorts after `after`, in byte order of the keys.
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Versioned)>, StoreError>>;
}

/// Why the store did not do it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// Somebody else wrote first: read again, then decide again. Nothing was written.
    #[error("another writer was first; nothing was written")]
    Conflict,
    /// The records asked for were trimmed.
    #[error("records below {floor} are no longer kept")]
    Trimmed {
        /// The oldest record still there.
        floor: Seq,
    },
    /// A record fails its checksum or has an unknown format.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// The disk or the service behind it failed; a write may or may not have happened.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
}
