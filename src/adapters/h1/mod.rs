//! A plain HTTP/1.1 client for endpoints on the local network, where most models live.
//!
//! It exists beside reqwest for two reasons, both measured in the README. A request that is dropped
//! has closed its connection when the drop returns, so a slot is never given back while its endpoint
//! still works (`slot-limit`); and a stream costs no task, no channel and no buffer of its own, only
//! the bytes that are there. It speaks what a router needs: keep-alive, lengths, chunks, bodies that
//! end with the connection. TLS stays with reqwest.

mod body;
mod connection;
mod head;
mod pool;
#[cfg(test)]
mod tests;

use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::sync::Arc;
use crate::ports::{UpstreamError, UpstreamRequest, UpstreamResponse};

use self::body::BodyStream;
use self::connection::{Connection, SCRATCH};
use self::head::{Head, Received};
use self::pool::Pool;

/// A pooled connection that ends this soon after a request was sent on it was being closed already.
const IDLE_CLOSE: Duration = Duration::from_secs(1);

/// Where a URL leads.
struct Target<'a> {
    /// Host and port, as in the `host` header.
    authority: &'a str,
    /// Path and query.
    path: &'a str,
}

impl<'a> Target<'a> {
    fn of(url: &'a str) -> Option<Target<'a>> {
        let rest = url.strip_prefix("http://")?;
        let slash = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        (!authority.is_empty())
            .then_some(Target { authority, path: if path.is_empty() { "/" } else { path } })
    }
}

/// The client. Clones share their connections.
#[derive(Clone, Debug)]
pub(super) struct PlainClient {
    connect_timeout: Duration,
    pool: Arc<Pool>,
}

impl PlainClient {
    /// Needs a tokio runtime, for the task that closes idle connections.
    pub(super) fn new(connect_timeout: Duration, idle_max: Duration) -> Self {
        let pool = Arc::new(Pool::new(idle_max));
        tokio::spawn(pool::sweep(Arc::downgrade(&pool)));
        PlainClient { connect_timeout, pool }
    }

    /// Whether this client speaks the URL's scheme.
    pub(super) fn speaks(url: &str) -> bool {
        url.starts_with("http://")
    }

    pub(super) async fn send(&self, request: &UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
        let target = Target::of(&request.url)
            .ok_or_else(|| UpstreamError::Connect(format!("`{}` is not a URL", request.url)))?;
        // The endpoint may have closed a pooled connection while this request was on its way to it; that
        // shows at once, before any answer, and the request is sent again on a fresh one.
        let began = Instant::now();
        if let Some(pooled) = self.pool.take(target.authority) {
            if let Some(response) = self.exchange(pooled, &target, request).await? {
                return Ok(response);
            }
            if began.elapsed() > IDLE_CLOSE {
                return Err(closed());
            }
        }
        let fresh = Connection::open(target.authority, self.connect_timeout).await?;
        self.exchange(fresh, &target, request).await?.ok_or_else(closed)
    }

    /// Sends the request on `connection` and reads the head of the answer. `None`: the connection ended
    /// before the answer began.
    async fn exchange(
        &self,
        mut connection: Connection,
        target: &Target<'_>,
        request: &UpstreamRequest,
    ) -> Result<Option<UpstreamResponse>, UpstreamError> {
        let mut outgoing = Outgoing::new(request, target);
        let mut received = Received::default();
        let begun = poll_fn(|cx| {
            outgoing.poll_write(&mut connection, cx);
            poll_head(&mut connection, &mut received, cx)
        });
        let Some((head, rest)) = begun.await? else { return Ok(None) };
        let Head { status, headers, framing, reusable } = head;
        // After an early answer the endpoint still expects the rest of this request: nothing else may
        // be sent to it on this connection.
        let home = (reusable && outgoing.is_sent()).then(|| (Arc::clone(&self.pool), target.authority));
        let body = Box::pin(BodyStream::new(connection, framing, rest, home));
        Ok(Some(UpstreamResponse { status, headers, body }))
    }
}

fn closed() -> UpstreamError {
    UpstreamError::Broken("the connection closed without an answer".into())
}

/// A request being written. It goes on being written while the endpoint already talks (interim heads, or
/// a final answer to a body it will not read).
struct Outgoing<'a> {
    head: Vec<u8>,
    body: &'a [u8],
    /// Bytes written of head and body together.
    written: usize,
    failed: bool,
}

impl<'a> Outgoing<'a> {
    fn new(request: &'a UpstreamRequest, target: &Target<'_>) -> Self {
        let head = head::encode(request, target.path, target.authority);
        // A small body travels in the head's packet.
        let body: &[u8] = if head::carries_body(&request.body) { &[] } else { &request.body };
        Outgoing { head, body, written: 0, failed: false }
    }

    fn is_sent(&self) -> bool {
        !self.failed && self.written == self.head.len() + self.body.len()
    }

    /// Writes what the connection takes. A failure is no error yet: the endpoint may have said why.
    fn poll_write(&mut self, connection: &mut Connection, cx: &mut Context<'_>) {
        while !self.failed && !self.is_sent() {
            let rest = match self.written.checked_sub(self.head.len()) {
                Some(of_body) => &self.body[of_body..],
                None => &self.head[self.written..],
            };
            match Pin::new(&mut connection.stream).poll_write(cx, rest) {
                Poll::Pending => return,
                Poll::Ready(Ok(n)) if n > 0 => self.written += n,
                Poll::Ready(_) => self.failed = true,
            }
        }
    }
}

/// A final head, and what came behind it in the same read.
type Beginning = (Head, Vec<u8>);

/// Reads until the final head is whole. `None`: the connection ended before the first byte.
fn poll_head(
    connection: &mut Connection,
    received: &mut Received,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Beginning>, UpstreamError>> {
    SCRATCH.with_borrow_mut(|scratch| {
        loop {
            let mut buffer = ReadBuf::new(scratch);
            let ended = match Pin::new(&mut connection.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    match received.parse(buffer.filled())? {
                        Some(whole) => return Poll::Ready(Ok(Some(whole))),
                        None => continue,
                    }
                }
                Poll::Ready(Ok(())) => "it ended in the middle of the answer's head".to_owned(),
                Poll::Ready(Err(error)) => error.to_string(),
            };
            return Poll::Ready(if received.is_empty() {
                Ok(None)
            } else {
                Err(UpstreamError::Broken(ended))
            });
        }
    })
}
