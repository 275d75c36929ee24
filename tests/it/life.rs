//! Starting, stopping, reloading, crashing.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use pointsman::pretend::Profile;
use serde_json::{Value, json};

use crate::router::{Router, yaml};
use crate::{chat, pretend};

const GAP: Duration = Duration::from_millis(20);

fn whole() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "a b c" }], "stream": false })
}

/// Waits until every token counted so far is durable.
async fn stored(router: &Router) {
    let began = std::time::Instant::now();
    loop {
        let text = router.http.get(router.url("/metrics")).send().await.unwrap().text().await.unwrap();
        if text.lines().any(|line| line == "pointsman_tokens_waiting 0") {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "tokens are still not stored\n{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn total(router: &Router) -> u64 {
    router.get("/api/token_counts").await["total_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn sigterm_lets_running_streams_end_stores_every_token_and_exits_with_0() {
    let backend = pretend(Profile::ollama(["m"]).tokens(40).paced(GAP, GAP));
    let mut router = Router::before(&[backend.endpoint()], "flush_interval_secs: 3600\n");
    let sent = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    let mut chunks = sent.bytes_stream();
    let mut text = chunks.next().await.unwrap().unwrap().to_vec();
    let usage_stream = router.http.get(router.url("/api/usage-stream")).send().await.unwrap();
    router.signal("TERM");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(router.http.get(router.url("/")).send().await.is_err(), "no new connections");
    while let Some(chunk) = chunks.next().await {
        text.extend(chunk.unwrap());
    }
    assert!(String::from_utf8(text).unwrap().contains("\"done\":true"), "the stream was cut");
    usage_stream.bytes().await.expect("a stream without an end of its own is ended cleanly");
    let status = router.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}\n{}", router.log());
    let router = router.restart(&[]);
    assert_eq!(total(&router).await, 3 + 40);
}

#[tokio::test]
async fn streams_that_outlast_the_grace_time_are_cut_off_and_nothing_is_lost() {
    let backend = pretend(Profile::ollama(["m"]).tokens(100_000).paced(GAP, GAP));
    let more = "drain_grace_secs: 0.3\nflush_interval_secs: 3600\nmax_concurrent_connections: 2\n";
    let mut router = Router::before(&[backend.endpoint()], more);
    let mut short = whole();
    short["options"] = json!({ "num_predict": 2 });
    router.post("/api/chat", &short).await;
    let long = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    router.signal("TERM");
    assert!(router.wait(Duration::from_secs(5)).success());
    assert!(long.bytes().await.is_err(), "a cut stream does not look whole");
    let router = router.restart(&[]);
    assert_eq!(total(&router).await, 3 + 2);
}

#[tokio::test]
async fn kill_9_in_the_middle_of_flushing_loses_at_most_the_unflushed_window_and_counts_nothing_twice() {
    let backend = pretend(Profile::ollama(["m"]));
    // Flushing all the time, so that the kill meets a flush.
    let more = "flush_interval_secs: 0.002\nmax_concurrent_connections: 64\n";
    let mut router = Router::before(&[backend.endpoint()], more);
    let each = 3 + 16;
    let mut before = 0;
    for round in 0..5u32 {
        let (answered, asked) = {
            let body = whole();
            // A first wave is answered; a second is under way when the process is killed.
            let wave = || join_all((0..24).map(|_| router.post("/api/chat", &body)));
            let answered = wave().await.iter().filter(|(status, _)| *status == 200).count() as u64;
            let shown = total(&router).await;
            assert_eq!(
                shown,
                before + answered * each,
                "round {round}: every answered request is counted once"
            );
            // What a crash may lose is what waits to be stored: of the first wave, nothing any more.
            stored(&router).await;
            let send = || {
                let request = router.http.post(router.url("/api/chat")).body(body.to_string()).send();
                tokio::spawn(async move { drop(request.await) })
            };
            let sent: Vec<_> = (0..24).map(|_| send()).collect();
            tokio::time::sleep(Duration::from_micros(u64::from(500 + 1500 * round))).await;
            (answered, sent.len() as u64)
        };
        router = router.kill_and_restart(&[]);
        let after = total(&router).await;
        assert_eq!(after % each, 0, "round {round}: a request is stored whole or not at all");
        let least = before + answered * each;
        assert!(
            after >= least,
            "round {round}: {after} stored, but {least} had been flushed: something is lost"
        );
        let most = least + asked * each;
        assert!(
            after <= most,
            "round {round}: {after} stored, at most {most} answered: something counts twice"
        );
        before = after;
    }
    assert!(before >= 5 * 24 * each, "every first wave is stored: {before}");
}

#[tokio::test]
async fn what_a_flush_has_stored_survives_kill_9() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "flush_interval_secs: 0.05\n");
    router.post("/api/chat", &whole()).await;
    stored(&router).await;
    let router = router.kill_and_restart(&[]);
    assert_eq!(total(&router).await, 3 + 16);
}

#[tokio::test]
async fn sighup_reloads_without_dropping_a_request_and_a_bad_file_changes_nothing() {
    let (one, two) =
        (pretend(Profile::ollama(["m"]).tokens(30).paced(GAP, GAP)), pretend(Profile::ollama(["n"])));
    let router = Router::before(&[one.endpoint()], "");
    let sent = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    let mut chunks = sent.bytes_stream();
    let mut text = chunks.next().await.unwrap().unwrap().to_vec();

    router.reload(&yaml(&[two.endpoint()], ""));
    let began = std::time::Instant::now();
    while router.post("/api/chat", &json!({ "model": "n", "messages": [], "stream": false })).await.0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", router.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        router.get("/api/usage").await["usage_counts"],
        json!({ one.endpoint(): { "m": 1 } }),
        "still counted"
    );

    router.reload("endpoints: 7\nmax_concurrent_connections: none\n");
    let began = std::time::Instant::now();
    while !router.log().contains("stays in force") {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", router.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(router.log().contains("max_concurrent_connections"), "{}", router.log());
    assert_eq!(
        router.post("/api/chat", &json!({ "model": "n", "messages": [], "stream": false })).await.0,
        200
    );

    while let Some(chunk) = chunks.next().await {
        text.extend(chunk.unwrap());
    }
    assert!(String::from_utf8(text).unwrap().contains("\"done\":true"));
    router.assert_idle().await;
}

#[tokio::test]
async fn damaged_data_refuses_to_start_with_a_sentence_and_recover_sets_it_aside() {
    let backend = pretend(Profile::ollama(["m"]));
    let mut router = Router::before(&[backend.endpoint()], "");
    router.post("/api/chat", &whole()).await;
    router.signal("TERM");
    router.wait(Duration::from_secs(5));
    let mut damaged = 0;
    let mut folders = vec![router.data()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                std::fs::write(&path, [0xA5; 4096]).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    let refused = std::process::Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .current_dir(router.data().parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--recover"), "{said}");
    let router = router.restart(&["--recover"]);
    assert_eq!(total(&router).await, 0);
    assert!(router.log().contains("set aside"), "{}", router.log());
}

/// The newest number an event was given; all events up to it are read.
async fn tip(router: &Router) -> u64 {
    router.post("/api/chat", &whole()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    router.get("/api/events/bounds").await["tip"].as_u64().unwrap()
}

/// Whoever stands at this number is told that it is gone, and every number there is lies behind it.
async fn assert_gone(router: &Router, after: u64) {
    let answer = router.http.get(router.url(&format!("/api/events?after={after}"))).send().await.unwrap();
    let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
    let floor = router.get("/api/events/bounds").await["floor"].as_u64().unwrap();
    assert!(
        status == 410 && floor > after && body["floor"] == floor,
        "{status} {body}, the floor is {floor}"
    );
    assert!(floor < 1 << 53, "{floor} is more than JavaScript can count");
}

#[tokio::test]
async fn no_number_is_used_twice_after_recovery_or_with_a_restored_backup() {
    let backend = pretend(Profile::ollama(["m"]));
    for mode in ["group", "none"] {
        let mut router = Router::before(&[backend.endpoint()], &format!("event_log: {mode}\n"));
        for _ in 0..2 {
            let seen = tip(&router).await;
            router.signal("TERM");
            router.wait(Duration::from_secs(5));
            std::fs::write(router.data().join("store/STORE"), [0xA5; 64]).unwrap();
            router = router.restart(&["--recover"]);
            assert_gone(&router, seen).await;
            assert!(tip(&router).await > seen);
        }

        router.signal("TERM");
        router.wait(Duration::from_secs(5));
        let folder = tempfile::tempdir().unwrap();
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            assert!(std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
        };
        copy(&router.data(), &folder.path().join("backup"));
        router = router.restart(&[]);
        let seen = tip(&router).await;
        router.signal("TERM");
        router.wait(Duration::from_secs(5));
        std::fs::remove_dir_all(router.data()).unwrap();
        copy(&folder.path().join("backup"), &router.data());
        router = router.restart(&["--restored"]);
        assert_gone(&router, seen).await;
        let seen = tip(&router).await;
        // Said once, it holds for every later start.
        router = router.kill_and_restart(&[]);
        assert!(tip(&router).await > seen);
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_with_a_sentence() {
    let router = Router::start("endpoints: [http://127.0.0.1:9]\n");
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .current_dir(router.data().parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another"), "{said}");
}

#[test]
fn check_config_names_what_is_wrong_and_what_is_odd() {
    let folder = tempfile::tempdir().unwrap();
    let check = |yaml: &str| {
        std::fs::write(folder.path().join("config.yaml"), yaml).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pointsman"))
            .arg("check-config")
            .current_dir(folder.path())
            .env_remove("NOMYO_ROUTER_CONFIG_PATH")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (good, said) = check("endpoints: [http://127.0.0.1:11434]\nmax_concurent_connections: 2\n");
    assert!(
        good && said.contains("max_concurent_connections") && said.contains("max_concurrent_connections"),
        "{said}"
    );
    let (good, said) = check("endpoints: [ftp://x]\nmax_concurrent_connections: -3\n");
    assert!(
        !good
            && said.contains("ftp://x")
            && said.contains("max_concurrent_connections")
            && said.contains("-3"),
        "{said}"
    );
}

#[tokio::test]
async fn a_queued_request_outlives_a_reload_that_takes_its_endpoint_away() {
    let slow = pretend(Profile::ollama(["m"]).paced(Duration::from_secs(30), GAP));
    let other = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[slow.endpoint()], "queue_timeout_secs: 20\n");
    let body = whole().to_string();
    let send = || router.http.post(router.url("/api/chat")).body(body.clone()).send();
    let holds = tokio::spawn(send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waits = tokio::spawn(send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    router.reload(&yaml(&[other.endpoint()], ""));
    let answered = tokio::time::timeout(Duration::from_secs(5), waits).await.expect("it is routed anew");
    assert_eq!(answered.unwrap().unwrap().status(), 200);
    assert_eq!(other.stats().total().started, 1);
    holds.abort();
    router.assert_idle().await;
}

#[tokio::test]
async fn a_request_that_waited_while_the_key_was_replaced_is_sent_with_the_new_one() {
    let backend = pretend(Profile::ollama(["m"]).tokens(1).paced(Duration::from_secs(1), GAP));
    let endpoint = backend.endpoint();
    let keyed = |key: &str| format!("api_keys:\n  {endpoint}: {key}\n");
    let router = Router::before(std::slice::from_ref(&endpoint), &keyed("old"));
    let body = whole().to_string();
    let send = || router.http.post(router.url("/api/chat")).body(body.clone()).send();
    let sent_with = || backend.last_ask().expect("a request").header("authorization").map(str::to_owned);
    let holds = tokio::spawn(send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waits = tokio::spawn(send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sent_with().as_deref(), Some("Bearer old"));
    router.reload(&yaml(std::slice::from_ref(&endpoint), &keyed("new")));
    for sent in [holds, waits] {
        assert_eq!(sent.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!((backend.stats().total().started, sent_with().as_deref()), (2, Some("Bearer new")));
    router.assert_idle().await;
}

#[tokio::test]
async fn a_usage_stream_asked_for_while_the_server_stops_does_not_hold_it_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut router = Router::start("endpoints: [http://127.0.0.1:9]\ndrain_grace_secs: 20\n");
    let mut socket = tokio::net::TcpStream::connect(router.url("").replace("http://", "")).await.unwrap();
    socket.write_all(b"GET /api/usage-stream HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    router.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _ = socket.write_all(b"\r\n").await;
    let _ = socket.read_to_end(&mut Vec::new()).await;
    assert!(router.wait(Duration::from_secs(5)).success(), "the stream was ended, not waited for");
}

#[tokio::test]
async fn a_second_signal_cuts_running_streams_off() {
    let backend = pretend(Profile::ollama(["m"]).tokens(100_000).paced(GAP, GAP));
    let mut router = Router::before(&[backend.endpoint()], "");
    let _long = router.http.post(router.url("/api/chat")).body(chat("m").to_string()).send().await.unwrap();
    router.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    router.signal("TERM");
    assert!(router.wait(Duration::from_secs(5)).success());
}
