//! The settings of the HTTP server, and the state that its endpoints share.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde::Deserialize;
use tokio::sync::Semaphore;

use super::http::{auth::AccessTokens, login_throttle::LoginThrottle, problem::Problem};
use crate::{
    broker::{Connection, Publisher},
    customerio::CustomerIo,
    flows::{feed::Feed, sync::Pipeline},
    ledger::Ledger,
    retry::Ladder,
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Settings of the HTTP server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on. Port 0 selects a free port.
    pub addr: SocketAddr,
    /// The tokens for the admin API and the page.
    pub admin_tokens: AccessTokens,
    /// Maximum duration of a request, including its body.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Maximum time until the head of the next request of a connection is complete.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Maximum concurrent connections, not counting WebSockets.
    pub connections: usize,
    /// Maximum concurrent WebSocket clients.
    pub websocket_clients: usize,
    /// URL of a queue in RabbitMQ's management UI, with `{queue}` for its name. Empty for no links.
    pub management_url: String,
}

impl Config {
    /// The URL of `queue` in the management UI, if `management_url` is set.
    pub(crate) fn queue_url(&self, queue: &str) -> Option<String> {
        (!self.management_url.is_empty()).then(|| self.management_url.replace("{queue}", queue))
    }
}

/// The state that all endpoints share.
#[derive(Debug, Clone)]
pub struct AppState {
    /// Settings.
    pub config: Arc<Config>,
    /// The record of signups and jobs.
    pub ledger: Ledger,
    /// The metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The client, for the state of its circuit breaker.
    pub customerio: Arc<CustomerIo>,
    /// The delay tiers.
    pub ladder: Ladder,
    /// Whether the service is stopping.
    pub shutdown: Shutdown,
    /// The services that need RabbitMQ, once it is connected.
    pub connected: Arc<OnceLock<ConnectedServices>>,
    /// One permit per WebSocket client.
    pub websockets: Arc<Semaphore>,
    /// Counts wrong tokens per address.
    pub login_throttle: Arc<LoginThrottle>,
}

/// The services that need RabbitMQ.
#[derive(Debug)]
pub struct ConnectedServices {
    /// The connections to RabbitMQ.
    pub connections: Vec<Arc<Connection>>,
    /// Publishes messages.
    pub publisher: Publisher,
    /// Runs jobs on request.
    pub pipeline: Arc<Pipeline>,
    /// The live feed.
    pub feed: Feed,
}

impl AppState {
    /// The services that need RabbitMQ, or a 503 while it is not connected.
    pub(crate) fn connected(&self) -> Result<&ConnectedServices, Problem> {
        self.connected.get().ok_or_else(|| {
            Problem::unavailable("RabbitMQ is not connected yet; retry when /readyz returns 200")
        })
    }
}
