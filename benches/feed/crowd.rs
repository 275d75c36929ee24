//! Subscribers by the hundred, as cheap as can be: they count events by the words that each begins with, or read
//! nothing at all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use memchr::memmem::Finder;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What every event's JSON begins with, and nothing else on a feed.
pub(crate) const BEGIN: &[u8] = b"{\"seq\":";
/// How long an answer's head may take.
const HEAD_MAX: Duration = Duration::from_secs(20);

/// How a subscriber speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Sse,
    Socket,
}

/// Subscribers that read and count. They end with their value.
pub(crate) struct Crowd {
    _tasks: JoinSet<()>,
    events: Arc<AtomicU64>,
}

impl Crowd {
    /// So many, from now on.
    pub(crate) async fn open(address: SocketAddr, over: Over, count: usize) -> io::Result<Crowd> {
        let (mut tasks, events) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).await?;
            let (status, rest) = open(&mut stream, over, "").await?;
            expect(status, over)?;
            let events = Arc::clone(&events);
            tasks.spawn(async move {
                let (finder, mut inbox) = (Finder::new(BEGIN), rest);
                loop {
                    let keep = inbox.len().min(BEGIN.len() - 1);
                    let found = finder.find_iter(&inbox).count() as u64;
                    events.fetch_add(found, Relaxed);
                    // What the next bytes may complete.
                    inbox.drain(..inbox.len() - keep);
                    inbox.reserve(16 * 1024);
                    if !matches!(stream.read_buf(&mut inbox).await, Ok(1..)) {
                        return;
                    }
                }
            });
        }
        Ok(Crowd { _tasks: tasks, events })
    }

    /// Events counted so far, by all together.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Relaxed)
    }
}

/// So many connections that subscribe and read no further than the answer's head.
pub(crate) async fn silent(
    address: SocketAddr,
    over: Over,
    count: usize,
    query: &str,
) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = TcpSocket::new_v4()?;
        if !query.is_empty() {
            // It is to be stopped soon: small segments keep the sender's buffer small too.
            socket.set_recv_buffer_size(4096)?;
            SockRef::from(&socket).set_tcp_mss(536)?;
        }
        let mut stream = socket.connect(address).await?;
        let (status, _) = open(&mut stream, over, query).await?;
        expect(status, over)?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Whether a subscriber was welcome.
pub(crate) fn expect(status: u16, over: Over) -> io::Result<()> {
    let expected = if over == Over::Sse { 200 } else { 101 };
    if status == expected {
        Ok(())
    } else {
        Err(io::Error::other(format!("a subscriber is answered {status}")))
    }
}

/// Subscribes: the status, and what came behind the answer's head.
pub(crate) async fn open(stream: &mut TcpStream, over: Over, query: &str) -> io::Result<(u16, Vec<u8>)> {
    let request = match over {
        Over::Sse => format!("GET /api/events?{query} HTTP/1.1\r\nhost: x\r\n\r\n"),
        Over::Socket => format!(
            "GET /subscribe?{query} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    };
    stream.write_all(request.as_bytes()).await?;
    let mut inbox = Vec::with_capacity(1024);
    loop {
        let read = timeout(HEAD_MAX, stream.read_buf(&mut inbox)).await?;
        if read? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = memchr::memmem::find(&inbox, b"\r\n\r\n") {
            let status = inbox.get(9..12).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            let rest = inbox.split_off(end + 4);
            return Ok((status.unwrap_or_default(), rest));
        }
    }
}
