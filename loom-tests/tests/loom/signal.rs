//! The wake-up primitive: nobody sleeps through a notification, nobody who leaves takes one along.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use loom_tests::explore::Model;

use super::core::signal::{Listener, Signal};

pub(crate) const ALL: &[Model] = &[
    Model {
        name: "signal::listen_look_sleep",
        bound: None,
        claim: "who listens, looks and then sleeps is woken by a change that comes at any moment",
        run: listen_look_sleep,
    },
    Model {
        name: "signal::one_leaves_one_stays",
        bound: None,
        claim: "a listener that leaves while everybody is being woken takes nobody's wake-up along",
        run: one_leaves_one_stays,
    },
    Model {
        name: "signal::waker_calls_back",
        bound: None,
        claim: "a waker may use the signal that wakes it, while another thread does too",
        run: waker_calls_back,
    },
];

fn poll(listener: &mut Listener, waker: &Waker) -> bool {
    Pin::new(listener).poll(&mut Context::from_waker(waker)).is_ready()
}

fn listen_look_sleep() {
    let signal = Signal::new();
    let changed = Arc::new(AtomicBool::new(false));
    let changer = thread::spawn({
        let (signal, changed) = (signal.clone(), Arc::clone(&changed));
        move || {
            changed.store(true, Ordering::Release);
            signal.notify();
        }
    });
    loop {
        let listener = signal.listen();
        if changed.load(Ordering::Acquire) {
            break;
        }
        block_on(listener);
    }
    changer.join().unwrap();
}

fn one_leaves_one_stays() {
    let signal = Signal::new();
    let mut leaving = signal.listen();
    let staying = signal.listen();
    // The one that leaves sleeps first, so its name stands first in the list of those to be woken.
    assert!(!poll(&mut leaving, Waker::noop()));
    let stays = thread::spawn(move || block_on(staying));
    let leaves = thread::spawn(move || drop(leaving));
    signal.notify();
    leaves.join().unwrap();
    stays.join().unwrap();
}

/// A waker that listens to its own signal, as an executor that polls at once would.
struct ListensAgain(Signal);

impl Wake for ListensAgain {
    fn wake(self: Arc<Self>) {
        drop(self.0.listen());
    }
}

fn waker_calls_back() {
    let signal = Signal::new();
    let mut listener = signal.listen();
    let others = signal.listen();
    assert!(!poll(&mut listener, &Waker::from(Arc::new(ListensAgain(signal.clone())))));
    let other = thread::spawn(move || block_on(others));
    signal.notify();
    other.join().unwrap();
}
