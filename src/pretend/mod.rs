//! Pretend LLM backends, in process and on loopback: for `pointsman demo`, the integration tests and anyone
//! who wants to see what the router does when a backend fails.
//!
//! A backend speaks as its family does, answers in words that depend on the prompt alone, counts what it
//! saw ([`Stats`]), goes wrong on request ([`Fault`]), and can be stopped and brought back on the same port.
//! It keeps none of the router's promises; it is what they are checked against.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a pretend backend is outside the router: it stands on tokio and the system's clock"
)]

mod account;
mod answer;
mod ask;
mod fault;
mod ollama;
mod openai;
mod profile;
mod reply;
mod request;
mod routes;
mod serve;
mod stamp;
mod stats;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};

pub use self::fault::Fault;
pub use self::profile::{Kind, Model, Profile};
pub use self::request::Request;
pub use self::stats::{ModelStats, Stats};

use self::fault::Faults;
use self::stats::Tally;

/// How many connections may wait to be accepted; a load test opens its thousands at once.
const BACKLOG: u32 = 4096;

/// A pretend backend. Dropping it stops it.
pub struct Pretend {
    backend: Arc<Backend>,
    addr: SocketAddr,
    /// Taken and put back by `stop` and `restart`; never held across an await.
    state: Mutex<State>,
}

/// Whether the port is served, or only kept.
enum State {
    Serving(Serving),
    /// Stopped. The socket is bound and does not listen: clients are refused, and nobody else gets the port.
    Stopped(TcpSocket),
    /// Between two states, or a restart failed.
    Nowhere,
}

/// A running accept loop. Dropping `stop` ends it, and its connections with it.
struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Pretend {
    /// Starts a backend on the current tokio runtime, listening on `addr` (port 0 takes a free one).
    /// Does not block.
    ///
    /// # Errors
    /// `InvalidInput` if `addr` is not on loopback; else what the system says about the port.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(profile: Profile, addr: SocketAddr) -> io::Result<Pretend> {
        if !addr.ip().is_loopback() {
            let message = format!("a pretend backend listens on loopback only, not on {addr}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let backend = Arc::new(Backend::new(profile));
        let listener = reserve(addr)?.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        let state = Mutex::new(State::Serving(Serving::begin(Arc::clone(&backend), listener)));
        Ok(Pretend { backend, addr, state })
    }

    /// Where it listens, whether it is running or stopped.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its root, like `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What to write for it in the router's configuration: the root for Ollama, the root and `/v1` for others.
    pub fn endpoint(&self) -> String {
        match self.backend.profile.kind {
            Kind::Ollama => self.url(),
            Kind::OpenAi | Kind::LlamaServer => format!("{}/v1", self.url()),
        }
    }

    /// What it was started with.
    pub fn profile(&self) -> &Profile {
        &self.backend.profile
    }

    /// What it has seen so far, as one consistent look.
    pub fn stats(&self) -> Stats {
        self.backend.tally.stats()
    }

    /// The last request it read, of any kind: to look at headers and bodies that reached the backend.
    pub fn last_request(&self) -> Option<Arc<Request>> {
        self.backend.last().0.clone()
    }

    /// The last request to a model it read.
    pub fn last_ask(&self) -> Option<Arc<Request>> {
        self.backend.last().1.clone()
    }

    /// Puts `fault` in force for requests that come in from now on, in place of every earlier one;
    /// `Fault::None` heals the backend.
    pub fn set_fault(&self, fault: Fault) {
        self.backend.faults().set(fault, None);
    }

    /// Like [`set_fault`](Self::set_fault), for the next `requests` requests to models only.
    pub fn set_fault_for(&self, fault: Fault, requests: u32) {
        self.backend.faults().set(fault, Some(requests));
    }

    /// Puts `fault` in force for the listings (`/api/tags`, `/api/ps`, `/v1/models`), whatever is in force
    /// for requests to models.
    pub fn set_listing_fault(&self, fault: Fault) {
        self.backend.faults().set_listing(fault);
    }

    /// Loads a model or sends it away; does nothing for a name that is not in the profile.
    pub fn set_loaded(&self, model: &str, loaded: bool) {
        if let Some(index) = self.backend.profile.find(model) {
            self.backend.set_loaded(index, loaded);
        }
    }

    /// Closes the listener and every live connection, and returns when they are closed: new connections are
    /// refused, and the port stays this backend's. Does nothing if it is stopped already.
    ///
    /// # Errors
    /// What the system says about keeping the port.
    pub async fn stop(&self) -> io::Result<()> {
        let serving = match self.take() {
            State::Serving(serving) => serving,
            other => {
                self.put(other);
                return Ok(());
            }
        };
        serving.end().await;
        let socket = reserve(self.addr)?;
        self.put(State::Stopped(socket));
        Ok(())
    }

    /// Listens again on the same port, with the models in memory that the profile says. Counts go on, and so
    /// does the fault in force. Does nothing if it is running. Does not block.
    ///
    /// # Errors
    /// What the system says about the port.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn restart(&self) -> io::Result<()> {
        let socket = match self.take() {
            State::Stopped(socket) => socket,
            State::Nowhere => reserve(self.addr)?,
            running => {
                self.put(running);
                return Ok(());
            }
        };
        let listener = socket.listen(BACKLOG)?;
        self.backend.reload();
        self.put(State::Serving(Serving::begin(Arc::clone(&self.backend), listener)));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> State {
        std::mem::replace(&mut *self.lock(), State::Nowhere)
    }

    fn put(&self, state: State) {
        *self.lock() = state;
    }
}

/// Binds a socket that does not listen yet. Connections of an earlier listener may still be winding down.
fn reserve(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

impl Serving {
    fn begin(backend: Arc<Backend>, listener: TcpListener) -> Serving {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(backend, listener, stopped));
        Serving { stop, task }
    }

    async fn end(self) {
        drop(self.stop);
        // An accept loop that panicked is as closed as one that ended.
        let _ = self.task.await;
    }
}

async fn accept(backend: Arc<Backend>, listener: TcpListener, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve::serve(Arc::clone(&backend), stream));
                }
                // Out of file descriptors, most likely: wait for some to come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// What all connections of one backend share.
struct Backend {
    profile: Profile,
    tally: Tally,
    /// Turns per model, where the profile limits them. Indexed like `profile.models`.
    gates: Vec<Option<Semaphore>>,
    /// Which models are in memory. Indexed like `profile.models`.
    loaded: Vec<AtomicBool>,
    faults: Mutex<Faults>,
    /// The last request of any kind, and the last to a model.
    last: Mutex<Last>,
    serial: AtomicU64,
}

#[derive(Default)]
struct Last(Option<Arc<Request>>, Option<Arc<Request>>);

impl Backend {
    fn new(profile: Profile) -> Backend {
        let turns = profile.max_parallel.map(|turns| turns.max(1) as usize);
        Backend {
            gates: profile.models.iter().map(|_| turns.map(Semaphore::new)).collect(),
            loaded: profile.models.iter().map(|model| AtomicBool::new(model.loaded)).collect(),
            profile,
            tally: Tally::default(),
            faults: Mutex::default(),
            last: Mutex::default(),
            serial: AtomicU64::new(1),
        }
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, request: &Arc<Request>) {
        self.tally.path(&request.path);
        let ask = matches!(
            routes::find(self.profile.kind, &request.method, &request.path),
            Some(routes::Route::Ask(_))
        );
        let mut last = self.last();
        last.0 = Some(Arc::clone(request));
        if ask {
            last.1 = Some(Arc::clone(request));
        }
    }

    fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    fn is_loaded(&self, index: usize) -> bool {
        self.loaded[index].load(Ordering::Relaxed)
    }

    fn set_loaded(&self, index: usize, loaded: bool) {
        self.loaded[index].store(loaded, Ordering::Relaxed);
    }

    fn reload(&self) {
        for (index, model) in self.profile.models.iter().enumerate() {
            self.set_loaded(index, model.loaded);
        }
    }
}

#[cfg(test)]
mod tests;
