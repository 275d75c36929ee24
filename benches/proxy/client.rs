//! One keep-alive client connection: sends a prepared request, reads the answer, checks every byte of it.
//!
//! Just enough HTTP/1.1 for answers with a length or in chunks, so that the generator stays cheap. Anything
//! but a 200 with exactly the expected body is an error in words.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The body an answer must have.
pub(crate) struct Expected<'a> {
    pub(crate) body: &'a [u8],
    /// How long the body is once each token is whole; empty if tokens are not timed.
    pub(crate) marks: &'a [usize],
    /// Whether the answer ends; if not, having read `body` is enough.
    pub(crate) ends: bool,
}

/// When the parts of one answer came, counted from the start of the request.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    pub(crate) first_byte: Duration,
    pub(crate) total: Duration,
    /// From each timed token to the next.
    pub(crate) gaps: Vec<Duration>,
}

/// Where in the answer's framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// In a body with a length, of which this much is missing.
    Body(usize),
    ChunkSize,
    /// In a chunk, of which this much is missing.
    Chunk(usize),
    ChunkEnd,
    Trailer,
    End,
}

/// A connection with its buffers, used for one request after another.
pub(crate) struct Client {
    stream: TcpStream,
    inbox: BytesMut,
    body: Vec<u8>,
}

impl Client {
    /// Connects, with Nagle's algorithm off.
    pub(crate) async fn connect(addr: SocketAddr) -> Result<Client, String> {
        let stream = TcpStream::connect(addr).await.map_err(|error| format!("connect to {addr}: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Client { stream, inbox: BytesMut::with_capacity(16 * 1024), body: Vec::new() })
    }

    /// Sends `request` and reads its answer; `on_token` is called when a timed token is whole.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        expected: &Expected<'_>,
        mut on_token: impl FnMut(),
    ) -> Result<Timing, String> {
        let begun = Instant::now();
        self.stream.write_all(request).await.map_err(|error| format!("write: {error}"))?;
        self.body.clear();
        let mut timing = Timing::default();
        let (mut at, mut tokens, mut previous) = (At::Head, 0, begun);
        loop {
            self.inbox.reserve(16 * 1024);
            let read =
                self.stream.read_buf(&mut self.inbox).await.map_err(|error| format!("read: {error}"))?;
            if read == 0 {
                return Err(format!("connection closed after {} bytes of the body", self.body.len()));
            }
            at = self.decode(at)?;
            let now = Instant::now();
            if timing.first_byte.is_zero() && !self.body.is_empty() {
                timing.first_byte = now - begun;
            }
            while expected.marks.get(tokens).is_some_and(|mark| self.body.len() >= *mark) {
                if tokens > 0 {
                    timing.gaps.push(now - previous);
                }
                tokens += 1;
                previous = now;
                on_token();
            }
            let enough = !expected.ends && self.body.len() >= expected.body.len();
            if at == At::End || enough {
                timing.total = now - begun;
                break;
            }
        }
        self.check(expected.body)?;
        Ok(timing)
    }

    /// Takes all that can be taken off the inbox and says where that ends.
    fn decode(&mut self, mut at: At) -> Result<At, String> {
        loop {
            at = match at {
                At::Head => match head(&self.inbox)? {
                    Some((used, next)) => {
                        self.inbox.advance(used);
                        next
                    }
                    None => return Ok(at),
                },
                At::Body(0) => At::End,
                At::Chunk(0) => At::ChunkEnd,
                At::End if self.inbox.is_empty() => return Ok(at),
                At::End => return Err("bytes after the end of the answer".to_owned()),
                _ if self.inbox.is_empty() => return Ok(at),
                At::Body(missing) => At::Body(missing - self.take(missing)),
                At::Chunk(missing) => At::Chunk(missing - self.take(missing)),
                At::ChunkSize => match httparse::parse_chunk_size(&self.inbox) {
                    Ok(httparse::Status::Complete((used, size))) => {
                        self.inbox.advance(used);
                        if size == 0 { At::Trailer } else { At::Chunk(size as usize) }
                    }
                    Ok(httparse::Status::Partial) => return Ok(at),
                    Err(_) => return Err("malformed chunk size".to_owned()),
                },
                At::ChunkEnd | At::Trailer if self.inbox.len() < 2 => return Ok(at),
                At::ChunkEnd | At::Trailer if !self.inbox.starts_with(b"\r\n") => {
                    return Err("a chunk does not end where it should".to_owned());
                }
                At::ChunkEnd | At::Trailer => {
                    self.inbox.advance(2);
                    if at == At::Trailer { At::End } else { At::ChunkSize }
                }
            };
        }
    }

    fn take(&mut self, most: usize) -> usize {
        let count = most.min(self.inbox.len());
        self.body.extend_from_slice(&self.inbox[..count]);
        self.inbox.advance(count);
        count
    }

    fn check(&self, expected: &[u8]) -> Result<(), String> {
        if self.body == expected {
            return Ok(());
        }
        let same = self.body.iter().zip(expected).take_while(|(got, wanted)| got == wanted).count();
        let around = &self.body[same.saturating_sub(40)..self.body.len().min(same + 80)];
        Err(format!(
            "the body has {} bytes, not {}, and differs from byte {same} on: ...{}",
            self.body.len(),
            expected.len(),
            String::from_utf8_lossy(around)
        ))
    }
}

/// The length of a whole head and what follows it; `None` while some of it is missing.
fn head(inbox: &[u8]) -> Result<Option<(usize, At)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let used = match response.parse(inbox) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("malformed head: {error}")),
    };
    if response.code != Some(200) {
        let body = String::from_utf8_lossy(&inbox[used..]);
        return Err(format!("status {}: {body}", response.code.unwrap_or(0)));
    }
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    match (value("transfer-encoding"), value("content-length").and_then(|text| text.trim().parse().ok())) {
        (Some(coding), _) if coding.trim().eq_ignore_ascii_case("chunked") => Ok(Some((used, At::ChunkSize))),
        (None, Some(length)) => Ok(Some((used, At::Body(length)))),
        _ => Err("the head tells no length of the body".to_owned()),
    }
}
