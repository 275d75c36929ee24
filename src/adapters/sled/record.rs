//! How one row of a table looks on disk: a version, a checksum, the body.
//!
//! It remembers nothing; [`super::engine`] seals every row it writes and opens every row it
//! reads here, so that a damaged or misplaced row is reported as damaged and never served
//! (`token-conservation` and `feed-durable` rest on it). sled has checksums of its own, but they
//! guard its pages, not our rows in their places.

use crc32fast::Hasher;

use crate::ports::StoreError;

/// The row format this program writes. A row with a higher number comes from a newer program.
const VERSION: u8 = 1;

/// Version (1 byte) and checksum (4 bytes).
const HEAD: usize = 5;

/// The tables, one sled tree each. The numbers are part of every checksum and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Sequence number (8 bytes, big-endian) to a cell; or that of the first and how many there are (4
    /// bytes, big-endian) to a group of records.
    Log = 0,
    /// Key to revision (8 bytes, little-endian) and a cell.
    Map = 1,
    /// Name of a counter to its value (8 bytes, little-endian).
    Meta = 2,
    /// Table (1 byte), sequence number or revision (8), index (4, both big-endian) to one piece of
    /// a value that is too large for a row.
    Pieces = 3,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub(super) const ALL: [Table; 4] = [Table::Log, Table::Map, Table::Meta, Table::Pieces];

    /// The name of the sled tree.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Table::Log => "log",
            Table::Map => "map",
            Table::Meta => "meta",
            Table::Pieces => "pieces",
        }
    }
}

/// A row as it goes to disk.
pub(super) fn seal(table: Table, key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(HEAD + body.len());
    row.push(VERSION);
    row.extend_from_slice(&checksum(table, VERSION, key, body).to_le_bytes());
    row.extend_from_slice(body);
    row
}

/// The body of a row as it came from disk, if it is what was written at this place.
///
/// # Errors
///
/// [`StoreError::Corrupt`] that names the table and the key.
pub(super) fn open<'a>(table: Table, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let Some((head, body)) = row.split_first_chunk::<HEAD>() else {
        return Err(corrupt(table, key, "is cut short"));
    };
    let [version, sum @ ..] = *head;
    if checksum(table, version, key, body) != u32::from_le_bytes(sum) {
        return Err(corrupt(table, key, "fails its checksum"));
    }
    if version != VERSION {
        return Err(corrupt(table, key, &format!("has format {version}; this program knows {VERSION}")));
    }
    Ok(body)
}

/// Over everything that must not change, the place included: a row moved elsewhere is damaged too.
fn checksum(table: Table, version: u8, key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&[table as u8, version]);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// The error for a row that is not what was written: its table, its key, what is wrong with it.
pub(super) fn corrupt(table: Table, key: &[u8], what: &str) -> StoreError {
    let place = match (table, key.first_chunk::<8>()) {
        (Table::Log, Some(first)) if key.len() == 12 => {
            format!("the group of records from {} of the log", u64::from_be_bytes(*first))
        }
        (Table::Log, Some(number)) => format!("record {} of the log", u64::from_be_bytes(*number)),
        (Table::Map | Table::Meta, _) => {
            format!("key {:?} of the {}", String::from_utf8_lossy(key), table.name())
        }
        _ => format!("key {} of the {}", key.escape_ascii(), table.name()),
    };
    StoreError::Corrupt(format!("{place} {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_opens_only_at_its_own_place() {
        let row = seal(Table::Map, b"key", b"body");
        assert_eq!(open(Table::Map, b"key", &row), Ok(&b"body"[..]));
        for (table, key) in [(Table::Meta, &b"key"[..]), (Table::Map, b"kex"), (Table::Map, b"ke")] {
            assert!(matches!(open(table, key, &row), Err(StoreError::Corrupt(_))), "{table:?} {key:?}");
        }
    }

    #[test]
    fn the_error_names_the_table_and_the_key() {
        let said = |table, key: &[u8]| open(table, key, b"").unwrap_err().to_string();
        assert_eq!(said(Table::Map, b"a/1"), r#"the store is damaged: key "a/1" of the map is cut short"#);
        assert_eq!(
            said(Table::Log, &17u64.to_be_bytes()),
            "the store is damaged: record 17 of the log is cut short"
        );
        assert!(said(Table::Pieces, &[0, 7]).contains(r"key \x00\x07 of the pieces"));
    }

    #[test]
    fn a_row_of_a_newer_format_is_not_read() {
        let mut row = vec![9];
        row.extend_from_slice(&checksum(Table::Log, 9, b"12345678", b"?").to_le_bytes());
        row.push(b'?');
        let said = open(Table::Log, b"12345678", &row).unwrap_err().to_string();
        assert!(said.contains("has format 9; this program knows 1"), "{said}");
    }

    proptest! {
        #[test]
        fn no_flipped_bit_goes_unseen(body: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let mut row = seal(Table::Map, b"key", &body);
            let at = at.index(row.len());
            row[at] ^= 1 << bit;
            prop_assert!(matches!(open(Table::Map, b"key", &row), Err(StoreError::Corrupt(_))));
        }

        #[test]
        fn no_bytes_make_it_panic(row: Vec<u8>, key: Vec<u8>, table in prop::sample::select(&Table::ALL[..])) {
            let _ = open(table, &key, &row);
        }
    }
}
