//! `pointsman tail`: a router's events as lines of JSON, across restarts and cut connections.

use std::io::{self, ErrorKind, Write};

use tokio::signal::unix::{SignalKind, signal};

use crate::core::timeline::Seq;
use crate::feed::{Client, Cut, Delivery, FeedError};

use super::{CliError, TailArgs, serve};

/// Where to begin.
#[derive(Clone, Debug)]
pub(super) enum After {
    /// Behind this number.
    Seq(Seq),
    /// With what is later than this; the router reads it.
    Time(String),
}

impl After {
    pub(super) fn parse(text: &str) -> Result<After, String> {
        if let Ok(seq) = text.parse() {
            return Ok(After::Seq(seq));
        }
        match text.as_bytes() {
            [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b'-', ..] if text.contains(':') => {
                Ok(After::Time(text.to_owned()))
            }
            _ => Err("give an event's number, or a time like 2026-01-31T12:00:00Z".to_owned()),
        }
    }
}

pub(super) fn run(args: TailArgs) -> Result<(), CliError> {
    let runtime = serve::runtime()?;
    let done = runtime.block_on(tail(args));
    // A line that nobody takes does not hold up the end.
    runtime.shutdown_background();
    done
}

async fn tail(args: TailArgs) -> Result<(), CliError> {
    let mut client = Client::new(&args.url)?.kinds(args.kinds).endpoints(args.endpoints).models(args.models);
    client = match args.after {
        Some(After::Seq(seq)) => client.after(seq),
        Some(After::Time(time)) => client.since(time),
        None => client.live(),
    };
    if let Some(key) = args.api_key {
        client = client.api_key(key);
    }
    let client = client.on_cut(say);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
    let printing = client.run(|delivery| print(delivery, args.checkpoints));
    tokio::select! {
        error = printing => match error {
            // Whoever read this has enough.
            FeedError::Callback(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            error => Err(CliError::Feed(Box::new(error))),
        },
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn print(delivery: Delivery, checkpoints: bool) -> io::Result<()> {
    let mut line = match delivery {
        Delivery::Event(event) => event.json.to_vec(),
        Delivery::Checkpoint(seq) if checkpoints => format!("{{\"checkpoint\":{seq}}}").into_bytes(),
        Delivery::Checkpoint(_) => return Ok(()),
    };
    // In JSON a line feed stands between words only.
    line.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    line.push(b'\n');
    let written = tokio::task::spawn_blocking(move || {
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.flush()
    });
    written.await.map_err(io::Error::other)?
}

fn say(cut: &Cut) {
    let after = cut.after.map_or_else(|| "from now on".to_owned(), |after| format!("behind {after}"));
    let _ = writeln!(
        io::stderr(),
        "pointsman: {}; going on {after} in {:.1} s",
        cut.why,
        cut.pause.as_secs_f64()
    );
}
