//! A log that is made rather than grown: events like those of requests, appended to a store before a router
//! opens it.

use std::io;
use std::path::Path;

use bytes::{BufMut as _, Bytes, BytesMut};
use pointsman::adapters::sled::SledStore;
use pointsman::ports::Store as _;
use pointsman::wire::event::{Event, Fields, Kind};

/// Records appended at once.
const BATCH: u64 = 4_096;

/// Makes a log of so many events in the folder of a router that has not started yet.
pub(crate) async fn log(folder: &Path, events: u64) -> io::Result<()> {
    let store = folder.join("data").join("store");
    std::fs::create_dir_all(&store)?;
    let store =
        tokio::task::spawn_blocking(move || SledStore::open(&store).map_err(io::Error::other)).await??;
    let now_ms =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(io::Error::other)?;
    let now_ms = now_ms.as_millis() as u64;
    for first in (1..=events).step_by(BATCH as usize) {
        let records = (first..=events.min(first + BATCH - 1)).map(|seq| record(now_ms, seq)).collect();
        store.append(first, records).await.map_err(io::Error::other)?;
    }
    // Its last flush blocks.
    tokio::task::spawn_blocking(move || drop(store)).await?;
    Ok(())
}

/// Starts and ends of requests in turn. A stored record is the latest time and the JSON; see `flow::log`.
fn record(now_ms: u64, seq: u64) -> Bytes {
    let event = event(now_ms, seq);
    let mut bytes = BytesMut::with_capacity(8 + event.json.len());
    bytes.put_u64_le(now_ms);
    bytes.put_slice(&event.json);
    bytes.freeze()
}

/// An event like that of a request.
pub(crate) fn event(now_ms: u64, seq: u64) -> Event {
    let request = format!("{:016x}", (seq / 2).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let model = format!("llama3.{}:8b", seq / 2 % 7);
    let begun = Fields {
        time_ms: now_ms,
        request_id: Some(request.into()),
        model: Some(model.into()),
        ..Fields::default()
    };
    if seq % 2 == 1 {
        return Event::new(Kind::RequestStarted, begun);
    }
    let ended = Fields {
        endpoint: Some("http://127.0.0.1:11434".into()),
        input_tokens: Some(52),
        output_tokens: Some(64),
        duration_ms: Some(320),
        outcome: Some("answered".into()),
        ..begun
    };
    Event::new(Kind::RequestFinished, ended)
}
