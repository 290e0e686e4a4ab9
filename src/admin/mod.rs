//! The HTTP server: probes and metrics.

mod health;
mod metrics;

use std::sync::{Arc, OnceLock};

use axum::{Router, routing::get};
use tokio::net::TcpListener;

use crate::{broker::Link, ledger::Ledger, lifecycle::Lifecycle, metrics::Metrics};

/// What the endpoints look at.
#[derive(Debug, Clone)]
pub struct State {
    /// The truth.
    pub ledger: Ledger,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The connections to the broker, once they were opened.
    pub links: Arc<OnceLock<Vec<Arc<Link>>>>,
    /// Whether the service is stopping.
    pub lifecycle: Lifecycle,
}

/// Serves until everything has to end.
pub async fn serve(listener: TcpListener, state: State) -> std::io::Result<()> {
    let lifecycle = state.lifecycle.clone();
    let router = Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::render))
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(async move { lifecycle.ended().await }).await
}
