//! Bytes and headers on their way through.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pointsman::pretend::Profile;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::router::Router;
use crate::{chat, pretend};

const GAP: Duration = Duration::from_millis(20);

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(5), "not within five seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn request_bytes_go_through_as_they_came_unless_something_must_change() {
    let backend = pretend(Profile::ollama(["m:latest"]));
    let router = Router::before(&[backend.endpoint()], "");
    let odd =
        r#"{ "messages":[ {"role":"user","content":"\u00e9 é"} ],"model" : "m", "stream":false, "x":1e3 }"#;
    router.post_bytes("/api/chat", odd.into()).await;
    assert_eq!(backend.last_ask().unwrap().body, odd.as_bytes());

    let streamed = r#"{ "messages":[],"model" : "m", "stream":true, "x":1e3 }"#;
    let sent = router.http.post(router.url("/v1/chat/completions")).body(streamed).send().await.unwrap();
    let text = sent.text().await.unwrap();
    assert!(
        text.contains("[DONE]") && !text.contains("\"usage\":{"),
        "this client did not ask for usage: {text}"
    );
    let seen: Value = serde_json::from_slice(&backend.last_ask().unwrap().body).unwrap();
    assert_eq!(seen["stream_options"], json!({ "include_usage": true }));
    assert_eq!(seen["x"], json!(1e3));
}

#[tokio::test]
async fn a_tag_the_endpoint_does_not_list_is_taken_off_for_it() {
    let backend = pretend(Profile::openai(["gpt"]));
    let router = Router::before(&[backend.endpoint()], "");
    let (status, _) = router.post("/v1/chat/completions", &chat("gpt:latest")).await;
    assert_eq!(status, 200);
    let seen: Value = serde_json::from_slice(&backend.last_ask().unwrap().body).unwrap();
    assert_eq!(seen["model"], "gpt");
}

#[tokio::test]
async fn end_to_end_headers_travel_and_hop_by_hop_headers_do_not() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "");
    let body = json!({ "model": "m", "messages": [], "stream": false }).to_string();
    let request = router
        .http
        .post(router.url("/api/chat"))
        .header("x-mine", "1")
        .header("connection", "x-hop")
        .header("x-hop", "2")
        .header("te", "trailers")
        .header("accept-encoding", "gzip")
        .header("x-request-id", "my-request");
    let response = request.body(body).send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "my-request");
    assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
    let seen = backend.last_ask().unwrap();
    assert_eq!(seen.header("x-mine"), Some("1"));
    assert_eq!(seen.header("x-request-id"), Some("my-request"));
    for dropped in ["x-hop", "te", "accept-encoding"] {
        assert_eq!(seen.header(dropped), None, "{dropped}");
    }
    assert_eq!(seen.header("host"), Some(backend.endpoint().trim_start_matches("http://")));
}

#[tokio::test]
async fn every_chunk_is_passed_on_at_once() {
    let backend = pretend(Profile::ollama(["m"]).tokens(20).paced(GAP, GAP));
    let router = Router::before(&[backend.endpoint()], "");
    router.post("/api/chat", &json!({ "model": "m", "messages": [], "stream": false })).await;
    let began = Instant::now();
    let sent = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    let mut chunks = sent.bytes_stream();
    let (mut lines, mut last, mut gaps) = (0, began, Vec::new());
    while let Some(chunk) = chunks.next().await {
        lines += chunk.unwrap().iter().filter(|byte| **byte == b'\n').count();
        gaps.push(last.elapsed());
        last = Instant::now();
    }
    assert_eq!(lines, 21);
    // Were chunks held back for acknowledgements (no TCP_NODELAY), they would come in pairs, 40 ms apart.
    gaps.sort();
    let median = gaps[gaps.len() / 2];
    assert!(gaps.len() >= 18 && median < GAP + Duration::from_millis(10), "chunks are held back: {gaps:?}");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request_upstream() {
    let backend = pretend(Profile::ollama(["m"]).tokens(10_000).paced(GAP, GAP));
    let router = Router::before(&[backend.endpoint()], "");
    let sent = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    let mut chunks = sent.bytes_stream();
    chunks.next().await.unwrap().unwrap();
    assert_eq!(router.get("/api/usage").await["usage_counts"], json!({ backend.endpoint(): { "m": 1 } }));
    drop(chunks);
    eventually("the endpoint noticed", || backend.stats().total().cut == 1).await;
    router.assert_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_cancels_too() {
    let backend = pretend(Profile::ollama(["m"]).paced(Duration::from_secs(60), GAP));
    let router = Router::before(&[backend.endpoint()], "");
    let body = chat("m").to_string();
    let sent = router.http.post(router.url("/api/chat")).body(body).send();
    assert!(tokio::time::timeout(Duration::from_millis(300), sent).await.is_err());
    eventually("the endpoint noticed", || backend.stats().total().cut == 1).await;
    router.assert_idle().await;
    let text = router.http.get(router.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = "pointsman_requests_total{route=\"/api/chat\",outcome=\"cancelled\"} 1";
    assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
}

#[tokio::test]
async fn a_slow_reader_slows_the_endpoint_down_instead_of_filling_the_router() {
    let huge = 200_000u32;
    let backend = pretend(Profile::ollama(["m"]).tokens(huge).paced(Duration::ZERO, Duration::ZERO));
    let router = Router::before(&[backend.endpoint()], "");
    let address = router.url("").replace("http://", "");
    let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
    let body = chat("m").to_string();
    let head = format!("POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut some = [0u8; 1000];
    socket.read_exact(&mut some).await.unwrap();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", router.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = memory().saturating_sub(before);
    // The whole answer is tens of megabytes; what stands still is a few socket and read buffers.
    assert!(grown < 4096, "the router has grown by {grown} KiB");
    assert_eq!(backend.stats().total().running, 1, "the endpoint is held up");
    drop(socket);
    router.assert_idle().await;
}

#[tokio::test]
async fn the_usage_stream_shows_a_request_come_and_go_and_ends_with_the_newest() {
    let backend = pretend(Profile::ollama(["m"]).tokens(5).paced(GAP * 5, GAP));
    let router = Router::before(&[backend.endpoint()], "");
    let sent = router.http.get(router.url("/api/usage-stream")).send().await.unwrap();
    assert_eq!(sent.headers()["content-type"], "text/event-stream");
    let mut events = sent.bytes_stream().map(|chunk| {
        let text = String::from_utf8(chunk.unwrap().to_vec()).unwrap();
        serde_json::from_str::<Value>(text.trim().strip_prefix("data: ").unwrap()).unwrap()
    });
    assert_eq!(events.next().await.unwrap()["usage_counts"], json!({}));
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "a b" }], "stream": false });
    let request = router.post("/api/chat", &body);
    let watched = async {
        let mut counts = Vec::new();
        loop {
            let event = events.next().await.unwrap();
            counts.push(event["usage_counts"][backend.endpoint()]["m"].as_u64().unwrap_or(0));
            let tokens = event["token_usage_counts"][backend.endpoint()]["m"].as_u64();
            if counts.last() == Some(&0) && tokens.is_some() {
                assert_eq!(tokens, Some(2 + 5), "a finished request and its tokens appear together");
                return counts;
            }
        }
    };
    let (_, counts) = tokio::join!(request, tokio::time::timeout(Duration::from_secs(5), watched));
    assert!(counts.unwrap().contains(&1));
}

#[tokio::test]
async fn metrics_equal_the_state() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "");
    for _ in 0..3 {
        router
            .post(
                "/api/chat",
                &json!({ "model": "m", "messages": [{"role":"user","content":"a b"}], "stream": false }),
            )
            .await;
    }
    router.assert_idle().await;
    let text = router.http.get(router.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let endpoint = backend.endpoint();
    for line in [
        "pointsman_slots_admitted_total 3".to_owned(),
        "pointsman_slots_finished_total 3".to_owned(),
        "pointsman_queued 0".to_owned(),
        format!("pointsman_endpoint_up{{endpoint=\"{endpoint}\"}} 1"),
        format!("pointsman_tokens_total{{endpoint=\"{endpoint}\",model=\"m\",direction=\"input\"}} 6"),
        "pointsman_requests_total{route=\"/api/chat\",outcome=\"answered\"} 3".to_owned(),
        "pointsman_request_duration_seconds_count 3".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn listings_are_unions_without_duplicates_and_versions_are_the_lowest() {
    let mut old = Profile::ollama(["m", "a"]);
    old.version = "0.4.9".to_owned();
    let mut new = Profile::ollama(["m", "b"]);
    new.version = "0.10.1".to_owned();
    let (old, new, openai) = (pretend(old), pretend(new), pretend(Profile::openai(["gpt"])));
    let router = Router::before(&[old.endpoint(), new.endpoint(), openai.endpoint()], "");
    let names = |list: &Value, key: &str| {
        let mut names: Vec<_> =
            list.as_array().unwrap().iter().map(|model| model[key].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&router.get("/api/tags").await["models"], "name"), ["a", "b", "gpt", "m"]);
    assert_eq!(names(&router.get("/v1/models").await["data"], "id"), ["a", "b", "gpt", "m"]);
    assert_eq!(router.get("/api/version").await["version"], "0.4.9");
    assert_eq!(names(&router.get("/api/ps").await["models"], "name"), Vec::<String>::new());
    let health = router.get("/health").await;
    assert_eq!((&health["status"], health["endpoints"].as_object().unwrap().len()), (&json!("ok"), 3));
    new.stop().await.unwrap();
    eventually_degraded(&router).await;
    let config = router.get("/api/config").await;
    let statuses: Vec<_> = config["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["status"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(statuses, ["ok", "error", "ok"], "{config}");
}

async fn eventually_degraded(router: &Router) {
    let began = Instant::now();
    while router.get("/health").await["status"] != "degraded" {
        assert!(began.elapsed() < Duration::from_secs(15), "health never noticed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
