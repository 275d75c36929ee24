//! Two timelines without a router, one of which has the crowd. Half-way it moves to the other.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use pointsman::core::timeline::{Bounds, Limits, Look, Timeline};
use pointsman::wire::event::Event;

use super::{STALLED, nanos};
use crate::made;
use crate::paired::{Pair, Paired, turns};

/// Pushes in a sample: one takes less than the clock can tell.
pub(super) const PUSHES: usize = 100;
/// Events in a sample of those that are seen.
pub(super) const SIGHTS: usize = 10;
/// As much as a subscriber holds; see `flow::follow`.
const STEP: usize = 128;

type Work = fn(&Arc<Timeline<Arc<Event>>>, Vec<Arc<Event>>) -> u32;

/// The times of batches that are pushed, and of batches of which each event is pushed, made durable and read, in so
/// many pairs for each half.
pub(super) fn measure(pairs: usize) -> [Paired; 2] {
    let batch: Vec<_> = (0..PUSHES.max(STEP) as u64).map(|seq| Arc::new(made::event(1, seq))).collect();
    let timelines = [(); 2].map(|()| timeline(&batch));
    [(push as Work, PUSHES), (see, SIGHTS)].map(|(work, events)| {
        let mut paired = Paired::default();
        for half in [0, 1] {
            let crowd = hold(&timelines[half]);
            for _ in 0..pairs {
                let mut pair = Pair::default();
                for stalled in turns() {
                    let which = if stalled == 1 { half } else { 1 - half };
                    pair[stalled].push(work(&timelines[which], batch[..events].to_vec()));
                }
                paired.push(half, pair);
            }
            drop(crowd);
        }
        paired
    })
}

/// One that has these events.
fn timeline(events: &[Arc<Event>]) -> Arc<Timeline<Arc<Event>>> {
    let limits = Limits { ring: 16_384, waiting: 65_536, ring_only: false };
    let timeline = Arc::new(Timeline::new(Bounds { floor: 1, tip: 0 }, limits));
    events.iter().for_each(|event| assert!(timeline.push(Arc::clone(event))));
    settle(&timeline);
    timeline
}

/// Makes durable what waits.
fn settle(timeline: &Arc<Timeline<Arc<Event>>>) {
    timeline.take(usize::MAX, |_| unreachable!("there is room")).expect("they wait").durable();
}

/// What stalled subscribers hold: each has read a step of the log, and never comes again.
fn hold(timeline: &Arc<Timeline<Arc<Event>>>) -> Vec<Look<Arc<Event>>> {
    let behind = timeline.bounds().tip - STEP as u64;
    (0..STALLED).map(|_| timeline.read(behind, STEP)).collect()
}

/// The time of one push after another, in nanoseconds.
fn push(timeline: &Arc<Timeline<Arc<Event>>>, events: Vec<Arc<Event>>) -> u32 {
    let begun = Instant::now();
    for event in events {
        black_box(timeline.push(event));
    }
    let took_ns = nanos(begun);
    settle(timeline);
    took_ns
}

/// The time until each is seen, one after another, in nanoseconds.
fn see(timeline: &Arc<Timeline<Arc<Event>>>, events: Vec<Arc<Event>>) -> u32 {
    let begun = Instant::now();
    for event in events {
        let (after, moved) = (timeline.bounds().tip, timeline.moved());
        timeline.push(event);
        settle(timeline);
        moved.now_or_never().expect("it has moved");
        assert!(matches!(black_box(timeline.read(after, STEP)), Look::Events(_)));
    }
    nanos(begun)
}
