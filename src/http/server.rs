//! Connections: accept, serve, and stop without cutting anybody off before the grace time is over.

use std::io;
use std::pin::pin;
use std::time::Instant;

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use axum::body::{Body as Content, Bytes};
use futures_util::FutureExt;
use futures_util::future::{Join, Map, Ready, join, ready};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, UpgradeableConnection};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use crate::core::sync::Arc;

use super::app::App;
use super::feed;
use super::lobby::{Busy, Visitor};
use super::peer::{Cut, Peer};

/// Pause after the system refused a connection for want of file descriptors or memory.
const BREATHER: Duration = Duration::from_millis(100);

/// How often the log says that connections cannot be accepted.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// What an address is told that has too many connections already; see `lobby`.
const REFUSAL: &str = r#"{"error":"too many connections from this address have no request under way; `per_ip_idle` in the configuration of the router sets how many there may be"}"#;

/// After how long a silent connection is probed, so that a client whose machine vanished is noticed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What one connection buffers of an answer before it waits for the client, in bytes; the longest head of a
/// request too.
const BUFFER: usize = 64 * 1024;

type Connection = UpgradeableConnection<TokioIo<Pin<Box<TimeoutStream<TcpStream>>>>, Known>;

/// Limits on one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A request's head must be whole within this time; an idle connection is closed after it too.
    pub header_timeout: Duration,
    /// A client that takes not a byte for this long is cut off.
    pub stall_timeout: Duration,
    /// How long running answers may go on once the server stops.
    pub grace: Duration,
}

/// How the server stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every answer was finished.
    Drained,
    /// The grace time was over first; the rest was cut off.
    CutOff,
}

/// Serves `app` on `listener` until `stop` completes, then lets running answers end within the grace time,
/// or until the future that `stop` gave completes. `limits` is asked anew for every connection.
pub async fn serve<Hurry: Future<Output = ()>>(
    listener: TcpListener,
    app: App,
    limits: impl Fn() -> Limits,
    stop: impl Future<Output = Hurry>,
) -> Stopped {
    let service = TowerToHyperService::new(app.routes());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).max_buf_size(BUFFER);
    let mut tasks = JoinSet::new();
    let mut stop = pin!(stop);
    let mut complained: Option<Instant> = None;
    let refusal = format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{REFUSAL}",
        REFUSAL.len()
    );
    let hurry = loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => (stream, peer.ip()),
                Err(error) => {
                    if !is_of_one_connection(&error) {
                        if complained.is_none_or(|at| at.elapsed() >= COMPLAINTS) {
                            complained = Some(Instant::now());
                            tracing::warn!(%error, "cannot accept connections at the moment");
                        }
                        tokio::time::sleep(BREATHER).await;
                    }
                    continue;
                }
            },
            hurry = &mut stop => break hurry,
        };
        let Some(visitor) = app.lobby.enter(peer, &app.router.fleet().config) else {
            // It fits into any buffer; a client that is gone already needs no answer.
            let _ = SockRef::from(&stream).send(refusal.as_bytes());
            continue;
        };
        if let Err(error) = tune(&stream) {
            tracing::debug!(%error, "connection closed while it was set up");
            continue;
        }
        let Limits { header_timeout, stall_timeout, .. } = limits();
        http.header_read_timeout(header_timeout);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(stall_timeout));
        let cut = Cut::default();
        let peer = Peer { address: peer, cut: cut.clone() };
        let service = Known { service: service.clone(), peer, visitor };
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service).with_upgrades();
        let stopping = app.stopping();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            tokio::select! {
                ended = attend(connection, stopping) => if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                },
                () = cut.wanted() => tracing::debug!("connection cut: its client takes nothing"),
            }
        });
    };
    drop(listener);
    app.stop();
    tokio::select! {
        () = app.stopped() => return Stopped::Drained,
        () = tokio::time::sleep(limits().grace) => {}
        () = hurry => {}
    }
    // Whoever is cut off gives its slot and its tokens back before this returns.
    tasks.shutdown().await;
    Stopped::CutOff
}

/// A connection to its end: once the server stops, the answer under way is its last.
async fn attend(connection: Connection, mut stopping: watch::Receiver<bool>) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        // The guard it gives is let go at once: it cannot be kept across an await.
        _ = async { stopping.wait_for(|stopping| *stopping).await.map(drop) } => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// The routes, for a connection whose peer is known.
struct Known {
    service: TowerToHyperService<axum::Router>,
    peer: Peer,
    visitor: Arc<Visitor>,
}

impl Service<Request<Incoming>> for Known {
    type Response = Response<Answer>;
    type Error = Failed;
    type Future = Answering;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        // An extension costs memory, so only who needs it has it.
        if feed::ROUTES.contains(&request.uri().path()) {
            request.extensions_mut().insert(self.peer.clone());
        }
        let busy = ready(self.visitor.begin());
        join(self.service.call(request), busy)
            .map(|(answer, busy)| Ok(answer?.map(|content| Answer { content, _busy: busy })))
    }
}

/// An answer to come, and the word that its connection is busy.
type Answering = Map<Join<Asked, Ready<Busy>>, fn((Outcome, Busy)) -> Result<Response<Answer>, Failed>>;
type Asked = <TowerToHyperService<axum::Router> as Service<Request<Incoming>>>::Future;
type Outcome = Result<Response<Content>, Failed>;
type Failed = <TowerToHyperService<axum::Router> as Service<Request<Incoming>>>::Error;

/// An answer's body. The connection is idle again once it has gone out.
struct Answer {
    content: Content,
    _busy: Busy,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.content).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

/// The error concerns a connection that went away before it was accepted, not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
