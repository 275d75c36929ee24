//! The `Store` port: an instance's disk, with the time it takes and the ways it fails.

use std::sync::Arc;

use bytes::Bytes;

use pointsman::ports::{Bounds, BoxFuture, Revision, Seq, Store, StoreError, Versioned};

use crate::disk::Disk;
use crate::faults::Fault;
use crate::operator;
use crate::oracle;
use crate::script::Dice;
use crate::sometimes::Point;
use crate::trace::Actor;
use crate::world::World;

/// The disk of one instance, as one of its lives has it open.
pub(crate) struct SimStore {
    pub(crate) world: Arc<World>,
    pub(crate) instance: usize,
}

/// What an operation meets.
struct Weather {
    before_ns: u64,
    sync_ns: u64,
    fails: bool,
    ambiguous: bool,
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("input/output error".to_owned())
}

impl SimStore {
    /// Draws how the next operation goes.
    fn weather(&self) -> Weather {
        let world = &self.world;
        let mut state = world.state.lock();
        state.store_operations[self.instance] += 1;
        let key = [self.instance as u64, state.store_operations[self.instance], 0, 3];
        let switches = (!state.calm).then_some(&world.plan.faults);
        drop(state);
        let dice = Dice { seed: world.seed, key, switches };
        let mut pace = dice.stream("pace");
        let mut before_ns = pace.within(0, 400_000);
        let mut sync_ns = pace.within(0, 3_000_000);
        if dice.strikes(Fault::StoreSlow) {
            self.struck(Fault::StoreSlow);
            before_ns += pace.within(0, 1_500_000_000);
            sync_ns += pace.within(0, 1_500_000_000);
        }
        let fails = dice.strikes(Fault::StoreFails);
        Weather { before_ns, sync_ns, fails, ambiguous: dice.strikes(Fault::StoreAmbiguous) }
    }

    fn struck(&self, fault: Fault) {
        let now = self.world.now();
        self.world.state.lock().struck(now, Actor::Store(self.instance), fault);
    }

    async fn read_with<T>(&self, read: impl FnOnce(&Disk) -> T + Send) -> Result<T, StoreError> {
        let weather = self.weather();
        self.world.handle.sleep_until(self.world.now() + weather.before_ns).await;
        if weather.fails {
            self.struck(Fault::StoreFails);
            return Err(unavailable());
        }
        // What a reader has seen is durable, else it would take for stored what a crash undoes.
        let mut state = self.world.state.lock();
        let disk = &mut state.instances[self.instance].disk;
        disk.sync();
        Ok(read(disk))
    }

    /// Writes. The second value tells that it was done, though this may be answered with an error.
    async fn write_with<T>(
        &self,
        write: impl FnOnce(&mut Disk) -> Result<T, StoreError> + Send,
    ) -> (Result<T, StoreError>, bool) {
        let world = &self.world;
        let weather = self.weather();
        world.handle.sleep_until(world.now() + weather.before_ns).await;
        let written = {
            let now = world.now();
            let mut state = world.state.lock();
            let instance = &mut state.instances[self.instance];
            let full = now < instance.disk_full_until;
            if weather.fails || full {
                instance.flush_failed = true;
                let fault = if full { Fault::DiskFull } else { Fault::StoreFails };
                state.struck(now, Actor::Store(self.instance), fault);
                return (Err(unavailable()), false);
            }
            match write(&mut instance.disk) {
                Ok(written) => written,
                Err(refused) => return (Err(refused), false),
            }
        };
        operator::crash_if_due(world, self.instance);
        world.handle.sleep_until(world.now() + weather.sync_ns).await;
        let now = world.now();
        let mut state = world.state.lock();
        let instance = &mut state.instances[self.instance];
        if weather.ambiguous {
            // It was written, the answer was not given; the next sync makes it durable, a crash may undo it.
            instance.flush_failed = true;
            state.struck(now, Actor::Store(self.instance), Fault::StoreAmbiguous);
            return (Err(unavailable()), true);
        }
        instance.disk.sync();
        state.trace.note(now, Actor::Store(self.instance), "has stored a write", 0, 0);
        (Ok(written), true)
    }
}

impl Store for SimStore {
    fn append(&self, at: Seq, records: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (appended, _) = self.write_with(move |disk| disk.append(at, records)).await;
            match appended {
                Ok(()) => self.world.reached(Point::Logged),
                Err(StoreError::Conflict) => self.world.reached(Point::LoggedAfterAll),
                Err(_) => {}
            }
            appended
        })
    }

    fn read(&self, from: Seq, max: usize) -> BoxFuture<'_, Result<Vec<Bytes>, StoreError>> {
        Box::pin(async move { self.read_with(|disk| disk.read(from, max)).await? })
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, StoreError>> {
        Box::pin(self.read_with(Disk::bounds))
    }

    fn trim(&self, floor: Seq) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let now = self.world.now();
            // What is about to be forgotten must be known first.
            oracle::feed::learn(&mut self.world.state.lock(), now, self.instance);
            let mut taken = false;
            let trim = |disk: &mut Disk| {
                let before = disk.bounds().floor;
                disk.trim(floor);
                taken = disk.bounds().floor > before;
                Ok(())
            };
            let (trimmed, _) = self.write_with(trim).await;
            if taken {
                let mut state = self.world.state.lock();
                state.instances[self.instance].trims += 1;
                state.reached(Point::LogTrimmed);
            }
            trimmed
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            let found = self.read_with(|disk| disk.get(key)).await?;
            let mut state = self.world.state.lock();
            if state.instances[self.instance].unsure.remove(key) {
                state.reached(Point::FlushCountedOnce);
            }
            Ok(found)
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, StoreError>> {
        Box::pin(async move {
            let (put, done) = self.write_with(move |disk| disk.put(key, expected, value)).await;
            if done && put.is_err() {
                self.world.state.lock().instances[self.instance].unsure.insert(key.to_owned());
            }
            put
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.write_with(move |disk| disk.delete(key, expected)).await.0 })
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Versioned)>, StoreError>> {
        Box::pin(self.read_with(move |disk| disk.scan(prefix, after, max)))
    }
}
