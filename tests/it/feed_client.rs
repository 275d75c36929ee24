//! The feed's client and `pointsman tail`, against a server that does whatever a network, a proxy or a fault could do.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman::feed::{Client, Cut, Delivery, Disorder, FeedError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What one connection is answered with: pieces, with a pause after each, and then a close or nothing more.
#[derive(Clone)]
struct Script {
    pieces: Vec<String>,
    gap: Duration,
    hang: bool,
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nconnection: close\r\n\r\n";

/// A feed of these pieces, closed after the last.
fn feed<S: Into<String>>(pieces: impl IntoIterator<Item = S>) -> Script {
    let pieces = [HEAD.to_owned()].into_iter().chain(pieces.into_iter().map(Into::into)).collect();
    Script { pieces, gap: Duration::from_millis(2), hang: false }
}

/// Any other answer.
fn answer(status: &str, headers: &str, body: &str) -> Script {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    Script { pieces: vec![text], gap: Duration::ZERO, hang: false }
}

fn event(seq: u64, prev: Option<u64>) -> String {
    let prev = prev.map_or_else(|| "null".to_owned(), |prev| prev.to_string());
    format!(
        "id: {seq}\ndata: {{\"seq\":{seq},\"prev_seq\":{prev},\"time_ms\":{seq},\"kind\":\"endpoint.up\"}}\n\n"
    )
}

fn checkpoint(seq: u64) -> String {
    format!("event: checkpoint\nid: {seq}\ndata: {{\"checkpoint\":{seq}}}\n\n")
}

/// What it is, whether the feed is filtered, what each connection gives, and what must be said.
type Fault = (&'static str, bool, Vec<Vec<String>>, Disorder);

/// Plays one script per connection; connections beyond them get a feed that stays silent.
struct Server {
    url: String,
    /// The heads of all requests so far.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn play(scripts: Vec<Script>) -> Server {
        Server::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), scripts)
    }

    fn on(listener: TcpListener, scripts: Vec<Script>) -> Server {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            let silence = Script { hang: true, ..feed([": nothing more\n"]) };
            for script in scripts.into_iter().chain(std::iter::repeat(silence)) {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(connection(stream, script, Arc::clone(&seen)));
            }
        });
        Server { url, requests }
    }

    fn client(&self) -> Client {
        Client::new(&self.url).unwrap()
    }

    /// The path and query of each request so far.
    fn asked(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect()
    }
}

async fn connection(mut stream: TcpStream, script: Script, seen: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    seen.lock().unwrap().push(String::from_utf8(head).unwrap());
    for piece in &script.pieces {
        if stream.write_all(piece.as_bytes()).await.is_err() {
            return;
        }
        tokio::time::sleep(script.gap).await;
    }
    if script.hang {
        let _ = stream.read_u8().await;
    }
}

/// The numbers given (checkpoints negative) until there are `count` of them, or the client stops by itself.
async fn follow(client: Client, count: usize) -> (Vec<i64>, FeedError<&'static str>) {
    let given = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&given);
    let run = client.run(move |delivery| {
        let seen = Arc::clone(&seen);
        async move {
            let number = i64::try_from(delivery.seq()).unwrap();
            let mut seen = seen.lock().unwrap();
            seen.push(if matches!(delivery, Delivery::Event(_)) { number } else { -number });
            if seen.len() >= count { Err("enough") } else { Ok(()) }
        }
    });
    let error = tokio::time::timeout(Duration::from_secs(20), run).await.expect("it goes on or stops");
    let given = given.lock().unwrap().clone();
    (given, error)
}

#[tokio::test]
async fn a_connection_cut_in_the_middle_of_an_event_is_resumed_behind_the_last_whole_one() {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let mut broken = feed(Vec::<String>::new());
    broken.pieces = vec![
        HEAD.replace("connection: close", "transfer-encoding: chunked"),
        chunk(&event(4, None)),
        "40\r\nid: 5\nda".to_owned(),
    ];
    let server = Server::play(vec![
        feed([event(1, None), event(2, Some(1)), event(3, Some(2))[..20].to_owned()]),
        // All of it but the empty line.
        feed([event(3, None).trim_end().to_owned() + "\n"]),
        feed([event(3, None)]),
        broken,
        feed([event(5, None), event(6, Some(5))]),
    ])
    .await;
    let (given, stopped) = follow(server.client(), 6).await;
    assert!(matches!(stopped, FeedError::Callback("enough")), "{stopped}");
    assert_eq!(given, [1, 2, 3, 4, 5, 6]);
    let asked = [0, 2, 2, 3, 4].map(|after| format!("/api/events?after={after}"));
    assert_eq!(server.asked(), asked);
}

#[tokio::test]
async fn the_cursor_moves_on_only_after_the_callback() {
    let server = Server::play(vec![feed([event(8, None), event(9, Some(8))])]).await;
    let (given, stopped) = follow(server.client().after(7), 2).await;
    assert!(matches!(stopped, FeedError::Callback("enough")));
    assert_eq!((given, server.asked()), (vec![8, 9], vec!["/api/events?after=7".to_owned()]));
    // A callback that never returns: nothing after it is given, however much comes.
    let server = Server::play(vec![feed([event(1, None) + &event(2, Some(1)) + &event(3, Some(2))])]).await;
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    let client = server.client();
    let run = client.run(move |_| {
        *counted.lock().unwrap() += 1;
        std::future::pending::<Result<(), ()>>()
    });
    assert!(tokio::time::timeout(Duration::from_millis(200), run).await.is_err());
    assert_eq!(*calls.lock().unwrap(), 1);
}

#[tokio::test]
async fn holes_repetitions_and_wrong_order_stop_the_client_with_the_numbers() {
    let table: [Fault; 7] = [
        (
            "a hole in an unfiltered feed",
            false,
            vec![vec![event(1, None), event(3, Some(1))]],
            Disorder::Jump { seq: 3, expected: 2 },
        ),
        (
            "a hole in a filtered one",
            true,
            vec![vec![event(1, None), event(9, Some(4))]],
            Disorder::Hole { seq: 9, prev_seq: Some(4), last: Some(1) },
        ),
        ("a repetition", true, vec![vec![event(1, None), event(1, None)]], Disorder::Repeated { seq: 1 }),
        (
            "a repetition after a cut",
            true,
            vec![vec![event(1, None)], vec![event(1, None)]],
            Disorder::Repeated { seq: 1 },
        ),
        (
            "a wrong order",
            true,
            vec![vec![event(2, None), event(5, Some(2)), event(4, Some(2))]],
            Disorder::Backwards { seq: 4, cursor: 5 },
        ),
        (
            "an event behind its checkpoint",
            true,
            vec![vec![event(2, None), checkpoint(9), event(7, Some(2))]],
            Disorder::Backwards { seq: 7, cursor: 9 },
        ),
        (
            "a hole after a cut",
            false,
            vec![vec![event(1, None)], vec![event(3, None)]],
            Disorder::Jump { seq: 3, expected: 2 },
        ),
    ];
    for (what, filtered, connections, expected) in table {
        let server = Server::play(connections.into_iter().map(feed).collect()).await;
        let client = if filtered { server.client().kinds(["endpoint.*"]) } else { server.client() };
        let (_, stopped) = follow(client, usize::MAX).await;
        match stopped {
            FeedError::Disorder(found) => assert_eq!(found, expected, "{what}"),
            other => panic!("{what}: {other}"),
        }
    }
}

#[tokio::test]
async fn what_is_no_longer_kept_is_an_error_that_names_the_floor() {
    let body = r#"{"error":"events before 50 are no longer kept","floor":50}"#;
    let gone = r#"{"error":"Gone","last_seq":12,"floor":50}"#;
    for script in [answer("410 Gone", "", body), feed([format!("event: error\nid: 12\ndata: {gone}\n\n")])] {
        let server = Server::play(vec![feed([event(12, None)]), script]).await;
        let (given, stopped) = follow(server.client().after(11), usize::MAX).await;
        assert!(matches!(stopped, FeedError::Gone { after: Some(12), floor: 50 }), "{stopped}");
        assert!(stopped.to_string().contains("events 13 to 49 are no longer kept"), "{stopped}");
        assert_eq!((given, server.asked().len()), (vec![12], 2));
    }
}

#[tokio::test]
async fn a_router_that_asks_for_a_pause_gets_it() {
    let slow = r#"{"error":"ConsumerTooSlow","last_seq":1,"tip":99,"retry_after_ms":700}"#;
    for script in [
        feed([event(1, None), format!("event: error\nid: 1\ndata: {slow}\n\n")]),
        answer("429 Too Many Requests", "retry-after: 1\r\n", r#"{"error":"too many connections"}"#),
        answer("503 Service Unavailable", "retry-after: 1\r\n", r#"{"error":{"message":"full"}}"#),
    ] {
        let server = Server::play(vec![script, feed([event(1, None), event(2, Some(1))])]).await;
        let began = Instant::now();
        let cuts = Arc::new(Mutex::new(Vec::<Cut>::new()));
        let seen = Arc::clone(&cuts);
        let client = server.client().kinds(["*"]).on_cut(move |cut| seen.lock().unwrap().push(cut.clone()));
        let (given, stopped) = follow(client, 2).await;
        let cut = cuts.lock().unwrap()[0].clone();
        assert!(cut.pause >= Duration::from_millis(700), "{cut:?}");
        assert!(began.elapsed() >= Duration::from_millis(700));
        assert!(
            ["ConsumerTooSlow", "429: too many", "503: full"].iter().any(|why| cut.why.starts_with(why)),
            "{cut:?}"
        );
        // The scripted second connection repeats what the first gave, if it gave something.
        match cut.after {
            Some(1) => {
                assert!(matches!(stopped, FeedError::Disorder(Disorder::Repeated { seq: 1 })), "{stopped}")
            }
            _ => assert_eq!(given, [1, 2]),
        }
    }
}

#[tokio::test]
async fn what_trying_again_does_not_heal_stops_the_client_at_once() {
    let refused = [
        ("400 Bad Request", "after=9 is in the future"),
        ("401 Unauthorized", "an API key is required"),
        ("403 Forbidden", "the API key is wrong"),
        ("404 Not Found", "the event log is off"),
        ("302 Found", "moved"),
    ];
    for (status, message) in refused {
        let server = Server::play(vec![answer(
            status,
            "location: http://127.0.0.1:1/\r\n",
            &format!(r#"{{"error":"{message}"}}"#),
        )])
        .await;
        let (_, stopped) = follow(server.client().api_key("sk-secret"), usize::MAX).await;
        let said = stopped.to_string();
        assert!(said.contains(message) && said.contains(&status[..3]) && !said.contains("secret"), "{said}");
        assert_eq!(
            matches!(stopped, FeedError::Key { .. }),
            status.starts_with("401") || status.starts_with("403")
        );
        assert_eq!(server.asked().len(), 1, "{status}");
    }
    let nonsense = [
        answer("200 OK", "", "{}"),
        feed(["data: not JSON\n\n"]),
        feed(["id: 8\ndata: {\"seq\":7,\"prev_seq\":null}\n\n"]),
        feed(["data: ".to_owned() + &"x".repeat(2 << 20)]),
    ];
    for script in nonsense {
        let server = Server::play(vec![script]).await;
        let (given, stopped) = follow(server.client(), usize::MAX).await;
        assert!(matches!(stopped, FeedError::Nonsense(_)), "{stopped}");
        assert!(given.is_empty());
    }
}

#[tokio::test]
async fn a_router_that_logs_nothing_is_asked_once() {
    let backend = crate::pretend(pointsman::pretend::Profile::ollama(["m"]));
    let router = crate::router::Router::before(&[backend.endpoint()], "event_log: off\n");
    let client = Client::new(&router.url("")).unwrap().on_cut(|cut| panic!("tried again: {cut:?}"));
    let (given, stopped) = follow(client, usize::MAX).await;
    assert!(matches!(stopped, FeedError::Refused { status: 503, .. }), "{stopped}");
    assert!(given.is_empty() && stopped.to_string().contains("`event_log`"), "{stopped}");
}

#[tokio::test]
async fn silence_is_a_cut_and_a_heartbeat_is_not() {
    let beats = (0..20).map(|_| ": beat\n\n".to_owned());
    let alive = Script {
        gap: Duration::from_millis(40),
        ..feed([event(1, None)].into_iter().chain(beats).chain([event(2, Some(1))]))
    };
    let silent = Script { hang: true, ..feed([event(3, None)]) };
    let mute = Script { pieces: Vec::new(), hang: true, gap: Duration::ZERO };
    let server = Server::play(vec![alive, silent, mute, feed([event(4, None)])]).await;
    let (given, _) = follow(server.client().silence_max(Duration::from_millis(400)), 4).await;
    assert_eq!(given, [1, 2, 3, 4]);
    assert_eq!(server.asked(), [0, 2, 3, 3].map(|after| format!("/api/events?after={after}")));
}

#[tokio::test]
async fn a_filtered_follower_stores_checkpoints_and_resumes_behind_them() {
    let server = Server::play(vec![
        feed([checkpoint(10), event(12, None), checkpoint(30)]),
        feed([
            "event: novelty\ndata: ?\n\n".to_owned(),
            checkpoint(30),
            event(31, None),
            event(40, Some(31)),
        ]),
    ])
    .await;
    let client =
        server.client().after(3).kinds(["request.*", "log.lost"]).endpoints(["http://a:1"]).api_key("k1");
    let (given, _) = follow(client, 6).await;
    assert_eq!(given, [-10, 12, -30, -30, 31, 40]);
    let filter = "kinds=request.*&kinds=log.lost&endpoints=http%3A%2F%2Fa%3A1";
    assert_eq!(server.asked(), [3, 30].map(|after| format!("/api/events?after={after}&{filter}")));
    let heads = server.requests.lock().unwrap().clone();
    assert!(!heads[0].contains("last-event-id") && heads[1].contains("last-event-id: 30\r\n"), "{heads:?}");
    assert!(heads.iter().all(|head| head.contains("authorization: Bearer k1\r\n")), "{heads:?}");
}

#[tokio::test]
async fn a_live_follower_that_was_told_its_place_comes_back_to_it_even_if_it_is_0() {
    let server = Server::play(vec![
        feed([checkpoint(0)]),
        feed([event(1, None)]),
        // Everything up to 7 was given up meanwhile.
        feed([event(8, None)]),
    ])
    .await;
    let (given, stopped) = follow(server.client().live(), usize::MAX).await;
    assert_eq!(given, [0, 1]);
    assert!(matches!(stopped, FeedError::Disorder(Disorder::Jump { seq: 8, expected: 2 })), "{stopped}");
    assert_eq!(server.asked(), ["/api/events", "/api/events?after=0", "/api/events?after=1"]);
    let heads = server.requests.lock().unwrap().clone();
    assert!(
        heads[1].contains("last-event-id: 0\r\n"),
        "as a place to come back to, 0 is not all that is kept"
    );
}

#[tokio::test]
async fn a_router_that_is_not_there_yet_is_waited_for() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(&format!("http://{address}")).unwrap();
    let following = tokio::spawn(follow(client, 1));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let _server = Server::on(TcpListener::bind(address).await.unwrap(), vec![feed([event(5, None)])]);
    assert_eq!(following.await.unwrap().0, [5]);
}

/// `pointsman tail`. Killed when dropped.
struct Tail(Child);

impl Tail {
    fn start(server: &Server, more: &[&str]) -> Tail {
        let child = Command::new(env!("CARGO_BIN_EXE_pointsman"))
            .args(["tail", "--url", &server.url])
            .args(more)
            .env("NOMYO_ROUTER_API_KEY", "from-the-environment")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Tail(child)
    }

    /// Its exit code, and what it said on standard error.
    async fn end(mut self) -> (Option<i32>, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "tail does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }

    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut out = BufReader::new(self.0.stdout.take().unwrap());
        let (lines, out) = tokio::task::spawn_blocking(move || {
            let read = |_| {
                let mut line = String::new();
                out.read_line(&mut line).unwrap();
                line
            };
            ((0..count).map(read).collect(), out)
        })
        .await
        .unwrap();
        self.0.stdout = Some(out.into_inner());
        lines
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn tail_prints_each_event_once_says_when_it_reconnects_and_ends_on_sigint_with_0() {
    let multi_line = "id: 3\ndata: {\"seq\":3,\"prev_seq\":null,\ndata: \"kind\":\"x\"}\n\n".to_owned();
    let scripts = vec![
        feed([event(1, None), event(2, Some(1)), "id: 3\nda".to_owned()]),
        feed([multi_line, checkpoint(9)]),
    ];
    let server = Server::play(scripts).await;
    let mut tail = Tail::start(&server, &["--after", "0", "--kinds", "*", "--models", "m", "--checkpoints"]);
    let lines = tail.lines(4).await;
    let numbers: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        numbers[..3].iter().map(|event| event["seq"].as_u64()).collect::<Vec<_>>(),
        [Some(1), Some(2), Some(3)]
    );
    assert_eq!(numbers[3], serde_json::json!({ "checkpoint": 9 }));
    let sent = Command::new("kill").args(["-INT", &tail.0.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let (code, said) = tail.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the router ended the stream; going on behind 2"), "{said}");
    assert!(server.asked()[0].ends_with("?after=0&kinds=*&models=m"), "{:?}", server.asked());
    assert!(server.requests.lock().unwrap()[0].contains("Bearer from-the-environment"));
}

#[tokio::test]
async fn tail_ends_with_0_when_its_reader_has_enough() {
    let many = (1..2_000u64).map(|seq| event(seq, (seq > 1).then(|| seq - 1)));
    let server = Server::play(vec![Script { gap: Duration::ZERO, ..feed(many) }]).await;
    let mut tail = Tail::start(&server, &["--after=0"]);
    assert_eq!(tail.lines(2).await.len(), 2);
    tail.0.stdout = None;
    let (code, said) = tail.end().await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn tail_ends_with_1_and_a_sentence_when_events_are_gone_and_with_2_on_wrong_usage() {
    let server = Server::play(vec![answer("410 Gone", "", r#"{"error":"gone","floor":50}"#)]).await;
    let (code, said) = Tail::start(&server, &["--after", "7"]).end().await;
    assert!(code == Some(1) && said.contains("events 8 to 49 are no longer kept"), "{code:?} {said}");
    let (code, said) = Tail::start(&server, &["--after", "yesterday"]).end().await;
    assert!(code == Some(2) && said.contains("2026-01-31T12:00:00Z"), "{code:?} {said}");
    let server = Server::play(Vec::new()).await;
    let tail = Tail::start(&server, &["--after", "2026-01-31T12:00:00Z"]);
    let began = Instant::now();
    while server.asked().is_empty() && began.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.asked(), ["/api/events?after=2026-01-31T12%3A00%3A00Z"]);
    drop(tail);
}
