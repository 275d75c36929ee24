//! The feed's client behind a real router: what it stores is the log, whatever is killed in between.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pointsman::feed::{Client, Delivery, FeedError};
use pointsman::pretend::Profile;
use serde_json::{Value, json};

use crate::pretend;
use crate::router::Router;

fn whole() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "a b c" }], "stream": false })
}

/// What a follower's program keeps: the events it was given, and how far it has come.
#[derive(Default)]
struct Kept {
    events: Vec<u64>,
    /// Of these, ends of requests.
    ends: Vec<u64>,
    cursor: u64,
}

/// Follows in the background until it is dropped.
fn follow(client: Client, kept: &Arc<Mutex<Kept>>) -> tokio::task::JoinHandle<FeedError<()>> {
    let kept = Arc::clone(kept);
    tokio::spawn(async move {
        client
            .run(|delivery| {
                let mut kept = kept.lock().unwrap();
                kept.cursor = delivery.seq();
                if let Delivery::Event(event) = delivery {
                    kept.events.push(event.seq);
                    if event.fields().unwrap().kind == "request.finished" {
                        kept.ends.push(event.seq);
                    }
                }
                std::future::ready(Ok(()))
            })
            .await
    })
}

/// Waits until everything up to the router's tip was given.
async fn caught_up(router: &Router, kept: &Arc<Mutex<Kept>>) -> u64 {
    let began = Instant::now();
    loop {
        let tip = router.get("/api/events/bounds").await["tip"].as_u64().unwrap();
        let cursor = kept.lock().unwrap().cursor;
        if cursor >= tip {
            return tip;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "given up to {cursor} of {tip}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_follower_is_given_the_whole_log_once_across_kills_of_the_router_and_its_own() {
    let backend = pretend(Profile::ollama(["m"]));
    let mut router = Router::before(&[backend.endpoint()], "max_concurrent_connections: 64\n");
    let (all, ends) = (Arc::new(Mutex::new(Kept::default())), Arc::new(Mutex::new(Kept::default())));
    for round in 0..3 {
        // The followers are programs that begin again where they stored that they were.
        let client = |kept: &Arc<Mutex<Kept>>| {
            Client::new(&router.url("")).unwrap().after(kept.lock().unwrap().cursor)
        };
        let following =
            [follow(client(&all), &all), follow(client(&ends).kinds(["request.finished"]), &ends)];
        let body = whole();
        join_all((0..50).map(|_| router.post("/api/chat", &body))).await;
        caught_up(&router, &all).await;
        caught_up(&router, &ends).await;
        let send = || {
            let request = router.http.post(router.url("/api/chat")).body(body.to_string()).send();
            tokio::spawn(async move { drop(request.await) })
        };
        let _under_way: Vec<_> = (0..30).map(|_| send()).collect();
        tokio::time::sleep(Duration::from_millis(2 + 3 * round)).await;
        if round == 1 {
            // The followers are killed first.
            following.iter().for_each(|task| task.abort());
        }
        router = router.kill_and_restart(&[]);
        for task in following {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled(), "it went on until it was stopped");
        }
    }
    let client = Client::new(&router.url("")).unwrap().after(all.lock().unwrap().cursor);
    let last = follow(client, &all);
    let tip = caught_up(&router, &all).await;
    last.abort();
    assert!(last.await.unwrap_err().is_cancelled());
    {
        let (all, ends) = (all.lock().unwrap(), ends.lock().unwrap());
        // More may have come than there was when the tip was asked for.
        assert!(all.cursor >= tip && all.events.iter().copied().eq(1..=all.cursor), "{:?}", all.events);
        let passed: Vec<u64> = all.ends.iter().copied().filter(|seq| *seq <= ends.cursor).collect();
        assert_eq!(ends.events, passed, "a filter leaves out what it should and nothing else");
        // What a kill comes before is not in the log; the rest of three rounds of fifty is.
        assert!(passed.len() > 40, "{passed:?}");
    }

    router.signal("TERM");
    assert!(router.wait(Duration::from_secs(10)).success());
    let audit = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["audit", "--json", "--data"])
        .arg(router.data())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!((&report["broken"], &report["crashes"]), (&Value::Null, &json!(3)), "{report}");
    // Behind what the follower saw: the last router's leaving, and perhaps its joining and its first look.
    let rest = report["tip"].as_u64().unwrap() - all.lock().unwrap().cursor;
    assert!(audit.status.success() && (1..=6).contains(&rest), "{report}");
}

#[tokio::test]
async fn tail_behind_a_real_router_prints_its_events_and_refuses_a_wrong_key() {
    let backend = pretend(Profile::ollama(["m"]));
    let router = Router::before(&[backend.endpoint()], "nomyo-router-api-key: k1\n");
    let tail = |key: &str| {
        let mut command = Command::new("timeout");
        command.args(["5", env!("CARGO_BIN_EXE_pointsman"), "tail", "--after=0", "--url", &router.url("")]);
        command.args(["--api-key", key]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let wrong = tail("k2").output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(1) && said.contains("the API key is wrong"), "{said}");
    let mut printing = tail("k1").spawn().unwrap();
    let out = printing.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        line
    });
    let event: Value = serde_json::from_str(&line.await.unwrap()).unwrap();
    assert_eq!(
        (&event["seq"], &event["prev_seq"], &event["kind"]),
        (&json!(1), &Value::Null, &json!("instance.joined"))
    );
    let _ = printing.kill();
    let _ = printing.wait();
}
