//! Claims about a whole pretend backend, made over real connections with the plainest of clients.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn start(profile: Profile) -> Pretend {
    Pretend::start(profile, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
}

/// Fails a test that waits for ever.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("this should not take ten seconds")
}

async fn ask(pretend: &Pretend, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(pretend.addr()).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Everything the backend says to one request, until it closes the connection.
async fn post(pretend: &Pretend, path: &str, body: &Value) -> String {
    let mut stream = ask(pretend, path, &body.to_string()).await;
    let mut text = Vec::new();
    soon(stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

async fn get(pretend: &Pretend, path: &str) -> Value {
    let mut stream = TcpStream::connect(pretend.addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    serde_json::from_str(body(&text)).unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head and a body").1
}

/// The JSON objects of a stream, whatever frames and chunks they came in.
fn objects(answer: &str) -> Vec<Value> {
    body(answer)
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap_or(line)).ok())
        .filter(Value::is_object)
        .collect()
}

async fn settled(pretend: &Pretend) -> ModelStats {
    soon(async {
        while pretend.stats().running() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    pretend.stats().total()
}

fn chat() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "one two three"}], "stream": true})
}

#[tokio::test]
async fn an_ollama_stream_has_a_line_per_token_and_ends_with_its_counts() {
    let pretend = start(Profile::ollama(["m"]).tokens(5));
    let answer = post(&pretend, "/api/chat", &chat()).await;
    assert!(answer.contains("content-type: application/x-ndjson"), "{answer}");
    let lines = objects(&answer);
    assert_eq!(lines.len(), 6);
    let said: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(said, "You said one two three");
    let last = &lines[5];
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(3), &json!(5)));
    let counts = settled(&pretend).await;
    assert_eq!((counts.completed, counts.input_tokens, counts.output_tokens), (1, 3, 5));
}

#[tokio::test]
async fn a_burst_says_the_same_as_a_paced_stream() {
    let paced = start(Profile::openai(["m"]).paced(Duration::from_millis(5), Duration::from_millis(1)));
    let burst = start(Profile::openai(["m"]).in_one_burst());
    let said = |answer: String| -> Vec<String> {
        objects(&answer).iter().map(|object| object["choices"][0]["delta"].to_string()).collect()
    };
    let slow = said(post(&paced, "/v1/chat/completions", &chat()).await);
    assert_eq!(slow.len(), 1 + 16 + 1, "a role, the tokens and a reason to stop");
    assert_eq!(slow, said(post(&burst, "/v1/chat/completions", &chat()).await));
}

#[tokio::test]
async fn an_openai_stream_reports_usage_only_when_asked() {
    let pretend = start(Profile::openai(["m"]).tokens(2));
    let plain = post(&pretend, "/v1/chat/completions", &chat()).await;
    assert!(!plain.contains("usage") && body(&plain).contains("data: [DONE]\n\n"), "{plain}");
    let mut with = chat();
    with["stream_options"] = json!({"include_usage": true});
    let answer = post(&pretend, "/v1/chat/completions", &with).await;
    let last = objects(&answer).pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}));
}

#[tokio::test]
async fn a_llama_server_reports_timings_and_what_is_loaded() {
    let pretend = start(Profile::llama_server([Model::new("org/a:Q4").loaded(), Model::new("org/b:Q8")]));
    let listing = get(&pretend, "/v1/models").await;
    assert_eq!(listing["data"][0]["status"]["value"], "loaded");
    assert_eq!(listing["data"][1]["status"]["value"], "unloaded");
    let mut request = chat();
    request["model"] = json!("org/b:Q8");
    let last = objects(&post(&pretend, "/v1/chat/completions", &request).await).pop().unwrap();
    assert_eq!(last["timings"]["predicted_n"], 16);
    assert_eq!(get(&pretend, "/v1/models").await["data"][1]["status"]["value"], "loaded");
}

#[tokio::test]
async fn a_model_that_was_asked_is_loaded_until_keep_alive_zero() {
    let pretend = start(Profile::ollama(["m:latest"]));
    let loaded = async || get(&pretend, "/api/ps").await["models"].as_array().unwrap().len();
    assert_eq!(loaded().await, 0);
    let vectors = post(&pretend, "/api/embed", &json!({"model": "m", "input": ["a", "b"]})).await;
    assert_eq!(objects(&vectors)[0]["embeddings"][1].as_array().unwrap().len(), 64);
    assert_eq!(loaded().await, 1);
    post(&pretend, "/api/generate", &json!({"model": "m", "keep_alive": 0})).await;
    assert_eq!(loaded().await, 0);
}

#[tokio::test]
async fn errors_come_in_the_familys_own_form() {
    let unknown = json!({"model": "x", "messages": []});
    let missing = json!({"messages": []});
    let ollama = start(Profile::ollama(["m"]));
    let openai = start(Profile::openai(["m"]).api_key("secret"));
    let llama = start(Profile::llama_server(["m"]));
    for (pretend, path, sent, status, form) in [
        (&ollama, "/api/chat", &unknown, 404, r#"{"error":"model 'x' not found"}"#),
        (&ollama, "/api/chat", &missing, 400, r#"{"error":"model is required"}"#),
        (&ollama, "/v1/chat/completions", &unknown, 404, r#""type":"not_found_error""#),
        (&openai, "/v1/chat/completions", &unknown, 401, r#""type":"authentication_error""#),
        (&llama, "/v1/chat/completions", &unknown, 404, r#""code":404"#),
        (&ollama, "/nowhere", &unknown, 404, "404 page not found"),
    ] {
        let answer = post(pretend, path, sent).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains(form), "{path}: {answer}");
        assert_eq!(pretend.stats().total(), ModelStats::default(), "a refused request reaches no model");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_nothing_is_sent() {
    let pretend = start(Profile::ollama(["m"]).paced(Duration::from_secs(600), Duration::ZERO));
    let stream = ask(&pretend, "/api/chat", &chat().to_string()).await;
    soon(async {
        while pretend.stats().running() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    drop(stream);
    let counts = settled(&pretend).await;
    assert_eq!((counts.cut, counts.completed, counts.output_tokens), (1, 0, 0));
}

#[tokio::test]
async fn more_requests_than_turns_wait_and_count_as_running() {
    let profile = Profile::ollama(["m"]).max_parallel(1).paced(Duration::from_millis(100), Duration::ZERO);
    let pretend = start(profile);
    let request = chat();
    tokio::join!(post(&pretend, "/api/chat", &request), post(&pretend, "/api/chat", &request));
    let counts = settled(&pretend).await;
    assert_eq!((counts.completed, counts.peak), (2, 2));
}

#[tokio::test]
async fn a_stopped_backend_refuses_cuts_its_streams_and_comes_back_on_its_port() {
    let pretend = start(Profile::ollama(["m"]));
    pretend.set_fault(Fault::Stall(2));
    let mut stream = ask(&pretend, "/api/chat", &chat().to_string()).await;
    let mut first = [0; 16];
    soon(stream.read_exact(&mut first)).await.unwrap();
    soon(pretend.stop()).await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a stop must not look like an end");
    let refused = TcpStream::connect(pretend.addr()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let counts = pretend.stats();
    assert_eq!((counts.total().broken, counts.running(), counts.connections_open), (1, 0, 0));

    pretend.restart().unwrap();
    pretend.set_fault(Fault::None);
    assert_eq!(objects(&post(&pretend, "/api/chat", &chat()).await).len(), 17);
    assert_eq!(pretend.stats().total().started, 2);
}

#[tokio::test]
async fn a_dropped_backend_stops() {
    let pretend = start(Profile::ollama(["m"]));
    let addr = pretend.addr();
    drop(pretend);
    soon(async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A fault, and what the bytes of a streamed answer must then be.
type Claim = (Fault, fn(&str) -> bool);

#[tokio::test]
async fn every_fault_does_to_the_wire_what_it_says() {
    let whole = |text: &str| text.ends_with("0\r\n\r\n") && text.contains(r#""done":true"#);
    assert!(whole(&post(&start(Profile::ollama(["m"])), "/api/chat", &chat()).await));
    let claims: &[Claim] = &[
        (Fault::Status(503), |text| text.starts_with("HTTP/1.1 503 ") && text.contains(r#"{"error":"#)),
        (Fault::Status(429), |text| text.contains("retry-after: 1\r\n")),
        (Fault::Garbage, |text| text.contains("SWITCH JAMMED")),
        (Fault::GarbageBody, |text| {
            text.starts_with("HTTP/1.1 200 ") && serde_json::from_str::<Value>(body(text)).is_err()
        }),
        (Fault::HalfChunk, |text| {
            text.contains("chunked") && !text.ends_with("\r\n") && objects(text).is_empty()
        }),
        (Fault::CutAfter(3), |text| objects(text).len() == 3 && !text.ends_with("0\r\n\r\n")),
        (Fault::EndEarly(3), |text| objects(text).len() == 3 && text.ends_with("0\r\n\r\n")),
        (Fault::HugeLine(100_000), |text| text.len() > 100_000 && text.contains(r#""done":true"#)),
        (Fault::CloseAtOnce, str::is_empty),
        (Fault::SlowHeader(Duration::from_millis(5)), |text| text.contains(r#""done":true"#)),
        (Fault::ListingFails, |text| text.contains(r#""done":true"#)),
        (Fault::WrongLength, |text| {
            let promised = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            promised.and_then(|length| length.parse().ok()) == Some(body(text).len() + 64)
        }),
    ];
    for burst in [false, true] {
        let profile = Profile::ollama(["m"]);
        let pretend = start(if burst { profile.in_one_burst() } else { profile });
        for (fault, holds) in claims {
            pretend.set_fault(*fault);
            let answer = post(&pretend, "/api/chat", &chat()).await;
            assert!(holds(&answer), "{fault:?}: {answer}");
        }
        let counts = settled(&pretend).await;
        assert_eq!((counts.completed, counts.broken, counts.cut), (3, 9, 0));
    }
}

#[tokio::test]
async fn silent_faults_stay_silent_until_the_client_leaves() {
    for (fault, heard) in
        [(Fault::Nothing, ""), (Fault::NothingAfterHead, "\r\n\r\n"), (Fault::Stall(0), "\r\n\r\n")]
    {
        let pretend = start(Profile::ollama(["m"]));
        pretend.set_fault(fault);
        let mut stream = ask(&pretend, "/api/chat", &chat().to_string()).await;
        let mut text = Vec::new();
        let silent = tokio::time::timeout(Duration::from_millis(50), stream.read_to_end(&mut text)).await;
        assert!(silent.is_err(), "{fault:?} ended: {}", String::from_utf8_lossy(&text));
        assert!(String::from_utf8_lossy(&text).ends_with(heard), "{fault:?}");
        drop(stream);
        assert_eq!(settled(&pretend).await.cut, 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_listing_fault_leaves_the_models_answering() {
    let pretend = start(Profile::ollama(["m"]));
    pretend.set_fault(Fault::ListingFails);
    assert_eq!(get(&pretend, "/api/tags").await["error"].as_str().map(str::is_empty), Some(false));
    assert!(get(&pretend, "/api/version").await["version"].is_string());
    pretend.set_fault(Fault::None);
    assert_eq!(get(&pretend, "/api/tags").await["models"][0]["name"], "m");
    assert_eq!(pretend.stats().path("/api/tags"), 2);
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_in_either_framing() {
    let pretend = start(Profile::ollama(["m"]));
    let mut stream = TcpStream::connect(pretend.addr()).await.unwrap();
    let chunked = "POST /api/embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
        b\r\n{\"model\":\"m\r\n3;note=1\r\n\",\"\r\nc\r\ninput\":\"a b\"\r\n1\r\n}\r\n0\r\n\r\n";
    let get = "GET /api/version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{chunked}{get}").as_bytes()).await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert!(text.contains(r#""prompt_eval_count":2"#) && text.contains(r#"{"version":"#), "{text}");
    assert_eq!(pretend.stats().connections, 1);
    assert_eq!(pretend.last_ask().unwrap().path, "/api/embed");
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    let refused = Pretend::start(Profile::ollama(["m"]), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::InvalidInput);
}
