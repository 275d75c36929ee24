//! A crowd of subscribers behind a router that is killed twice: what each was given is the filtered log. The
//! bench runs the long form: `cargo bench --bench feed -- crash`.
#![allow(dead_code, unreachable_pub, clippy::disallowed_types, reason = "shared with a bench")]

use std::time::Duration;

#[path = "../../benches/feed/crash.rs"]
mod crash;
#[path = "../../benches/feed/load.rs"]
mod load;
#[path = "../../benches/feed/process.rs"]
mod process;
#[path = "../../benches/feed/subscriber.rs"]
mod subscriber;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_given_its_filtered_log_exactly_though_the_router_is_killed_twice() {
    let plan = crash::Plan {
        seed: u64::from(std::process::id()),
        subscribers: 30,
        models: 12,
        events_per_s: 600.0,
        connections: 16,
        length: Duration::from_secs(4),
        kills: 2,
    };
    let folder = tempfile::tempdir().unwrap();
    let outcome = crash::run(&plan, folder.path()).await.unwrap();
    println!("{plan:?}\n{outcome:?}");
    assert_eq!(outcome.mismatches, [""; 0], "{plan:?}");
    assert!(outcome.events > 500 && outcome.frames > 500 && outcome.caught_up.len() == 2, "{outcome:?}");
    assert!(outcome.connections > 60, "every subscriber came again after each kill: {outcome:?}");
}
