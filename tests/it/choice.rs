//! Which endpoint a request goes to, over real sockets.

use std::time::Duration;

use futures_util::future::join_all;
use pointsman::pretend::{Fault, Model, Profile};
use serde_json::json;

use crate::router::{Router, yaml};
use crate::{chat, pretend};

const SLOW: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_loaded_model_is_preferred_and_the_limit_holds_by_queueing() {
    let warm = pretend(Profile::ollama([Model::new("m").loaded()]).paced(SLOW, Duration::ZERO));
    let cold = pretend(Profile::ollama(["m"]).paced(SLOW, Duration::ZERO));
    let router = Router::before(&[cold.endpoint(), warm.endpoint()], "");
    let (status, _) =
        router.post("/api/chat", &json!({ "model": "m", "messages": [], "stream": false })).await;
    assert_eq!((status, warm.stats().total().started, cold.stats().total().started), (200, 1, 0));

    let body = json!({ "model": "m", "messages": [], "stream": false });
    let answers = join_all((0..6).map(|_| router.post("/api/chat", &body))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let peaks = (warm.stats().total().peak, cold.stats().total().peak);
    assert_eq!(peaks, (1, 1), "no endpoint above its one slot");
    router.assert_idle().await;
}

#[tokio::test]
async fn a_full_queue_and_a_long_wait_are_503_with_retry_after() {
    let backend = pretend(Profile::ollama(["m"]).paced(Duration::from_secs(2), Duration::ZERO));
    let router = Router::before(&[backend.endpoint()], "queue_max: 1\nqueue_timeout_secs: 0.4\n");
    let body = json!({ "model": "m", "messages": [], "stream": false }).to_string();
    let send = || router.http.post(router.url("/api/chat")).body(body.clone()).send();
    let ask = |after: u64| async move {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let response = send().await.unwrap();
        let retry_after = response.headers().contains_key("retry-after");
        (response.status().as_u16(), retry_after, response.text().await.unwrap())
    };
    let (first, waits, turned_away) = tokio::join!(ask(0), ask(100), ask(200));
    assert_eq!(first.0, 200);
    assert_eq!((waits.0, waits.1), (503, true), "{}", waits.2);
    assert!(waits.2.contains("came free within 0.4 s"), "{}", waits.2);
    assert_eq!((turned_away.0, turned_away.1), (503, true), "{}", turned_away.2);
    assert!(turned_away.2.contains("1 requests wait"), "{}", turned_away.2);
    router.assert_idle().await;
}

#[tokio::test]
async fn without_queueing_the_seed_routers_overload_is_kept() {
    let backend = pretend(Profile::ollama(["m"]).paced(SLOW, Duration::ZERO));
    let router = Router::before(&[backend.endpoint()], "queue: false\n");
    let body = json!({ "model": "m", "messages": [], "stream": false });
    join_all((0..4).map(|_| router.post("/api/chat", &body))).await;
    assert_eq!(backend.stats().total().peak, 4);
}

#[tokio::test]
async fn refused_connections_5xx_and_429_are_tried_elsewhere_before_the_first_byte() {
    let bad = pretend(Profile::ollama([Model::new("m").loaded()]));
    let good = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[bad.endpoint(), good.endpoint()], "breaker_failures: 1000\n");
    let body = json!({ "model": "m", "messages": [], "stream": false });
    assert_eq!(router.post("/api/chat", &body).await.0, 200);
    assert_eq!(bad.stats().total().started, 1, "the loaded one is asked first");
    for fault in
        [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::CloseAtOnce, Fault::Garbage]
    {
        let before = (bad.stats().path("/api/chat"), good.stats().total().completed);
        bad.set_fault(fault);
        let (status, answer) = router.post("/api/chat", &body).await;
        assert_eq!(status, 200, "{fault:?}: {answer}");
        // Twice, when it closes a connection that was kept open from before: that may be a mere idle close.
        let asked = bad.stats().path("/api/chat") - before.0;
        assert!(asked == 1 || (asked == 2 && fault == Fault::CloseAtOnce), "{fault:?}: asked {asked} times");
        assert_eq!(good.stats().total().completed, before.1 + 1, "{fault:?}");
    }
    bad.stop().await.unwrap();
    assert_eq!(router.post("/api/chat", &body).await.0, 200);
    router.assert_idle().await;
}

#[tokio::test]
async fn a_4xx_is_the_clients_and_is_passed_on_without_another_try() {
    let one = pretend(Profile::ollama([Model::new("m").loaded()]));
    let two = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[one.endpoint(), two.endpoint()], "breaker_failures: 1\n");
    one.set_fault(Fault::Status(400));
    for _ in 0..3 {
        assert_eq!(router.post("/api/chat", &chat("m")).await.0, 400);
    }
    assert_eq!(two.stats().path("/api/chat"), 0);
    assert_eq!(router.get("/health").await["status"], "ok", "and says nothing about the endpoint");
}

#[tokio::test]
async fn no_other_endpoint_is_tried_after_the_first_byte() {
    let dying = pretend(Profile::ollama([Model::new("m").loaded()]));
    let other = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[dying.endpoint(), other.endpoint()], "");
    dying.set_fault(Fault::CutAfter(2));
    let sent = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    assert!(sent.text().await.unwrap().contains("error"));
    assert_eq!(other.stats().total().started, 0);
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_gets_no_more_until_its_pause_is_over() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "breaker_failures: 2\nbreaker_open_secs: 0.5\n");
    let body = json!({ "model": "m", "messages": [], "stream": false });
    assert_eq!(router.post("/api/chat", &body).await.0, 200);
    backend.set_fault(Fault::Status(500));
    for status in [500, 500, 503, 503] {
        assert_eq!(router.post("/api/chat", &body).await.0, status);
    }
    let asked = backend.stats().path("/api/chat");
    assert_eq!(asked, 3);
    backend.set_fault(Fault::None);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(router.post("/api/chat", &body).await.0, 200);
}

#[tokio::test]
async fn a_model_pulled_after_the_listing_is_found() {
    let (old, new) = (pretend(Profile::ollama(["m"])), pretend(Profile::ollama(["m", "pulled"])));
    let router = Router::before(&[old.endpoint()], "");
    assert_eq!(router.post("/api/chat", &chat("pulled")).await.0, 404);
    router.reload(&yaml(&[old.endpoint(), new.endpoint()], ""));
    let body = json!({ "model": "pulled", "messages": [], "stream": false });
    let began = std::time::Instant::now();
    while router.post("/api/chat", &body).await.0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", router.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
