//! Every kind of event that a whole router leaves, with its fields; and that whoever asks how an endpoint is, is
//! told the same everywhere.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pointsman::pretend::{Fault, Model, Profile};
use pointsman::wire::event::Kind;
use serde_json::{Value, json};

use crate::pretend;
use crate::router::{Router, yaml};

const PATIENCE: Duration = Duration::from_secs(20);

/// All events that are durable now.
async fn events(router: &Router) -> Vec<Value> {
    let tip = router.get("/api/events/bounds").await["tip"].as_u64().unwrap();
    let sent = router.http.get(router.url("/api/events?after=0")).send().await.unwrap();
    let (mut chunks, mut text, mut found) = (sent.bytes_stream(), String::new(), Vec::<Value>::new());
    while found.last().is_none_or(|event| event["seq"].as_u64().unwrap() < tip) {
        let chunk = tokio::time::timeout(PATIENCE, chunks.next()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((frame, rest)) = text.split_once("\n\n") {
            let data = frame.lines().find_map(|line| line.strip_prefix("data: "));
            let data: Value = data.map_or(Value::Null, |data| serde_json::from_str(data).unwrap());
            text = rest.to_owned();
            if data["seq"].is_u64() {
                found.push(data);
            }
        }
    }
    found
}

fn is(event: &Value, kind: Kind) -> bool {
    event["kind"] == kind.name()
}

/// Does `work` until there is an event like this, and returns the newest such.
async fn until(router: &Router, work: impl AsyncFn(), like: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        work().await;
        let events = events(router).await;
        if let Some(event) = events.iter().rev().find(|event| like(event)) {
            return event.clone();
        }
        assert!(began.elapsed() < PATIENCE, "{events:#?}\n{}", router.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn nothing() {}

fn names(event: &Value) -> BTreeSet<&str> {
    event.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn every_kind_of_event_is_left_with_its_fields() {
    let model = || Profile::ollama([Model::new("m:latest").loaded()]);
    let (one, two) = (pretend(model()), pretend(model()));
    let more = "breaker_failures: 1\nbreaker_open_secs: 0.2\n";
    let mut router = Router::before(&[one.endpoint(), two.endpoint()], more);
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "a b c" }], "stream": false });
    let ask = async || {
        router.post("/api/chat", &body).await;
    };
    let at = |kind, endpoint: String| move |event: &Value| is(event, kind) && event["endpoint"] == endpoint;

    for kind in [Kind::ModelAppeared, Kind::ModelLoaded] {
        let event = until(&router, nothing, at(kind, one.endpoint())).await;
        assert_eq!(event["model"], "m:latest", "{event}");
    }

    one.set_fault(Fault::Status(500));
    let retried = until(&router, &ask, |event| is(event, Kind::RequestRetried)).await;
    assert_eq!((&retried["endpoint"], &retried["model"]), (&json!(one.endpoint()), &json!("m:latest")));
    assert!(retried["request_id"].is_string() && retried["reason"] == "upstream_refused", "{retried}");
    until(&router, nothing, at(Kind::EndpointDown, one.endpoint())).await;
    one.set_fault(Fault::None);
    until(&router, &ask, at(Kind::EndpointUp, one.endpoint())).await;

    let sent =
        router.http.post(router.url("/api/chat")).bearer_auth("a secret").header("x-request-id", "mine");
    assert_eq!(sent.body(body.to_string()).send().await.unwrap().status(), 200);
    let mine = |kind| move |event: &Value| is(event, kind) && event["request_id"] == "mine";
    let started = until(&router, nothing, mine(Kind::RequestStarted)).await;
    // What `printf 'a secret' | sha256sum` begins with.
    let client_key = "984ca516";
    assert_eq!((&started["model"], &started["client_key"]), (&json!("m"), &json!(client_key)));
    let finished = until(&router, nothing, mine(Kind::RequestFinished)).await;
    let fields = [
        "seq",
        "prev_seq",
        "time_ms",
        "kind",
        "request_id",
        "endpoint",
        "model",
        "asked",
        "client_key",
        "input_tokens",
        "output_tokens",
        "duration_ms",
        "outcome",
    ];
    assert_eq!(names(&finished), BTreeSet::from(fields), "{finished}");
    assert!([one.endpoint(), two.endpoint()].contains(&finished["endpoint"].as_str().unwrap().to_owned()));
    let said = ["model", "asked", "client_key", "input_tokens", "output_tokens", "outcome"];
    assert_eq!(
        said.map(|name| finished[name].clone()),
        [json!("m:latest"), json!("m"), json!(client_key), json!(3), json!(16), json!("answered")]
    );
    assert!(
        finished["duration_ms"].is_u64() && finished["time_ms"].as_u64() > Some(1_700_000_000_000),
        "{finished}"
    );

    router.reload(&yaml(&[two.endpoint()], more));
    let reloaded = until(&router, nothing, |event| is(event, Kind::ConfigReloaded)).await;
    assert_eq!(reloaded["endpoints"], 1);
    for kind in [Kind::ModelGone, Kind::ModelUnloaded] {
        let event = until(&router, nothing, at(kind, one.endpoint())).await;
        assert_eq!(event["model"], "m:latest", "{event}");
    }
    router.reload(&yaml(&[two.endpoint(), one.endpoint()], more));
    let back =
        |event: &Value| is(event, Kind::ModelAppeared) && event["seq"].as_u64() > reloaded["seq"].as_u64();
    assert_eq!(
        until(&router, nothing, back).await["endpoint"],
        one.endpoint(),
        "what it serves is known still"
    );

    router.signal("TERM");
    assert!(router.wait(PATIENCE).success());
    let router = router.restart(&[]);
    let left = until(&router, nothing, |event| is(event, Kind::InstanceLeft)).await;
    let joined = until(&router, nothing, |event| is(event, Kind::InstanceJoined)).await;
    assert!(left["admitted"].as_u64() > Some(2) && left["admitted"] == left["finished"], "{left}");
    assert_eq!((&left["in_flight"], &left["queued"]), (&json!(0), &json!(0)), "{left}");
    assert!(
        left["total_tokens"].as_u64() >= Some(19) && joined["total_tokens"] == left["total_tokens"],
        "{joined}"
    );

    let seen: BTreeSet<String> =
        events(&router).await.iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect();
    // That is left by a log that cannot keep up; see `flow::log`.
    let all = Kind::ALL.iter().filter(|kind| **kind != Kind::LogLost);
    assert_eq!(seen, all.map(|kind| kind.name().to_owned()).collect());
}

/// What each place says of the endpoint: up or not.
async fn judged(router: &Router, endpoint: &str) -> [bool; 4] {
    let health = router.get("/health").await["endpoints"][endpoint]["status"] == "ok";
    let config = router.get("/api/config").await["endpoints"][0]["status"] == "ok";
    let metrics = router.http.get(router.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let gauge = format!("pointsman_endpoint_up{{endpoint=\"{endpoint}\"}} ");
    let gauge = metrics.lines().find_map(|line| line.strip_prefix(&gauge)).unwrap().to_owned();
    let events = events(router).await;
    let told = |kind| events.iter().filter(|event| is(event, kind) && event["endpoint"] == endpoint).count();
    [health, config, gauge == "1", told(Kind::EndpointDown) == told(Kind::EndpointUp)]
}

async fn agree(router: &Router, endpoint: &str, up: bool, why: &str) {
    let began = Instant::now();
    loop {
        let said = judged(router, endpoint).await;
        if said == [up; 4] {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{why}: health, config, metrics and events say {said:?}\n{}",
            router.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn events_metrics_config_and_health_agree_on_whether_an_endpoint_is_up() {
    let backend = pretend(Profile::ollama(["m"]));
    let endpoint = backend.endpoint();
    backend.set_listing_fault(Fault::ListingFails);
    let more = "breaker_failures: 1\nbreaker_open_secs: 0.2\nwedged_after_secs: 0.5\n";
    let router = Router::before(std::slice::from_ref(&endpoint), more);
    agree(&router, &endpoint, false, "its listing fails").await;
    backend.set_listing_fault(Fault::None);
    // Another key, other answers: what was said without it is forgotten.
    router.reload(&yaml(std::slice::from_ref(&endpoint), &format!("{more}api_keys:\n  {endpoint}: k\n")));
    agree(&router, &endpoint, true, "it may answer now").await;

    let body = json!({ "model": "m", "messages": [], "stream": false });
    backend.set_fault_for(Fault::Status(500), 1);
    assert_eq!(router.post("/api/chat", &body).await.0, 500);
    agree(&router, &endpoint, false, "its breaker is open").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    agree(&router, &endpoint, false, "its breaker is half-open").await;
    assert_eq!(router.http.get(router.url("/health")).send().await.unwrap().status(), 200, "it may be tried");
    assert_eq!(router.post("/api/chat", &body).await.0, 200);
    agree(&router, &endpoint, true, "it answered").await;

    backend.set_fault_for(Fault::Nothing, 1);
    let waits = tokio::spawn(router.http.post(router.url("/api/chat")).body(body.to_string()).send());
    agree(&router, &endpoint, false, "no byte moves").await;
    waits.abort();
    agree(&router, &endpoint, true, "nobody waits any more").await;
}
