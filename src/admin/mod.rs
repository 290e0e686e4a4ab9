//! The HTTP server: the admin API, the operators' page, probes and metrics. One endpoint a file.

mod asyncapi;
mod auth;
mod bulk_retries;
mod bulk_retry;
mod cleanup;
mod customer;
mod dismiss;
mod dismiss_unprocessable;
mod extract;
mod failures;
mod groups;
mod guard;
mod guesses;
mod health;
mod integrity;
mod job;
mod metrics;
mod openapi;
mod page;
mod problem;
mod process;
#[cfg(any(test, fuzzing))]
pub mod property;
mod publish;
mod replay;
mod retry;
mod reveal;
mod server;
mod session;
mod stats;
mod unprocessable;
mod verdict;
mod ws;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    http::StatusCode,
    middleware,
    routing::{get, post},
};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::Semaphore};

pub use auth::{Role, Tokens, TokensError};
pub use guesses::Guesses;
use problem::Problem;

use crate::{
    broker::{Link, Publisher},
    feed::Feed,
    ledger::Ledger,
    lifecycle::Lifecycle,
    metrics::Metrics,
    retry::Ladder,
    sync::Processor,
};

/// Settings of the HTTP server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its address; port 0 takes a free one.
    pub addr: SocketAddr,
    /// Who may use the admin API and the page.
    pub admin_tokens: Tokens,
    /// How long a request may take, its body included.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long a connection may take to send the head of its first or next request.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Connections at the same time at most, without WebSockets.
    pub connections: usize,
    /// WebSocket clients at the same time at most.
    pub websocket_clients: usize,
    /// Where RabbitMQ's management UI shows the queues of the virtual host; empty: no links.
    pub management_url: String,
}

impl Config {
    /// Where `queue` can be looked at, if that is known. `management_url` holds `{queue}` where its
    /// name belongs.
    fn queue_url(&self, queue: &str) -> Option<String> {
        (!self.management_url.is_empty()).then(|| self.management_url.replace("{queue}", queue))
    }
}

/// What the endpoints work with.
#[derive(Debug, Clone)]
pub struct State {
    /// Settings.
    pub config: Arc<Config>,
    /// The truth.
    pub ledger: Ledger,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The delay tiers.
    pub ladder: Ladder,
    /// Whether the service is stopping.
    pub lifecycle: Lifecycle,
    /// What needs the broker, once it is there.
    pub ready: Arc<OnceLock<Ready>>,
    /// One permit a WebSocket client.
    pub websockets: Arc<Semaphore>,
    /// Who presented wrong tokens of late.
    pub guesses: Arc<Guesses>,
}

/// What needs the broker.
#[derive(Debug)]
pub struct Ready {
    /// The connections.
    pub links: Vec<Arc<Link>>,
    /// Where messages go out.
    pub publisher: Publisher,
    /// Runs jobs now.
    pub processor: Processor,
    /// What happens, as it happens.
    pub feed: Feed,
}

impl State {
    fn ready(&self) -> Result<&Ready, Problem> {
        self.ready.get().ok_or_else(|| {
            Problem::unavailable("the broker is not connected yet; /readyz tells when it is")
        })
    }
}

/// Serves until everything has to end.
pub async fn serve(listener: TcpListener, state: State) {
    let (config, lifecycle) = (state.config.clone(), state.lifecycle.clone());
    if config.admin_tokens.is_empty() {
        tracing::warn!(
            "no ADMIN_TOKENS are set: the admin API and the page answer loopback peers alone"
        );
    }
    server::serve(listener, router(state), &config, lifecycle).await;
}

fn router(state: State) -> Router {
    let (api, description) = openapi::routes().split_for_parts();
    let authenticate = || middleware::from_fn_with_state(state.clone(), guard::authenticate);
    let api = api.route("/session", get(session::show)).route_layer(authenticate());
    let page = Router::new()
        .route("/", get(page::show))
        .route_layer(middleware::from_fn_with_state(state.clone(), guard::authenticate_page));
    let mut open = Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::render))
        .route("/asyncapi.json", get(asyncapi::show))
        .route("/session", post(session::begin))
        .route("/session/end", post(session::end))
        .merge(openapi::docs(description));
    for (path, content_type, content) in page::ASSETS {
        open = open.route(path, get(async move || page::asset(content_type, content)));
    }
    open.merge(api)
        .merge(page)
        .fallback(async || Problem::not_found("there is nothing here; /docs lists what there is"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path knows other methods; the header Allow lists them",
            )
        })
        .layer(middleware::from_fn_with_state(state.clone(), guard::limit))
        .layer(middleware::from_fn(guard::headers))
        .with_state(state)
}
