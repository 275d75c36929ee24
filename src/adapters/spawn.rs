//! Tasks on tokio.

use tokio::runtime::Handle;

use crate::ports::{BoxFuture, Spawn, Task};

/// Starts tasks on one tokio runtime.
#[derive(Clone, Debug)]
pub struct TokioSpawn {
    runtime: Handle,
}

impl TokioSpawn {
    /// On the runtime of the caller.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn current() -> Self {
        TokioSpawn { runtime: Handle::current() }
    }
}

impl Spawn for TokioSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        let handle = self.runtime.spawn(task).abort_handle();
        Task::new(move || handle.abort())
    }
}
