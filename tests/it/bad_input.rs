//! Whatever a client or an endpoint does wrong: a clear JSON error, and nothing lost.

use std::time::Duration;

use pointsman::pretend::{Fault, Profile};
use serde_json::{Value, json};

use crate::router::Router;
use crate::{chat, pretend};

/// The error sentence of either protocol.
fn sentence(body: &Value) -> String {
    let error = &body["error"];
    error.as_str().or(error["message"].as_str()).unwrap_or_else(|| panic!("an error: {body}")).to_owned()
}

#[tokio::test]
async fn a_clients_mistakes_are_named() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "body_limit_bytes: 2000\n");
    let big = json!({ "model": "m", "prompt": "x".repeat(3000) }).to_string();
    #[rustfmt::skip]
    let table: &[(&str, &str, u16, &[&str])] = &[
        ("/api/chat", "", 400, &["empty"]),
        ("/api/chat", "{\"model\": \"m\", ", 400, &["JSON", "line 1"]),
        ("/api/chat", "[]", 400, &["object"]),
        ("/api/chat", "{\"messages\": []}", 400, &["model"]),
        ("/api/chat", "{\"model\": 7, \"messages\": []}", 400, &["model", "string"]),
        ("/api/chat", "{\"model\": \"m\"}", 400, &["messages"]),
        ("/api/chat", "{\"model\": \"m\", \"messages\": \"hi\"}", 400, &["messages", "array"]),
        ("/api/chat", "{\"model\": \"m\", \"messages\": [], \"stream\": \"yes\"}", 400, &["stream"]),
        ("/api/generate", "{\"model\": \"m\"}", 400, &["prompt"]),
        ("/api/generate", &big, 413, &["2000", "body_limit_bytes"]),
        ("/api/generate", "{\"model\": \"nobody\", \"prompt\": \"hi\"}", 404, &["nobody", "http://127.0.0.1"]),
        ("/v1/chat/completions", "{\"model\": \"m\"}", 400, &["messages"]),
        ("/v1/chat/completions", "{\"model\": \"nobody\", \"messages\": []}", 404, &["nobody", "http://127.0.0.1"]),
        ("/v1/embeddings", "{\"model\": \"m\"}", 400, &["input"]),
        ("/api/show", "{}", 400, &["model"]),
        ("/nowhere", "{}", 404, &["/nowhere"]),
        ("/v1/nowhere", "{}", 404, &["/v1/nowhere"]),
        ("/api/tags", "{}", 405, &["POST"]),
    ];
    for (path, body, status, words) in table {
        let (got, answer) = router.post_bytes(path, body.as_bytes().to_vec()).await;
        let sentence = sentence(&answer);
        assert_eq!(got, *status, "{path} {body}: {sentence}");
        for word in *words {
            assert!(sentence.contains(word), "{path} {body}: `{word}` is not in: {sentence}");
        }
    }
    for path in ["/", "/nowhere", "/api/usage"] {
        let response = router.http.get(router.url(path)).send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"].len(), 16, "{path}: every answer has a name");
    }
    let (_, unknown) = router.post("/api/chat", &chat("nobody")).await;
    assert_eq!(unknown["endpoints"], json!([backend.endpoint()]));
    assert_eq!(backend.stats().total().started, 0, "none of these reached the endpoint");
    router.assert_idle().await;
}

#[tokio::test]
async fn a_model_that_only_another_protocol_serves_is_said_to_be_not_translated() {
    let backend = pretend(Profile::openai(["gpt"]));
    let router = Router::before(&[backend.endpoint()], "");
    let (status, body) = router.post("/api/chat", &chat("gpt")).await;
    assert_eq!(status, 501);
    assert!(sentence(&body).contains("/v1"), "{body}");
}

#[tokio::test]
async fn an_oversize_body_without_a_length_is_refused_as_well() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "body_limit_bytes: 2000\n");
    let chunks = futures_util::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100])));
    let sent =
        router.http.post(router.url("/api/chat")).body(reqwest::Body::wrap_stream(chunks)).send().await;
    assert_eq!(sent.unwrap().status(), 413);
}

/// What an endpoint can do wrong before its first byte, the status the client gets, and a word of the sentence.
#[rustfmt::skip]
const BEFORE_THE_FIRST_BYTE: [(Fault, u16, &str); 7] = [
    (Fault::Garbage, 502, "not valid HTTP"),
    (Fault::GarbageBody, 502, "not JSON"),
    (Fault::CloseAtOnce, 502, "connection"),
    (Fault::Nothing, 504, "no byte within"),
    (Fault::NothingAfterHead, 504, "no byte within"),
    (Fault::Status(500), 500, ""),
    (Fault::Status(429), 429, ""),
];

#[tokio::test]
async fn an_endpoint_that_fails_before_its_first_byte_is_an_error_in_the_clients_protocol() {
    for (path, stream) in [
        ("/api/chat", true),
        ("/api/chat", false),
        ("/v1/chat/completions", true),
        ("/v1/chat/completions", false),
    ] {
        let backend = pretend(Profile::ollama(["m"]));
        let more = "first_byte_timeout_secs: 0.3\nbreaker_failures: 1000\n";
        let router = Router::before(&[backend.endpoint()], more);
        for (fault, status, word) in BEFORE_THE_FIRST_BYTE {
            backend.set_fault(fault);
            let mut body = chat("m");
            body["stream"] = json!(stream);
            let (got, answer) = router.post(path, &body).await;
            assert_eq!(got, status, "{fault:?} {path}: {answer}");
            assert!(sentence(&answer).contains(word), "{fault:?} {path}: {answer}");
        }
        backend.set_fault(Fault::None);
        let (status, _) = router.post(path, &json!({ "model": "m", "messages": [], "stream": false })).await;
        assert_eq!(status, 200, "and afterwards all is well");
        router.assert_idle().await;
    }
}

/// What an endpoint can do wrong in the middle of a stream.
const MID_STREAM: [Fault; 4] = [Fault::HalfChunk, Fault::CutAfter(3), Fault::EndEarly(3), Fault::Stall(3)];

#[tokio::test]
async fn an_endpoint_that_dies_mid_stream_ends_the_stream_with_an_error_of_its_protocol() {
    for path in ["/api/chat", "/v1/chat/completions"] {
        let backend = pretend(Profile::ollama(["m"]));
        let more = "idle_timeout_secs: 0.3\nbreaker_failures: 1000\n";
        let router = Router::before(&[backend.endpoint()], more);
        for fault in MID_STREAM {
            backend.set_fault(fault);
            let mut body = chat("m");
            body["stream"] = json!(true);
            let response = router.http.post(router.url(path)).body(body.to_string()).send().await.unwrap();
            assert_eq!(response.status(), 200, "{fault:?}");
            let text = response.text().await.unwrap();
            let last = text.trim_end().lines().last().unwrap_or_default();
            let json = last.strip_prefix("data: ").unwrap_or(last);
            let last: Value =
                serde_json::from_str(json).unwrap_or_else(|_| panic!("{fault:?} {path}: {text}"));
            assert!(sentence(&last).contains(&backend.endpoint()), "{fault:?} {path}: {last}");
            assert!(!text.contains("[DONE]") && !text.contains("\"done\":true"), "{fault:?} {path}: {text}");
        }
        router.assert_idle().await;
    }
}

#[tokio::test]
async fn a_whole_answer_that_breaks_off_is_never_a_clean_end() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "breaker_failures: 1000\n");
    for fault in [Fault::HalfChunk, Fault::WrongLength] {
        backend.set_fault(fault);
        let body = json!({ "model": "m", "messages": [], "stream": false }).to_string();
        let whole = async {
            router
                .http
                .post(router.url("/api/chat"))
                .body(body)
                .send()
                .await?
                .error_for_status()?
                .bytes()
                .await
        };
        assert!(whole.await.is_err(), "{fault:?}");
    }
    router.assert_idle().await;
}

#[tokio::test]
async fn a_huge_line_goes_through_whole_and_its_usage_is_counted() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "");
    backend.set_fault(Fault::HugeLine(5 << 20));
    let sent = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    let bytes = sent.bytes().await.unwrap();
    assert!(bytes.len() > 5 << 20, "{}", bytes.len());
    router.assert_idle().await;
    assert_eq!(router.get("/api/token_counts").await["total_tokens"], 3 + 16);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named_with_the_reason() {
    let backend = pretend(Profile::ollama(["m"]));
    backend.stop().await.unwrap();
    let router = Router::before(&[backend.endpoint()], "");
    let (status, body) = router.post("/api/chat", &chat("m")).await;
    assert_eq!(status, 503);
    let sentence = sentence(&body);
    assert!(sentence.contains(&backend.endpoint()) && sentence.contains("could not connect"), "{sentence}");
    let health = router.http.get(router.url("/health")).send().await.unwrap();
    assert_eq!(health.status(), 503, "an endpoint that failed is not ok");
}

#[tokio::test]
async fn a_client_that_sends_no_request_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "header_timeout_secs: 0.5\n");
    let address = router.url("").replace("http://", "");
    for beginning in
        ["", "POST /api/chat HT", "POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"]
    {
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        socket.write_all(beginning.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "still connected after {beginning:?}");
    }
    router.assert_idle().await;
}
