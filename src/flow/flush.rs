//! Token counts on their way to the store, and back at the next start.
//!
//! One value per minute, `tokens/INSTANCE/MINUTE`, holds that minute's rows and the number of the
//! newest batch counted into it. A batch whose number is not newer than that has been counted
//! already: so a flush whose answer was lost is simply repeated (`token-conservation`). Values carry
//! a format number; a newer one is refused, not guessed at.

use core::convert::Infallible;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::ledger::{Batch, Row, Tokens, Totals};
use crate::core::time::Minute;
use crate::ports::{Store, StoreError, Versioned};

use super::router::Router;

/// Whose rows these are. One instance writes to an embedded store; with a shared store each would
/// have a name of its own, so that no two ever write the same key.
const INSTANCE: &str = "local";

/// The format of a stored minute.
const FORMAT: u32 = 1;

/// Pairs read at once when loading.
const PAGE: usize = 1_000;

/// How often a write that lost to another writer is tried anew before the flush is put back.
const CONFLICTS_MAX: u32 = 5;

/// One stored minute.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    /// The newest batch counted in.
    batch: u64,
    rows: Vec<StoredRow>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredRow {
    endpoint: String,
    model: String,
    input_tokens: u64,
    output_tokens: u64,
}

/// The stored counts cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value is not what this program writes.
    #[error("the value under '{key}' is damaged: {why}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A newer program wrote it.
    #[error(
        "the value under '{key}' has format {format}, written by a newer version; this one knows format {FORMAT}"
    )]
    Newer {
        /// Its key.
        key: String,
        /// Its format.
        format: u32,
    },
}

impl From<LoadError> for StoreError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => error,
            other => StoreError::Corrupt(other.to_string()),
        }
    }
}

fn key(minute: Minute) -> String {
    format!("tokens/{INSTANCE}/{:012}", minute.number())
}

fn decode(key: &str, value: &[u8]) -> Result<Stored, LoadError> {
    let damaged = |why: serde_json::Error| LoadError::Damaged { key: key.to_owned(), why: why.to_string() };
    // The format is read by itself first: a newer one may have other fields.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(value).map_err(damaged)?;
    if format != FORMAT {
        return Err(LoadError::Newer { key: key.to_owned(), format });
    }
    serde_json::from_slice(value).map_err(damaged)
}

/// What the store holds: totals by endpoint and model, and the newest batch number it has seen.
pub async fn load(store: &dyn Store) -> Result<(Totals, u64), LoadError> {
    let (mut totals, mut newest) = (Totals::new(), 0);
    let mut after: Option<String> = None;
    loop {
        let page = store.scan("tokens/", after.as_deref(), PAGE).await?;
        for (key, Versioned { value, .. }) in &page {
            let stored = decode(key, value)?;
            newest = newest.max(stored.batch);
            for StoredRow { endpoint, model, input_tokens, output_tokens } in stored.rows {
                let key = (endpoint.as_str().into(), model.as_str().into());
                *totals.entry(key).or_default() += Tokens { input: input_tokens, output: output_tokens };
            }
        }
        match page.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => return Ok((totals, newest)),
        }
    }
}

/// Makes a batch durable: minute by minute, each counted once however often this is repeated.
async fn store_batch(store: &dyn Store, batch: &Batch) -> Result<(), StoreError> {
    for rows in batch.rows.chunk_by(|a, b| a.minute == b.minute) {
        store_minute(store, batch.number, rows).await?;
    }
    Ok(())
}

async fn store_minute(store: &dyn Store, number: u64, rows: &[Row]) -> Result<(), StoreError> {
    let key = key(rows[0].minute);
    for _ in 0..CONFLICTS_MAX {
        let before = store.get(&key).await?;
        let revision = before.as_ref().map(|versioned| versioned.revision);
        let mut stored = match before {
            Some(Versioned { value, .. }) => decode(&key, &value)?,
            None => Stored { format: FORMAT, batch: 0, rows: Vec::new() },
        };
        if stored.batch >= number {
            return Ok(());
        }
        stored.batch = number;
        rows.iter().for_each(|row| stored.add(row));
        let value = serde_json::to_vec(&stored).expect("strings and numbers always serialise");
        match store.put(&key, revision, value.into()).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Conflict)
}

impl Stored {
    fn add(&mut self, row: &Row) {
        let (endpoint, model, tokens) = (row.endpoint.as_str(), row.model.as_str(), row.tokens);
        let at = self.rows.iter().position(|stored| stored.endpoint == endpoint && stored.model == model);
        let at = at.unwrap_or_else(|| {
            let (endpoint, model) = (endpoint.to_owned(), model.to_owned());
            self.rows.push(StoredRow { endpoint, model, input_tokens: 0, output_tokens: 0 });
            self.rows.len() - 1
        });
        let stored = &mut self.rows[at];
        stored.input_tokens = stored.input_tokens.saturating_add(tokens.input);
        stored.output_tokens = stored.output_tokens.saturating_add(tokens.output);
    }
}

impl Router {
    /// Stores what waits. `Ok(false)`: nothing did. On an error the batch stays, number and all.
    pub async fn flush(&self) -> Result<bool, StoreError> {
        let Some(flush) = self.usage.ledger().take() else { return Ok(false) };
        store_batch(self.ports.store.as_ref(), flush.batch()).await?;
        flush.durable();
        Ok(true)
    }

    /// Stores what waits, every `flush_interval`, for ever. A failure is logged and tried again next
    /// time.
    pub(super) async fn keep_flushing(&self) -> Infallible {
        loop {
            let pause = self.fleet().config.flush_interval;
            self.ports.clock.sleep(pause).await;
            if let Err(error) = self.flush().await {
                tracing::error!(%error, "token counts could not be stored; they are kept and tried again");
            }
        }
    }

    /// Stores everything, after the last request has ended; tries for at most `patience`.
    pub async fn flush_all(&self, patience: Duration) -> Result<(), StoreError> {
        let deadline = self.ports.clock.now() + patience;
        loop {
            match self.flush().await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if self.ports.clock.now() >= deadline => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "token counts could not be stored yet");
                    self.ports.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
