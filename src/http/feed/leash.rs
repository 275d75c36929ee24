//! What cuts a connection whose client takes nothing any more.
//!
//! A pulled body learns that its client is slow when it is asked for more, and a client that never reads
//! again never lets it be asked. So a clock runs beside each stream: it looks now and then whether a piece
//! has been in the connection's hands for too long, and then has the connection cut. Whoever reads again
//! before that is told why it is cut off, by the pump.

use core::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::config::STALL_GRACE;
use crate::core::sync::{Arc, AtomicU64, Ordering};
use crate::core::time::Instant;
use crate::http::peer::Cut;
use crate::ports::Clock;

use super::STOP_GRACE;

/// The clock beside one stream; it stops with the stream.
pub(super) struct Leash {
    clock: Arc<dyn Clock>,
    handed: Arc<Handed>,
    watch: JoinHandle<()>,
}

/// When a piece was handed to the connection, in nanoseconds of the clock; `TAKEN` once it has been taken.
struct Handed(AtomicU64);

const TAKEN: u64 = u64::MAX;

impl Handed {
    fn since(&self) -> Option<Instant> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos != TAKEN).then(|| Instant::from_nanos(nanos))
    }
}

impl Leash {
    /// Cuts `connection` when a piece is not taken within `stall` and the grace for reading why, or within a
    /// shorter grace once the server stops.
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        stall: Duration,
        connection: Cut,
        stopping: watch::Receiver<bool>,
    ) -> Leash {
        let handed = Arc::new(Handed(AtomicU64::new(TAKEN)));
        let watch = tokio::spawn(look(Arc::clone(&clock), Arc::clone(&handed), stall, connection, stopping));
        Leash { clock, handed, watch }
    }

    /// A piece is in the connection's hands.
    pub(super) fn handed(&self) {
        self.handed.0.store(self.clock.now().as_nanos(), Ordering::Relaxed);
    }

    /// It asked for the next.
    pub(super) fn taken(&self) {
        self.handed.0.store(TAKEN, Ordering::Relaxed);
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

async fn look(
    clock: Arc<dyn Clock>,
    handed: Arc<Handed>,
    stall: Duration,
    connection: Cut,
    mut stopping: watch::Receiver<bool>,
) {
    let patience = stall + STALL_GRACE;
    loop {
        let now = clock.now();
        let left = match handed.since() {
            Some(since) => patience.saturating_sub(now.since(since)),
            None => patience,
        };
        if left.is_zero() {
            return connection.cut();
        }
        tokio::select! {
            () = sleep(left) => {}
            _ = async { stopping.wait_for(|stopping| *stopping).await.map(drop) } => break,
        }
    }
    // Whoever takes what it has is given the end of the stream and goes; the others are not waited for.
    sleep(STOP_GRACE).await;
    connection.cut();
}
