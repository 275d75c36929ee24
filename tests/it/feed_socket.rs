//! What a WebSocket's client may do that a well-behaved one does not: leave in the middle, talk without end, never
//! read.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::feed::{
    Sse, assert_no_hole, backend, eventually, heard, long_requests, narrow, requests, router, tip, ws,
    ws_over,
};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_client_that_says_goodbye_is_answered_so() {
    let backend = backend();
    let router = router(&backend, "");
    requests(&router, 50).await;
    let tip = tip(&router).await;
    for caught_up in [true, false] {
        let mut socket = ws(&router, "after=0").await;
        while caught_up && heard(&mut socket).await.unwrap()["seq"] != tip {}
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "enough".into() };
        socket.close(Some(goodbye)).await.unwrap();
        let answer = loop {
            match timeout(PATIENCE, socket.next()).await.expect("an answer") {
                Some(Ok(Message::Close(frame))) => break frame,
                Some(Ok(_)) => {}
                other => panic!("no goodbye but {other:?} (caught up: {caught_up})"),
            }
        };
        assert_eq!(answer.map(|frame| frame.code), Some(CloseCode::Normal));
        match timeout(PATIENCE, socket.next()).await.expect("an end") {
            None | Some(Err(WsError::ConnectionClosed)) => {}
            other => panic!("not a clean end: {other:?}"),
        }
    }
    eventually(&router, "pointsman_subscribers 0").await;
}

#[tokio::test]
async fn a_client_that_pings_without_end_is_replayed_to_all_the_same() {
    let backend = backend();
    let router = router(&backend, "event_ring: 16\nper_ip_limit: 0\n");
    requests(&router, 1_500).await;
    let tip = tip(&router).await;
    let (mut pings, mut events) = ws(&router, "after=0").await.split();
    let flood = tokio::spawn(async move {
        let mut sent = 0_u64;
        while pings.send(Message::Ping(b"x".as_slice().into())).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let (began, mut given, mut pongs) = (Instant::now(), Vec::<Value>::new(), 0);
    while given.last().is_none_or(|event| event["seq"] != tip) {
        let left = PATIENCE.saturating_sub(began.elapsed());
        let message = timeout(left, events.next()).await.unwrap_or_else(|_| {
            panic!("{} of {tip} events after {PATIENCE:?} and {pongs} pongs", given.len())
        });
        match message.expect("it goes on").unwrap() {
            Message::Text(text) => {
                let object: Value = serde_json::from_str(&text).unwrap();
                given.extend(object.get("seq").is_some().then_some(object));
            }
            Message::Pong(_) => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_no_hole(&given, 1);
    assert!(pongs > 0, "the flood was heard");
    flood.abort();
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_up_a_stop_beyond_the_grace() {
    const GRACE: Duration = Duration::from_secs(2);
    let backend = backend();
    let more = format!("drain_grace_secs: {}\nsubscriber_stall_secs: 600\n", GRACE.as_secs());
    let mut router = router(&backend, &more);
    long_requests(&router, 800).await;
    let tip = tip(&router).await;
    // One holds a full connection and one an empty one; neither reads a byte from now on.
    let full = ws_over(narrow(&router.url("")).await, "after=0").await.unwrap();
    let mut quiet = ws(&router, "after=0").await;
    while heard(&mut quiet).await.unwrap()["seq"] != tip {}
    let silent = TcpStream::connect(router.url("").trim_start_matches("http://")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut reader = Sse::open(&router, "").await;
    let began = Instant::now();
    router.signal("TERM");
    while reader.next().await.is_some() {}
    assert!(began.elapsed() < GRACE, "who reads is let go at once: {:?}", began.elapsed());
    let status = router.wait(GRACE + Duration::from_secs(3));
    let took = began.elapsed();
    assert!(took < GRACE + Duration::from_secs(2), "it took {took:?}");
    assert!(status.success(), "{status}\n{}", router.log());
    drop((full, quiet, silent));
}

#[tokio::test]
async fn compressed_messages_are_the_events_that_others_get_as_text() {
    let backend = backend();
    let router = router(&backend, "event_ring: 16\n");
    requests(&router, 30).await;
    let tip = tip(&router).await;
    let dictionary = router.http.get(router.url("/api/events/dictionary")).send().await.unwrap();
    assert_eq!(
        (dictionary.status().as_u16(), &dictionary.headers()["content-type"]),
        (200, &"application/octet-stream".parse().unwrap())
    );
    let dictionary = dictionary.bytes().await.unwrap();
    let mut decompressor = zstd::bulk::Decompressor::with_dictionary(&dictionary).unwrap();
    let mut socket = ws(&router, "after=0&compress=zstd").await;
    let (mut bytes, mut events) = (0, Vec::<Value>::new());
    while events.last().is_none_or(|event| event["seq"] != tip) {
        match timeout(PATIENCE, socket.next()).await.expect("a message").unwrap().unwrap() {
            Message::Binary(packed) => {
                bytes += packed.len();
                events.push(
                    serde_json::from_slice(&decompressor.decompress(&packed, 1 << 16).unwrap()).unwrap(),
                );
            }
            Message::Text(text) => assert!(text.contains("checkpoint"), "{text}"),
            other => assert!(other.is_ping(), "{other:?}"),
        }
    }
    assert_eq!(events, Sse::open(&router, "after=0").await.events_to(tip).await);
    let plain: usize = events.iter().map(|event| event.to_string().len()).sum();
    assert!(bytes * 3 < plain * 2, "{bytes} bytes for {plain}");

    // What is said of the stream stays text, and the wish for other events leaves the encoding as it is.
    socket.send(Message::text(r#"{"type":"options_update","kinds":["request.finished"]}"#)).await.unwrap();
    assert_eq!(heard(&mut socket).await.unwrap()["options_updated"], tip);
    requests(&router, 1).await;
    let packed = loop {
        match timeout(PATIENCE, socket.next()).await.expect("a message").unwrap().unwrap() {
            Message::Binary(packed) => break packed,
            other => assert!(!other.is_close(), "{other:?}"),
        }
    };
    let event: Value = serde_json::from_slice(&decompressor.decompress(&packed, 1 << 16).unwrap()).unwrap();
    assert_eq!((&event["kind"], &event["prev_seq"]), (&"request.finished".into(), &tip.into()));

    for (path, said) in
        [("/api/events?compress=zstd", "/subscribe"), ("/api/events?compress=gzip", "expected zstd")]
    {
        let refused = router.http.get(router.url(path)).send().await.unwrap();
        assert_eq!(refused.status(), 400);
        assert!(refused.text().await.unwrap().contains(said), "{path}");
    }
}

#[tokio::test]
async fn a_stream_of_which_nothing_is_taken_any_more_is_cut_and_counted() {
    let backend = backend();
    let router = router(&backend, "subscriber_stall_secs: 0.5\n");
    long_requests(&router, 800).await;
    let _never_read = Sse::narrow(&router.url(""), "after=0").await;
    eventually(&router, "pointsman_subscribers 1").await;
    let began = Instant::now();
    eventually(&router, "pointsman_subscribers_cut_off_total{reason=\"stalled\"} 1").await;
    eventually(&router, "pointsman_subscribers 0").await;
    // Its time to take a piece, and the ten seconds in which it would have been told why.
    assert!(began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
}
