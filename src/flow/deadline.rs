//! Waiting for something, but not for ever: one place where a future meets a deadline.

use core::future::Future;
use core::pin::pin;
use core::time::Duration;

use futures_util::future::{Either, select};

use crate::core::time::Instant;
use crate::ports::Clock;

/// The deadline passed first.
#[derive(Debug)]
pub(super) struct Elapsed;

/// `future`, unless `deadline` comes first. Dropped futures are cancelled.
pub(super) async fn until<T>(
    clock: &dyn Clock,
    deadline: Instant,
    future: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    match select(pin!(future), clock.sleep_until(deadline)).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(((), _)) => Err(Elapsed),
    }
}

/// `future`, unless it takes longer than `limit`.
pub(super) async fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    until(clock, clock.now() + limit, future).await
}
