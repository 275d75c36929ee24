//! Where the feed's limits stand against one address that wants everything: open files, connections that say
//! nothing, rates, and web pages of other hosts.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::pretend;
use crate::router::{Router, yaml};
use pointsman::pretend::{Pretend, Profile};

const PATIENCE: Duration = Duration::from_secs(20);

fn backend() -> Pretend {
    pretend(Profile::ollama(["m"]).tokens(1))
}

/// A request that is answered in one piece.
fn whole() -> Value {
    json!({ "model": "m", "messages": [], "stream": false })
}

fn address(router: &Router) -> std::net::SocketAddr {
    router.url("").trim_start_matches("http://").parse().unwrap()
}

/// A connection from this address of the loopback.
async fn connect(router: &Router, from: [u8; 4]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(address(router)).await
}

/// What comes until the other side ends it.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it is ended");
    read.unwrap();
    String::from_utf8(all).unwrap()
}

/// Status and body of a GET from this address; `None`: no answer.
async fn get(router: &Router, from: [u8; 4], path: &str) -> Option<(u16, String)> {
    let http = reqwest::Client::builder().no_proxy().local_address(Some(from.into())).build().unwrap();
    let response = http.get(router.url(path)).timeout(Duration::from_secs(5)).send().await.ok()?;
    Some((response.status().as_u16(), response.text().await.ok()?))
}

fn open_files(router: &Router) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", router.pid())).unwrap().count()
}

async fn metric(router: &Router, name: &str) -> f64 {
    let text = router.http.get(router.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("/metrics has no {name}\n{text}")).parse().unwrap()
}

#[tokio::test]
async fn a_thousand_subscribers_from_one_address_lock_nobody_out_under_a_soft_limit_of_1024() {
    let hard = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap().1;
    if hard < 4_096 {
        println!("skipped: the hard limit of open files is {hard}, and this needs 4096");
        return;
    }
    rlimit::increase_nofile_limit(4_096).unwrap();
    let backend = backend();
    let router = Router::after("ulimit -Sn 1024", &yaml(&[backend.endpoint()], ""));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", router.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(!files.contains(" 1024 "), "{files}");
    let mut held = Vec::new();
    for index in 0..1_100 {
        let from = [127, 0, 0, if index < 1_000 { 2 } else { 3 }];
        let mut stream = connect(&router, from).await.unwrap();
        stream.write_all(b"GET /api/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut status)).await.expect("an answer").unwrap();
        assert_eq!(&status, b"HTTP/1.1 200", "{}", held.len());
        held.push(stream);
    }
    assert_eq!(get(&router, [127, 0, 0, 2], "/api/events").await.map(|(status, _)| status), Some(429));
    assert_eq!(get(&router, [127, 0, 0, 1], "/").await.map(|(status, _)| status), Some(200));
    let (status, _) = router.post("/api/chat", &whole()).await;
    assert_eq!(status, 200);
    assert!(open_files(&router) > 1_100);
}

#[tokio::test]
async fn a_hard_limit_that_is_too_low_for_the_subscribers_is_said() {
    let backend = backend();
    let router = Router::after("ulimit -n 1024", &yaml(&[backend.endpoint()], ""));
    assert!(router.log().contains("subscribers_max"), "{}", router.log());
    let router = Router::after("ulimit -n 1024", &yaml(&[backend.endpoint()], "subscribers_max: 20\n"));
    assert!(!router.log().contains("subscribers_max"), "{}", router.log());
}

#[tokio::test]
async fn ten_thousand_silent_connections_from_one_address_lock_nobody_else_out() {
    const CONNECTIONS: usize = 10_000;
    let room = rlimit::increase_nofile_limit(CONNECTIONS as u64 + 4_000).unwrap();
    if room < CONNECTIONS as u64 + 1_000 {
        println!("skipped: {room} files can be open, and this needs {}", CONNECTIONS + 1_000);
        return;
    }
    let backend = backend();
    let router = Router::after("ulimit -n 4096", &yaml(&[backend.endpoint()], "subscribers_max: 2000\n"));
    let crowd = [127, 0, 0, 2];
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(tokio::time::timeout(PATIENCE, connect(&router, crowd)).await.expect("room").unwrap());
    }
    let began = Instant::now();
    assert_eq!(get(&router, [127, 0, 0, 1], "/").await.map(|(status, _)| status), Some(200));
    let (status, _) = router.post("/api/chat", &whole()).await;
    assert_eq!(status, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(open_files(&router) < 1_200, "{}", open_files(&router));
    let refused = metric(&router, "pointsman_connections_refused_total").await;
    assert_eq!(refused, (CONNECTIONS - 1_000) as f64);
    let said = rest(held.last_mut().unwrap()).await;
    assert!(said.starts_with("HTTP/1.1 429 "), "{said}");
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{said}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert!(body["error"].as_str().unwrap().contains("`per_ip_idle`"), "{body}");

    // Those that are in may still speak, and whoever leaves makes room.
    let first = &mut held[0];
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(rest(first).await.starts_with("HTTP/1.1 200 "));
    held.clear();
    let began = Instant::now();
    while get(&router, crowd, "/").await.map(|(status, _)| status) != Some(200) {
        assert!(began.elapsed() < PATIENCE, "the address is let in again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_connection_counts_as_idle_before_between_and_after_its_requests_only() {
    let backend = backend();
    let router = Router::before(&[backend.endpoint()], "per_ip_idle: 2\n");
    let crowd = [127, 0, 0, 2];
    let mut busy = Vec::new();
    for _ in 0..5 {
        let mut stream = connect(&router, crowd).await.unwrap();
        stream.write_all(b"GET /api/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        busy.push(stream);
    }
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(&router, crowd).await.unwrap();
        for _ in 0..3 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, b"HTTP/1.1 200");
            while !answer.ends_with(b"pointsman is running\n") {
                answer.push(stream.read_u8().await.unwrap());
            }
        }
        idle.push(stream);
    }
    let mut one_more = connect(&router, crowd).await.unwrap();
    assert!(rest(&mut one_more).await.starts_with("HTTP/1.1 429 "));
    assert_eq!(get(&router, [127, 0, 0, 3], "/").await.map(|(status, _)| status), Some(200));
}

#[tokio::test]
async fn a_rate_holds_for_who_comes_again_and_again_and_the_time_is_counted() {
    let backend = backend();
    let router = Router::before(&[backend.endpoint()], "max_concurrent_connections: 64\nper_ip_limit: 40\n");
    let body = whole();
    let answers = join_all((0..60).map(|_| router.post("/api/chat", &body))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let began = Instant::now();
    let (mut given, mut connections) = (0, 0);
    while began.elapsed() < Duration::from_secs(3) {
        let mut stream = connect(&router, [127, 0, 0, 2]).await.unwrap();
        stream.write_all(b"GET /api/events?after=0 HTTP/1.0\r\nhost: x\r\n\r\n").await.unwrap();
        let (mut text, until) = (Vec::new(), Instant::now() + Duration::from_millis(100));
        while let Ok(Ok(1..)) = tokio::time::timeout_at(until.into(), stream.read_buf(&mut text)).await {}
        connections += 1;
        given += String::from_utf8_lossy(&text).matches("{\"seq\":").count();
    }
    println!("{given} events over {connections} connections");
    let most = 40.0 * (1.0 + began.elapsed().as_secs_f64());
    assert!(given as f64 <= most, "{given} events in {:?}", began.elapsed());
    assert!(given >= 40, "a second's come at once: {given}");
    assert!(metric(&router, "pointsman_subscribers_held_seconds_total").await > 0.5);
}

#[tokio::test]
async fn a_page_of_another_host_may_not_open_a_socket_unless_it_is_allowed() {
    let backend = backend();
    let router = Router::before(&[backend.endpoint()], "allowed_origins: ['https://dash.example']\n");
    let host = address(&router).to_string();
    let asked = async |origin: Option<String>| {
        let mut stream = connect(&router, [127, 0, 0, 1]).await.unwrap();
        let origin = origin.map(|origin| format!("origin: {origin}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /subscribe HTTP/1.1\r\nhost: {host}\r\n{origin}connection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    for origin in [None, Some(format!("http://{host}")), Some("https://dash.example".to_owned())] {
        let answer = asked(origin.clone()).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{origin:?}: {answer}");
    }
    for origin in ["http://evil.example", "http://127.0.0.1", "https://dash.example.evil.example", "null"] {
        let answer = asked(Some(origin.to_owned())).await;
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains("allowed_origins"),
            "{origin}: {answer}"
        );
    }
    assert_eq!(metric(&router, "pointsman_subscribers_refused_total{reason=\"origin\"}").await, 4.0);
    let sse = router.http.get(router.url("/api/events")).header("origin", "http://evil.example").send().await;
    let sse = sse.unwrap();
    let unreadable = !sse.headers().keys().any(|name| name.as_str().starts_with("access-control-"));
    assert!(unreadable, "a browser shows a page of another host nothing of it");
}

#[tokio::test]
async fn who_is_refused_and_what_is_lost_is_counted() {
    let backend = backend();
    let router = Router::before(&[backend.endpoint()], "per_ip_connections: 1\nevent_ring: 16\n");
    let held = router.http.get(router.url("/api/events")).send().await.unwrap();
    // What can never be answered says so, however full it is here.
    for (query, status) in [("", 429), ("after=x", 400), ("compress=zstd", 400)] {
        assert_eq!(
            router.http.get(router.url(&format!("/api/events?{query}"))).send().await.unwrap().status(),
            status
        );
    }
    drop(held);
    let began = Instant::now();
    while metric(&router, "pointsman_subscribers").await > 0.0 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let future = router.http.get(router.url("/api/events?after=99999")).send().await.unwrap();
    assert_eq!(future.status(), 400);
    for (reason, count) in [("address", 1.0), ("bad", 2.0), ("future", 1.0)] {
        let name = format!("pointsman_subscribers_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&router, &name).await, count, "{reason}");
    }
    for name in ["pointsman_events_lost_total", "pointsman_events_append_failed_total"] {
        assert_eq!(metric(&router, name).await, 0.0, "{name}");
    }
}
