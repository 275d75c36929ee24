//! What the store on disk promises beyond the contract: damage is seen, said, and set aside.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::record::{self, Table};
use super::*;
use crate::adapters::conformance;
use crate::adapters::memory::MemoryStore;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn folder() -> (TempDir, PathBuf) {
    let home = TempDir::new().unwrap();
    let path = home.path().join("store");
    (home, path)
}

/// A closed store with twenty records and ten keys, among them a large value of each kind.
async fn filled(path: &Path) {
    let store = SledStore::open(path).unwrap();
    // One by one: each in a row of its own.
    for seq in 1..=20 {
        store.append(seq, vec![record_of(seq)]).await.unwrap();
    }
    for number in 0..10 {
        store.put(&format!("key {number}"), None, value_of(number)).await.unwrap();
    }
}

fn record_of(seq: u64) -> Bytes {
    if seq == 7 { vec![7; 20_000].into() } else { bytes(&format!("record {seq}")) }
}

fn value_of(number: u64) -> Bytes {
    if number == 3 { vec![3; 20_000].into() } else { bytes(&format!("value {number}")) }
}

/// Changes a row behind the store's back, as a bad disk would, and closes the database again.
fn tamper(path: &Path, change: impl Fn(&::sled::Db)) {
    let db = ::sled::Config::new().path(path.join("sled")).open().unwrap();
    change(&db);
    db.flush().unwrap();
}

fn flip(db: &::sled::Db, table: Table, key: &[u8]) {
    let tree = db.open_tree(table.name()).unwrap();
    let mut row = tree.get(key).unwrap().unwrap().to_vec();
    *row.last_mut().unwrap() ^= 1;
    tree.insert(key, row).unwrap();
}

fn damage_of(opened: Result<SledStore, OpenError>) -> String {
    match opened {
        Err(error @ OpenError::Damaged { .. }) => error.to_string(),
        other => panic!("expected damage, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_of_a_store() {
    let home = TempDir::new().unwrap();
    conformance::run(async |name| SledStore::open(&home.path().join(name)).unwrap()).await;
    for name in conformance::CLAIMS {
        let side_files = fs::read_dir(home.path().join(name).join("sled/blobs")).unwrap().count();
        assert_eq!(side_files, 0, "{name}: sled does not sync the files it keeps beside its own");
    }
}

#[tokio::test]
async fn a_flipped_byte_in_a_record_is_reported_and_not_served() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| flip(db, Table::Log, &5u64.to_be_bytes()));
    let store = SledStore::open(&path).unwrap();
    assert_eq!(
        store.read(1, 99).await.unwrap_err().to_string(),
        "the store is damaged: record 5 of the log fails its checksum"
    );
    assert_eq!(store.read(6, 1).await, Ok(vec![record_of(6)]), "the others are still served");
}

/// A closed store with twenty records in three rows: six, a large one, thirteen.
async fn grouped(path: &Path) {
    let store = SledStore::open(path).unwrap();
    store.append(1, (1..=20).map(record_of).collect()).await.unwrap();
    drop(store);
    tamper(path, |db| assert_eq!(db.open_tree("log").unwrap().len(), 3));
}

fn row(first: u64, count: u32) -> Vec<u8> {
    [&first.to_be_bytes()[..], &count.to_be_bytes()].concat()
}

#[tokio::test]
async fn records_of_one_append_share_rows_and_are_read_from_any_of_them() {
    let (_home, path) = folder();
    grouped(&path).await;
    let store = SledStore::open(&path).unwrap();
    for from in 1..=21 {
        for max in [0, 1, 5, 99] {
            let expected: Vec<Bytes> = (from..=20).take(max).map(record_of).collect();
            assert_eq!(store.read(from, max).await, Ok(expected), "{max} from {from}");
        }
    }
    store.append(21, vec![record_of(21), record_of(22)]).await.unwrap();
    assert_eq!(store.read(20, 9).await, Ok((20..=22).map(record_of).collect()));
}

#[tokio::test]
async fn a_group_is_given_up_record_by_record_and_removed_with_its_last() {
    let (_home, path) = folder();
    grouped(&path).await;
    for (floor, rows) in [(4, 3), (7, 2), (9, 1), (20, 1), (21, 0)] {
        let store = SledStore::open(&path).unwrap();
        store.trim(floor).await.unwrap();
        drop(store);
        tamper(&path, |db| assert_eq!(db.open_tree("log").unwrap().len(), rows, "floor {floor}"));
        let store = SledStore::open(&path).unwrap();
        assert_eq!(store.bounds().await, Ok(Bounds { floor, tip: 20 }));
        assert_eq!(store.read(floor - 1, 9).await, Err(StoreError::Trimmed { floor }));
        assert_eq!(store.read(floor, 99).await, Ok((floor..=20).map(record_of).collect()));
    }
    let store = SledStore::open(&path).unwrap();
    store.append(21, vec![record_of(21), record_of(22)]).await.unwrap();
    assert_eq!(store.read(21, 9).await, Ok(vec![record_of(21), record_of(22)]));
}

#[tokio::test]
async fn damage_to_a_group_is_reported_and_the_others_are_served() {
    let (_home, path) = folder();
    grouped(&path).await;
    tamper(&path, |db| flip(db, Table::Log, &row(8, 13)));
    let store = SledStore::open(&path).unwrap();
    let said = store.read(9, 1).await.unwrap_err().to_string();
    assert_eq!(said, "the store is damaged: the group of records from 8 of the log fails its checksum");
    assert_eq!(store.read(2, 5).await, Ok((2..=6).map(record_of).collect()));
}

#[tokio::test]
async fn a_missing_group_is_damage() {
    for (first, count, said) in [(1, 6, "record 1 of the log is missing"), (8, 13, "ends at 7")] {
        let (_home, path) = folder();
        grouped(&path).await;
        tamper(&path, |db| drop(db.open_tree("log").unwrap().remove(row(first, count)).unwrap()));
        let damage = damage_of(SledStore::open(&path));
        assert!(damage.contains(said), "{damage}");
    }
}

#[tokio::test]
async fn a_flipped_byte_in_a_value_is_reported_and_not_served() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| flip(db, Table::Map, b"key 4"));
    let store = SledStore::open(&path).unwrap();
    let said = r#"the store is damaged: key "key 4" of the map fails its checksum"#;
    assert_eq!(store.get("key 4").await.unwrap_err().to_string(), said);
    assert_eq!(store.scan("key", None, 99).await.unwrap_err().to_string(), said);
    assert_eq!(store.put("key 4", Some(5), bytes("x")).await.unwrap_err().to_string(), said);
    assert_eq!(store.get("key 5").await.unwrap().unwrap().value, value_of(5));
}

#[tokio::test]
async fn a_flipped_byte_in_a_large_value_is_reported_and_not_served() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| {
        let piece =
            db.open_tree("pieces").unwrap().scan_prefix([Table::Map as u8]).nth(2).unwrap().unwrap().0;
        flip(db, Table::Pieces, &piece);
        let piece =
            db.open_tree("pieces").unwrap().scan_prefix([Table::Log as u8]).next().unwrap().unwrap().0;
        db.open_tree("pieces").unwrap().remove(piece).unwrap();
    });
    let store = SledStore::open(&path).unwrap();
    assert!(
        matches!(store.get("key 3").await, Err(StoreError::Corrupt(said)) if said.contains("of the pieces fails"))
    );
    assert!(matches!(store.read(7, 1).await, Err(StoreError::Corrupt(said)) if said.contains("is missing")));
}

#[tokio::test]
async fn a_hole_in_the_log_is_damage() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| drop(db.open_tree("log").unwrap().remove(9u64.to_be_bytes()).unwrap()));
    let said = damage_of(SledStore::open(&path));
    assert!(said.contains("record 9 of the log is missing"), "{said}");
    assert!(said.contains("--recover") && said.contains(path.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn records_lost_from_the_end_of_the_log_are_damage_each_time_it_is_opened() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| drop(db.open_tree("log").unwrap().remove(20u64.to_be_bytes()).unwrap()));
    for _ in 0..2 {
        let said = damage_of(SledStore::open(&path));
        assert!(said.contains("once held records up to 20") && said.contains("ends at 19"), "{said}");
    }
}

#[tokio::test]
async fn a_revision_counter_that_went_back_is_damage() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| {
        let row = record::seal(Table::Meta, b"revision", &2u64.to_le_bytes());
        db.open_tree("meta").unwrap().insert("revision", row).unwrap();
    });
    assert!(damage_of(SledStore::open(&path)).contains("revisions below 11"));
}

#[tokio::test]
async fn a_trim_that_a_crash_broke_off_is_finished() {
    let (_home, path) = folder();
    filled(&path).await;
    tamper(&path, |db| {
        let row = record::seal(Table::Meta, b"floor", &15u64.to_le_bytes());
        db.open_tree("meta").unwrap().insert("floor", row).unwrap();
        db.open_tree("log").unwrap().remove(1u64.to_be_bytes()).unwrap();
    });
    let store = SledStore::open(&path).unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 15, tip: 20 }));
    drop(store);
    tamper(&path, |db| {
        assert_eq!(db.open_tree("log").unwrap().len(), 6);
        assert_eq!(db.open_tree("pieces").unwrap().scan_prefix([Table::Log as u8]).count(), 0);
    });
}

#[tokio::test]
async fn values_that_are_gone_leave_no_pieces_behind() {
    let (_home, path) = folder();
    let store = SledStore::open(&path).unwrap();
    let large = || Bytes::from(vec![1; 20_000]);
    let first = store.put("replaced", None, large()).await.unwrap();
    store.put("replaced", Some(first), bytes("small")).await.unwrap();
    let first = store.put("deleted", None, large()).await.unwrap();
    let second = store.put("deleted", Some(first), large()).await.unwrap();
    store.delete("deleted", second).await.unwrap();
    store.append(1, vec![large(), large(), bytes("small")]).await.unwrap();
    store.trim(3).await.unwrap();
    let kept = store.put("kept", None, large()).await.unwrap();
    drop(store);
    tamper(&path, |db| {
        let pieces: Vec<_> = db.open_tree("pieces").unwrap().iter().keys().map(Result::unwrap).collect();
        assert_eq!(pieces.len(), 5, "{pieces:?}");
        assert!(pieces.iter().all(|key| key[1..9] == kept.to_be_bytes()));
    });
}

#[test]
fn a_store_that_is_open_cannot_be_opened_again() {
    let (_home, path) = folder();
    let store = SledStore::open(&path).unwrap();
    let second = SledStore::open(&path).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    assert!(second.to_string().contains("in use by another pointsman"), "{second}");
    assert!(SledStore::recover(&path).unwrap_err().to_string().contains("in use"), "nor be recovered");
    drop(store);
    SledStore::open(&path).unwrap();
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let (_home, path) = folder();
    drop(SledStore::open(&path).unwrap());
    fs::write(path.join("STORE"), "pointsman store\nformat 2\nand whatever a newer program writes\n")
        .unwrap();
    let said = SledStore::open(&path).unwrap_err().to_string();
    assert!(said.contains("has format 2") && said.contains("up to 1"), "{said}");
    assert!(SledStore::recover(&path).unwrap_err().to_string().contains("has format 2"));
    assert!(fs::read_to_string(path.join("STORE")).unwrap().contains("whatever a newer program writes"));
}

#[test]
fn a_newer_format_is_refused_before_its_database_is_touched() {
    let (_home, path) = folder();
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("STORE"), "pointsman store\nformat 7\n").unwrap();
    assert!(matches!(SledStore::open(&path), Err(OpenError::Newer { found: 7, known: 1, .. })));
    assert!(!path.join("sled").exists());
}

#[test]
fn a_folder_with_other_files_does_not_become_a_store() {
    let (_home, path) = folder();
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("letter.txt"), "dear").unwrap();
    assert!(matches!(SledStore::open(&path), Err(OpenError::NotAStore { .. })));
    assert!(SledStore::recover(&path).is_err());
    assert_eq!(fs::read_to_string(path.join("letter.txt")).unwrap(), "dear");
    assert!(!path.join("STORE").exists());
}

#[test]
fn a_file_is_not_a_folder() {
    let (_home, path) = folder();
    fs::write(&path, "x").unwrap();
    let said = SledStore::open(&path).unwrap_err().to_string();
    assert!(said.contains("is not a folder"), "{said}");
    let said = SledStore::open(&path.join("below")).unwrap_err().to_string();
    assert!(said.contains("is not a folder"), "{said}");
}

#[tokio::test]
async fn recovering_sets_a_damaged_store_aside_and_leaves_a_whole_one() {
    let (home, path) = folder();
    assert_eq!(SledStore::recover(&path).unwrap(), None, "nothing there");
    assert!(!path.exists());
    for n in 1..=3 {
        filled(&path).await;
        assert_eq!(SledStore::recover(&path).unwrap(), None, "a whole store stays");
        fs::write(path.join("sled/db"), vec![0xa5; 100_000]).unwrap();
        damage_of(SledStore::open(&path));
        let aside = SledStore::recover(&path).unwrap().expect("a damaged store moves");
        assert_eq!(aside, home.path().canonicalize().unwrap().join(format!("store.damaged-{n}")));
        assert_eq!(fs::read(aside.join("sled/db")).unwrap().len(), 100_000, "nothing is deleted");
        assert!(!path.exists());
    }
    let store = SledStore::open(&path).unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: 0 }));
    assert_eq!(store.put("key", None, bytes("x")).await, Ok(1));
}

#[tokio::test]
async fn every_kind_of_damage_to_the_files_is_said() {
    type Damage = (&'static str, fn(&Path));
    let kinds: [Damage; 11] = [
        ("an empty database", |path| fs::write(path.join("sled/db"), "").unwrap()),
        ("no database", |path| fs::remove_file(path.join("sled/db")).unwrap()),
        ("no folder of it", |path| fs::remove_dir_all(path.join("sled")).unwrap()),
        ("half a database", |path| {
            let file = fs::File::options().write(true).open(path.join("sled/db")).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("zeros", |path| fs::write(path.join("sled/db"), vec![0; 1 << 20]).unwrap()),
        ("text", |path| fs::write(path.join("sled/db"), "no such thing\n".repeat(9999)).unwrap()),
        ("a garbled beginning", |path| {
            let mut bytes = fs::read(path.join("sled/db")).unwrap();
            bytes[..4096].fill(0x5a);
            fs::write(path.join("sled/db"), bytes).unwrap();
        }),
        ("garbled settings", |path| fs::write(path.join("sled/conf"), "segment_size: 9").unwrap()),
        ("no STORE file", |path| fs::remove_file(path.join("STORE")).unwrap()),
        ("an empty STORE file", |path| fs::write(path.join("STORE"), "").unwrap()),
        ("a changed STORE file", |path| {
            let text = fs::read_to_string(path.join("STORE")).unwrap();
            fs::write(path.join("STORE"), text.replace("tip 20", "tip 10")).unwrap();
        }),
    ];
    for (kind, damage) in kinds {
        let (_home, path) = folder();
        filled(&path).await;
        damage(&path);
        let said = damage_of(SledStore::open(&path));
        assert!(said.contains("--recover"), "{kind}: {said}");
        SledStore::recover(&path).unwrap().unwrap_or_else(|| panic!("{kind} was not set aside"));
        assert_eq!(SledStore::open(&path).unwrap().bounds().await, Ok(Bounds { floor: 1, tip: 0 }), "{kind}");
    }
}

/// Whatever bytes of the database change, nobody is served anything but what was written.
#[tokio::test]
async fn no_changed_byte_of_the_database_is_ever_served() {
    let (home, whole) = folder();
    filled(&whole).await;
    let db = fs::read(whole.join("sled/db")).unwrap();
    let used = db.iter().rposition(|byte| *byte != 0).unwrap_or_default();
    for step in 0..60 {
        let at = used * step / 60;
        let path = home.path().join(format!("flipped at {at}"));
        fs::create_dir_all(path.join("sled/blobs")).unwrap();
        fs::copy(whole.join("STORE"), path.join("STORE")).unwrap();
        for entry in fs::read_dir(whole.join("sled")).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), path.join("sled").join(entry.file_name())).unwrap();
            }
        }
        let mut changed = db.clone();
        changed[at] ^= 0x10;
        fs::write(path.join("sled/db"), changed).unwrap();
        let store = match SledStore::open(&path) {
            Ok(store) => store,
            Err(OpenError::Damaged { .. }) => continue,
            Err(other) => panic!("flipped at {at}: {other}"),
        };
        for seq in 1..=20 {
            match store.read(seq, 1).await {
                Ok(records) => assert_eq!(records, vec![record_of(seq)], "flipped at {at}"),
                Err(error) => assert!(matches!(error, StoreError::Corrupt(_)), "flipped at {at}: {error}"),
            }
        }
        for number in 0..10 {
            match store.get(&format!("key {number}")).await {
                Ok(found) => assert_eq!(found.unwrap().value, value_of(number), "flipped at {at}"),
                Err(error) => assert!(matches!(error, StoreError::Corrupt(_)), "flipped at {at}: {error}"),
            }
        }
    }
}

/// The files as a process that ends here and now would leave them, with the database changed.
fn left_behind(from: &Path, to: &Path, db: &[u8], mark: &[u8]) {
    fs::create_dir_all(to.join("sled/blobs")).unwrap();
    for entry in fs::read_dir(from.join("sled")).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join("sled").join(entry.file_name())).unwrap();
        }
    }
    fs::write(to.join("sled/db"), db).unwrap();
    fs::write(to.join("STORE"), mark).unwrap();
}

fn used(db: &[u8]) -> usize {
    db.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// A store that was settled with twenty records, and torn while it took more: one append of three.
/// Whatever is gone of the newest bytes, what was settled is there or its loss is said, and the rest is
/// there wholly or not at all.
#[tokio::test]
async fn a_torn_file_loses_nothing_that_was_settled_without_a_word() {
    let (home, whole) = folder();
    filled(&whole).await;
    let settled = used(&fs::read(whole.join("sled/db")).unwrap());
    let store = SledStore::open(&whole).unwrap();
    store.append(21, (21..=23).map(record_of).collect()).await.unwrap();
    store.put("key 10", None, value_of(10)).await.unwrap();
    let (db, mark) = (fs::read(whole.join("sled/db")).unwrap(), fs::read(whole.join("STORE")).unwrap());
    let written = used(&db);
    assert!(written > settled, "the newest writes are behind the others");

    let (mut served, mut refused, mut torn) = (0, 0, 0);
    let within = (0..40).map(|step| settled * step / 40);
    let behind = (0..=40).map(|step| settled + (written - settled) * step / 40);
    for at in within.chain(behind) {
        for zeros in [false, true] {
            // The rest was never written: the file ends, or has room there.
            let mut left = db[..at].to_vec();
            if zeros {
                left.resize(db.len(), 0);
            }
            let (path, what) = (home.path().join(format!("{at} {zeros}")), format!("torn at {at}, {zeros}"));
            left_behind(&whole, &path, &left, &mark);
            let store = match SledStore::open(&path) {
                Ok(store) => store,
                Err(OpenError::Damaged { .. }) => {
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("{what}: {other}"),
            };
            let Bounds { floor, tip } = store.bounds().await.unwrap();
            assert!(floor == 1 && (tip == 20 || tip == 23), "{what}: {floor} to {tip}");
            let records: Vec<Bytes> = (1..=tip).map(record_of).collect();
            let mut read = Vec::new();
            while (read.len() as u64) < tip {
                read.extend(store.read(read.len() as u64 + 1, 100).await.unwrap());
            }
            assert_eq!(read, records, "{what}");
            for number in 0..10 {
                let found = store.get(&format!("key {number}")).await.unwrap();
                assert_eq!(found.unwrap().value, value_of(number), "{what}");
            }
            let newest = store.get("key 10").await.unwrap();
            assert!(newest.as_ref().is_none_or(|found| found.value == value_of(10) && tip == 23), "{what}");
            served += usize::from(newest.is_some());
            torn += usize::from(newest.is_none());
        }
    }
    // All three were seen, or this has shown nothing.
    assert!(served > 0 && refused > 0 && torn > 0, "{served} whole, {refused} refused, {torn} torn");

    for len in 0..=mark.len() {
        let path = home.path().join(format!("mark of {len}"));
        left_behind(&whole, &path, &db, &mark[..len]);
        match SledStore::open(&path) {
            Ok(store) => assert_eq!(store.bounds().await.unwrap().tip, 23, "a mark of {len} bytes"),
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged { .. }), "a mark of {len} bytes: {error}")
            }
        }
    }
}

#[tokio::test]
async fn an_operation_whose_caller_left_is_still_whole() {
    let (_home, path) = folder();
    let store = SledStore::open(&path).unwrap();
    let mut left = 0;
    for round in 0..20 {
        let append = store.append(round * 3 + 1, (0..3).map(|n| bytes(&n.to_string())).collect());
        tokio::select! {
            biased;
            // A busy machine may come to the first look when all is over.
            done = append => done.unwrap(),
            () = std::future::ready(()) => left += 1,
        }
        // Begun by that one look; the next operation waits its turn behind it.
        while store.bounds().await.unwrap().tip == round * 3 {}
        assert_eq!(store.bounds().await.unwrap().tip, round * 3 + 3);
    }
    assert!(left > 0, "nobody left before the end");
}

#[tokio::test]
async fn a_key_that_is_too_long_is_refused_whole() {
    let (_home, path) = folder();
    let store = SledStore::open(&path).unwrap();
    let (fits, long) = ("k".repeat(384), "k".repeat(385));
    store.put(&fits, None, bytes("x")).await.unwrap();
    let said = store.put(&long, None, bytes("x")).await.unwrap_err().to_string();
    assert!(said.contains("385 bytes") && said.contains("384"), "{said}");
    assert_eq!(store.get(&long).await, Ok(None));
}

/// One step of the comparison with the model.
#[derive(Clone, Debug)]
enum Step {
    /// At the tip plus an offset; sizes of the records.
    Append(i8, Vec<usize>),
    /// From the floor plus an offset, and how many.
    Read(i8, usize),
    /// To the floor plus an offset.
    Trim(i8),
    /// Which key, on which revision, the size of the value.
    Put(usize, On, usize),
    Delete(usize, On),
    Get(usize),
    /// Prefix, after, how many.
    Scan(usize, Option<usize>, usize),
    Reopen,
}

/// The revision that a step expects.
#[derive(Clone, Copy, Debug)]
enum On {
    Nothing,
    Present,
    Fixed(u64),
}

const KEYS: [&str; 9] = ["", "a", "a/", "a/b", "a/\u{10ffff}", "a0", "b", "é", "\u{10ffff}"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = || prop_oneof![8 => 0..40usize, 2 => 4090..4100usize, 1 => 0..30_000usize];
    let key = || 0..KEYS.len();
    let on =
        || prop_oneof![3 => Just(On::Nothing), 5 => Just(On::Present), 1 => (0..20u64).prop_map(On::Fixed)];
    let at = || prop_oneof![6 => Just(1i8), 1 => -3..5i8];
    let step = prop_oneof![
        4 => (at(), prop::collection::vec(size(), 0..8)).prop_map(|(at, sizes)| Step::Append(at, sizes)),
        3 => (-2..20i8, 0..12usize).prop_map(|(from, max)| Step::Read(from, max)),
        1 => (-2..20i8).prop_map(Step::Trim),
        6 => (key(), on(), size()).prop_map(|(key, on, size)| Step::Put(key, on, size)),
        3 => (key(), on()).prop_map(|(key, on)| Step::Delete(key, on)),
        2 => key().prop_map(Step::Get),
        2 => (key(), prop::option::of(key()), 0..12usize).prop_map(|(p, after, max)| Step::Scan(p, after, max)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// The step's answer from one store, as something to compare.
async fn answer(store: &dyn Store, step: &Step, number: usize) -> String {
    let Bounds { floor, tip } = store.bounds().await.unwrap();
    let value = |size: usize| -> Bytes { vec![number as u8; size].into() };
    let revision = async |key: usize, on: On| match on {
        On::Nothing => None,
        On::Present => store.get(KEYS[key]).await.unwrap().map(|found| found.revision),
        On::Fixed(revision) => Some(revision),
    };
    let done = match step {
        Step::Append(at, sizes) => {
            let records = sizes.iter().map(|size| value(*size)).collect();
            format!("{:?}", store.append(tip.saturating_add_signed((*at).into()), records).await)
        }
        Step::Read(from, max) => {
            format!("{:?}", store.read(floor.saturating_add_signed((*from).into()), *max).await)
        }
        Step::Trim(to) => format!("{:?}", store.trim(floor.saturating_add_signed((*to).into())).await),
        Step::Put(key, on, size) => {
            format!("{:?}", store.put(KEYS[*key], revision(*key, *on).await, value(*size)).await)
        }
        Step::Delete(key, on) => {
            let expected = revision(*key, *on).await.unwrap_or(0);
            format!("{:?}", store.delete(KEYS[*key], expected).await)
        }
        Step::Get(key) => format!("{:?}", store.get(KEYS[*key]).await),
        Step::Scan(prefix, after, max) => {
            format!("{:?}", store.scan(KEYS[*prefix], after.map(|key| KEYS[key]), *max).await)
        }
        Step::Reopen => String::new(),
    };
    format!("{:?} {done}", store.bounds().await)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_to_it_it_answers_like_the_store_in_memory(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_home, path) = folder();
            let model = MemoryStore::new();
            let mut store = SledStore::open(&path).unwrap();
            for (number, step) in steps.iter().enumerate() {
                if let Step::Reopen = step {
                    drop(store);
                    store = SledStore::open(&path).unwrap();
                }
                let (expected, found) = (answer(&model, step, number).await, answer(&store, step, number).await);
                prop_assert_eq!(found, expected, "step {}: {:?}", number, step);
            }
            Ok(())
        })?;
    }
}
