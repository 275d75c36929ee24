//! One running instance: the adapters, the router over them, the server before it.

use std::io;
use std::net::SocketAddr;

use core::future::Future;
use core::time::Duration;

use tokio::net::TcpListener;

use crate::adapters::clock::SystemClock;
use crate::adapters::entropy::SeededEntropy;
use crate::adapters::spawn::TokioSpawn;
use crate::adapters::upstream::{HttpUpstream, SetupError};
use crate::config::Config;
use crate::core::sync::Arc;
use crate::flow::router::{Ports, Router, StartError};
use crate::http::App;
use crate::http::server::{self, Limits, Stopped};
use crate::ports::{Store, StoreError};

use super::open_files;

/// How long the last flush may take once every answer has ended.
const LAST_FLUSH: Duration = Duration::from_secs(10);

/// Why an instance could not start, or could not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceError {
    #[error("cannot listen on {address}: {error} (choose another address with --listen)")]
    Listen { address: SocketAddr, error: io::Error },
    #[error(transparent)]
    Upstream(#[from] SetupError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] crate::adapters::sled::OpenError),
    #[error("the data could not be set aside, or its numbers be skipped: {0}")]
    Recover(io::Error),
    #[error("the event log's numbers cannot be read or written: {0}")]
    Numbers(StoreError),
    #[error("token counts of the last seconds could not be stored: {0}")]
    LastFlush(StoreError),
}

/// A router and its server, listening.
pub(super) struct Instance {
    router: Arc<Router>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Instance {
    /// Starts listening on `address` with `config` and `store`. Does not accept yet.
    pub(super) async fn start(
        config: Config,
        address: SocketAddr,
        store: Arc<dyn Store>,
    ) -> Result<Instance, InstanceError> {
        open_files::raise(&config);
        let listen = |error| InstanceError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let ports = Ports {
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SeededEntropy::from_system()),
            spawn: Arc::new(TokioSpawn::current()),
            upstream: Arc::new(HttpUpstream::new(config.connect_timeout)?),
            store,
        };
        let router = Router::start(config, ports).await?;
        Ok(Instance { router, listener, address })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The router, for reloads.
    pub(super) fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Serves until `stop` completes; then stops accepting, lets running answers end within the grace
    /// time (or until the future that `stop` gave completes), and only after the last of them stores
    /// the token counts.
    pub(super) async fn run<Hurry: Future<Output = ()>>(
        self,
        stop: impl Future<Output = Hurry>,
    ) -> Result<(), InstanceError> {
        let router = self.router;
        let limits = || {
            let config = &router.fleet().config;
            Limits {
                header_timeout: config.header_timeout,
                stall_timeout: config.idle_timeout,
                grace: config.drain_grace,
            }
        };
        let serving = server::serve(self.listener, App::new(Arc::clone(&router)), limits, stop);
        let (stopped, stored) = router.live(serving, LAST_FLUSH).await;
        if stopped == Stopped::CutOff {
            tracing::warn!("answers were still running when the grace time ended; they were cut off");
        }
        stored.map_err(InstanceError::LastFlush)
    }
}
