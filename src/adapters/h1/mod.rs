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

use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;
use core::time::Duration;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::sync::Arc;
use crate::ports::{UpstreamError, UpstreamRequest, UpstreamResponse};

use self::body::BodyStream;
use self::connection::{Connection, SCRATCH};
use self::head::{Head, Received};
use self::pool::Pool;

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
    pub(super) fn new(connect_timeout: Duration, idle_max: Duration) -> Self {
        PlainClient { connect_timeout, pool: Arc::new(Pool::new(idle_max)) }
    }

    /// Whether this client speaks the URL's scheme.
    pub(super) fn speaks(url: &str) -> bool {
        url.starts_with("http://")
    }

    pub(super) async fn send(&self, request: &UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
        let target = Target::of(&request.url)
            .ok_or_else(|| UpstreamError::Connect(format!("`{}` is not a URL", request.url)))?;
        // The endpoint may have closed a pooled connection while this request was on its way; it has not
        // begun an answer then, and the request is sent again on a fresh one.
        if let Some(pooled) = self.pool.take(target.authority)
            && let Some(response) = self.exchange(pooled, &target, request).await?
        {
            return Ok(response);
        }
        let fresh = Connection::open(target.authority, self.connect_timeout).await?;
        let answered = self.exchange(fresh, &target, request).await?;
        answered.ok_or_else(|| UpstreamError::Broken("the connection closed without an answer".into()))
    }

    /// Sends the request on `connection` and reads the head of the answer. `None`: the connection ended
    /// before the answer began.
    async fn exchange(
        &self,
        mut connection: Connection,
        target: &Target<'_>,
        request: &UpstreamRequest,
    ) -> Result<Option<UpstreamResponse>, UpstreamError> {
        let message = head::encode(request, target.path, target.authority);
        // An endpoint that refuses a body may have said why before it closed; reading finds out.
        let _ = write(&mut connection, &message, request).await;
        let Some((head, rest)) = read_head(&mut connection).await? else { return Ok(None) };
        let Head { status, headers, framing, reusable } = head;
        let home = reusable.then(|| (Arc::clone(&self.pool), target.authority));
        let body = Box::pin(BodyStream::new(connection, framing, rest, home));
        Ok(Some(UpstreamResponse { status, headers, body }))
    }
}

/// Writes head and body; stops early, without an error, when the endpoint begins to answer.
async fn write(connection: &mut Connection, head: &[u8], request: &UpstreamRequest) -> io::Result<()> {
    // A small body travels in the head's packet.
    let body: &[u8] = if head::carries_body(&request.body) { &[] } else { &request.body };
    for mut bytes in [head, body] {
        while !bytes.is_empty() {
            let written = poll_fn(|cx| match Pin::new(&mut connection.stream).poll_write(cx, bytes) {
                Poll::Pending => connection.stream.poll_read_ready(cx).map_ok(|()| 0),
                ready => ready,
            });
            match written.await? {
                0 => return Ok(()),
                n => bytes = &bytes[n..],
            }
        }
    }
    Ok(())
}

/// Reads until the head is whole. `None`: the connection ended before the first byte.
async fn read_head(connection: &mut Connection) -> Result<Option<(Head, Vec<u8>)>, UpstreamError> {
    let mut received = Received::default();
    loop {
        let step = poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut connection.stream).poll_read(cx, &mut buffer) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(Some(received.parse(buffer.filled())))),
                }
            })
        });
        match step.await {
            Ok(Some(parsed)) => {
                if let Some(whole) = parsed? {
                    return Ok(Some(whole));
                }
            }
            Ok(None) | Err(_) if received.is_empty() => return Ok(None),
            Ok(None) => {
                return Err(UpstreamError::Broken("it ended in the middle of the answer's head".into()));
            }
            Err(error) => return Err(UpstreamError::Broken(error.to_string())),
        }
    }
}
