//! What an instance's store holds: a log and a key-value map, and what of it a crash would leave.
//!
//! A write is applied first (reads see it), made durable by the next sync. A crash keeps what was
//! synced and some prefix of the rest: each write wholly or not at all, as the port promises. Plain data; `store` adds time and faults.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use pointsman::ports::{Bounds, Revision, Seq, StoreError, Versioned};

/// One state of log and map.
#[derive(Clone, Debug, Default)]
struct Shelf {
    log: VecDeque<Bytes>,
    trimmed: Seq,
    map: BTreeMap<String, Versioned>,
}

#[derive(Clone, Debug)]
enum Write {
    Append(Vec<Bytes>),
    Trim(Seq),
    Put(String, Versioned),
    Delete(String),
}

impl Shelf {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Append(records) => self.log.extend(records),
            Write::Trim(floor) => {
                let bounds = self.bounds();
                let floor = floor.clamp(bounds.floor, bounds.tip + 1);
                self.log.drain(..(floor - bounds.floor) as usize);
                self.trimmed = floor - 1;
            }
            Write::Put(key, value) => drop(self.map.insert(key, value)),
            Write::Delete(key) => drop(self.map.remove(&key)),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { floor: self.trimmed + 1, tip: self.trimmed + self.log.len() as Seq }
    }
}

/// A disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// What a reader sees.
    seen: Shelf,
    /// What a crash certainly leaves.
    durable: Shelf,
    /// Seen and not yet durable, in order.
    unsynced: Vec<Write>,
    revisions: Revision,
}

impl Disk {
    fn write(&mut self, write: Write) {
        self.seen.apply(write.clone());
        self.unsynced.push(write);
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&mut self) {
        for write in self.unsynced.drain(..) {
            self.durable.apply(write);
        }
    }

    /// How many writes a crash may take now.
    pub(crate) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Leaves what was synced and the first `kept` writes of the rest.
    pub(crate) fn crash(&mut self, kept: usize) {
        for write in self.unsynced.drain(..).take(kept) {
            self.durable.apply(write);
        }
        self.seen = self.durable.clone();
    }

    pub(crate) fn append(&mut self, at: Seq, records: Vec<Bytes>) -> Result<(), StoreError> {
        if at != self.seen.bounds().tip + 1 {
            return Err(StoreError::Conflict);
        }
        self.write(Write::Append(records));
        Ok(())
    }

    pub(crate) fn read(&self, from: Seq, max: usize) -> Result<Vec<Bytes>, StoreError> {
        let Bounds { floor, .. } = self.seen.bounds();
        if from < floor {
            return Err(StoreError::Trimmed { floor });
        }
        Ok(self.seen.log.iter().skip((from - floor) as usize).take(max).cloned().collect())
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.seen.bounds()
    }

    /// Records that no crash can take back, from number `from` on; `None` if some of them are trimmed.
    pub(crate) fn durable_records(&self, from: Seq) -> Option<Vec<Bytes>> {
        let skipped = from.checked_sub(self.durable.bounds().floor)?;
        Some(self.durable.log.iter().skip(skipped as usize).cloned().collect())
    }

    pub(crate) fn trim(&mut self, floor: Seq) {
        self.write(Write::Trim(floor));
    }

    pub(crate) fn get(&self, key: &str) -> Option<Versioned> {
        self.seen.map.get(key).cloned()
    }

    pub(crate) fn put(
        &mut self,
        key: &str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> Result<Revision, StoreError> {
        if self.seen.map.get(key).map(|found| found.revision) != expected {
            return Err(StoreError::Conflict);
        }
        // Not part of what a crash undoes: a revision is never used twice.
        self.revisions += 1;
        self.write(Write::Put(key.to_owned(), Versioned { revision: self.revisions, value }));
        Ok(self.revisions)
    }

    pub(crate) fn delete(&mut self, key: &str, expected: Revision) -> Result<(), StoreError> {
        if self.seen.map.get(key).map(|found| found.revision) != Some(expected) {
            return Err(StoreError::Conflict);
        }
        self.write(Write::Delete(key.to_owned()));
        Ok(())
    }

    pub(crate) fn scan(&self, prefix: &str, after: Option<&str>, max: usize) -> Vec<(String, Versioned)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.seen
            .map
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(max)
            .map(|(key, found)| (key.clone(), found.clone()))
            .collect()
    }

    /// Every pair a reader sees.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.seen.map.iter().map(|(key, value)| (key.as_str(), &value.value[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(disk: &Disk) -> Vec<&str> {
        disk.pairs().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_as_many_of_the_rest_as_it_is_told() {
        for kept in 0..=2 {
            let mut disk = Disk::default();
            disk.put("a", None, Bytes::new()).expect("new");
            disk.sync();
            for key in ["b", "c"] {
                disk.put(key, None, Bytes::new()).expect("new");
            }
            assert_eq!((keys(&disk), disk.unsynced()), (vec!["a", "b", "c"], 2));
            disk.crash(kept);
            assert_eq!(keys(&disk), &["a", "b", "c"][..=kept]);
            assert_eq!(disk.unsynced(), 0);
        }
    }

    #[test]
    fn a_revision_is_never_used_twice_even_when_a_crash_undoes_its_write() {
        let mut disk = Disk::default();
        let first = disk.put("a", None, Bytes::new()).expect("new");
        disk.seen = disk.durable.clone();
        disk.unsynced.clear();
        assert_ne!(disk.put("a", None, Bytes::new()).expect("new again"), first);
        assert_eq!(disk.put("a", None, Bytes::new()), Err(StoreError::Conflict));
    }

    #[test]
    fn the_log_keeps_its_numbers_when_it_is_trimmed() {
        let mut disk = Disk::default();
        disk.append(1, vec![Bytes::from_static(b"x"), Bytes::from_static(b"y")]).expect("at the tip");
        assert_eq!(disk.append(2, Vec::new()), Err(StoreError::Conflict));
        disk.trim(2);
        assert_eq!(disk.bounds(), Bounds { floor: 2, tip: 2 });
        assert_eq!(disk.read(1, 9), Err(StoreError::Trimmed { floor: 2 }));
        assert_eq!(disk.read(2, 9), Ok(vec![Bytes::from_static(b"y")]));
        assert_eq!(disk.read(3, 9), Ok(Vec::new()));
    }
}
