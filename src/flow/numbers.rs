//! Which numbers events have, over all lives and modes: none is ever given to two events (`feed-durable`).
//!
//! In a stored log an event's number is the record's number in the store plus an offset. Events that are not
//! stored have leased numbers: before any up to N is used, it is durable that all up to N may have been
//! (`leased`), and whatever starts later goes on behind N. So the offset grows when a log is stored again
//! after a time in which it was not; what was stored before is given up then, for want of the numbers between.
//! One value under `log/numbers` holds both, with a format number. Called by `flow::log` and `flow::audit`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ports::{Bounds, Revision, Seq, Store, StoreError};

const KEY: &str = "log/numbers";

/// The format of the value.
const FORMAT: u32 = 1;

/// The value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbers {
    format: u32,
    /// What the numbers of stored events are ahead of the store's.
    offset: u64,
    /// Numbers up to here may have been given to events that are not stored.
    leased: Seq,
}

impl Numbers {
    /// As stored, and the revision to write the next with.
    pub(super) async fn load(store: &dyn Store) -> Result<(Numbers, Option<Revision>), StoreError> {
        let Some(stored) = store.get(KEY).await? else {
            return Ok((Numbers { format: FORMAT, ..Numbers::default() }, None));
        };
        Ok((Numbers::decode(&stored.value)?, Some(stored.revision)))
    }

    fn decode(value: &[u8]) -> Result<Numbers, StoreError> {
        let damaged = |why| StoreError::Corrupt(format!("the value under '{KEY}' is damaged: {why}"));
        // The format is read by itself first: a newer one may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(value).map_err(damaged)?;
        if format != FORMAT {
            return Err(StoreError::Corrupt(format!(
                "the value under '{KEY}' has format {format}, written by a newer version; this one knows format {FORMAT}"
            )));
        }
        serde_json::from_slice(value).map_err(damaged)
    }

    async fn save(self, store: &dyn Store, revision: Option<Revision>) -> Result<(), StoreError> {
        let value = serde_json::to_vec(&self).expect("numbers always serialise");
        store.put(KEY, revision, value.into()).await.map(drop)
    }

    /// The stored log under these numbers.
    pub(super) fn stored(self, store: &dyn Store) -> StoredLog<'_> {
        StoredLog { store, offset: self.offset }
    }
}

/// The stored log to go on with. If numbers were leased since its last event, it goes on behind them and what
/// it holds is given up: first trimmed, then renumbered, so that a crash between the two changes no number.
pub(super) async fn resume(store: &dyn Store) -> Result<Numbers, StoreError> {
    let (mut numbers, revision) = Numbers::load(store).await?;
    let bounds = store.bounds().await?;
    if numbers.leased > bounds.tip + numbers.offset {
        if bounds.floor <= bounds.tip {
            let (from, to) = (bounds.floor + numbers.offset, bounds.tip + numbers.offset);
            tracing::warn!(
                from,
                to,
                next = numbers.leased + 1,
                "stored events are given up: later numbers were given to events that are not stored"
            );
        }
        store.trim(bounds.tip + 1).await?;
        numbers.offset = numbers.leased - bounds.tip;
        numbers.save(store, revision).await?;
    }
    Ok(numbers)
}

/// The newest number that anybody may have been given.
pub(super) async fn newest(store: &dyn Store) -> Result<Seq, StoreError> {
    let (numbers, _) = Numbers::load(store).await?;
    Ok(numbers.leased.max(store.bounds().await?.tip + numbers.offset))
}

/// Makes it durable that numbers up to `up_to` may have been given. Whether an earlier try that failed was
/// carried out does not matter.
pub(super) async fn lease(store: &dyn Store, up_to: Seq) -> Result<(), StoreError> {
    let (mut numbers, revision) = Numbers::load(store).await?;
    numbers.leased = numbers.leased.max(up_to);
    numbers.save(store, revision).await
}

/// The log in the store, under the numbers that events have.
#[derive(Clone, Copy)]
pub(super) struct StoredLog<'s> {
    pub(super) store: &'s dyn Store,
    pub(super) offset: u64,
}

impl StoredLog<'_> {
    fn at(&self, seq: Seq) -> Seq {
        // Below the first record there is nothing: the store says that this is trimmed.
        seq.saturating_sub(self.offset)
    }

    pub(super) async fn append(&self, at: Seq, records: Vec<Bytes>) -> Result<(), StoreError> {
        self.store.append(self.at(at), records).await
    }

    pub(super) async fn read(&self, from: Seq, max: usize) -> Result<Vec<Bytes>, StoreError> {
        self.store.read(self.at(from), max).await.map_err(|error| match error {
            StoreError::Trimmed { floor } => StoreError::Trimmed { floor: floor + self.offset },
            other => other,
        })
    }

    pub(super) async fn bounds(&self) -> Result<Bounds, StoreError> {
        let Bounds { floor, tip } = self.store.bounds().await?;
        Ok(Bounds { floor: floor + self.offset, tip: tip + self.offset })
    }

    pub(super) async fn trim(&self, floor: Seq) -> Result<(), StoreError> {
        self.store.trim(self.at(floor)).await
    }
}
