//! The one wake-up primitive: whoever waits for a change of state waits here.
//!
//! The rule that makes a lost wake-up impossible: *listen first, then look, then sleep*. A
//! [`Listener`] remembers the epoch at which it was made; a [`Signal::notify`] after that moment
//! completes it, however early it came. Called by catalog, slots and usage.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use super::sync::{Arc, Lock, Rank};

/// Something that changes and has people waiting for it. Clones are handles to the same signal.
#[derive(Clone, Debug)]
pub struct Signal {
    waiting: Arc<Lock<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// How many notifications there have been.
    epoch: u64,
    /// Names the next listener that has to sleep.
    next: u64,
    /// Who sleeps, by name.
    asleep: Vec<(u64, Waker)>,
}

impl Default for Signal {
    fn default() -> Self {
        Signal { waiting: Arc::new(Lock::new(Rank::Signal, Waiting::default())) }
    }
}

impl Signal {
    /// A signal nobody waits for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Completes every listener made before this call. Wakers run outside the lock.
    pub fn notify(&self) {
        let asleep = {
            let mut waiting = self.waiting.lock();
            waiting.epoch += 1;
            core::mem::take(&mut waiting.asleep)
        };
        for (_, waker) in asleep {
            waker.wake();
        }
    }

    /// A future for the next notification. Make it *before* looking at the state it announces.
    pub fn listen(&self) -> Listener {
        let epoch = self.waiting.lock().epoch;
        Listener { signal: self.clone(), epoch, asleep: None }
    }
}

/// Completes once the signal has been notified after this listener was made.
#[derive(Debug)]
#[must_use = "a listener waits only when it is awaited"]
pub struct Listener {
    signal: Signal,
    epoch: u64,
    asleep: Option<u64>,
}

impl Future for Listener {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut waiting = this.signal.waiting.lock();
        if waiting.epoch != this.epoch {
            this.asleep = None;
            return Poll::Ready(());
        }
        match this.asleep {
            Some(name) => {
                if let Some((_, waker)) = waiting.asleep.iter_mut().find(|(asleep, _)| *asleep == name) {
                    waker.clone_from(cx.waker());
                }
            }
            None => {
                let name = waiting.next;
                waiting.next += 1;
                waiting.asleep.push((name, cx.waker().clone()));
                this.asleep = Some(name);
            }
        }
        Poll::Pending
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(name) = self.asleep {
            self.signal.waiting.lock().asleep.retain(|(asleep, _)| *asleep != name);
        }
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;

    fn poll(listener: &mut Listener) -> Poll<()> {
        Pin::new(listener).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_notification_between_listening_and_sleeping_is_not_lost() {
        let signal = Signal::new();
        let mut listener = signal.listen();
        signal.notify();
        assert_eq!(poll(&mut listener), Poll::Ready(()));
    }

    #[test]
    fn a_notification_before_listening_completes_nobody() {
        let signal = Signal::new();
        signal.notify();
        assert_eq!(poll(&mut signal.listen()), Poll::Pending);
    }

    #[test]
    fn one_notification_completes_every_listener() {
        let signal = Signal::new();
        let (mut a, mut b) = (signal.listen(), signal.listen());
        assert_eq!((poll(&mut a), poll(&mut b)), (Poll::Pending, Poll::Pending));
        signal.notify();
        assert_eq!((poll(&mut a), poll(&mut b)), (Poll::Ready(()), Poll::Ready(())));
    }

    #[test]
    fn a_listener_that_leaves_leaves_no_waker_behind() {
        let signal = Signal::new();
        let mut listener = signal.listen();
        assert_eq!(poll(&mut listener), Poll::Pending);
        drop(listener);
        assert!(signal.waiting.lock().asleep.is_empty());
    }
}
