//! The store's rows in sled: what is written together, when it is durable, what was damaged.
//!
//! It remembers the bounds of the log and the next revision, and how many commits are written and
//! how many are durable. Every answer waits until all it could have seen is durable, so nothing
//! that somebody was told is lost in a crash (`feed-durable`, `token-conservation`). Everything
//! here blocks; [`super::SledStore`] calls it on threads that may.
//!
//! Locks, outermost first: `flushing`, then `state`. No commit takes `flushing` while it holds
//! `state`, so a flush never waits for more than one commit, and one flush serves all who wait.

#![allow(
    clippy::disallowed_types,
    reason = "its locks are held while blocking on the disk, off the runtime's threads"
)]
#![allow(clippy::disallowed_methods, reason = "opening blocks, on a thread that may")]

use std::fs::File;
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use ::sled::transaction::{TransactionError, Transactional};
use ::sled::{Db, IVec, Tree};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::OpenError;
use super::folder::{Folder, Mark};
use super::record::{self, Table};
use crate::ports::{Bounds, Revision, Seq, StoreError, Versioned};

/// sled's page cache, in bytes. The hot data is in the router's own memory.
const CACHE_BYTES: u64 = 16 << 20;

/// The most bytes of a value that one row holds; more goes into pieces of this size. sled keeps up
/// to some twenty rows in one page and moves a page above 128 KiB into a file that it never syncs:
/// rows of this size keep every page below that. Small records of one append share a row of up to this size:
/// a row costs sled some ten microseconds, however short.
const PIECE_BYTES: usize = 4 << 10;

/// The longest key, in bytes: sled keeps up to some three hundred keys in one index page.
pub(super) const KEY_BYTES_MAX: usize = 384;

/// How many rows one step of a trim removes; appends and reads go on between two steps.
const SWEEP_ROWS: usize = 512;

/// The `STORE` file's mark is brought up to date at least once in so many commits.
const MARK_EVERY: u64 = 1024;

/// How long a database file of this very process may stay locked by an engine just dropped.
const LINGER: Duration = Duration::from_secs(2);

/// One open store. Blocks; dropping it flushes what is left and gives the folder back.
pub(super) struct Engine {
    /// The trees of [`Table::ALL`], by number.
    trees: [Tree; 4],
    /// Writers hold it while they check and commit, readers while they look.
    state: RwLock<State>,
    /// How many commits are durable. Only the holder of `flushing` raises it.
    durable: AtomicU64,
    /// Held through a flush; those who wait for it find their commit flushed too. Holds the number
    /// of commits at which the mark was last written.
    flushing: Mutex<u64>,
    /// The first failed write, flush or broken-off operation. From then on nobody knows what is on
    /// disk, and a second flush may succeed without the pages the first one lost: nothing works
    /// any more until the store is opened again.
    failed: OnceLock<String>,
    /// The database, for its flush.
    db: Db,
    /// The database's file once more, because sled's flush does not reach through the disk's cache.
    file: File,
    /// Given back last, after sled has let go of its files.
    folder: Folder,
}

/// What every commit changes.
struct State {
    floor: Seq,
    tip: Seq,
    /// The next revision to give out.
    revision: Revision,
    /// How many commits were made since the store was opened.
    written: u64,
}

/// One row to be written, or removed if there is no value.
struct Write {
    table: Table,
    key: Vec<u8>,
    value: Option<IVec>,
}

impl Write {
    fn row(table: Table, key: Vec<u8>, body: &[u8]) -> Write {
        let value = Some(IVec::from(record::seal(table, &key, body)));
        Write { table, key, value }
    }

    fn removal(table: Table, key: Vec<u8>) -> Write {
        Write { table, key, value: None }
    }

    fn counter(name: &str, value: u64) -> Write {
        Write::row(Table::Meta, name.as_bytes().to_vec(), &value.to_le_bytes())
    }
}

/// Opening and closing.
impl Engine {
    /// Opens the database in `folder`, checks that the log has no holes and nothing durable is
    /// gone, and finishes a trim that a crash broke off.
    pub(super) fn open(folder: Folder, mark: Mark) -> Result<Engine, OpenError> {
        Engine::with(folder, |engine| engine.recover(mark))
    }

    /// Opens the database in `folder` as it is, to be read: what is missing or damaged shows when it is read.
    pub(super) fn inspect(folder: Folder, mark: Mark) -> Result<Engine, OpenError> {
        Engine::with(folder, |engine| engine.look(mark))
    }

    fn with(
        folder: Folder,
        find_out: impl FnOnce(&Engine) -> Result<(), StoreError>,
    ) -> Result<Engine, OpenError> {
        let of_sled = |error: ::sled::Error| match error {
            ::sled::Error::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                OpenError::of_io(folder.path(), error)
            }
            other => folder.damaged(other.to_string()),
        };

        let path = folder.database();
        let db = open_database(&path).map_err(of_sled)?;
        let [log, map, meta, pieces] = Table::ALL.map(|table| db.open_tree(table.name()));
        let trees =
            [log.map_err(of_sled)?, map.map_err(of_sled)?, meta.map_err(of_sled)?, pieces.map_err(of_sled)?];
        let file = File::options().write(true).open(path.join("db")).map_err(|e| of_sled(e.into()))?;

        let engine = Engine {
            trees,
            state: RwLock::new(State { floor: 1, tip: 0, revision: 1, written: 0 }),
            durable: AtomicU64::new(0),
            flushing: Mutex::new(0),
            failed: OnceLock::new(),
            db,
            file,
            folder,
        };
        find_out(&engine).map_err(|error| {
            // Closing must not write a mark of what a damaged store has left.
            engine.fail(error.clone());
            match error {
                StoreError::Corrupt(detail) => engine.folder.damaged(detail),
                other => OpenError::Disk { path: engine.folder.path().to_owned(), detail: other.to_string() },
            }
        })?;
        Ok(engine)
    }

    /// Finds out where the store stands.
    fn recover(&self, mark: Mark) -> Result<(), StoreError> {
        let fresh = mark.revision == 0 && self.trees.iter().all(Tree::is_empty);
        let mut state = self.write_state()?;
        if fresh {
            self.commit(&mut state, vec![Write::counter("floor", 1), Write::counter("revision", 1)])?;
        } else {
            state.floor = self.counter("floor")?;
            state.revision = self.counter("revision")?;
            state.tip = self.last_record(state.floor)?;
            if state.tip < mark.tip || state.revision < mark.revision {
                return Err(StoreError::Corrupt(format!(
                    "it once held records up to {} and revisions below {}, but now ends at {} and {}",
                    mark.tip, mark.revision, state.tip, state.revision
                )));
            }
        }
        let (floor, written) = (state.floor, state.written);
        drop(state);
        self.sweep(floor)?;
        let unavailable = |error: std::io::Error| StoreError::Unavailable(error.to_string());
        self.folder.sync_names().map_err(unavailable)?;
        self.flush(written)?;
        self.folder.write(self.mark()?).map_err(unavailable)
    }

    /// Finds out where the store says it stands: up to the last record, or to what it once held if that is more.
    fn look(&self, mark: Mark) -> Result<(), StoreError> {
        let mut state = self.write_state()?;
        if mark.revision == 0 && self.trees.iter().all(Tree::is_empty) {
            return Ok(());
        }
        state.floor = self.counter("floor")?;
        state.revision = self.counter("revision")?;
        let last = self.tree(Table::Log).iter().keys().next_back().transpose().map_err(of_sled)?;
        let last = last.and_then(|key| held(&key)).map_or(0, |held| held.end.saturating_sub(1));
        state.tip = last.max(mark.tip).max(state.floor - 1);
        Ok(())
    }

    /// The newest record's number; an error if any from `floor` on is missing.
    fn last_record(&self, floor: Seq) -> Result<Seq, StoreError> {
        let first = self.row_with(floor)?.filter(|key| held(key).is_some_and(|held| held.contains(&floor)));
        let mut next = floor;
        for row in self.tree(Table::Log).range(first.unwrap_or_else(|| floor.to_be_bytes().to_vec())..) {
            let (key, _) = row.map_err(of_sled)?;
            match held(&key) {
                Some(held) if held.start == next || (next == floor && held.contains(&next)) => {
                    next = held.end
                }
                _ => return Err(record::corrupt(Table::Log, &next.to_be_bytes(), "is missing")),
            }
        }
        Ok(next - 1)
    }

    fn counter(&self, name: &str) -> Result<u64, StoreError> {
        let key = name.as_bytes();
        let row = self.tree(Table::Meta).get(key).map_err(of_sled)?;
        let row = row.ok_or_else(|| record::corrupt(Table::Meta, key, "is missing"))?;
        let body = record::open(Table::Meta, key, &row)?;
        let value = <[u8; 8]>::try_from(body).map(u64::from_le_bytes);
        value
            .ok()
            .filter(|value| *value > 0)
            .ok_or_else(|| record::corrupt(Table::Meta, key, "is not a number"))
    }

    fn mark(&self) -> Result<Mark, StoreError> {
        let state = self.read_state()?;
        Ok(Mark { tip: state.tip, revision: state.revision })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let closed = self.read_state().map(|state| state.written).and_then(|written| self.flush(written));
        if let (Ok(()), Ok(mark)) = (closed, self.mark()) {
            // Best effort: an older mark is still true.
            let _ = self.folder.write(mark);
        }
    }
}

/// The log.
impl Engine {
    pub(super) fn append(&self, at: Seq, records: Vec<Bytes>) -> Result<(), StoreError> {
        let mut state = self.write_state()?;
        if at != state.tip + 1 {
            return Err(StoreError::Conflict);
        }
        if !records.is_empty() {
            let mut writes = Vec::new();
            let (mut seq, mut left) = (at, &records[..]);
            while !left.is_empty() {
                let (group, rest) = left.split_at(group_len(left));
                let row = log_row(seq, group, &mut writes);
                writes.push(row);
                (seq, left) = (seq + group.len() as u64, rest);
            }
            self.commit(&mut state, writes)?;
            state.tip += records.len() as u64;
        }
        self.settle(state.written, state)
    }

    pub(super) fn read(&self, from: Seq, max: usize) -> Result<Vec<Bytes>, StoreError> {
        let state = self.read_state()?;
        let State { floor, tip, .. } = *state;
        if from < floor {
            return Err(StoreError::Trimmed { floor });
        }
        let mut records = Vec::new();
        let missing = |seq: Seq| record::corrupt(Table::Log, &seq.to_be_bytes(), "is missing");
        let mut seq = from;
        let first = if from <= tip && max > 0 { self.row_with(from)? } else { None };
        let mut rows = self.tree(Table::Log).range(first.unwrap_or_else(|| from.to_be_bytes().to_vec())..);
        while seq <= tip && records.len() < max {
            let (key, row) = rows.next().transpose().map_err(of_sled)?.ok_or_else(|| missing(seq))?;
            let held = held(&key).filter(|held| held.contains(&seq)).ok_or_else(|| missing(seq))?;
            let body = record::open(Table::Log, &key, &row)?;
            let group = self.group(&key, held.clone(), body)?;
            let room = max - records.len();
            records.extend(group.into_iter().skip((seq - held.start) as usize).take(room));
            seq = held.end;
        }
        self.settle(state.written, state)?;
        Ok(records)
    }

    /// The key of the row that holds record `seq`, or would if it were not missing.
    fn row_with(&self, seq: Seq) -> Result<Option<Vec<u8>>, StoreError> {
        let last = self.tree(Table::Log).range(..(seq + 1).to_be_bytes()).next_back();
        Ok(last.transpose().map_err(of_sled)?.map(|(key, _)| key.to_vec()))
    }

    /// The records `held` of one row. They share one copy of it.
    fn group(&self, key: &[u8], held: Range<Seq>, body: &[u8]) -> Result<Vec<Bytes>, StoreError> {
        let Some(list) = body.strip_prefix(&[GROUP]) else {
            return Ok(vec![self.value(Table::Log, key, held.start, body)?]);
        };
        let unknown = || record::corrupt(Table::Log, key, "does not hold what it should");
        let mut rest = Bytes::copy_from_slice(list);
        let mut records = Vec::new();
        while let Some(length) = rest.first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            rest.advance(4);
            if length > rest.len() {
                return Err(unknown());
            }
            records.push(rest.split_to(length));
        }
        let whole = rest.is_empty() && records.len() as u64 == held.end - held.start;
        if whole { Ok(records) } else { Err(unknown()) }
    }

    pub(super) fn bounds(&self) -> Result<Bounds, StoreError> {
        let state = self.read_state()?;
        let bounds = Bounds { floor: state.floor, tip: state.tip };
        self.settle(state.written, state)?;
        Ok(bounds)
    }

    pub(super) fn trim(&self, floor: Seq) -> Result<(), StoreError> {
        let mut state = self.write_state()?;
        let floor = floor.min(state.tip + 1);
        if floor > state.floor {
            // First the floor, then the rows: a crash in between leaves rows that nobody reads.
            self.commit(&mut state, vec![Write::counter("floor", floor)])?;
            state.floor = floor;
            drop(state);
            self.sweep(floor)?;
            state = self.write_state()?;
        }
        self.settle(state.written, state)
    }

    /// Removes the records below `floor`, which nobody can read any more.
    fn sweep(&self, floor: Seq) -> Result<(), StoreError> {
        let log = Table::Log as u8;
        // A row that also holds the floor stays until its last record is given up.
        let first = self.row_with(floor)?.filter(|key| held(key).is_some_and(|held| held.contains(&floor)));
        let ranges = [
            (Table::Log, vec![], first.unwrap_or_else(|| floor.to_be_bytes().to_vec())),
            (Table::Pieces, vec![log], piece_key(Table::Log, floor, 0)),
        ];
        for (table, from, to) in ranges {
            loop {
                let rows = self.tree(table).range(from.clone()..to.clone()).keys().take(SWEEP_ROWS);
                let writes = rows
                    .map(|key| Ok(Write::removal(table, key.map_err(of_sled)?.to_vec())))
                    .collect::<Result<Vec<_>, StoreError>>()?;
                if writes.is_empty() {
                    break;
                }
                self.commit(&mut *self.write_state()?, writes)?;
            }
        }
        Ok(())
    }
}

/// The key-value map.
impl Engine {
    pub(super) fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let state = self.read_state()?;
        let found = match self.tree(Table::Map).get(key).map_err(of_sled)? {
            Some(row) => Some(self.versioned(key.as_bytes(), &row)?),
            None => None,
        };
        self.settle(state.written, state)?;
        Ok(found)
    }

    pub(super) fn put(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> Result<Revision, StoreError> {
        let mut state = self.write_state()?;
        let mut writes = self.replace(key, expected)?;
        let revision = state.revision;
        let cell = cell(Table::Map, revision, &value, &mut writes);
        let body = [&revision.to_le_bytes()[..], &cell].concat();
        writes.push(Write::row(Table::Map, key.as_bytes().to_vec(), &body));
        writes.push(Write::counter("revision", revision + 1));
        self.commit(&mut state, writes)?;
        state.revision += 1;
        self.settle(state.written, state)?;
        Ok(revision)
    }

    pub(super) fn delete(&self, key: &str, expected: Revision) -> Result<(), StoreError> {
        let mut state = self.write_state()?;
        let mut writes = self.replace(key, Some(expected))?;
        writes.push(Write::removal(Table::Map, key.as_bytes().to_vec()));
        self.commit(&mut state, writes)?;
        self.settle(state.written, state)
    }

    pub(super) fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<(String, Versioned)>, StoreError> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.as_bytes()),
            _ => Bound::Included(prefix.as_bytes()),
        };
        let state = self.read_state()?;
        let mut pairs = Vec::new();
        for row in self.tree(Table::Map).range::<&[u8], _>((from, Bound::Unbounded)).take(max) {
            let (key, row) = row.map_err(of_sled)?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            let name =
                std::str::from_utf8(&key).map_err(|_| record::corrupt(Table::Map, &key, "is not UTF-8"))?;
            pairs.push((name.to_owned(), self.versioned(&key, &row)?));
        }
        self.settle(state.written, state)?;
        Ok(pairs)
    }

    /// Checks that `key` is at revision `expected`; returns what removes the old value's pieces.
    fn replace(&self, key: &str, expected: Option<Revision>) -> Result<Vec<Write>, StoreError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Unavailable(format!(
                "a key of {} bytes is longer than the {KEY_BYTES_MAX} it takes; nothing was written",
                key.len()
            )));
        }
        let row = self.tree(Table::Map).get(key).map_err(of_sled)?;
        let present = match &row {
            Some(row) => {
                Some(split_revision(key.as_bytes(), record::open(Table::Map, key.as_bytes(), row)?)?.0)
            }
            None => None,
        };
        if present != expected {
            return Err(StoreError::Conflict);
        }
        let Some(revision) = present else { return Ok(Vec::new()) };
        let pieces = self.tree(Table::Pieces).scan_prefix(&piece_key(Table::Map, revision, 0)[..9]).keys();
        pieces.map(|key| Ok(Write::removal(Table::Pieces, key.map_err(of_sled)?.to_vec()))).collect()
    }

    fn versioned(&self, key: &[u8], row: &[u8]) -> Result<Versioned, StoreError> {
        let (revision, cell) = split_revision(key, record::open(Table::Map, key, row)?)?;
        Ok(Versioned { revision, value: self.value(Table::Map, key, revision, cell)? })
    }
}

/// Marks a row of the log that holds several records, each as its length (4 bytes, little-endian) and bytes.
const GROUP: u8 = 2;

/// Large values: a cell is `0` and the value, or `1` and the length of a value that is in pieces.
impl Engine {
    /// The value of a cell; `id` is what its pieces are filed under.
    fn value(&self, table: Table, key: &[u8], id: u64, cell: &[u8]) -> Result<Bytes, StoreError> {
        match cell {
            [0, value @ ..] => Ok(Bytes::copy_from_slice(value)),
            [1, length @ ..] if length.len() == 8 => {
                let length = u64::from_le_bytes(length.try_into().expect("eight bytes, checked above"));
                self.joined(table, id, length)
            }
            _ => Err(record::corrupt(table, key, "has an unknown form")),
        }
    }

    fn joined(&self, table: Table, id: u64, length: u64) -> Result<Bytes, StoreError> {
        let mut value = BytesMut::new();
        for index in 0..length.div_ceil(PIECE_BYTES as u64) {
            let key = piece_key(table, id, index as u32);
            let row = self.tree(Table::Pieces).get(&key).map_err(of_sled)?;
            let row = row.ok_or_else(|| record::corrupt(Table::Pieces, &key, "is missing"))?;
            value.put_slice(record::open(Table::Pieces, &key, &row)?);
        }
        if value.len() as u64 == length {
            Ok(value.freeze())
        } else {
            Err(record::corrupt(Table::Pieces, &piece_key(table, id, 0), "does not add up to its value"))
        }
    }
}

/// The row of one group of records, the first of them numbered `seq`.
fn log_row(seq: Seq, group: &[Bytes], writes: &mut Vec<Write>) -> Write {
    let first = seq.to_be_bytes();
    if let [record] = group {
        let cell = cell(Table::Log, seq, record, writes);
        return Write::row(Table::Log, first.to_vec(), &cell);
    }
    let count = u32::try_from(group.len()).expect("a group fits a row");
    let mut body = vec![GROUP];
    for record in group {
        let length = u32::try_from(record.len()).expect("a group fits a row");
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(record);
    }
    Write::row(Table::Log, [&first[..], &count.to_be_bytes()].concat(), &body)
}

/// How many of the next records share a row: as many as fit, at least one.
fn group_len(records: &[Bytes]) -> usize {
    let mut bytes = 0;
    let fit = records.iter().take_while(|record| {
        bytes += 4 + record.len();
        bytes <= PIECE_BYTES
    });
    fit.count().max(1)
}

/// The records that a row of the log holds, by its key: the first one's number and, if there are several,
/// how many.
fn held(key: &[u8]) -> Option<Range<Seq>> {
    let (first, rest) = key.split_first_chunk::<8>()?;
    let first = u64::from_be_bytes(*first);
    let count = match rest {
        [] => 1,
        rest => u64::from(u32::from_be_bytes(rest.try_into().ok()?)),
    };
    Some(first..first.checked_add(count)?)
}

/// The cell for `value`, and into `writes` its pieces if it is too large for one row.
fn cell(table: Table, id: u64, value: &[u8], writes: &mut Vec<Write>) -> Vec<u8> {
    if value.len() <= PIECE_BYTES {
        return [&[0], value].concat();
    }
    for (index, piece) in value.chunks(PIECE_BYTES).enumerate() {
        writes.push(Write::row(Table::Pieces, piece_key(table, id, index as u32), piece));
    }
    [&[1][..], &(value.len() as u64).to_le_bytes()].concat()
}

/// Pieces sort by table, then value, then index. An index counts 4 KiB pieces of one value in
/// memory, so 32 bits are enough.
fn piece_key(table: Table, id: u64, index: u32) -> Vec<u8> {
    [&[table as u8][..], &id.to_be_bytes(), &index.to_be_bytes()].concat()
}

fn split_revision<'a>(key: &[u8], body: &'a [u8]) -> Result<(Revision, &'a [u8]), StoreError> {
    let (revision, cell) =
        body.split_first_chunk::<8>().ok_or_else(|| record::corrupt(Table::Map, key, "has no revision"))?;
    Ok((u64::from_le_bytes(*revision), cell))
}

/// Commits and flushes.
impl Engine {
    fn tree(&self, table: Table) -> &Tree {
        &self.trees[table as usize]
    }

    fn read_state(&self) -> Result<RwLockReadGuard<'_, State>, StoreError> {
        self.still_works()?;
        self.state.read().map_err(|_| broken_off())
    }

    fn write_state(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        self.still_works()?;
        self.state.write().map_err(|_| broken_off())
    }

    fn still_works(&self) -> Result<(), StoreError> {
        match self.failed.get() {
            Some(why) => {
                Err(StoreError::Unavailable(format!("an earlier write failed ({why}); restart to go on")))
            }
            None => Ok(()),
        }
    }

    /// Writes all rows or none.
    fn commit(&self, state: &mut State, writes: Vec<Write>) -> Result<(), StoreError> {
        let done = self.trees[..].transaction(|trees| {
            for Write { table, key, value } in &writes {
                let tree = &trees[*table as usize];
                match value {
                    Some(value) => tree.insert(&key[..], value.clone())?,
                    None => tree.remove(&key[..])?,
                };
            }
            Ok(())
        });
        state.written += 1;
        done.map_err(|error| match error {
            TransactionError::Abort(()) => unreachable!("nothing above aborts"),
            TransactionError::Storage(error) => self.fail(of_sled(error)),
        })
    }

    /// Gives the state back to the others, then waits until the first `written` commits are durable.
    fn settle<G>(&self, written: u64, state: G) -> Result<(), StoreError> {
        drop(state);
        if self.durable.load(Ordering::Acquire) >= written { Ok(()) } else { self.flush(written) }
    }

    /// Makes at least the first `written` commits durable: one flush for everybody who waits.
    fn flush(&self, written: u64) -> Result<(), StoreError> {
        let mut marked = self.flushing.lock().map_err(|_| broken_off())?;
        self.still_works()?;
        if self.durable.load(Ordering::Acquire) >= written {
            return Ok(());
        }
        let (covered, mark) = {
            let state = self.read_state()?;
            (state.written, Mark { tip: state.tip, revision: state.revision })
        };
        self.db.flush().map_err(|error| self.fail(of_sled(error)))?;
        self.file.sync_data().map_err(|error| self.fail(StoreError::Unavailable(error.to_string())))?;
        self.durable.store(covered, Ordering::Release);
        if covered - *marked >= MARK_EVERY {
            *marked = covered;
            // Best effort: an older mark is still true.
            let _ = self.folder.write(mark);
        }
        Ok(())
    }

    fn fail(&self, error: StoreError) -> StoreError {
        // Only the first failure is kept: the others follow from it.
        let _ = self.failed.set(error.to_string());
        error
    }
}

fn broken_off() -> StoreError {
    StoreError::Unavailable("an earlier operation broke off; restart to go on".to_owned())
}

fn of_sled(error: ::sled::Error) -> StoreError {
    match error {
        ::sled::Error::Corruption { .. } => StoreError::Corrupt(error.to_string()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// sled's own lock can outlive an engine of this process by a moment; other processes are kept out
/// by [`Folder`], so waiting for it is waiting for ourselves.
fn open_database(path: &std::path::Path) -> ::sled::Result<Db> {
    // sled's `mode` does nothing in 0.34. Its background flush is off: we flush where it counts.
    let config = ::sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let step = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match config.open() {
            Err(::sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && waited < LINGER =>
            {
                std::thread::sleep(step);
                waited += step;
            }
            opened => return opened,
        }
    }
}
