//! The settings of the HTTP server, and what its endpoints work with.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde::Deserialize;
use tokio::sync::Semaphore;

use super::http::{auth::Tokens, login_throttle::Guesses, problem::Problem};
use crate::{
    broker::{Link, Publisher},
    flows::{feed::Feed, sync::Processor},
    ledger::Ledger,
    retry::Ladder,
    runtime::{metrics::Metrics, shutdown::Lifecycle},
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
    pub(crate) fn queue_url(&self, queue: &str) -> Option<String> {
        (!self.management_url.is_empty()).then(|| self.management_url.replace("{queue}", queue))
    }
}

/// What the endpoints work with.
#[derive(Debug, Clone)]
pub struct AppState {
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

impl AppState {
    pub(crate) fn ready(&self) -> Result<&Ready, Problem> {
        self.ready.get().ok_or_else(|| {
            Problem::unavailable("the broker is not connected yet; /readyz tells when it is")
        })
    }
}
