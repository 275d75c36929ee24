//! One router from its first request to its last stored token and event, and the order in which that
//! ends. Called by the command line and, word for word the same, by the simulator's instances.

use core::convert::Infallible;
use core::future::Future;
use core::pin::pin;
use core::time::Duration;

use std::collections::BTreeSet;

use futures_util::future::{Either, join, join3, select};

use crate::core::names::EndpointName;
use crate::ports::StoreError;
use crate::wire::event::{Fields, Kind};

use super::router::Router;

/// How often endpoints are looked at though nobody asks, while events are logged.
const LOOK: Duration = Duration::from_secs(30);

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

    /// Logs whenever an endpoint goes down or is up again, for ever. Breakers and answers say so at once; that no
    /// byte moves, and what changes at an endpoint that nobody asks, is seen at the next look.
    async fn tell_health(&self) -> Infallible {
        let mut down = BTreeSet::<EndpointName>::new();
        let mut next = self.ports.clock.now() + LOOK;
        loop {
            let turned = select(self.usage.slots().turned(), self.answered.listen());
            // Who was down when it left the configuration is so when it comes back: nothing to tell.
            for (name, is_up) in self.ups() {
                let kind = match is_up {
                    true if down.remove(&name) => Kind::EndpointUp,
                    false if down.insert(name.clone()) => Kind::EndpointDown,
                    _ => continue,
                };
                self.note(kind, Fields { endpoint: Some(name.as_str().into()), ..Fields::default() });
            }
            let pause = self.fleet().config.wedged_after.max(Duration::from_millis(100));
            select(turned, self.ports.clock.sleep_until(next.min(self.ports.clock.now() + pause))).await;
            let now = self.ports.clock.now();
            if now >= next {
                self.look_around();
                next = now + LOOK;
            }
        }
    }
}
