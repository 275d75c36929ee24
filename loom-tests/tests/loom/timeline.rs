//! The event log's tail: nothing visible before it is durable, nothing missed or seen twice where a reader
//! changes from the store to the ring, nobody asleep before an event.

use loom::future::block_on;
use loom::sync::{Arc as Shared, Mutex};
use loom::thread;
use loom_tests::explore::Model;

use super::common::require;
use super::core::sync::Arc;
use super::core::timeline::{Bounds, Limits, Look, Timeline};

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "timeline::hand_over",
        bound: None,
        claim: "a reader who comes from the store meets the ring without a hole or a duplicate, while it grows and evicts",
        run: hand_over,
    },
    Model {
        name: "timeline::look_and_sleep",
        bound: None,
        claim: "who has read all there is and sleeps is woken by whatever becomes visible at any moment",
        run: look_and_sleep,
    },
    Model {
        name: "timeline::push_and_sleep",
        bound: None,
        claim: "whatever is handed in while the appender works or falls asleep is appended",
        run: push_and_sleep,
    },
    Model {
        name: "timeline::retention",
        bound: None,
        claim: "a reader whose next event is given up is told so; until then it reads it",
        run: retention,
    },
    Model {
        name: "timeline::eviction",
        bound: None,
        claim: "what is not in the ring any more is in the store",
        run: eviction,
    },
    Model {
        name: "timeline::failed_append",
        bound: None,
        claim: "an append that failed comes again under its numbers, whoever takes it, and nobody has seen it",
        run: failed_append,
    },
];

const NO_LOSS: fn(u64) -> u64 = |_| unreachable!("there is room for all");

/// What the disk holds: the event with number n is at n - 1, and events before the floor are gone.
#[derive(Clone)]
struct Disk {
    log: Shared<Mutex<(u64, Vec<u64>)>>,
}

impl Disk {
    fn holding(events: &[u64]) -> Disk {
        Disk { log: Shared::new(Mutex::new((1, events.to_vec()))) }
    }

    /// Appends as `flow::log` does: all or nothing, at the tip.
    fn append(&self, first: u64, events: &[u64]) {
        let mut log = self.log.lock().unwrap();
        let at = log.1.len() as u64 + 1;
        require(first == at, "feed-durable", &format!("number {first} is written where {at} comes next"));
        log.1.extend_from_slice(events);
    }

    fn trim(&self, floor: u64) {
        self.log.lock().unwrap().0 = floor;
    }

    /// The events `after + 1 .. before`, or the floor if one of them is gone.
    fn read(&self, after: u64, before: u64) -> Result<Vec<u64>, u64> {
        let log = self.log.lock().unwrap();
        if after + 1 < log.0 {
            return Err(log.0);
        }
        Ok(log.1.get(after as usize..before as usize - 1).map(<[u64]>::to_vec).unwrap_or_default())
    }
}

fn timeline(tip: u64, ring: usize) -> Arc<Timeline<u64>> {
    Arc::new(Timeline::new(Bounds { floor: 1, tip }, Limits { ring, waiting: 8, ring_only: false }))
}

/// Makes all that waits durable.
fn append(timeline: &Arc<Timeline<u64>>, disk: &Disk) {
    while let Some(append) = timeline.take(1, NO_LOSS) {
        disk.append(append.first(), append.events());
        append.durable();
    }
}

/// Reads on from `cursor` as `flow::follow` does, without waiting. Event n is the number n.
fn read(timeline: &Timeline<u64>, disk: &Disk, cursor: &mut u64) -> Result<bool, u64> {
    let events = match timeline.read(*cursor, 9) {
        Look::Events(events) => events,
        Look::Cold { ring } => disk.read(*cursor, ring)?,
        Look::AtTip => return Ok(false),
        Look::Trimmed { floor } => return Err(floor),
        Look::Ahead { tip } => panic!("feed-exact is broken: the cursor is at {cursor}, the tip at {tip}"),
    };
    require(!events.is_empty(), "feed-exact", &format!("nothing is found behind {cursor}"));
    for event in events {
        require(event == *cursor + 1, "feed-exact", &format!("behind {cursor} comes {event}"));
        *cursor = event;
    }
    Ok(true)
}

fn hand_over() {
    // Two events in the store, then two more through a ring that holds one.
    let (timeline, disk) = (timeline(2, 1), Disk::holding(&[1, 2]));
    let writer = thread::spawn({
        let (timeline, disk) = (timeline.clone(), disk.clone());
        move || {
            timeline.push(3);
            append(&timeline, &disk);
            timeline.push(4);
            append(&timeline, &disk);
        }
    });
    let mut cursor = 0;
    while read(&timeline, &disk, &mut cursor).expect("nothing is trimmed") {}
    writer.join().unwrap();
    while read(&timeline, &disk, &mut cursor).expect("nothing is trimmed") {}
    require(cursor == 4, "feed-progress", &format!("the tip is 4, the reader ends at {cursor}"));
}

fn look_and_sleep() {
    let (timeline, disk) = (timeline(0, 4), Disk::holding(&[]));
    let writer = thread::spawn({
        let (timeline, disk) = (timeline.clone(), disk.clone());
        move || {
            timeline.push(1);
            append(&timeline, &disk);
        }
    });
    let mut cursor = 0;
    loop {
        let moved = timeline.moved();
        if read(&timeline, &disk, &mut cursor).expect("nothing is trimmed") {
            break;
        }
        block_on(moved);
    }
    writer.join().unwrap();
}

fn push_and_sleep() {
    let (timeline, disk) = (timeline(0, 4), Disk::holding(&[]));
    let pushes = thread::spawn({
        let timeline = timeline.clone();
        move || [7, 8].map(|event| timeline.push(event))
    });
    while timeline.bounds().tip < 2 {
        let pushed = timeline.pushed();
        match timeline.take(8, NO_LOSS) {
            Some(append) => {
                disk.append(append.first(), append.events());
                append.durable();
            }
            None => block_on(pushed),
        }
    }
    pushes.join().unwrap();
    let held = disk.read(0, 3).expect("nothing is trimmed");
    require(held == [7, 8], "feed-durable", &format!("the store holds {held:?}"));
}

fn retention() {
    let (timeline, disk) = (timeline(2, 1), Disk::holding(&[1, 2]));
    timeline.push(3);
    append(&timeline, &disk);
    let keeper = thread::spawn({
        let (timeline, disk) = (timeline.clone(), disk.clone());
        move || {
            timeline.trim(3);
            disk.trim(3);
        }
    });
    let mut cursor = 1;
    match read(&timeline, &disk, &mut cursor) {
        Ok(_) => require(cursor == 2, "feed-exact", &format!("the reader stands at {cursor}")),
        Err(floor) => require(floor == 3, "feed-explicit", &format!("told {floor} is the floor")),
    }
    keeper.join().unwrap();
}

fn eviction() {
    // A ring of one: whenever the second comes, the first must be in the store already.
    let (timeline, disk) = (timeline(0, 1), Disk::holding(&[]));
    timeline.push(1);
    timeline.push(2);
    let writer = thread::spawn({
        let (timeline, disk) = (timeline.clone(), disk.clone());
        move || append(&timeline, &disk)
    });
    let mut cursor = 0;
    while read(&timeline, &disk, &mut cursor).expect("nothing is trimmed") {
        let held = disk.log.lock().unwrap().1.len() as u64;
        require(cursor <= held, "feed-durable", &format!("{cursor} is seen, {held} are durable"));
    }
    writer.join().unwrap();
}

fn failed_append() {
    let (timeline, disk) = (timeline(0, 4), Disk::holding(&[]));
    timeline.push(1);
    let first = timeline.take(8, NO_LOSS).expect("one waits");
    // Two appenders: the one that fails, and the last one before the stop.
    let fails = thread::spawn({
        let timeline = timeline.clone();
        move || {
            timeline.push(2);
            drop(first);
        }
    });
    append(&timeline, &disk);
    let mut cursor = 0;
    while read(&timeline, &disk, &mut cursor).expect("nothing is trimmed") {}
    let held = disk.log.lock().unwrap().1.len() as u64;
    require(cursor == held, "feed-durable", &format!("{cursor} are seen, {held} are durable"));
    fails.join().unwrap();
    append(&timeline, &disk);
    let held = disk.read(0, 3).expect("nothing is trimmed");
    require(held == [1, 2], "feed-durable", &format!("the store holds {held:?}"));
}
