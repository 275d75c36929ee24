//! `pointsman serve`: an instance with its data on disk, which listens to signals: SIGTERM and SIGINT
//! stop it, SIGHUP reads the configuration again.

use std::path::{Path, PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::adapters::sled::SledStore;
use crate::config::Config;
use crate::core::sync::Arc;
use crate::flow::log;
use crate::flow::router::Router;

use super::instance::{Instance, InstanceError};
use super::{CliError, ServeArgs, files};

pub(super) fn run(args: &ServeArgs) -> Result<(), CliError> {
    let (config, warnings) = files::read(&args.config.config)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    runtime()?.block_on(serve(config, args))
}

/// The runtime of a production process.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)
}

async fn serve(config: Config, args: &ServeArgs) -> Result<(), CliError> {
    let signals = Signals::install().map_err(CliError::Signals)?;
    let store = open(args)?;
    log::go_on_behind(&store, store.used_before()).await.map_err(InstanceError::Numbers)?;
    let instance = Instance::start(config, args.listen, Arc::new(store)).await?;
    println!("pointsman listens on http://{}", instance.address());
    let router = Arc::clone(instance.router());
    instance.run(signals.stop(&router, &args.config.config)).await?;
    tracing::info!("stopped; every token count is stored");
    Ok(())
}

/// A folder of its own within the data folder: damaged data is set aside by renaming it.
pub(super) fn store_folder(data: &Path) -> PathBuf {
    data.join("store")
}

fn open(args: &ServeArgs) -> Result<SledStore, InstanceError> {
    let folder = store_folder(&args.data);
    if args.restored {
        SledStore::restored(&folder).map_err(InstanceError::Recover)?;
        tracing::warn!("the data is a backup that was put back: events get numbers that were never used");
    }
    if args.recover
        && let Some(aside) = SledStore::recover(&folder).map_err(InstanceError::Recover)?
    {
        tracing::warn!(aside = %aside.display(), "the data was damaged: set aside, starting empty");
    }
    Ok(SledStore::open(&folder)?)
}

/// The signals an instance listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Completes when the process is told to stop; reloads `path` at each SIGHUP until then. The future
    /// it gives completes when the process is told again.
    async fn stop(mut self, router: &Router, path: &Path) -> impl Future<Output = ()> + use<> {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hangup.recv() => reload(router, path),
            }
        }
        tracing::info!(
            "stopping: no new connections; running answers may end; a second signal cuts them off"
        );
        async move {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        }
    }
}

/// Puts the file in force, or leaves the old configuration in force and says why.
fn reload(router: &Router, path: &Path) {
    match files::read(path) {
        Ok((config, warnings)) => {
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            if config.connect_timeout != router.fleet().config.connect_timeout {
                tracing::warn!("connect_timeout_secs changes at the next start only");
            }
            let in_force = &router.fleet().config;
            if (config.event_log, config.event_ring) != (in_force.event_log, in_force.event_ring) {
                tracing::warn!("event_log and event_ring change at the next start only");
            }
            let endpoints = config.endpoints.len();
            router.reload(config);
            tracing::info!(endpoints, "configuration reloaded");
        }
        Err(error) => tracing::error!("{error}\nthe old configuration stays in force"),
    }
}
