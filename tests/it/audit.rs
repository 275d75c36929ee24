//! `pointsman audit` over what a real router left behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use pointsman::adapters::memory::MemoryStore;
use pointsman::core::invariants::Promise;
use pointsman::flow::audit::{Report, audit as audit_store};
use pointsman::ports::{Seq, Store};
use pointsman::pretend::Profile;
use pointsman::wire::event::{Event, Fields, Kind};
use serde_json::{Value, json};

use crate::router::Router;
use crate::{chat, pretend};

fn whole() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "a b c" }], "stream": false })
}

/// Exit code, standard output and standard error.
fn audit(data: &std::path::Path, more: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .arg("audit")
        .arg("--data")
        .arg(data)
        .args(more)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

#[tokio::test]
async fn a_router_that_stopped_in_order_is_clean_and_kill_9_is_one_crash() {
    const GAP: Duration = Duration::from_millis(20);
    let backend = pretend(Profile::ollama(["m"]));
    let slow = pretend(Profile::ollama(["slow"]).tokens(100_000).paced(GAP, GAP));
    let endpoints = [backend.endpoint(), slow.endpoint()];
    let mut router = Router::before(&endpoints, "drain_grace_secs: 0.3\nflush_interval_secs: 3600\n");
    for _ in 0..5 {
        assert_eq!(router.post("/api/chat", &whole()).await.0, 200);
    }
    assert_eq!(router.post("/api/chat", &chat("unknown")).await.0, 404);
    // One is answered, one waits for its slot: both are cut off.
    let send = || router.http.post(router.url("/api/chat")).body(chat("slow").to_string()).send();
    let _running = send().await.unwrap();
    let waiting = tokio::spawn(send());
    tokio::time::sleep(Duration::from_millis(100)).await;

    let (code, _, said) = audit(&router.data(), &[]);
    assert!(code == Some(2) && said.contains("in use by another pointsman"), "{code:?} {said}");

    router.signal("TERM");
    assert!(router.wait(Duration::from_secs(10)).success());
    assert!(waiting.await.unwrap().is_err());
    let (code, json, said) = audit(&router.data(), &["--json"]);
    let report: Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("{json} {said}"));
    assert_eq!((code, &report["broken"]), (Some(0), &Value::Null), "{report}");
    let numbers = ["floor", "requests", "lives", "crashes"].map(|name| report[name].as_u64().unwrap());
    assert_eq!((numbers, &report["notes"]), ([1, 8, 1, 0], &json!([])), "{report}");
    assert_eq!(report["tip"], report["events"]);

    let mut router = router.restart(&[]);
    assert_eq!(router.post("/api/chat", &whole()).await.0, 200);
    let _running =
        router.http.post(router.url("/api/chat")).body(chat("slow").to_string()).send().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    router.signal("KILL");
    router.wait(Duration::from_secs(5));
    let (code, text, _) = audit(&router.data(), &[]);
    assert!(code == Some(0) && text.contains("2 life or lives, 1 crash(es)"), "{code:?} {text}");
    assert!(text.contains("1 request(s) were under way in a crash"), "{text}");
    assert!(text.contains("19 token(s) were logged"), "{text}");

    let mut router = router.restart(&[]);
    router.signal("TERM");
    router.wait(Duration::from_secs(5));
    let report: Value = serde_json::from_str(&audit(&router.data(), &["--json"]).1).unwrap();
    assert_eq!(
        (&report["broken"], &report["lives"], &report["crashes"]),
        (&Value::Null, &json!(3), &json!(1)),
        "{report}"
    );
}

/// Every file of a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

/// The numbers of the records that a row of the log holds, by its key.
fn held(key: &[u8]) -> std::ops::Range<u64> {
    let (first, rest) = key.split_at(8);
    let first = u64::from_be_bytes(first.try_into().unwrap());
    first..first + rest.try_into().map_or(1, |count| u64::from(u32::from_be_bytes(count)))
}

#[tokio::test]
async fn damage_in_one_place_is_named_by_its_event_and_auditing_changes_no_byte() {
    let backend = pretend(Profile::ollama(["m"]));
    let mut router = Router::before(&[backend.endpoint()], "event_log: each\n");
    for _ in 0..5 {
        assert_eq!(router.post("/api/chat", &whole()).await.0, 200);
    }
    router.signal("TERM");
    assert!(router.wait(Duration::from_secs(10)).success());
    let before = files(&router.data());
    let (code, said, _) = audit(&router.data(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(files(&router.data()) == before, "an audit changes nothing");

    let rows = |work: &dyn Fn(&sled::Tree)| {
        let db = sled::Config::new().path(router.data().join("store/sled")).open().unwrap();
        work(&db.open_tree("log").unwrap());
        db.flush().unwrap();
    };
    let nth = |tree: &sled::Tree, at: usize| tree.iter().map(Result::unwrap).nth(at).unwrap();
    let named = |what: &str, seq: u64| {
        let before = files(&router.data());
        let (code, json, said) = audit(&router.data(), &["--json"]);
        let report: Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("{what}: {json} {said}"));
        let found = (code, report["broken"]["seq"].as_u64(), report["broken"]["promise"].as_str());
        assert_eq!(found, (Some(1), Some(seq), Some("feed-durable")), "{what}: {report}");
        assert!(files(&router.data()) == before, "{what}: an audit changes nothing");
    };
    let numbers = std::cell::RefCell::new(Vec::new());
    rows(&|tree| *numbers.borrow_mut() = tree.iter().keys().map(|key| held(&key.unwrap()).start).collect());
    let numbers = numbers.into_inner();
    assert!(numbers[0] == 1 && numbers.len() > 8, "{numbers:?}");
    rows(&|tree| {
        let (key, mut row) = nth(tree, numbers.len() - 2);
        *row.last_mut().unwrap() ^= 1;
        tree.insert(key, row).unwrap();
    });
    named("a flipped bit", numbers[numbers.len() - 2]);
    rows(&|tree| drop(tree.remove(nth(tree, 4).0).unwrap()));
    named("a hole", numbers[4]);
    rows(&|tree| {
        while tree.len() > 3 {
            tree.pop_max().unwrap();
        }
    });
    named("the end is gone", numbers[3]);

    std::fs::remove_file(router.data().join("store/STORE")).unwrap();
    let (code, _, said) = audit(&router.data(), &[]);
    assert!(code == Some(2) && said.contains("no event of it can be named"), "{code:?} {said}");
}

#[test]
fn a_folder_without_a_store_is_said_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, said) = audit(folder.path(), &[]);
    assert!(code == Some(2) && said.contains("there is no store in"), "{code:?} {said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A record as the log stores it: the latest time, then the event.
fn record(seq: Seq, kind: Kind) -> Bytes {
    let request = matches!(kind, Kind::RequestStarted | Kind::RequestFinished);
    let fields = Fields {
        time_ms: seq,
        request_id: request.then(|| "a".into()),
        total_tokens: Some(0),
        ..Fields::default()
    };
    [&seq.to_le_bytes()[..], &Event::new(kind, fields).json].concat().into()
}

async fn audited(records: Vec<Bytes>, trim: Seq) -> Report {
    let store = MemoryStore::new();
    store.append(1, records).await.unwrap();
    store.trim(trim).await.unwrap();
    audit_store(&store).await.unwrap()
}

#[tokio::test]
async fn a_store_is_read_from_floor_to_tip_and_a_damaged_record_is_named() {
    let life = [Kind::InstanceJoined, Kind::RequestStarted, Kind::RequestFinished, Kind::InstanceLeft];
    let kinds = (0..1_500).flat_map(|_| life);
    let mut records: Vec<Bytes> = (1..).zip(kinds).map(|(seq, kind)| record(seq, kind)).collect();
    let report = audited(records.clone(), 0).await;
    assert_eq!((report.events, report.lives, report.broken, report.notes), (6_000, 1_500, None, Vec::new()));
    let report = audited(records.clone(), 3_000).await;
    assert_eq!((report.floor, report.events, report.broken), (3_000, 3_001, None));
    for damaged in [Bytes::new(), Bytes::from_static(b"12345678{}"), Bytes::from_static(b"12345678not JSON")]
    {
        records[4_001] = damaged;
        let report = audited(records.clone(), 0).await;
        let broken = report.broken.as_ref().map(|finding| (finding.seq, finding.broken.promise));
        assert_eq!(broken, Some((4_002, Promise::FeedDurable)), "{report:?}");
        assert_eq!(report.events, 5_999);
    }
    assert_eq!(audited(Vec::new(), 0).await.events, 0);
}
