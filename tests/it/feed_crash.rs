//! A crowd of subscribers behind a router that is killed twice: what each was given is the filtered log. The
//! bench runs the long form: `cargo bench --bench feed -- crash`.
#![allow(dead_code, unreachable_pub, clippy::disallowed_types, reason = "shared with a bench")]

use std::time::Duration;

use pointsman::wire::event::Event;
use pointsman::wire::filter::{Filter, Pattern};

use self::crash::{Entry, compare};
use self::subscriber::{Given, hash};

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

#[test]
fn a_comparison_finds_what_is_missing_twice_changed_or_unwanted() {
    let entry = |seq: u64| {
        let model = if seq.is_multiple_of(2) { "even" } else { "odd" };
        let json = format!(r#"{{"time_ms":1,"kind":"request.started","model":"{model}"}}"#);
        Entry { seq, hash: hash(&json.as_bytes()[1..]), event: Event::parse(json.into()).unwrap() }
    };
    let log: Vec<Entry> = (1..=9).map(entry).collect();
    let filter = Filter { models: vec![Pattern::try_from("even".to_owned()).unwrap()], ..Filter::default() };
    let is_right = |numbers: &[u64], begin: u64, cursor: u64| {
        let events = numbers.iter().map(|seq| (*seq, log[*seq as usize - 1].hash)).collect();
        let given = Given { begin: Some(begin), events, ..Given::default() };
        compare(&log, &filter, &given, cursor).is_none()
    };
    assert!(is_right(&[4, 6, 8], 2, 9));
    let wrong: [(&[u64], u64, u64); 6] = [
        (&[4, 8], 2, 9),
        (&[4, 6, 6, 8], 2, 9),
        (&[4, 6], 2, 9),
        (&[4, 5, 6, 8], 2, 9),
        (&[6, 4, 8], 2, 9),
        (&[4, 6, 8], 2, 8),
    ];
    for (numbers, begin, cursor) in wrong {
        assert!(!is_right(numbers, begin, cursor), "{numbers:?}");
    }
    let changed = Given { begin: Some(7), events: vec![(8, 1)], ..Given::default() };
    assert!(compare(&log, &filter, &changed, 9).is_some());
}
