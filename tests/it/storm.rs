//! A thousand streams, a third of whose clients leave, while one endpoint fails and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use pointsman::adapters::entropy::SeededEntropy;
use pointsman::ports::Entropy;
use pointsman::pretend::{Fault, Model, Profile};
use serde_json::{Value, json};

use crate::pretend;
use crate::router::Router;

const STREAMS: u64 = 1_000;
const SLOTS: u64 = 40;

/// What one client saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The final line, with these counts.
    Whole { input: u64, output: u64 },
    /// It left by itself.
    Left,
    /// An error, in whatever form.
    Failed,
}

// On one thread: endpoints see a connection close before the request that its slot went to, as they happened.
#[tokio::test]
async fn a_thousand_streams_with_leaving_clients_and_a_failing_endpoint_add_up() {
    let pace =
        |profile: Profile| profile.tokens(12).paced(Duration::from_millis(10), Duration::from_millis(8));
    let models = || ["m", "n"].map(Model::new);
    let steady = pretend(pace(Profile::ollama(models())));
    let flaky = pretend(pace(Profile::ollama(models())));
    let more = format!(
        "max_concurrent_connections: {SLOTS}\nqueue_max: 2000\nqueue_timeout_secs: 60\nbreaker_open_secs: 0.3\n"
    );
    let router = Arc::new(Router::before(&[steady.endpoint(), flaky.endpoint()], &more));
    router.get("/api/tags").await;

    let finished = Arc::new(AtomicU64::new(0));
    let clients = (0..STREAMS).map(|number| {
        let (router, finished) = (Arc::clone(&router), Arc::clone(&finished));
        tokio::spawn(async move {
            let end = client(&router, number).await;
            finished.fetch_add(1, Ordering::Relaxed);
            end
        })
    });
    let clients: Vec<_> = clients.collect();

    // One endpoint serves, fails in every way in turn, goes away wholly, and comes back.
    let pause = || tokio::time::sleep(Duration::from_millis(2));
    let more_end = |count: u64| {
        let finished = Arc::clone(&finished);
        async move {
            let goal = (finished.load(Ordering::Relaxed) + count).min(STREAMS * 8 / 10);
            while finished.load(Ordering::Relaxed) < goal {
                pause().await;
            }
        }
    };
    while flaky.stats().total().completed < 20 && finished.load(Ordering::Relaxed) < STREAMS / 2 {
        pause().await;
    }
    let before_faults = flaky.stats().total().completed;
    flaky.set_fault(Fault::Status(500));
    more_end(60).await;
    flaky.set_fault(Fault::CutAfter(3));
    more_end(100).await;
    flaky.stop().await.unwrap();
    more_end(60).await;
    let at_its_return = flaky.stats().total();
    flaky.set_fault(Fault::None);
    flaky.restart().unwrap();

    let ends: Vec<End> = join_all(clients).await.into_iter().map(Result::unwrap).collect();
    router.assert_idle().await;

    let (mut whole, mut input, mut output) = (0u64, 0, 0);
    for end in &ends {
        if let End::Whole { input: i, output: o } = end {
            whole += 1;
            input += i;
            output += o;
        }
    }
    let left = ends.iter().filter(|end| **end == End::Left).count() as u64;
    let failed = STREAMS - whole - left;
    println!("{whole} whole, {left} left, {failed} failed");
    assert!(left > STREAMS / 5 && whole > STREAMS / 2, "the storm was a storm: {whole} whole, {left} left");

    let counts = router.get("/api/token_counts").await;
    let sum = |key: &str| -> u64 {
        counts["breakdown"].as_array().unwrap().iter().map(|row| row[key].as_u64().unwrap()).sum()
    };
    // A client that leaves just after its final line was on the way has cost its tokens as well.
    let (counted, counted_output) = (sum("input_tokens"), sum("output_tokens"));
    assert!(counted >= input && counted_output >= output, "a completed request is missing: {counts}");
    let extra = (counted - input) / 3;
    assert!(extra <= left, "{extra} more requests counted than completed, only {left} left");
    assert_eq!(
        (counted - input, counted_output - output),
        (extra * 3, extra * 12),
        "whole requests only: {counts}"
    );

    for (backend, name) in [(&steady, "steady"), (&flaky, "flaky")] {
        let began = std::time::Instant::now();
        while backend.stats().running() > 0 && began.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stats = backend.stats();
        assert_eq!(stats.running(), 0, "{name}: {stats:?}");
        for (model, stats) in &stats.models {
            assert!(stats.peak <= SLOTS, "{name}/{model}: {} at once, the limit is {SLOTS}", stats.peak);
        }
    }
    assert!(before_faults > 0, "it served before it failed");
    assert!(at_its_return.broken > 0, "its faults reached requests: {at_its_return:?}");
    let since = flaky.stats().total().completed - at_its_return.completed;
    assert!(since > 0, "it served again after it came back");
    assert!(failed < STREAMS / 10, "{failed} failed: more than the faults account for");
}

/// Sends one streamed chat; three in ten clients leave at a random moment.
async fn client(router: &Router, number: u64) -> End {
    let dice = SeededEntropy::new(number);
    let leaves = dice.next_u64() % 10 < 3;
    let patience = Duration::from_millis(dice.next_u64() % 400);
    let model = if dice.next_u64().is_multiple_of(2) { "m" } else { "n" };
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "one two three" }] });
    let stream = async {
        let sent = router.http.post(router.url("/api/chat")).body(body.to_string()).send().await;
        let Ok(response) = sent else { return End::Failed };
        let mut chunks = response.bytes_stream();
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let Ok(chunk) = chunk else { return End::Failed };
            text.extend(chunk);
        }
        let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let last: Value = serde_json::from_slice(last).unwrap_or_default();
        match (last["done"].as_bool(), last["prompt_eval_count"].as_u64(), last["eval_count"].as_u64()) {
            (Some(true), Some(input), Some(output)) => End::Whole { input, output },
            _ => End::Failed,
        }
    };
    if leaves {
        // A client that was served before it lost patience has not left.
        tokio::time::timeout(patience, stream).await.unwrap_or(End::Left)
    } else {
        stream.await
    }
}
