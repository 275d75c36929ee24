//! One HTTP/1.1 connection as the pretend backend holds it: requests in, bytes out, and the client's absence.
//!
//! The wire is done by hand because half of what a pretend backend is for is HTTP that a proper server
//! refuses to write. Reading is only as lenient as a router's requests need: `Content-Length` or chunked
//! bodies, keep-alive, `Expect: 100-continue`.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const HEAD_MAX: usize = 64 * 1024;
const BODY_MAX: usize = 256 * 1024 * 1024;
const HEADERS_MAX: usize = 128;

/// One request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method, as sent.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// What follows the `?`, or nothing.
    pub query: String,
    /// Every header in order, names in lower case, values as text (bytes that are not UTF-8 replaced).
    pub headers: Vec<(String, String)>,
    /// The body without its transfer coding.
    pub body: Bytes,
}

impl Request {
    /// The first header of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn says(&self, name: &str, token: &str) -> bool {
        self.headers
            .iter()
            .filter(|(key, _)| key == name)
            .flat_map(|(_, value)| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// Whether the client wants the connection closed after the answer.
    pub(super) fn wants_close(&self) -> bool {
        self.says("connection", "close")
    }
}

/// A connection, with what was read from it and not used yet.
pub(super) struct Line {
    stream: TcpStream,
    inbox: BytesMut,
}

impl Line {
    /// Takes over a fresh connection and turns Nagle's algorithm off.
    pub(super) fn new(stream: TcpStream) -> Line {
        // A socket that refuses the option still works, only later; there is nothing better to do.
        let _ = stream.set_nodelay(true);
        Line { stream, inbox: BytesMut::with_capacity(4096) }
    }

    /// Reads the next request; `None` if the client closed the connection between requests.
    /// A request that is not HTTP/1.1 is `InvalidData`.
    pub(super) async fn request(&mut self) -> io::Result<Option<Request>> {
        let mut request = loop {
            if let Some(request) = parse_head(&mut self.inbox)? {
                break request;
            }
            if !self.fill().await? {
                return if self.inbox.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        };
        if request.says("expect", "100-continue") {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        request.body = if request.says("transfer-encoding", "chunked") {
            self.chunked_body().await?
        } else {
            let length = match request.header("content-length") {
                Some(text) => text.parse().map_err(|_| invalid("content-length is not a number"))?,
                None => 0,
            };
            self.exactly(length).await?
        };
        Ok(Some(request))
    }

    /// Writes all of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Rests until the deadline, or for ever without one, but notices at once when the client leaves:
    /// that is `UnexpectedEof`.
    pub(super) async fn rest(&mut self, until: Option<Instant>) -> io::Result<()> {
        loop {
            let read = match until {
                None => self.fill().await?,
                Some(deadline) => tokio::select! {
                    biased;
                    read = self.fill() => read?,
                    () = tokio::time::sleep_until(deadline) => return Ok(()),
                },
            };
            if !read {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads what is there into the inbox; `false` at the end. Cancelling it loses nothing.
    async fn fill(&mut self) -> io::Result<bool> {
        if self.inbox.len() > BODY_MAX {
            return Err(invalid("more bytes than a request may have"));
        }
        self.inbox.reserve(4096);
        Ok(self.stream.read_buf(&mut self.inbox).await? > 0)
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.fill().await? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Bytes> {
        if length > BODY_MAX {
            return Err(invalid("the body is too large"));
        }
        while self.inbox.len() < length {
            self.more().await?;
        }
        Ok(self.inbox.split_to(length).freeze())
    }

    async fn chunked_body(&mut self) -> io::Result<Bytes> {
        let mut body = BytesMut::new();
        loop {
            let (line_len, size) = loop {
                match httparse::parse_chunk_size(&self.inbox) {
                    Ok(httparse::Status::Complete((used, size))) => break (used, size),
                    Ok(httparse::Status::Partial) => self.more().await?,
                    Err(_) => return Err(invalid("a chunk size is malformed")),
                }
            };
            self.inbox.advance(line_len);
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size.saturating_add(body.len()) > BODY_MAX {
                return Err(invalid("the body is too large"));
            }
            if size == 0 {
                self.skip_trailers().await?;
                return Ok(body.freeze());
            }
            body.extend_from_slice(&self.exactly(size).await?);
            self.exactly(2).await?;
        }
    }

    async fn skip_trailers(&mut self) -> io::Result<()> {
        loop {
            match self.inbox.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let line = self.inbox.split_to(end + 1);
                    if line.iter().all(u8::is_ascii_whitespace) {
                        return Ok(());
                    }
                }
                None => self.more().await?,
            }
        }
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Takes a whole request head off the front of `inbox`, or leaves it if some is still missing.
fn parse_head(inbox: &mut BytesMut) -> io::Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let used = match head.parse(inbox) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if inbox.len() <= HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(invalid("the request head is too large")),
        Err(_) => return Err(invalid("the request is not HTTP/1.1")),
    };
    let target = head.path.unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: head
            .headers
            .iter()
            .map(|header| {
                (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned())
            })
            .collect(),
        body: Bytes::new(),
    };
    inbox.advance(used);
    Ok(Some(request))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_taken_only_when_it_is_whole() {
        let mut inbox = BytesMut::from("POST /api/chat?x=1 HTTP/1.1\r\nContent-Length: 2\r\n");
        assert_eq!(parse_head(&mut inbox).unwrap(), None);
        inbox.extend_from_slice(b"\r\n{}");
        let request = parse_head(&mut inbox).unwrap().unwrap();
        assert_eq!((request.path.as_str(), request.query.as_str()), ("/api/chat", "x=1"));
        assert_eq!(request.header("content-length"), Some("2"));
        assert_eq!(&inbox[..], b"{}");
    }

    #[test]
    fn bytes_that_are_not_http_are_refused() {
        let mut inbox = BytesMut::from("\x16\x03\x01 hello\r\n\r\n");
        assert_eq!(parse_head(&mut inbox).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
