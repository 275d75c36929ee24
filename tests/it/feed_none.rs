//! `event_log: none` with a real process and a real disk: events end with the process, and only their numbers
//! are kept. No number is ever given twice, and what is gone is said.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::feed::{Sse, assert_no_hole, backend, requests, router, seq, tip};
use crate::router::Router;

const RING: u64 = 64;

async fn bounds(router: &Router) -> (u64, u64) {
    let bounds = router.get("/api/events/bounds").await;
    let number = |name: &str| bounds[name].as_u64().unwrap_or_else(|| panic!("no {name}: {bounds}"));
    (number("floor"), number("tip"))
}

/// Status and body of a request to follow.
async fn refusal(router: &Router, query: &str, last: Option<u64>) -> (u16, Value) {
    let mut request = router.http.get(router.url(&format!("/api/events?{query}")));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn assert_gone(router: &Router, after: u64, floor: u64) {
    for (query, last) in [(format!("after={after}"), None), (String::new(), Some(after))] {
        let (status, body) = refusal(router, &query, last).await;
        assert_eq!((status, &body["floor"]), (410, &json!(floor)), "{after} {last:?}: {body}");
    }
}

#[tokio::test]
async fn numbers_go_on_behind_kill_9_and_a_start_and_the_floor_follows_the_ring() {
    let backend = backend();
    let mut router = router(&backend, &format!("event_log: none\nevent_ring: {RING}\n"));
    let mut lives: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last_tip = 0;
    for life in 0..5_u64 {
        let (floor, begun) = bounds(&router).await;
        assert!(floor > last_tip, "life {life} begins at {floor}, {last_tip} was seen before");
        if life > 0 {
            // Whoever comes back with a number of the life before learns what is gone, even at its end.
            assert!(begun >= floor, "the life has begun with an event");
            if floor > last_tip + 1 {
                assert_gone(&router, last_tip, floor).await;
            }
        }
        let mut sse = Sse::open(&router, "after=0").await;
        let few = 5 + 3 * life as usize;
        requests(&router, few).await;
        let newest = tip(&router).await;
        assert!(newest - floor < RING, "this fits: {floor} to {newest}");
        let seen = sse.events_to(newest).await;
        assert_no_hole(&seen, floor);
        for event in &seen {
            let before = lives.insert(seq(event), life);
            assert_eq!(before, None, "{event} was given in another life");
        }
        if life % 2 == 1 {
            // A reader that does not read meanwhile falls out of so small a ring, and is told so.
            drop(sse);
            requests(&router, 200).await;
            let newest = tip(&router).await;
            let (floor, tip) = bounds(&router).await;
            assert_eq!((floor, tip), (newest + 1 - RING, newest), "the floor follows the ring");
            assert_gone(&router, floor - 2, floor).await;
            let mut kept = Vec::new();
            for query in ["after=0".to_owned(), format!("after={}", floor - 1)] {
                kept = Sse::open(&router, &query).await.events_to(newest).await;
                assert_no_hole(&kept, floor);
            }
            kept.iter().for_each(|event| assert_eq!(lives.insert(seq(event), life), None, "{event}"));
            let (status, body) = refusal(&router, &format!("after={}", newest + 1), None).await;
            assert_eq!((status, &body["tip"]), (400, &json!(newest)), "{body}");
        }
        last_tip = tip(&router).await;
        router = if life == 2 {
            router.signal("TERM");
            let status = router.wait(Duration::from_secs(10));
            assert!(status.success(), "{status}");
            router.restart(&[])
        } else {
            router.kill_and_restart(&[])
        };
    }
    assert!(lives.len() > 2 * RING as usize, "{}", lives.len());

    router.signal("TERM");
    assert!(router.wait(Duration::from_secs(10)).success());
    let audit = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["audit", "--json", "--data"])
        .arg(router.data())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&audit.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&audit.stderr)));
    assert_eq!(audit.status.code(), Some(0), "{report}");
    assert_eq!((&report["events"], &report["broken"]), (&json!(0), &Value::Null), "{report}");
    println!("audit: {report}");
}
