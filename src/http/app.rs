//! All routes in one table, and what every handler is given.

use axum::extract::{OriginalUri, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;

use crate::core::sync::Arc;
use crate::flow::router::Router;
use crate::flow::seats::Seats;
use crate::ports::BoxFuture;
use crate::wire::request::Shape;

use super::feed::{self, Packer};
use super::lobby::Lobby;
use super::metrics::Metrics;
use super::request_id::X_REQUEST_ID;
use super::{auth, inference, overview, reply, request_id, usage};

/// What every handler is given. Clones are handles to the same app.
#[derive(Clone)]
pub struct App {
    pub(super) router: Arc<Router>,
    pub(super) metrics: Arc<Metrics>,
    /// Who follows the event log.
    pub(super) seats: Arc<Seats>,
    /// Compresses events for those who want it so.
    pub(super) packer: Arc<Packer>,
    /// Who is connected.
    pub(super) lobby: Arc<Lobby>,
    /// True once the server stops: streams that would never end by themselves end then. Connections and such
    /// streams hold a receiver, so the server knows when the last of them has ended.
    stopping: Arc<watch::Sender<bool>>,
}

/// Inference routes: the path, which is the same upstream, and what its body looks like.
const INFERENCE: [(&str, Shape); 7] = [
    ("/api/chat", Shape::OllamaChat),
    ("/api/generate", Shape::OllamaGenerate),
    ("/api/embed", Shape::OllamaEmbed),
    ("/api/embeddings", Shape::OllamaEmbeddings),
    ("/v1/chat/completions", Shape::OpenAiChat),
    ("/v1/completions", Shape::OpenAiCompletion),
    ("/v1/embeddings", Shape::OpenAiEmbedding),
];

impl App {
    /// The app over a running router.
    pub fn new(router: Arc<Router>) -> App {
        let seats = Arc::new(Seats::new());
        let lobby = Arc::new(Lobby::new());
        let metrics = Arc::new(Metrics::new(Arc::clone(&router), Arc::clone(&seats), Arc::clone(&lobby)));
        let packer = Arc::new(Packer::new());
        App { router, metrics, seats, packer, lobby, stopping: Arc::new(watch::Sender::new(false)) }
    }

    /// Ends the streams that would never end by themselves.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Completes when the server stops.
    pub(super) fn stop_begun(&self) -> BoxFuture<'static, ()> {
        let mut stopping = self.stopping();
        Box::pin(async move {
            // The other side goes away with the server: that is a stop too.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        })
    }

    /// Completes when every connection has ended and every such stream: a WebSocket's outlives its connection.
    pub(super) async fn stopped(&self) {
        self.stopping.closed().await;
    }

    /// The routes as a service.
    pub fn routes(&self) -> axum::Router {
        let mut routes = axum::Router::new();
        for (path, shape) in INFERENCE {
            let handler: MethodRouter<App> =
                post(move |State(app): State<App>, request| inference::answer(app, path, shape, request));
            routes = routes.route(path, handler);
        }
        routes
            .route("/api/show", post(overview::show))
            .route("/api/tags", get(overview::tags))
            .route("/api/ps", get(overview::ps))
            .route("/api/version", get(overview::version))
            .route("/v1/models", get(overview::models))
            .route("/v1/models/{*model}", get(overview::model))
            .route("/api/config", get(overview::config))
            .route("/health", get(overview::health))
            .route("/api/usage", get(usage::usage))
            .route("/api/usage-stream", get(usage::stream))
            .route("/api/token_counts", get(usage::token_counts))
            .route(feed::ROUTES[0], get(feed::events))
            .route(feed::ROUTES[1], get(feed::socket))
            .route("/api/events/bounds", get(feed::bounds))
            .route("/api/events/dictionary", get(feed::dictionary))
            .route("/metrics", get(usage::metrics))
            .route("/", get(|| async { "pointsman is running\n" }))
            .fallback(unknown_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(CatchPanicLayer::custom(reply::panicked))
            .layer(middleware::from_fn_with_state(self.clone(), front))
            .with_state(self.clone())
    }
}

/// What every request passes: it gets its name, and the gate if there is one.
async fn front(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id::assign(request.headers_mut(), app.router.ports().entropy.as_ref());
    if app.router.log().is_on()
        && let Some(client) = auth::client_key(&request)
    {
        // Before the gate takes the key off.
        request.extensions_mut().insert(client);
    }
    let key = &app.router.fleet().config.router_api_key;
    let mut response = match key.as_ref().and_then(|key| auth::refusal(key, &mut request)) {
        Some(refused) => refused,
        None => next.run(request).await,
    };
    response.headers_mut().insert(X_REQUEST_ID.clone(), id);
    response
}

async fn unknown_route(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    let message = format!("there is no route {method} {}", uri.path());
    reply::error(reply::family_of(uri.path()), StatusCode::NOT_FOUND, &message, Some("unknown_route"))
}

async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    reply::error(reply::family_of(uri.path()), StatusCode::METHOD_NOT_ALLOWED, &message, Some("wrong_method"))
}
