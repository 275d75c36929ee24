//! A store that lives as long as the process: for tests, the simulator and `pointsman demo`.
//!
//! It remembers a log and a key-value map behind one mutex, exactly as the contract of
//! [`Store`] says, and is the model that every other store is compared with. Clones share their
//! contents, so that a clone stands for "the same disk, opened again".

#![allow(
    clippy::disallowed_types,
    reason = "an adapter: its one lock is no part of the state that loom explores"
)]

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::ports::{Bounds, BoxFuture, Revision, Seq, Store, StoreError, Versioned};

/// A [`Store`] in memory. Nothing of it survives the process; a clone is the same store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    /// Shared by all clones. A std mutex: every critical section is a few map operations and
    /// none of them awaits.
    shelf: Arc<Mutex<Shelf>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// No critical section leaves the shelf half changed, so a panic elsewhere spoils nothing.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store holds.
#[derive(Debug, Default)]
struct Shelf {
    /// The records `trimmed + 1 ..`, oldest first.
    log: VecDeque<Bytes>,
    /// How many records were forgotten: one less than the floor.
    trimmed: Seq,
    /// The key-value map; `str` sorts in byte order.
    map: BTreeMap<String, Versioned>,
    /// The last revision given out, over all keys, so that a deleted key's revisions stay used.
    last_revision: Revision,
}

impl Shelf {
    fn bounds(&self) -> Bounds {
        Bounds { floor: self.trimmed + 1, tip: self.trimmed + self.log.len() as Seq }
    }

    fn revision_of(&self, key: &str) -> Option<Revision> {
        self.map.get(key).map(|found| found.revision)
    }

    fn append(&mut self, at: Seq, records: Vec<Bytes>) -> Result<(), StoreError> {
        if at != self.bounds().tip + 1 {
            return Err(StoreError::Conflict);
        }
        self.log.extend(records);
        Ok(())
    }

    fn read(&self, from: Seq, max: usize) -> Result<Vec<Bytes>, StoreError> {
        let Bounds { floor, tip } = self.bounds();
        if from < floor {
            return Err(StoreError::Trimmed { floor });
        }
        if from > tip {
            return Ok(Vec::new());
        }
        // `from - floor` is an index into a deque that is in memory, so it fits.
        Ok(self.log.iter().skip((from - floor) as usize).take(max).cloned().collect())
    }

    fn trim(&mut self, floor: Seq) {
        let Bounds { floor: present, tip } = self.bounds();
        let floor = floor.min(tip + 1);
        if floor > present {
            self.log.drain(..(floor - present) as usize);
            self.trimmed = floor - 1;
        }
    }

    fn put(&mut self, key: &str, expected: Option<Revision>, value: Bytes) -> Result<Revision, StoreError> {
        if self.revision_of(key) != expected {
            return Err(StoreError::Conflict);
        }
        self.last_revision += 1;
        let revision = self.last_revision;
        self.map.insert(key.to_owned(), Versioned { revision, value });
        Ok(revision)
    }

    fn delete(&mut self, key: &str, expected: Revision) -> Result<(), StoreError> {
        if self.revision_of(key) != Some(expected) {
            return Err(StoreError::Conflict);
        }
        self.map.remove(key);
        Ok(())
    }

    fn scan(&self, prefix: &str, after: Option<&str>, max: usize) -> Vec<(String, Versioned)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.map
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(max)
            .map(|(key, found)| (key.clone(), found.clone()))
            .collect()
    }
}

impl Store for MemoryStore {
    fn append(&self, at: Seq, records: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.shelf().append(at, records) })
    }

    fn read(&self, from: Seq, max: usize) -> BoxFuture<'_, Result<Vec<Bytes>, StoreError>> {
        Box::pin(async move { self.shelf().read(from, max) })
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, StoreError>> {
        Box::pin(async move { Ok(self.shelf().bounds()) })
    }

    fn trim(&self, floor: Seq) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.shelf().trim(floor);
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move { Ok(self.shelf().map.get(key).cloned()) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, StoreError>> {
        Box::pin(async move { self.shelf().put(key, expected, value) })
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.shelf().delete(key, expected) })
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Versioned)>, StoreError>> {
        Box::pin(async move { Ok(self.shelf().scan(prefix, after, max)) })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::adapters::conformance;

    #[tokio::test]
    async fn it_keeps_the_contract_of_a_store() {
        let disks = RefCell::new(BTreeMap::<&str, MemoryStore>::new());
        conformance::run(async |name| disks.borrow_mut().entry(name).or_default().clone()).await;
    }

    #[test]
    fn of_many_threads_putting_on_one_revision_exactly_one_wins() {
        let store = MemoryStore::new();
        for round in 0..200 {
            let expected = store.shelf().revision_of("key");
            let wins: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| store.shelf().put("key", expected, Bytes::new()).is_ok() as usize)
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).sum()
            });
            assert_eq!(wins, 1, "in round {round}");
        }
    }
}
