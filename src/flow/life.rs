//! One router from its first request to its last stored token and event, and the order in which that
//! ends. Called by the command line and, word for word the same, by the simulator's instances.

use core::convert::Infallible;
use core::future::Future;
use core::pin::pin;
use core::time::Duration;

use std::collections::BTreeSet;

use futures_util::future::{Either, join, join3, select};

use crate::core::breaker::Health;
use crate::core::names::EndpointName;
use crate::ports::StoreError;
use crate::wire::event::{Fields, Kind};

use super::router::Router;

impl Router {
    /// Looks at every endpoint, and stores token counts and events, for as long as `serving` runs, which
    /// must not complete before the last answer has ended or was cut off. Then stores what is left, trying
    /// for at most `patience` each.
    pub async fn live<T>(
        &self,
        serving: impl Future<Output = T>,
        patience: Duration,
    ) -> (T, Result<(), StoreError>) {
        let served = {
            let background = join(join(self.warm_up(), self.keep_flushing()), self.log_for_ever());
            match select(pin!(serving), pin!(background)).await {
                Either::Left((served, _)) => served,
                Either::Right(((((), never), _), _)) => match never {},
            }
        };
        // What was under way has been put back by now, so the last flush and append take all there is.
        let flushed = self.flush_all(patience).await;
        self.close_log(flushed.as_ref().err());
        (served, flushed.and(self.append_all(patience).await))
    }

    async fn log_for_ever(&self) {
        if self.log.is_on() {
            join3(self.keep_log(), self.keep_log_short(), self.tell_health()).await;
        }
    }

    /// Logs whenever an endpoint's breaker opens or closes, for ever.
    async fn tell_health(&self) -> Infallible {
        let mut down = BTreeSet::<EndpointName>::new();
        loop {
            let turned = self.usage.slots().turned();
            for endpoint in self.usage.snapshot().slots.endpoints {
                let (is_up, name) = (endpoint.health == Health::Closed, endpoint.name);
                let fields = Fields { endpoint: Some(name.as_str().into()), ..Fields::default() };
                match is_up {
                    true if down.remove(&name) => self.note(Kind::EndpointUp, fields),
                    false if down.insert(name.clone()) => self.note(Kind::EndpointDown, fields),
                    _ => {}
                }
            }
            turned.await;
        }
    }
}
