//! A subscriber that believes nothing: reads the feed off a raw connection, checks the chain of numbers within
//! each connection, and keeps the number and a hash of all that it was given, across every cut.

use std::collections::hash_map::DefaultHasher;
use std::future::pending;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use pointsman::adapters::entropy::SeededEntropy;
use pointsman::ports::Entropy as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// Pause before a connection is made again.
const PAUSE: Duration = Duration::from_millis(20);
/// A feed speaks every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// Wrong things that one subscriber remembers.
const WRONG_MAX: usize = 5;

/// What a subscriber asks for.
#[derive(Clone, Debug)]
pub(crate) struct Asks {
    /// Begin behind this number; `None`: with what comes from now on.
    pub(crate) after: Option<u64>,
    /// `&kinds=...&models=...`, or nothing.
    pub(crate) filter: String,
    /// Over a WebSocket.
    pub(crate) socket: bool,
    /// Leave after so many events on average and come again; 0 is never.
    pub(crate) leave_every: u64,
    pub(crate) seed: u64,
}

/// What a subscriber was given so far.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Where it began, once it knows.
    pub(crate) begin: Option<u64>,
    /// Number and hash of every event, in the order they came.
    pub(crate) events: Vec<(u64, u64)>,
    pub(crate) checkpoints: u64,
    pub(crate) connections: u64,
    /// Times that the router said that it was too slow.
    pub(crate) cut_off: u64,
    /// What must not be, in words.
    pub(crate) wrong: Vec<String>,
}

/// A subscriber at work.
pub(crate) struct Subscriber {
    pub(crate) asks: Asks,
    address: SocketAddr,
    given: Mutex<Given>,
    /// Everything up to here was looked at; 0 if it does not know yet.
    cursor: AtomicU64,
}

/// One thing a feed says.
enum Said {
    /// Number, the number before, hash of the rest.
    Event(u64, Option<u64>, u64),
    Checkpoint(u64),
    TooSlow,
    Nothing,
}

/// Why a connection ends.
enum End {
    /// It broke, or was cut, or was left.
    Cut,
    /// What came is wrong.
    Wrong(String),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Cut
    }
}

impl Subscriber {
    pub(crate) fn new(address: SocketAddr, asks: Asks) -> Arc<Subscriber> {
        let given = Given { begin: asks.after, ..Given::default() };
        Arc::new(Subscriber {
            cursor: AtomicU64::new(asks.after.unwrap_or(0)),
            asks,
            address,
            given: Mutex::new(given),
        })
    }

    /// Everything up to here was looked at.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor.load(Relaxed)
    }

    /// What it was given.
    pub(crate) fn take(&self) -> Given {
        std::mem::take(&mut self.given())
    }

    fn given(&self) -> std::sync::MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, and comes again behind its last number whenever a connection ends. Stops only at what is wrong.
    pub(crate) async fn run(&self) {
        let dice = SeededEntropy::new(self.asks.seed);
        loop {
            let read = if self.asks.socket { self.socket(&dice).await } else { self.sse(&dice).await };
            if let Err(End::Wrong(why)) = read {
                let mut given = self.given();
                if given.wrong.len() < WRONG_MAX {
                    given.wrong.push(why);
                }
                break;
            }
            sleep(PAUSE).await;
        }
        pending().await
    }

    /// The query and, to come again, the header.
    fn place(&self) -> (String, String) {
        let begin = self.given().begin;
        let (after, header) = match (begin, self.asks.socket) {
            (None, _) => (String::new(), String::new()),
            (Some(_), true) => (format!("after={}", self.cursor()), String::new()),
            // Like a browser: the URL it began with, and the number it read last.
            (Some(begin), false) if self.cursor() > begin => {
                (format!("after={begin}"), format!("last-event-id: {}\r\n", self.cursor()))
            }
            (Some(begin), false) => (format!("after={begin}"), String::new()),
        };
        (format!("{after}{}", self.asks.filter), header)
    }

    async fn sse(&self, dice: &SeededEntropy) -> Result<(), End> {
        let mut stream = TcpStream::connect(self.address).await?;
        let (query, header) = self.place();
        // HTTP/1.0 has no chunks: what comes behind the head is the stream itself.
        let request = format!("GET /api/events?{query} HTTP/1.0\r\nhost: x\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut inbox = Vec::with_capacity(64 * 1024);
        let mut has_head = false;
        let mut prev = None;
        loop {
            let read = timeout(SILENCE_MAX, stream.read_buf(&mut inbox)).await;
            if read.map_err(|_| End::Wrong("the feed went silent".to_owned()))?? == 0 {
                return Ok(());
            }
            let mut used = 0;
            if !has_head {
                let Some(end) = memchr::memmem::find(&inbox, b"\r\n\r\n") else { continue };
                if !inbox.starts_with(b"HTTP/1.0 200") {
                    let said = String::from_utf8_lossy(&inbox);
                    return Err(End::Wrong(format!("{query} {header}was answered with {said}")));
                }
                (has_head, used) = (true, end + 4);
                self.given().connections += 1;
            }
            while let Some(length) = memchr::memmem::find(&inbox[used..], b"\n\n") {
                let said = frame(&inbox[used..used + length]).map_err(End::Wrong)?;
                used += length + 2;
                self.hear(&said, &mut prev, dice)?;
            }
            inbox.drain(..used);
        }
    }

    async fn socket(&self, dice: &SeededEntropy) -> Result<(), End> {
        let stream = TcpStream::connect(self.address).await?;
        let (query, _) = self.place();
        let mut socket = match client_async(format!("ws://x/subscribe?{query}"), stream).await {
            Ok((socket, _)) => socket,
            Err(WsError::Http(answer)) => {
                return Err(End::Wrong(format!("{query} was answered with {}", answer.status())));
            }
            Err(_) => return Ok(()),
        };
        self.given().connections += 1;
        let mut prev = None;
        loop {
            let message = timeout(SILENCE_MAX, socket.next()).await;
            match message.map_err(|_| End::Wrong("the feed went silent".to_owned()))? {
                Some(Ok(Message::Text(text))) => {
                    self.hear(&object(text.as_bytes()).map_err(End::Wrong)?, &mut prev, dice)?;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(()),
            }
        }
    }

    fn hear(&self, said: &Said, before: &mut Option<u64>, dice: &SeededEntropy) -> Result<(), End> {
        let cursor = self.cursor();
        let mut given = self.given();
        match *said {
            Said::Nothing => {}
            Said::TooSlow => given.cut_off += 1,
            Said::Checkpoint(seq) => {
                if seq < cursor {
                    return Err(End::Wrong(format!("checkpoint {seq} behind {cursor}")));
                }
                given.checkpoints += 1;
                given.begin.get_or_insert(seq);
                self.cursor.store(seq, Relaxed);
            }
            Said::Event(seq, prev, hash) => {
                if prev != *before || seq <= cursor || given.begin.is_none() {
                    let why = format!("event {seq} names {prev:?} before it, {before:?} was, at {cursor}");
                    return Err(End::Wrong(why));
                }
                *before = Some(seq);
                given.events.push((seq, hash));
                self.cursor.store(seq, Relaxed);
                let every = self.asks.leave_every;
                if every > 0 && dice.next_u64().is_multiple_of(every) {
                    return Err(End::Cut);
                }
            }
        }
        Ok(())
    }
}

/// What one frame of server-sent events says.
fn frame(frame: &[u8]) -> Result<Said, String> {
    let (mut event, mut id, mut data): (&[u8], Option<u64>, Option<&[u8]>) = (b"", None, None);
    for line in frame.split(|byte| *byte == b'\n') {
        if let Some(rest) = line.strip_prefix(b"data: ") {
            data = Some(rest);
        } else if let Some(rest) = line.strip_prefix(b"id: ") {
            id = number(rest).map(|(id, _)| id);
        } else if let Some(rest) = line.strip_prefix(b"event: ") {
            event = rest;
        }
    }
    let said = data.map_or(Ok(Said::Nothing), object)?;
    let is_right = match said {
        Said::Event(seq, ..) => event.is_empty() && id == Some(seq),
        Said::Checkpoint(seq) => event == b"checkpoint" && id == Some(seq),
        Said::TooSlow => event == b"error",
        Said::Nothing => true,
    };
    is_right.then_some(said).ok_or_else(|| format!("odd frame: {}", String::from_utf8_lossy(frame)))
}

/// What one object says.
fn object(json: &[u8]) -> Result<Said, String> {
    let odd = || format!("odd object: {}", String::from_utf8_lossy(json));
    if let Some((seq, prev, rest)) = event(json) {
        return Ok(Said::Event(seq, prev, hash(rest)));
    }
    if let Some(rest) = json.strip_prefix(b"{\"checkpoint\":") {
        let (seq, rest) = number(rest).ok_or_else(odd)?;
        return (rest == b"}").then_some(Said::Checkpoint(seq)).ok_or_else(odd);
    }
    let object: serde_json::Value = serde_json::from_slice(json).map_err(|_| odd())?;
    if object["error"] == "ConsumerTooSlow" { Ok(Said::TooSlow) } else { Err(odd()) }
}

/// An event's number, the number before, and the rest of its JSON.
pub(crate) fn event(json: &[u8]) -> Option<(u64, Option<u64>, &[u8])> {
    let (seq, rest) = number(json.strip_prefix(b"{\"seq\":")?)?;
    let rest = rest.strip_prefix(b",\"prev_seq\":")?;
    let (prev, rest) = match rest.strip_prefix(b"null") {
        Some(rest) => (None, rest),
        None => number(rest).map(|(prev, rest)| (Some(prev), rest))?,
    };
    Some((seq, prev, rest.strip_prefix(b",")?))
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((number, &text[digits..]))
}

/// A hash of an event without its numbers, the same in one process.
pub(crate) fn hash(rest: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    rest.hash(&mut hasher);
    hasher.finish()
}
