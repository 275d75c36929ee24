//! The event feed over real sockets: exact, explicit, and no burden to anybody else.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, Stream};
use futures_util::{SinkExt, StreamExt};
use pointsman::adapters::clock::SystemClock;
use pointsman::adapters::entropy::SeededEntropy;
use pointsman::adapters::memory::MemoryStore;
use pointsman::adapters::spawn::TokioSpawn;
use pointsman::adapters::upstream::HttpUpstream;
use pointsman::config::Config;
use pointsman::flow::router::{Ports, Router as Inner};
use pointsman::http::{App, server};
use pointsman::pretend::{Pretend, Profile};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::pretend;
use crate::router::{Router, yaml};

const PATIENCE: Duration = Duration::from_secs(20);

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub event: String,
    pub id: Option<u64>,
    pub data: Value,
}

/// A reader of server-sent events.
pub struct Sse {
    bytes: Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>,
    text: String,
}

impl Sse {
    pub async fn open(router: &Router, query: &str) -> Sse {
        Sse::resume(router, query, None).await
    }

    pub async fn resume(router: &Router, query: &str, last: Option<u64>) -> Sse {
        let mut request = router.http.get(router.url(&format!("/api/events?{query}")));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Sse::of(response)
    }

    /// A stream that breaks off is not one that ends.
    pub fn of(response: reqwest::Response) -> Sse {
        Sse::over(response.bytes_stream().map(|chunk| chunk.unwrap().to_vec()))
    }

    fn over(bytes: impl Stream<Item = Vec<u8>> + Send + 'static) -> Sse {
        Sse { bytes: Box::pin(bytes), text: String::new() }
    }

    /// Over a connection that holds little; what stands before the body is read at once.
    pub async fn narrow(address: &str, query: &str) -> Sse {
        let mut socket = narrow(address).await;
        let request = format!("GET /api/events?{query} HTTP/1.0\r\nhost: x\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&head));
        Sse::over(stream::unfold(socket, |mut socket| async {
            let mut chunk = vec![0; 4096];
            let read = socket.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
            chunk.truncate(read);
            Some((chunk, socket))
        }))
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(PATIENCE, self.frame()).await.expect("the feed went silent")
    }

    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.map(str::to_owned)
                };
                let (event, id, data) = (field("event"), field("id"), field("data"));
                self.text = rest.to_owned();
                let Some(data) = data else { continue };
                let data = serde_json::from_str(&data).unwrap();
                let id = id.map(|id| id.parse().unwrap());
                return Some(Frame { event: event.unwrap_or_default(), id, data });
            }
            let chunk = self.bytes.next().await?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next frame that is an event of the log.
    pub async fn event(&mut self) -> Value {
        loop {
            let frame = self.next().await.expect("the feed ended");
            if frame.event.is_empty() {
                assert_eq!(frame.id, frame.data["seq"].as_u64());
                return frame.data;
            }
            assert_eq!(frame.event, "checkpoint", "{frame:?}");
        }
    }

    /// Events up to this number.
    pub async fn events_to(&mut self, last: u64) -> Vec<Value> {
        let mut events = Vec::new();
        while events.last().is_none_or(|event| seq(event) < last) {
            events.push(self.event().await);
        }
        events
    }

    /// All that is left.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// A connection that takes little before it is read: small segments keep the sender's buffer small too.
pub async fn narrow(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
    socket.connect(address.trim_start_matches("http://").parse().unwrap()).await.unwrap()
}

pub type Ws = WebSocketStream<TcpStream>;

pub async fn ws(router: &Router, query: &str) -> Ws {
    let socket = TcpStream::connect(router.url("").trim_start_matches("http://")).await.unwrap();
    ws_over(socket, query).await.unwrap()
}

pub async fn ws_over(socket: TcpStream, query: &str) -> Result<Ws, WsError> {
    Ok(client_async(format!("ws://x/subscribe?{query}"), socket).await?.0)
}

/// The next text message, or the close code.
pub async fn heard(ws: &mut Ws) -> Result<Value, Option<u16>> {
    loop {
        let message = tokio::time::timeout(PATIENCE, ws.next()).await.expect("the socket went silent");
        match message {
            Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
            Some(Ok(_)) => {}
            None | Some(Err(_)) => return Err(None),
        }
    }
}

pub fn seq(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap_or_else(|| panic!("an event: {event}"))
}

/// Every event of the log from `first` on, each naming the one before.
pub fn assert_no_hole(events: &[Value], first: u64) {
    for (index, event) in events.iter().enumerate() {
        let expected = first + index as u64;
        let prev = if index == 0 { Value::Null } else { json!(expected - 1) };
        assert_eq!((seq(event), &event["prev_seq"]), (expected, &prev), "{event}");
    }
}

pub fn backend() -> Pretend {
    pretend(Profile::ollama(["m"]).tokens(1))
}

pub fn router(backend: &Pretend, more: &str) -> Router {
    Router::before(&[backend.endpoint()], &format!("max_concurrent_connections: 64\n{more}"))
}

/// So many requests for this model, a few at a time; two events each.
pub async fn ask(http: &reqwest::Client, url: &str, model: &str, count: usize) {
    let body = json!({ "model": model, "messages": [], "stream": false }).to_string();
    let id = "r".repeat(120);
    let each = stream::iter(0..count).for_each_concurrent(16, |_| async {
        let request = http.post(format!("{url}/api/chat")).header("x-request-id", &id).body(body.clone());
        if let Ok(response) = request.send().await {
            let _ = response.bytes().await;
        }
    });
    each.await;
}

pub async fn requests(router: &Router, count: usize) {
    ask(&router.http, &router.url(""), "m", count).await;
}

/// Requests whose events are long, so that few of them fill a connection.
pub async fn long_requests(router: &Router, count: usize) {
    ask(&router.http, &router.url(""), &"n".repeat(250), count).await;
}

/// The tip, once nothing has been added for a moment.
pub async fn tip(router: &Router) -> u64 {
    let mut last = None;
    loop {
        let tip = router.get("/api/events/bounds").await["tip"].as_u64().unwrap();
        if last == Some(tip) {
            return tip;
        }
        last = Some(tip);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

pub async fn metric(router: &Router, line: &str) -> bool {
    let text = router.http.get(router.url("/metrics")).send().await.unwrap().text().await.unwrap();
    text.lines().any(|found| found == line)
}

pub async fn eventually(router: &Router, line: &str) {
    let began = Instant::now();
    while !metric(router, line).await {
        assert!(began.elapsed() < PATIENCE, "/metrics never said: {line}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn replay_goes_over_into_live_without_a_seam_for_every_reader() {
    let backend = backend();
    let router = router(&backend, "event_ring: 16\n");
    requests(&router, 100).await;
    let (mut sse, mut socket) = (Sse::open(&router, "after=0").await, ws(&router, "after=0").await);
    let (from_sse, from_socket, ()) = tokio::join!(
        sse.events_to(400),
        async {
            let mut events: Vec<Value> = Vec::new();
            while events.last().is_none_or(|event| seq(event) < 400) {
                let event = heard(&mut socket).await.unwrap();
                events.extend(event.get("seq").is_some().then_some(event));
            }
            events
        },
        requests(&router, 200),
    );
    assert_no_hole(&from_sse, 1);
    assert_eq!(from_sse, from_socket);
    let (mut started, mut finished) = (BTreeMap::new(), 0);
    for event in &from_sse {
        match event["kind"].as_str().unwrap() {
            "request.started" => *started.entry(event["model"].as_str().unwrap()).or_insert(0) += 1,
            "request.finished" => finished += 1,
            _ => {}
        }
    }
    assert!(started["m"] >= 180 && finished >= 180, "{started:?} {finished}");
    assert!(metric(&router, "pointsman_subscribers 2").await);
    drop((sse, socket));
    eventually(&router, "pointsman_subscribers 0").await;
    let tip = tip(&router).await;
    assert!(metric(&router, &format!("pointsman_log_tip {tip}")).await);
    assert!(metric(&router, "pointsman_log_floor 1").await);
    assert!(metric(&router, "pointsman_events_waiting 0").await);
}

#[tokio::test]
async fn who_comes_again_goes_on_behind_the_last_event_whatever_the_url_says() {
    let backend = backend();
    let router = router(&backend, "");
    requests(&router, 20).await;
    let tip = tip(&router).await;
    let mut again = Sse::resume(&router, "after=0", Some(tip - 5)).await;
    assert_no_hole(&again.events_to(tip).await, tip - 4);
    let mut at_the_tip = Sse::resume(&router, "after=0", Some(tip)).await;
    requests(&router, 1).await;
    assert_eq!(seq(&at_the_tip.event().await), tip + 1);

    let mut live = Sse::open(&router, "").await;
    let first = live.next().await.unwrap();
    assert_eq!(first.event, "checkpoint", "who said no number is told where it begins");
    requests(&router, 1).await;
    assert_eq!(seq(&live.event().await), first.id.unwrap() + 1);
}

#[tokio::test]
async fn a_time_begins_with_the_first_event_after_it() {
    let backend = backend();
    let router = router(&backend, "");
    requests(&router, 10).await;
    let tip = tip(&router).await;
    let all = Sse::open(&router, "after=0").await.events_to(tip).await;
    let first = Sse::open(&router, "after=1970-01-01T00:00:00Z").await.event().await;
    assert_eq!(seq(&first), 1);
    // Events of one millisecond stay together.
    let time = all[9]["time_ms"].as_u64().unwrap();
    let seconds = std::time::Duration::from_millis(time).as_secs();
    let day = Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%FT%T"]).output().unwrap();
    let day = String::from_utf8(day.stdout).unwrap();
    let query = format!("after={}.{:03}Z", day.trim(), time % 1000);
    requests(&router, 1).await;
    let behind = Sse::open(&router, &query).await.event().await;
    let later = |event: &&Value| event["time_ms"].as_u64().unwrap() > time;
    assert!(later(&&behind) && seq(&behind) > 10, "{behind}");
    let first = all.iter().find(later).map_or(tip + 1, seq);
    assert_eq!(seq(&behind), first, "nothing later is left out");
}

#[tokio::test]
async fn a_filtered_reader_gets_its_events_in_a_chain_and_checkpoints_for_the_rest() {
    let backend = backend();
    let router = router(&backend, "");
    requests(&router, 30).await;
    ask(&router.http, &router.url(""), "nobody", 5).await;
    let tip = tip(&router).await;
    let all = Sse::open(&router, "after=0").await.events_to(tip).await;
    let endpoint = backend.endpoint();
    let is = |event: &Value, key: &str, value: &str| event[key].as_str() == Some(value);
    type Wanted<'a> = Box<dyn Fn(&Value) -> bool + 'a>;
    let table: [(String, Wanted<'_>); 6] = [
        ("kinds=request.finished".to_owned(), Box::new(|e| is(e, "kind", "request.finished"))),
        ("kinds=request.*&models=no*".to_owned(), Box::new(|e| is(e, "model", "nobody"))),
        (
            "kinds=instance.joined&kinds=request.started".to_owned(),
            Box::new(|e| is(e, "kind", "instance.joined") || is(e, "kind", "request.started")),
        ),
        (
            format!("endpoints={endpoint}&models=m"),
            Box::new(|e| is(e, "endpoint", &endpoint) && is(e, "model", "m")),
        ),
        ("max_message_bytes=250".to_owned(), Box::new(|e| e.to_string().len() <= 250)),
        ("kinds=nothing".to_owned(), Box::new(|_| false)),
    ];
    for (query, wanted) in &table {
        let mut sse = Sse::open(&router, &format!("after=0&{query}")).await;
        let mut socket = ws(&router, &format!("after=0&{query}")).await;
        let mut given = Vec::new();
        loop {
            let frame = sse.next().await.unwrap();
            let over_socket = heard(&mut socket).await.unwrap();
            if frame.event == "checkpoint" {
                assert_eq!((frame.id, &frame.data), (frame.data["checkpoint"].as_u64(), &over_socket));
            } else {
                assert_eq!(frame.data, over_socket, "{query}");
                given.push(frame.data);
            }
            if frame.id == Some(tip) {
                break;
            }
        }
        let prev =
            given.iter().scan(Value::Null, |prev, event| Some(std::mem::replace(prev, event["seq"].clone())));
        assert!(given.iter().zip(prev).all(|(event, prev)| event["prev_seq"] == prev), "{query}: {given:?}");
        let numbers = |events: &[Value]| -> Vec<u64> { events.iter().map(seq).collect() };
        if query.starts_with("max") {
            // The length depends on the number before, so only what is clear is compared.
            assert!(!given.is_empty() && given.iter().all(wanted), "{query}");
        } else {
            let expected: Vec<Value> = all.iter().filter(|event| wanted(event)).cloned().collect();
            assert_eq!(numbers(&given), numbers(&expected), "{query}");
        }
    }
    let mut resumed = Sse::resume(&router, "kinds=request.*", Some(tip)).await;
    requests(&router, 1).await;
    assert!(seq(&resumed.event().await) > tip, "a checkpoint is a place to go on from");
}

#[tokio::test]
async fn what_cannot_be_followed_is_said_before_anything_is_sent() {
    let backend = backend();
    let router = router(&backend, "");
    for (query, word) in [
        ("after=x", "RFC 3339"),
        ("after=-1", "RFC 3339"),
        ("after=1&after=2", "once"),
        ("after=999999", "the newest is"),
        (
            "after=2099-01-01T00:00:00Z",
            "2099-01-01T00:00:00.000Z lies in the future, this router has come to 20",
        ),
        ("since=1", "after, kinds, endpoints, models, max_message_bytes"),
        ("kinds=a*b", "end of a pattern"),
        ("models=", "1 to 512 bytes"),
        ("max_message_bytes=lots", "max_message_bytes"),
    ] {
        let response = router.http.get(router.url(&format!("/api/events?{query}"))).send().await.unwrap();
        assert_eq!(response.status(), 400, "{query}");
        let body: Value = response.json().await.unwrap();
        assert!(body["error"].as_str().unwrap().contains(word), "{query}: {body}");
        let socket = TcpStream::connect(router.url("").trim_start_matches("http://")).await.unwrap();
        match ws_over(socket, query).await {
            Err(WsError::Http(response)) => assert_eq!(response.status(), 400, "{query}"),
            other => panic!("{query}: {other:?}"),
        }
    }
    for id in ["", "x", "-1", "1970-01-01T00:00:00Z", "99999999999999999999"] {
        let request = router.http.get(router.url("/api/events")).header("last-event-id", id);
        assert_eq!(request.send().await.unwrap().status(), 400, "{id}");
    }
    let plain = router.http.get(router.url("/subscribe?after=0")).send().await.unwrap();
    assert!(plain.status().is_client_error());
    let body: Value = plain.json().await.unwrap();
    assert!(body["error"].as_str().unwrap().contains("WebSocket"), "{body}");

    let off = self::router(&backend, "event_log: off\n");
    for path in ["/api/events", "/api/events?after=0", "/api/events/bounds"] {
        let response = off.http.get(off.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 503, "{path}");
        let body: Value = response.json().await.unwrap();
        assert!(body["error"].as_str().unwrap().contains("`event_log`"), "{body}");
    }
}

#[tokio::test]
async fn a_keyed_router_lets_a_browser_in_by_its_url() {
    let backend = backend();
    let router = router(&backend, "nomyo-router-api-key: secret\n");
    let status = |path: &str| {
        let request = router.http.get(router.url(path));
        async { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(status("/api/events?after=0").await, 401);
    assert_eq!(status("/subscribe?after=0").await, 401);
    assert_eq!(status("/api/events?after=0&api_key=wrong").await, 403);
    assert_eq!(seq(&Sse::open(&router, "after=0&api_key=secret").await.event().await), 1);
}

#[tokio::test]
async fn wishes_change_from_the_cursor_on() {
    let backend = backend();
    let router = router(&backend, "");
    requests(&router, 20).await;
    let tip = tip(&router).await;
    let mut socket = ws(&router, "after=0&kinds=nothing").await;
    loop {
        let message = heard(&mut socket).await.unwrap();
        if message["checkpoint"] == tip {
            break;
        }
    }
    let update = json!({ "type": "options_update", "kinds": ["request.started"] });
    socket.send(Message::text(update.to_string())).await.unwrap();
    assert_eq!(heard(&mut socket).await.unwrap(), json!({ "options_updated": tip }));
    requests(&router, 1).await;
    let event = heard(&mut socket).await.unwrap();
    assert_eq!(
        (seq(&event), &event["kind"], &event["prev_seq"]),
        (tip + 1, &json!("request.started"), &Value::Null)
    );
    socket.send(Message::text(r#"{"type":"options_update"}"#)).await.unwrap();
    let mut updated = heard(&mut socket).await.unwrap();
    while updated.get("options_updated").is_none() {
        updated = heard(&mut socket).await.unwrap();
    }
    requests(&router, 1).await;
    let event = heard(&mut socket).await.unwrap();
    assert!(seq(&event) > updated["options_updated"].as_u64().unwrap(), "{event} {updated}");
}

#[tokio::test]
async fn a_wish_in_the_middle_of_replay_parts_the_log_in_two() {
    let backend = backend();
    let router = router(&backend, "");
    long_requests(&router, 600).await;
    let tip = tip(&router).await;
    let all = Sse::open(&router, "after=0").await.events_to(tip).await;
    let of = |kind: &str, from: u64, to: u64| -> Vec<u64> {
        let is = |event: &&Value| event["kind"] == kind && (from..=to).contains(&seq(event));
        all.iter().filter(is).map(seq).collect()
    };
    let socket = narrow(&router.url("")).await;
    let mut socket = ws_over(socket, "after=0&kinds=request.started").await.unwrap();
    let update = json!({ "type": "options_update", "kinds": ["request.finished"] });
    socket.send(Message::text(update.to_string())).await.unwrap();
    let (mut before, mut behind, mut given, mut reached) = (None, 0, Vec::new(), 0);
    while reached < tip {
        let message = heard(&mut socket).await.unwrap();
        if let Some(cursor) = message["options_updated"].as_u64() {
            (before, behind) = (Some(std::mem::take(&mut given)), cursor);
        } else if let Some(checkpoint) = message["checkpoint"].as_u64() {
            reached = checkpoint;
        } else {
            reached = seq(&message);
            given.push(reached);
        }
    }
    let before = before.expect("the wish was answered");
    assert!(behind < tip, "the wish came in the middle");
    assert_eq!(before, of("request.started", 1, behind));
    assert_eq!(given, of("request.finished", behind + 1, tip));
}

#[tokio::test]
async fn garbage_over_a_socket_is_answered_and_ends_it() {
    let backend = backend();
    let router = router(&backend, "");
    for (message, code, word) in [
        (Message::text("hello"), 1007, "not JSON"),
        (Message::text("{\"type\":"), 1007, "not JSON"),
        (Message::text("[]"), 1008, "options_update"),
        (Message::text(r#"{"type":"goodbye"}"#), 1008, "goodbye"),
        (Message::text(r#"{"type":"options_update","after":1}"#), 1008, "after"),
        (Message::text(r#"{"type":"options_update","kinds":["*x"]}"#), 1008, "end of a pattern"),
        (Message::binary(vec![0, 159, 146, 150]), 1003, "binary"),
        (Message::text("x".repeat(70_000)), 1009, "65536"),
    ] {
        let mut socket = ws(&router, "").await;
        assert!(heard(&mut socket).await.unwrap().get("checkpoint").is_some());
        let shown = message.to_string().chars().take(40).collect::<String>();
        socket.send(message).await.unwrap();
        let mut error = heard(&mut socket).await.unwrap();
        while error.get("error").is_none() {
            // The router has only just begun, which is news as well.
            error = heard(&mut socket).await.unwrap();
        }
        assert!(error["error"].as_str().unwrap().contains(word), "{shown}: {error}");
        assert_eq!(heard(&mut socket).await, Err(Some(code)), "{shown}");
    }
    eventually(&router, "pointsman_subscribers 0").await;
    let mut raw = TcpStream::connect(router.url("").trim_start_matches("http://")).await.unwrap();
    let upgrade = "GET /subscribe HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    raw.write_all(upgrade.as_bytes()).await.unwrap();
    raw.write_all(&[0xff; 300]).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "bytes that are no WebSocket's end it");
    eventually(&router, "pointsman_subscribers 0").await;
}

#[tokio::test]
async fn a_stalled_reader_is_told_so_and_where_to_go_on() {
    let backend = backend();
    let router = router(&backend, "subscriber_stall_secs: 0.5\n");
    long_requests(&router, 800).await;
    let tip = tip(&router).await;
    let mut sse = Sse::narrow(&router.url(""), "after=0").await;
    let mut socket = ws_over(narrow(&router.url("")).await, "after=0").await.unwrap();
    let mut quick = Sse::open(&router, "after=0").await;
    assert_no_hole(&quick.events_to(tip).await, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    requests(&router, 1).await;
    assert_eq!(seq(&quick.event().await), tip + 1, "the other reader has not noticed");

    let frames = sse.rest().await;
    let (error, events) = frames.split_last().unwrap();
    let last = events.last().unwrap().id;
    assert_eq!((error.event.as_str(), error.id), ("error", last), "{error:?}");
    assert_eq!(error.data["error"], "ConsumerTooSlow");
    assert_eq!(error.data["last_seq"].as_u64(), last, "the last number written");
    assert!(error.data["tip"].as_u64().unwrap() >= tip && error.data["retry_after_ms"].as_u64().unwrap() > 0);
    let mut written: Vec<Value> = events.iter().map(|frame| frame.data.clone()).collect();
    assert_no_hole(&written, 1);
    assert!(last.unwrap() < tip, "it was cut off on the way: {last:?} of {tip}");
    let mut again = Sse::resume(&router, "after=0", last).await;
    let mut rest = again.events_to(tip).await;
    rest[0]["prev_seq"] = json!(last);
    written.append(&mut rest);
    assert_no_hole(&written, 1);

    let mut last = None;
    let error = loop {
        let message = heard(&mut socket).await.unwrap();
        match message.get("seq") {
            Some(seq) => last = seq.as_u64(),
            None => break message,
        }
    };
    assert_eq!((&error["error"], error["last_seq"].as_u64()), (&json!("ConsumerTooSlow"), last));
    assert_eq!(heard(&mut socket).await, Err(Some(4008)));
    assert!(last.unwrap() < tip, "it was cut off on the way: {last:?} of {tip}");
    assert!(metric(&router, "pointsman_subscribers_cut_off_total{reason=\"stalled\"} 2").await);
}

#[tokio::test]
async fn an_address_has_so_many_subscribers_and_gets_its_seats_back() {
    let backend = backend();
    let more = "per_ip_connections: 3\nsubscribers_max: 4\ntrusted_proxies: [127.0.0.1]\n";
    let router = router(&backend, more);
    let open = |forwarded: &'static str| {
        let request = router.http.get(router.url("/api/events")).header("x-forwarded-for", forwarded);
        async { request.send().await.unwrap() }
    };
    let mut held = join_all((0..3).map(|_| open("9.9.9.9"))).await;
    assert!(held.iter().all(|response| response.status() == 200));
    let refused = open("6.6.6.6, 9.9.9.9").await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.text().await.unwrap().contains("per_ip_connections"));
    let elsewhere = open("9.9.9.8").await;
    assert_eq!(elsewhere.status(), 200);
    let full = open("9.9.9.7").await;
    assert_eq!((full.status().as_u16(), full.headers().contains_key("retry-after")), (503, true));
    held.pop();
    eventually(&router, "pointsman_subscribers 3").await;
    assert_eq!(open("9.9.9.9").await.status(), 200);
}

#[tokio::test]
async fn a_limited_address_is_delayed_and_never_cut_off_nor_delays_another() {
    let backend = backend();
    let router = router(&backend, "per_ip_limit: 40\nsubscriber_stall_secs: 0.3\n");
    requests(&router, 50).await;
    let tip = tip(&router).await;
    let began = Instant::now();
    let mut limited = [Sse::open(&router, "after=0").await, Sse::open(&router, "after=0").await];
    let [one, two] = &mut limited;
    let elsewhere =
        reqwest::Client::builder().no_proxy().local_address(Some([127, 0, 0, 2].into())).build().unwrap();
    let other = async {
        let sent = elsewhere.get(router.url("/api/events?after=0")).send().await.unwrap();
        let mut sse = Sse::of(sent);
        (sse.events_to(40).await, began.elapsed())
    };
    let (one, two, (other, took)) = tokio::join!(one.events_to(tip), two.events_to(tip), other);
    for events in [one, two, other] {
        assert_no_hole(&events, 1);
    }
    let least = Duration::from_secs_f64((2 * tip - 40) as f64 / 40.0);
    let whole = began.elapsed();
    assert!(whole >= least.mul_f64(0.95), "{tip} events twice at 40/s in {whole:?}");
    assert!(took < Duration::from_secs(1), "another address has a rate of its own: {took:?}");
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_seen_and_gives_nothing_twice() {
    let backend = backend();
    let mut router = router(&backend, "");
    let mut seen: Vec<Value> = Vec::new();
    for round in 0..4u64 {
        let mut sse = Sse::resume(&router, "after=0", seen.last().map(seq)).await;
        let (http, url) = (router.http.clone(), router.url(""));
        let load = tokio::spawn(async move { ask(&http, &url, "m", 4_000).await });
        for _ in 0..200 + 57 * round {
            let mut event = sse.event().await;
            if let Some(last) = seen.last() {
                event["prev_seq"] = json!(seq(last));
            }
            seen.push(event);
        }
        router = router.kill_and_restart(&[]);
        load.abort();
    }
    assert_no_hole(&seen, 1);
    let kept = Sse::open(&router, "after=0").await.events_to(seq(seen.last().unwrap())).await;
    assert_eq!(kept, seen, "what was seen is what is kept");
}

#[tokio::test]
async fn a_stop_ends_every_stream_cleanly() {
    let backend = backend();
    let mut router = router(&backend, "drain_grace_secs: 30\n");
    requests(&router, 5).await;
    let tip = tip(&router).await;
    let (mut sse, mut socket) = (Sse::open(&router, "after=0").await, ws(&router, "after=0").await);
    sse.events_to(tip).await;
    let whole = router.http.get(router.url("/api/events")).send().await.unwrap();
    while heard(&mut socket).await.unwrap()["seq"] != tip {}
    router.signal("TERM");
    assert_eq!(heard(&mut socket).await, Err(Some(1001)));
    whole.bytes().await.expect("a clean end");
    assert_eq!(sse.rest().await, []);
    // The close that a client answers; a client that does not is waited for.
    while socket.next().await.is_some() {}
    let status = router.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}\n{}", router.log());
}

/// A router within this process, whose log can be trimmed at will, and its address.
async fn within(backend: &Pretend, more: &str) -> (Arc<Inner>, String) {
    let more = format!("max_concurrent_connections: 64\n{more}");
    let (config, _) = Config::parse(&yaml(&[backend.endpoint()], &more), &|_| None).unwrap();
    let ports = Ports {
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SeededEntropy::new(1)),
        spawn: Arc::new(TokioSpawn::current()),
        upstream: Arc::new(HttpUpstream::new(Duration::from_secs(5)).unwrap()),
        store: Arc::new(MemoryStore::new()),
    };
    let router = Inner::start(config, ports).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Arc::clone(&router);
    tokio::spawn(async move {
        let limits = || server::Limits { header_timeout: PATIENCE, stall_timeout: PATIENCE, grace: PATIENCE };
        let never = std::future::pending::<std::future::Ready<()>>();
        let serve = server::serve(listener, App::new(Arc::clone(&serving)), limits, never);
        serving.live(serve, PATIENCE).await
    });
    (router, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_longer_kept_is_said_before_a_stream_and_in_the_middle_of_one() {
    let backend = backend();
    let (router, address) = within(&backend, "event_log_max_events: 1000\nevent_ring: 16\n").await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let narrow_sse = |query: &'static str| Sse::narrow(&address, query);
    ask(&http, &address, &"n".repeat(250), 1_000).await;
    let (mut sse, mut socket) =
        (narrow_sse("after=0").await, ws_over(narrow(&address).await, "after=0").await.unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    ask(&http, &address, "m", 100).await;
    router.trim_log().await.unwrap();
    let bounds = router.log().bounds();
    assert!(bounds.floor > 1_000, "{bounds:?}");

    let frames = sse.rest().await;
    let (error, events) = frames.split_last().unwrap();
    let last = events.last().unwrap().id;
    assert_eq!((error.event.as_str(), error.id), ("error", last));
    assert_eq!(error.data, json!({ "error": "Gone", "last_seq": last, "floor": bounds.floor }));
    assert_no_hole(&events.iter().map(|frame| frame.data.clone()).collect::<Vec<_>>(), 1);

    let mut last = None;
    let error = loop {
        let message = heard(&mut socket).await.unwrap();
        match message.get("seq") {
            Some(seq) => last = seq.as_u64(),
            None => break message,
        }
    };
    assert_eq!(error, json!({ "error": "Gone", "last_seq": last, "floor": bounds.floor }));
    assert_eq!(heard(&mut socket).await, Err(Some(4010)));

    for (after, id, status) in [
        ("1", None, 410),
        (&(bounds.floor - 2).to_string(), None, 410),
        ("0", Some("3"), 410),
        ("0", Some("0"), 410),
        ("1970-01-01T00:00:00Z", None, 410),
    ] {
        let mut request = http.get(format!("{address}/api/events?after={after}"));
        if let Some(id) = id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{after} {id:?}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["floor"], bounds.floor, "{body}");
        assert!(body["error"].as_str().unwrap().contains("no longer kept"), "{body}");
    }
    for after in ["0".to_owned(), (bounds.floor - 1).to_string()] {
        let sent = http.get(format!("{address}/api/events?after={after}")).send().await.unwrap();
        assert_eq!(seq(&Sse::of(sent).event().await), bounds.floor, "after={after}");
    }
}
