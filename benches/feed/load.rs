//! Requests at a steady rate, each of which leaves two events: keep-alive connections to the router, and the
//! time that each answer took. A connection that breaks is made again: routers are killed here.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

/// The longest that one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Pause after a connection broke.
const PAUSE: Duration = Duration::from_millis(20);

/// A load under way; it ends with its value.
pub(crate) struct Load {
    _tasks: JoinSet<()>,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    /// What each answer took since the last look, in microseconds.
    took_us: Mutex<Vec<u32>>,
}

impl Load {
    /// So many requests per second for each of these models in turn, over so many connections.
    pub(crate) fn start(address: SocketAddr, models: &[String], rate: f64, connections: usize) -> Load {
        let tally = Arc::new(Tally::default());
        let mut tasks = JoinSet::new();
        let period = Duration::from_secs_f64(connections as f64 / rate);
        for index in 0..connections {
            let requests: Vec<_> = models.iter().map(|model| request(address, model)).collect();
            let begin = Instant::now() + period.mul_f64(index as f64 / connections as f64);
            let tally = Arc::clone(&tally);
            tasks.spawn(async move {
                let mut ticks = interval_at(begin, period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
                let mut turn = index;
                loop {
                    if let Ok(mut stream) = TcpStream::connect(address).await {
                        let _ = stream.set_nodelay(true);
                        loop {
                            ticks.tick().await;
                            turn += connections + 1;
                            let request = &requests[turn % requests.len()];
                            let begun = Instant::now();
                            match timeout(REQUEST_MAX, exchange(&mut stream, request)).await {
                                Ok(Ok(200)) => tally.answered(begun.elapsed()),
                                _ => break,
                            }
                        }
                        tally.failed.fetch_add(1, Relaxed);
                    }
                    sleep(PAUSE).await;
                }
            });
        }
        Load { _tasks: tasks, tally }
    }

    /// Requests answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.tally.answered.load(Relaxed)
    }

    /// Requests that failed so far.
    pub(crate) fn failed(&self) -> u64 {
        self.tally.failed.load(Relaxed)
    }

    /// What each answer took since this was last asked, in microseconds.
    pub(crate) fn took_us(&self) -> Vec<u32> {
        std::mem::take(&mut self.tally.took_us.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tally {
    fn answered(&self, took: Duration) {
        self.answered.fetch_add(1, Relaxed);
        let took_us = took.as_micros().try_into().unwrap_or(u32::MAX);
        self.took_us.lock().unwrap_or_else(PoisonError::into_inner).push(took_us);
    }
}

/// A chat without a stream.
pub(crate) fn request(address: SocketAddr, model: &str) -> Vec<u8> {
    let body = serde_json::json!({ "model": model, "messages": [], "stream": false }).to_string();
    let length = body.len();
    format!("POST /api/chat HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Sends a request and reads its whole answer: its status.
pub(crate) async fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<u16> {
    stream.write_all(request).await?;
    Ok(answer(stream).await?.0)
}

/// Status and body of a GET on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    timeout(REQUEST_MAX, answer(&mut stream)).await?
}

/// The newest number of the log.
pub(crate) async fn tip(address: SocketAddr) -> io::Result<u64> {
    let (_, body) = get(address, "/api/events/bounds").await?;
    let bounds: serde_json::Value = serde_json::from_slice(&body)?;
    bounds["tip"].as_u64().ok_or_else(|| io::Error::other(format!("no bounds: {bounds}")))
}

/// A number among its metrics, without labels.
pub(crate) async fn metric(address: SocketAddr, name: &str) -> io::Result<u64> {
    let (_, metrics) = get(address, "/metrics").await?;
    let metrics = String::from_utf8_lossy(&metrics);
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim_start().parse().ok());
    value.ok_or_else(|| io::Error::other(format!("no metric {name}")))
}

async fn answer(stream: &mut TcpStream) -> io::Result<(u16, Vec<u8>)> {
    let mut inbox = Vec::with_capacity(2048);
    loop {
        if stream.read_buf(&mut inbox).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(used) = head.parse(&inbox).map_err(io::Error::other)? else {
            continue;
        };
        let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
        let is_whole = match length {
            Some(length) => inbox.len() >= used + length,
            None => inbox.ends_with(b"0\r\n\r\n"),
        };
        if is_whole {
            return Ok((head.code.unwrap_or_default(), inbox.split_off(used)));
        }
    }
}
