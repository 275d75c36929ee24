//! An answer's body as a stream: each item is everything that had arrived.

use core::pin::Pin;
use core::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::core::sync::Arc;
use crate::ports::UpstreamError;
use crate::wire::chunked::Chunked;

use super::connection::{Connection, SCRATCH};
use super::head::Framing;
use super::pool::Pool;

/// What is left of a body.
#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// A body. The connection goes back to the pool after its last byte, and is closed if it is dropped before.
#[derive(Debug)]
pub(super) struct BodyStream {
    /// Gone once the body has ended.
    connection: Option<Connection>,
    rest: Rest,
    /// Came together with the head.
    early: Vec<u8>,
    /// Where the connection goes afterwards.
    home: Option<(Arc<Pool>, Box<str>)>,
}

impl BodyStream {
    pub(super) fn new(
        connection: Connection,
        framing: Framing,
        early: Vec<u8>,
        home: Option<(Arc<Pool>, &str)>,
    ) -> BodyStream {
        let rest = match framing {
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Chunked::default()),
            Framing::UntilClose => Rest::UntilClose,
        };
        let home = home.map(|(pool, authority)| (pool, authority.into()));
        let mut stream = BodyStream { connection: Some(connection), rest, early, home };
        if matches!(stream.rest, Rest::Length(0)) {
            stream.end(stream.early.is_empty());
        }
        stream
    }

    /// The body has ended. `clean`: nothing came behind it.
    fn end(&mut self, clean: bool) {
        let connection = self.connection.take();
        if let (Some(connection), Some((pool, authority)), true) = (connection, self.home.take(), clean) {
            pool.put(&authority, connection);
        }
    }

    /// The payload in `bytes`, which is empty while only framing arrives.
    fn take_in(&mut self, bytes: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        let mut payload = Vec::new();
        let (used, done) = match &mut self.rest {
            Rest::UntilClose => {
                payload.extend_from_slice(bytes);
                (bytes.len(), false)
            }
            Rest::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                payload.extend_from_slice(&bytes[..here]);
                *left -= here as u64;
                (here, *left == 0)
            }
            Rest::Chunked(decoder) => {
                // The payload is a little smaller than its coding.
                payload.reserve(bytes.len());
                let used = decoder
                    .decode(bytes, &mut payload)
                    .map_err(|bad| UpstreamError::Protocol(bad.to_string()))?;
                (used, decoder.is_done())
            }
        };
        if done {
            self.end(used == bytes.len());
        }
        Ok(payload)
    }

    /// The endpoint closed the connection.
    fn closed(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        self.connection = None;
        match self.rest {
            Rest::UntilClose => None,
            Rest::Length(_) | Rest::Chunked(_) => {
                Some(Err(UpstreamError::Broken("the connection closed before the body was whole".into())))
            }
        }
    }

    fn fail(&mut self, error: UpstreamError) -> Option<Result<Bytes, UpstreamError>> {
        self.connection = None;
        Some(Err(error))
    }
}

impl Stream for BodyStream {
    type Item = Result<Bytes, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let early = core::mem::take(&mut this.early);
        if !early.is_empty() && this.connection.is_some() {
            match this.take_in(&early) {
                Ok(payload) if payload.is_empty() => {}
                Ok(payload) => return Poll::Ready(Some(Ok(payload.into()))),
                Err(error) => return Poll::Ready(this.fail(error)),
            }
        }
        loop {
            let Some(mut connection) = this.connection.take() else { return Poll::Ready(None) };
            let item = SCRATCH.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                let read = Pin::new(&mut connection.stream).poll_read(cx, &mut buffer);
                this.connection = Some(connection);
                match read {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => {
                        Poll::Ready(this.fail(UpstreamError::Broken(error.to_string())))
                    }
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(this.closed()),
                    Poll::Ready(Ok(())) => match this.take_in(buffer.filled()) {
                        Ok(payload) => Poll::Ready(Some(Ok(payload.into()))),
                        Err(error) => Poll::Ready(this.fail(error)),
                    },
                }
            });
            match item {
                Poll::Ready(Some(Ok(payload))) if payload.is_empty() => {}
                item => return item,
            }
        }
    }
}
