//! The load generator, in a process of its own: keep-alive connections that send one request after another
//! and hold every answer against the bytes it must be.
//!
//! A window is warm-up, a reading of the proxy's CPU time, the measured time, a second reading. The readings
//! are made here, next to the counting, so that both cover the same stretch of time.

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::client::{Client, Expected};
use crate::proc::cpu_us;
use crate::traffic::{self, GAP_MS, Load, Style, TOKENS};

/// The longest one exchange may take.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);
/// Errors after which a connection gives up.
const ERRORS_MAX: u64 = 20;

/// What one load process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) addr: SocketAddr,
    pub(crate) load: Load,
    pub(crate) style: Style,
    /// Connections, or idle streams.
    pub(crate) connections: usize,
    pub(crate) warmup_ms: u64,
    pub(crate) window_ms: u64,
    /// Whose CPU time is read; none for no proxy.
    pub(crate) pids: Vec<u32>,
}

/// What one window measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Whole answers that ended in the window.
    pub(crate) requests: u64,
    /// Answers' worth of work in the window: for streams, tokens received over tokens per answer.
    pub(crate) work: f64,
    pub(crate) errors: u64,
    /// The first error, in words.
    pub(crate) error: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) cpu_us: u64,
    pub p50_us: u32,
    pub p99_us: u32,
    pub first_byte_p50_us: u32,
    pub first_byte_p99_us: u32,
    /// How far the gaps between a paced answer's tokens are from what the backend does.
    pub jitter_p50_us: u32,
    pub jitter_p99_us: u32,
}

/// Runs one window, or holds idle streams open, and prints the outcome as a line of JSON.
pub(crate) fn run(spec: &Spec) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        if spec.load == Load::Idle { hold(spec).await } else { window(spec).await }
    })
}

fn print(outcome: &Outcome) -> io::Result<()> {
    println!("{}", serde_json::to_string(outcome)?);
    io::stdout().flush()
}

/// Opens streams that stay silent after their first token, says so, and keeps them until stdin ends.
async fn hold(spec: &Spec) -> io::Result<()> {
    let request = traffic::request(spec.load, spec.style, &spec.addr.to_string());
    let first = traffic::answer(spec.load, spec.style, false).tokens.swap_remove(0);
    let mut streams = Vec::with_capacity(spec.connections);
    let mut outcome = Outcome::default();
    for _ in 0..spec.connections {
        let opened = timeout(EXCHANGE_MAX, async {
            let mut client = Client::connect(spec.addr).await?;
            client.exchange(&request, &Expected { body: &first, marks: &[], ends: false }, || {}).await?;
            Ok(client)
        });
        match opened.await.unwrap_or_else(|_| Err("no first token in time".to_owned())) {
            Ok(client) => streams.push(client),
            Err(error) => {
                outcome.errors += 1;
                outcome.error = Some(error);
                break;
            }
        }
    }
    outcome.requests = streams.len() as u64;
    print(&outcome)?;
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
    drop(streams);
    Ok(())
}

/// What the connections of a window share.
struct Shared {
    spec: Spec,
    request: Vec<u8>,
    body: Vec<u8>,
    marks: Vec<usize>,
    /// Between the two CPU readings.
    measuring: Cell<bool>,
    over: Cell<bool>,
}

/// What one connection counted while measuring.
#[derive(Default)]
struct Tally {
    total_us: Vec<u32>,
    first_byte_us: Vec<u32>,
    jitter_us: Vec<u32>,
    tokens: u64,
    errors: u64,
    error: Option<String>,
}

async fn window(spec: &Spec) -> io::Result<()> {
    let answer = traffic::answer(spec.load, spec.style, false);
    let shared = Rc::new(Shared {
        request: traffic::request(spec.load, spec.style, &spec.addr.to_string()),
        body: answer.body(),
        marks: if spec.load == Load::Paced { answer.marks() } else { Vec::new() },
        measuring: Cell::new(false),
        over: Cell::new(false),
        spec: spec.clone(),
    });
    // Spread over one answer's time, or paced answers would end in waves and the window would cut one in two.
    let spread = if spec.load == Load::Paced { GAP_MS * TOKENS as u64 } else { 0 };
    let connections: Vec<_> = (0..spec.connections)
        .map(|index| {
            let delay = Duration::from_millis(spread) * index as u32 / spec.connections as u32;
            tokio::task::spawn_local(connection(Rc::clone(&shared), delay))
        })
        .collect();

    tokio::time::sleep(Duration::from_millis(spec.warmup_ms)).await;
    let (begun, cpu_before) = (Instant::now(), cpu_us(&spec.pids)?);
    shared.measuring.set(true);
    tokio::time::sleep(Duration::from_millis(spec.window_ms)).await;
    shared.measuring.set(false);
    let (seconds, cpu_after) = (begun.elapsed().as_secs_f64(), cpu_us(&spec.pids)?);
    shared.over.set(true);

    let mut sum = Tally::default();
    for connection in connections {
        let part = connection.await.map_err(io::Error::other)?;
        sum.total_us.extend(part.total_us);
        sum.first_byte_us.extend(part.first_byte_us);
        sum.jitter_us.extend(part.jitter_us);
        sum.tokens += part.tokens;
        sum.errors += part.errors;
        sum.error = sum.error.or(part.error);
    }
    let requests = sum.total_us.len() as u64;
    let [total, first_byte, jitter] = [sum.total_us, sum.first_byte_us, sum.jitter_us].map(Percentiles::new);
    print(&Outcome {
        requests,
        work: if shared.marks.is_empty() { requests as f64 } else { sum.tokens as f64 / TOKENS as f64 },
        errors: sum.errors,
        error: sum.error,
        seconds,
        cpu_us: cpu_after.saturating_sub(cpu_before),
        p50_us: total.at(50),
        p99_us: total.at(99),
        first_byte_p50_us: first_byte.at(50),
        first_byte_p99_us: first_byte.at(99),
        jitter_p50_us: jitter.at(50),
        jitter_p99_us: jitter.at(99),
    })
}

/// Microseconds in order.
struct Percentiles(Vec<u32>);

impl Percentiles {
    fn new(mut values: Vec<u32>) -> Percentiles {
        values.sort_unstable();
        Percentiles(values)
    }

    /// The value that `percent` of the others do not exceed; zero of nothing.
    fn at(&self, percent: usize) -> u32 {
        self.0.get(self.0.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0)
    }
}

async fn connection(shared: Rc<Shared>, delay: Duration) -> Tally {
    let mut tally = Tally::default();
    let mut client: Option<Client> = None;
    let expected = Expected { body: &shared.body, marks: &shared.marks, ends: true };
    tokio::time::sleep(delay).await;
    while !shared.over.get() && tally.errors < ERRORS_MAX {
        let tokens = &mut tally.tokens;
        let count = || *tokens += u64::from(shared.measuring.get());
        let exchange = timeout(EXCHANGE_MAX, async {
            let mut connected = match client.take() {
                Some(connected) => connected,
                None => Client::connect(shared.spec.addr).await?,
            };
            let timing = connected.exchange(&shared.request, &expected, count).await?;
            client = Some(connected);
            Ok(timing)
        });
        match exchange.await.unwrap_or_else(|_| Err("no whole answer in time".to_owned())) {
            Ok(timing) if shared.measuring.get() => {
                let gaps_us = timing.gaps.iter().map(|gap| micros(*gap));
                tally.jitter_us.extend(gaps_us.map(|gap_us| gap_us.abs_diff(GAP_MS as u32 * 1000)));
                tally.total_us.push(micros(timing.total));
                tally.first_byte_us.push(micros(timing.first_byte));
            }
            Ok(_) => {}
            Err(error) => {
                tally.errors += 1;
                tally.error.get_or_insert(error);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    tally
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
