//! One router from its first request to its last stored token, and the order in which that ends. Called
//! by the command line and, word for word the same, by the simulator's instances.

use core::future::Future;
use core::pin::pin;
use core::time::Duration;

use futures_util::future::{Either, join, select};

use crate::ports::StoreError;

use super::router::Router;

impl Router {
    /// Looks at every endpoint and stores token counts for as long as `serving` runs, which must not
    /// complete before the last answer has ended or was cut off. Then stores what is left, trying for at
    /// most `patience`.
    pub async fn live<T>(
        &self,
        serving: impl Future<Output = T>,
        patience: Duration,
    ) -> (T, Result<(), StoreError>) {
        let served = {
            let background = join(self.warm_up(), self.keep_flushing());
            match select(pin!(serving), pin!(background)).await {
                Either::Left((served, _)) => served,
                Either::Right((((), never), _)) => match never {},
            }
        };
        // A flush that was under way has been put back by now, so the last one takes all there is.
        (served, self.flush_all(patience).await)
    }
}
