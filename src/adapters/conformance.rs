//! The contract of [`Store`] as claims that can fail.
//!
//! One suite runs against every store: the one in memory, the one on disk, the simulator's, and
//! any distributed one to come. Each claim gets a store of its own under the claim's name;
//! opening that name again means "close, then open the same store". Whoever writes a store calls
//! [`run`] in its tests; a claim that does not hold panics with what it expected.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;

use crate::ports::{Bounds, Seq, Store, StoreError, Versioned};

/// Lists the claims once: as functions to run and as names to print.
macro_rules! claims {
    (one store: [$($one:ident,)+] opened again: [$($again:ident,)+]) => {
        /// The names of all claims, in the order in which [`run`] checks them.
        pub(crate) const CLAIMS: &[&str] = &[$(stringify!($one),)+ $(stringify!($again),)+];

        /// Checks every claim of the contract.
        ///
        /// `open` opens the store of that name: an empty one at the first call, the same one,
        /// with its contents, at every later call. A store is dropped before it is opened again.
        ///
        /// # Panics
        ///
        /// When a claim does not hold.
        pub(crate) async fn run<S: Store>(open: impl AsyncFn(&'static str) -> S) {
            $($one(&open(stringify!($one)).await).await;)+
            $($again(async || open(stringify!($again)).await).await;)+
        }
    };
}

claims! {
    one store: [
    an_empty_log_begins_at_one,
    records_come_back_in_order_as_they_were_appended,
    an_append_at_the_wrong_number_changes_nothing,
    an_empty_append_only_checks_the_number,
    a_read_takes_at_most_max_records,
    a_read_past_the_tip_is_empty,
    a_read_below_the_floor_says_where_the_floor_is,
    trimming_forgets_records_but_not_numbers,
    trimming_below_the_floor_changes_nothing,
    trimming_everything_keeps_the_tip,
    a_key_never_put_has_no_value,
    a_value_comes_back_with_its_revision,
    a_put_on_the_wrong_revision_leaves_the_value,
    a_delete_on_the_wrong_revision_leaves_the_value,
    a_revision_is_never_used_twice_for_a_key,
    empty_keys_and_empty_values_are_keys_and_values,
    large_values_come_back_whole,
    a_scan_is_in_byte_order_and_within_its_prefix,
    a_scan_begins_after_the_key_it_is_given,
    a_scan_takes_at_most_max_pairs,
    of_puts_on_one_revision_exactly_one_wins,
    of_appends_at_one_number_exactly_one_wins,
    the_log_and_the_map_do_not_touch,
    ]
    opened again: [
    the_log_survives,
    the_map_survives,
    a_trimmed_log_goes_on_where_it_was,
    a_revision_is_never_used_twice_across_a_deletion_and_a_restart,
    large_values_survive_and_leave_nothing_behind,
    ]
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn numbered(range: std::ops::RangeInclusive<Seq>) -> Vec<Bytes> {
    range.map(|seq| bytes(&format!("record {seq}"))).collect()
}

/// One mebibyte that no store can mistake for another or compress to nothing.
fn mebibyte(seed: u8) -> Bytes {
    let mut state = u32::from(seed) + 1;
    (0..1 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// Drives all futures at once, on whatever threads the store itself uses.
async fn together<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    let all = std::future::poll_fn(|context| {
        for (future, done) in running.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    });
    pin!(all).await;
    done.into_iter().flatten().collect()
}

async fn an_empty_log_begins_at_one(store: &impl Store) {
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: 0 }));
    assert_eq!(store.read(1, 10).await, Ok(vec![]));
    assert_eq!(store.read(0, 10).await, Err(StoreError::Trimmed { floor: 1 }));
}

async fn records_come_back_in_order_as_they_were_appended(store: &impl Store) {
    let records = vec![bytes("first"), Bytes::new(), Bytes::from_static(b"\0\xff\n"), bytes("first")];
    store.append(1, records[..1].to_vec()).await.unwrap();
    store.append(2, records[1..].to_vec()).await.unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: 4 }));
    assert_eq!(store.read(1, 10).await, Ok(records.clone()));
    assert_eq!(store.read(3, 10).await, Ok(records[2..].to_vec()));
}

async fn an_append_at_the_wrong_number_changes_nothing(store: &impl Store) {
    store.append(1, numbered(1..=3)).await.unwrap();
    for wrong in [0, 1, 3, 5, Seq::MAX] {
        assert_eq!(store.append(wrong, numbered(1..=2)).await, Err(StoreError::Conflict), "at {wrong}");
    }
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: 3 }));
    assert_eq!(store.read(1, 10).await, Ok(numbered(1..=3)));
}

async fn an_empty_append_only_checks_the_number(store: &impl Store) {
    assert_eq!(store.append(1, vec![]).await, Ok(()));
    assert_eq!(store.append(2, vec![]).await, Err(StoreError::Conflict));
    store.append(1, numbered(1..=1)).await.unwrap();
    assert_eq!(store.append(1, vec![]).await, Err(StoreError::Conflict));
    assert_eq!(store.append(2, vec![]).await, Ok(()));
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: 1 }));
}

async fn a_read_takes_at_most_max_records(store: &impl Store) {
    store.append(1, numbered(1..=40)).await.unwrap();
    assert_eq!(store.read(1, 0).await, Ok(vec![]));
    assert_eq!(store.read(1, 1).await, Ok(numbered(1..=1)));
    assert_eq!(store.read(20, 7).await, Ok(numbered(20..=26)));
    assert_eq!(store.read(38, usize::MAX).await, Ok(numbered(38..=40)));
}

async fn a_read_past_the_tip_is_empty(store: &impl Store) {
    store.append(1, numbered(1..=2)).await.unwrap();
    assert_eq!(store.read(3, 10).await, Ok(vec![]));
    assert_eq!(store.read(Seq::MAX, usize::MAX).await, Ok(vec![]));
}

async fn a_read_below_the_floor_says_where_the_floor_is(store: &impl Store) {
    store.append(1, numbered(1..=9)).await.unwrap();
    store.trim(4).await.unwrap();
    for below in 0..4 {
        assert_eq!(store.read(below, 10).await, Err(StoreError::Trimmed { floor: 4 }), "from {below}");
        assert_eq!(store.read(below, 0).await, Err(StoreError::Trimmed { floor: 4 }), "from {below}");
    }
    assert_eq!(store.read(4, 10).await, Ok(numbered(4..=9)));
}

async fn trimming_forgets_records_but_not_numbers(store: &impl Store) {
    store.append(1, numbered(1..=5)).await.unwrap();
    store.trim(4).await.unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 4, tip: 5 }));
    store.append(6, numbered(6..=6)).await.unwrap();
    assert_eq!(store.read(4, 10).await, Ok(numbered(4..=6)));
}

async fn trimming_below_the_floor_changes_nothing(store: &impl Store) {
    store.append(1, numbered(1..=5)).await.unwrap();
    store.trim(4).await.unwrap();
    for low in [0, 1, 3, 4] {
        assert_eq!(store.trim(low).await, Ok(()));
        assert_eq!(store.bounds().await, Ok(Bounds { floor: 4, tip: 5 }), "after trimming to {low}");
    }
}

async fn trimming_everything_keeps_the_tip(store: &impl Store) {
    store.trim(7).await.unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: 0 }));
    store.append(1, numbered(1..=5)).await.unwrap();
    store.trim(Seq::MAX).await.unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 6, tip: 5 }));
    assert_eq!(store.read(6, 10).await, Ok(vec![]));
    assert_eq!(store.read(5, 10).await, Err(StoreError::Trimmed { floor: 6 }));
    assert_eq!(store.append(1, numbered(1..=1)).await, Err(StoreError::Conflict));
    store.append(6, numbered(6..=7)).await.unwrap();
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 6, tip: 7 }));
    assert_eq!(store.read(6, 10).await, Ok(numbered(6..=7)));
}

async fn a_key_never_put_has_no_value(store: &impl Store) {
    assert_eq!(store.get("nobody").await, Ok(None));
    assert_eq!(store.put("nobody", Some(1), bytes("x")).await, Err(StoreError::Conflict));
    assert_eq!(store.delete("nobody", 1).await, Err(StoreError::Conflict));
    assert_eq!(store.get("nobody").await, Ok(None));
}

async fn a_value_comes_back_with_its_revision(store: &impl Store) {
    let first = store.put("key", None, bytes("one")).await.unwrap();
    assert_eq!(store.get("key").await, Ok(Some(Versioned { revision: first, value: bytes("one") })));
    let second = store.put("key", Some(first), bytes("two")).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(store.get("key").await, Ok(Some(Versioned { revision: second, value: bytes("two") })));
    store.delete("key", second).await.unwrap();
    assert_eq!(store.get("key").await, Ok(None));
}

async fn a_put_on_the_wrong_revision_leaves_the_value(store: &impl Store) {
    let first = store.put("key", None, bytes("one")).await.unwrap();
    let second = store.put("key", Some(first), bytes("two")).await.unwrap();
    for wrong in [None, Some(first), Some(second + 1), Some(0)] {
        assert_eq!(store.put("key", wrong, bytes("x")).await, Err(StoreError::Conflict), "on {wrong:?}");
    }
    assert_eq!(store.get("key").await, Ok(Some(Versioned { revision: second, value: bytes("two") })));
}

async fn a_delete_on_the_wrong_revision_leaves_the_value(store: &impl Store) {
    let first = store.put("key", None, bytes("one")).await.unwrap();
    let second = store.put("key", Some(first), bytes("two")).await.unwrap();
    for wrong in [first, second + 1, 0] {
        assert_eq!(store.delete("key", wrong).await, Err(StoreError::Conflict), "on {wrong}");
    }
    assert_eq!(store.get("key").await, Ok(Some(Versioned { revision: second, value: bytes("two") })));
}

async fn a_revision_is_never_used_twice_for_a_key(store: &impl Store) {
    let mut used = Vec::new();
    for _ in 0..3 {
        let first = store.put("key", None, bytes("x")).await.unwrap();
        let second = store.put("key", Some(first), bytes("x")).await.unwrap();
        store.delete("key", second).await.unwrap();
        used.extend([first, second]);
    }
    let given = used.len();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), given, "{used:?}");
    for old in used {
        assert_eq!(store.put("key", Some(old), bytes("late")).await, Err(StoreError::Conflict));
    }
}

async fn empty_keys_and_empty_values_are_keys_and_values(store: &impl Store) {
    let empty = store.put("", None, Bytes::new()).await.unwrap();
    assert_eq!(store.get("").await, Ok(Some(Versioned { revision: empty, value: Bytes::new() })));
    assert_eq!(store.put("", None, bytes("x")).await, Err(StoreError::Conflict));
    let other = store.put("other", None, Bytes::new()).await.unwrap();
    assert_eq!(store.get("other").await, Ok(Some(Versioned { revision: other, value: Bytes::new() })));
    let names: Vec<String> = store.scan("", None, 9).await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(names, ["", "other"]);
    let names: Vec<String> =
        store.scan("", Some(""), 9).await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(names, ["other"]);
    store.delete("", empty).await.unwrap();
    assert_eq!(store.get("").await, Ok(None));
}

async fn large_values_come_back_whole(store: &impl Store) {
    let (one, two) = (mebibyte(1), mebibyte(2));
    let first = store.put("large", None, one.clone()).await.unwrap();
    assert_eq!(store.get("large").await.unwrap().unwrap().value, one);
    let second = store.put("large", Some(first), two.clone()).await.unwrap();
    assert_eq!(store.get("large").await.unwrap().unwrap().value, two);
    assert_eq!(store.scan("lar", None, 9).await.unwrap()[0].1.value, two);
    store.put("large", Some(second), bytes("small")).await.unwrap();
    assert_eq!(store.get("large").await.unwrap().unwrap().value, bytes("small"));

    store.append(1, vec![one.clone(), bytes("small"), two.clone()]).await.unwrap();
    assert_eq!(store.read(1, 10).await, Ok(vec![one, bytes("small"), two.clone()]));
    store.trim(3).await.unwrap();
    assert_eq!(store.read(3, 10).await, Ok(vec![two]));
    // Around the sizes at which a store may begin to cut a value up.
    for size in [4095, 4096, 4097, 8191, 8192, 8193] {
        let value = one_of(size);
        let key = format!("size {size}");
        store.put(&key, None, value.clone()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, value, "{size} bytes");
    }
}

fn one_of(size: usize) -> Bytes {
    mebibyte(7).slice(..size)
}

/// Keys in byte order, with neighbours that a careless upper bound would let in or leave out.
const KEYS: [&str; 12] =
    ["a", "a/", "a/1", "a/2", "a/\u{10ffff}", "a/\u{10ffff}x", "a0", "b", "é", "é/1", "日", "\u{10ffff}"];

async fn put_keys(store: &impl Store) {
    // Not in order, so that order is the store's doing.
    for index in 0..KEYS.len() {
        let key = KEYS[index * 5 % KEYS.len()];
        store.put(key, None, bytes(key)).await.unwrap();
    }
}

async fn scanned(store: &impl Store, prefix: &str, after: Option<&str>, max: usize) -> Vec<String> {
    let pairs = store.scan(prefix, after, max).await.unwrap();
    pairs
        .into_iter()
        .map(|(key, found)| {
            assert_eq!(found.value, bytes(&key), "a key must come with its own value");
            key
        })
        .collect()
}

async fn a_scan_is_in_byte_order_and_within_its_prefix(store: &impl Store) {
    assert!(scanned(store, "", None, 99).await.is_empty());
    put_keys(store).await;
    assert_eq!(scanned(store, "", None, 99).await, KEYS);
    assert_eq!(scanned(store, "a/", None, 99).await, KEYS[1..6]);
    assert_eq!(scanned(store, "a", None, 99).await, KEYS[..7]);
    assert_eq!(scanned(store, "a/\u{10ffff}", None, 99).await, KEYS[4..6]);
    assert_eq!(scanned(store, "é", None, 99).await, KEYS[8..10]);
    assert_eq!(scanned(store, "\u{10ffff}", None, 99).await, KEYS[11..]);
    assert!(scanned(store, "a/3", None, 99).await.is_empty());
    assert!(scanned(store, "\u{10ffff}\u{10ffff}", None, 99).await.is_empty());
}

async fn a_scan_begins_after_the_key_it_is_given(store: &impl Store) {
    put_keys(store).await;
    assert_eq!(scanned(store, "a/", Some("a/1"), 99).await, KEYS[3..6]);
    assert_eq!(scanned(store, "a/", Some("a/11"), 99).await, KEYS[3..6], "a key that is not there");
    assert_eq!(scanned(store, "a/", Some("a/"), 99).await, KEYS[2..6]);
    assert_eq!(scanned(store, "a/", Some("a"), 99).await, KEYS[1..6], "a key before the prefix");
    assert_eq!(scanned(store, "a/", Some(""), 99).await, KEYS[1..6]);
    assert!(scanned(store, "a/", Some("b"), 99).await.is_empty(), "a key behind the prefix");
    assert!(scanned(store, "", Some("\u{10ffff}"), 99).await.is_empty());
}

async fn a_scan_takes_at_most_max_pairs(store: &impl Store) {
    put_keys(store).await;
    assert!(scanned(store, "", None, 0).await.is_empty());
    assert_eq!(scanned(store, "", None, 3).await, KEYS[..3]);
    assert_eq!(scanned(store, "a/", Some("a/"), 1).await, KEYS[2..3]);
    assert_eq!(scanned(store, "", None, usize::MAX).await, KEYS);
    let mut paged: Vec<String> = Vec::new();
    loop {
        let page = scanned(store, "", paged.last().map(String::as_str), 5).await;
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, KEYS, "page after page");
}

async fn of_puts_on_one_revision_exactly_one_wins(store: &impl Store) {
    let mut expected = None;
    for round in 0..10 {
        let values: Vec<Bytes> = (0..8).map(|racer| bytes(&format!("{round} {racer}"))).collect();
        let answers =
            together(values.iter().map(|value| store.put("key", expected, value.clone())).collect()).await;
        let winners: Vec<usize> = (0..8).filter(|racer| answers[*racer].is_ok()).collect();
        let [winner] = winners[..] else { panic!("{} winners in round {round}", winners.len()) };
        assert!((0..8).all(|racer| racer == winner || answers[racer] == Err(StoreError::Conflict)));
        let found = store.get("key").await.unwrap().unwrap();
        assert_eq!(answers[winner], Ok(found.revision));
        assert_eq!(found.value, values[winner]);
        expected = Some(found.revision);
    }
}

async fn of_appends_at_one_number_exactly_one_wins(store: &impl Store) {
    for round in 0..10 {
        let at = round * 2 + 1;
        let batch = |racer: u64| vec![bytes(&format!("{racer} a")), bytes(&format!("{racer} b"))];
        let answers = together((0..8).map(|racer| store.append(at, batch(racer))).collect()).await;
        let winners: Vec<u64> = (0..8).filter(|racer| answers[*racer as usize].is_ok()).collect();
        let [winner] = winners[..] else { panic!("{} winners in round {round}", winners.len()) };
        assert_eq!(store.read(at, 10).await, Ok(batch(winner)));
        assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip: at + 1 }));
    }
}

async fn the_log_and_the_map_do_not_touch(store: &impl Store) {
    store.append(1, numbered(1..=2)).await.unwrap();
    store.put("1", None, bytes("one")).await.unwrap();
    store.put("\0\0\0\0\0\0\0\u{1}", None, bytes("a key that looks like a number")).await.unwrap();
    assert_eq!(store.read(1, 10).await, Ok(numbered(1..=2)));
    store.trim(3).await.unwrap();
    assert_eq!(store.scan("", None, 10).await.unwrap().len(), 2);
}

async fn the_log_survives<S: Store>(open: impl AsyncFn() -> S) {
    for round in 0..3 {
        let store = open().await;
        let tip = round * 20;
        assert_eq!(store.bounds().await, Ok(Bounds { floor: 1, tip }));
        assert_eq!(store.read(1, 99).await, Ok(numbered(1..=tip)));
        store.append(tip + 1, numbered(tip + 1..=tip + 20)).await.unwrap();
    }
}

async fn the_map_survives<S: Store>(open: impl AsyncFn() -> S) {
    let store = open().await;
    put_keys(&store).await;
    let before = store.scan("", None, 99).await.unwrap();
    store.delete(&before[3].0, before[3].1.revision).await.unwrap();
    drop(store);
    let store = open().await;
    let after = store.scan("", None, 99).await.unwrap();
    assert_eq!(after.len(), KEYS.len() - 1);
    assert!(after.iter().all(|pair| before.contains(pair)), "values and revisions are the same");
    assert_eq!(store.get(KEYS[3]).await, Ok(None));
}

async fn a_trimmed_log_goes_on_where_it_was<S: Store>(open: impl AsyncFn() -> S) {
    let store = open().await;
    store.append(1, numbered(1..=9)).await.unwrap();
    store.trim(5).await.unwrap();
    drop(store);
    let store = open().await;
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 5, tip: 9 }));
    assert_eq!(store.read(5, 99).await, Ok(numbered(5..=9)));
    store.trim(Seq::MAX).await.unwrap();
    drop(store);
    let store = open().await;
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 10, tip: 9 }), "an emptied log keeps its tip");
    assert_eq!(store.append(1, numbered(1..=1)).await, Err(StoreError::Conflict));
    store.append(10, numbered(10..=10)).await.unwrap();
    assert_eq!(store.read(10, 99).await, Ok(numbered(10..=10)));
}

async fn a_revision_is_never_used_twice_across_a_deletion_and_a_restart<S: Store>(open: impl AsyncFn() -> S) {
    let mut used = Vec::new();
    for _ in 0..3 {
        let store = open().await;
        let revision = store.put("key", None, bytes("x")).await.unwrap();
        store.delete("key", revision).await.unwrap();
        assert!(!used.contains(&revision), "revision {revision} again after {used:?}");
        used.push(revision);
    }
}

async fn large_values_survive_and_leave_nothing_behind<S: Store>(open: impl AsyncFn() -> S) {
    let store = open().await;
    let revision = store.put("large", None, mebibyte(1)).await.unwrap();
    store.append(1, vec![mebibyte(2), mebibyte(3)]).await.unwrap();
    drop(store);
    let store = open().await;
    assert_eq!(store.get("large").await, Ok(Some(Versioned { revision, value: mebibyte(1) })));
    assert_eq!(store.read(1, 9).await, Ok(vec![mebibyte(2), mebibyte(3)]));
    store.delete("large", revision).await.unwrap();
    store.trim(3).await.unwrap();
    drop(store);
    let store = open().await;
    assert_eq!(store.get("large").await, Ok(None));
    assert_eq!(store.bounds().await, Ok(Bounds { floor: 3, tip: 2 }));
    let again = store.put("large", None, bytes("small")).await.unwrap();
    assert_eq!(store.get("large").await, Ok(Some(Versioned { revision: again, value: bytes("small") })));
}
