//! The ports `Clock`, `Entropy` and `Spawn` of one life of one instance.

use std::sync::Arc;

use pointsman::core::time::{Instant, Timestamp};
use pointsman::ports::{BoxFuture, Clock, Entropy, Spawn, Task};

use crate::executor::Domain;
use crate::shared::Shared;
use crate::streams::Stream;
use crate::world::World;

/// Virtual time as an instance reads it: a monotonic clock with an origin of its own, and a wall
/// clock that is off and may jump.
pub(crate) struct SimClock {
    pub(crate) world: Arc<World>,
    pub(crate) instance: usize,
    pub(crate) origin: u64,
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin + self.world.now())
    }

    fn wall(&self) -> Timestamp {
        self.world.state.lock().wall(self.instance, self.world.now())
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        Box::pin(self.world.handle.sleep_until(deadline.as_nanos().saturating_sub(self.origin)))
    }
}

/// One named stream.
pub(crate) struct SimEntropy {
    pub(crate) chance: Shared<Stream>,
    /// See [`World::noise`].
    pub(crate) noise: u64,
}

impl Entropy for SimEntropy {
    fn next_u64(&self) -> u64 {
        self.chance.lock().next_u64() ^ self.noise
    }
}

/// Starts tasks that die with the instance's life.
pub(crate) struct SimSpawn {
    pub(crate) world: Arc<World>,
    pub(crate) domain: Domain,
}

impl Spawn for SimSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        self.world.handle.spawn_task(self.domain, task)
    }
}
