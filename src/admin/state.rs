//! The settings of the HTTP server, and the state that its endpoints share.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::sync::Semaphore;

use super::http::{
    auth::{AccessTokens, LiveTokens},
    login_throttle::LoginThrottle,
    problem::Problem,
    session_store::Sessions,
};
use crate::{
    broker::{Connection, Publisher, QueueMonitor, TopologyGuard},
    customerio::CustomerIo,
    flows::{
        feed::{LiveFeed, OutcomeFeed},
        integrity::LastComparison,
        sync::Pipeline,
    },
    ledger::Ledger,
    retry::Ladder,
    runtime::{
        certificate::CertificateFiles, heartbeat::Heartbeat, metrics::Metrics, replica::Replica,
        shutdown::Shutdown, text_enum::text_enum,
    },
};

text_enum! {
    /// The checks of `/readyz?verbose`, which `doctor` makes too.
    Check {
        /// The settings are valid.
        Configuration = "configuration",
        /// The database answers.
        Database = "database",
        /// The schema is not older than needed.
        Schema = "schema",
        /// RabbitMQ is connected and confirms messages.
        Broker = "broker",
        /// Exchanges, queues and bindings are as needed.
        Topology = "topology",
        /// This replica consumes every work queue.
        Queues = "queues",
        /// Customer.io has not refused the credentials.
        Credentials = "credentials",
        /// The service is not stopping.
        Shutdown = "shutdown",
    }
}

/// What the service waits for until it consumes messages. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StartupStatus(Arc<Mutex<StartupPhase>>);

#[derive(Debug, Default)]
struct StartupPhase {
    /// The problem of each check that has failed.
    obstacles: HashMap<Check, String>,
    passed: HashSet<Check>,
    has_started: bool,
}

impl StartupStatus {
    /// Records that a check failed. Returns whether the reason is new.
    pub fn report(&self, check: Check, reason: &str) -> bool {
        let mut phase = self.phase();
        phase.passed.remove(&check);
        phase.obstacles.insert(check, reason.to_owned()).as_deref() != Some(reason)
    }

    /// Records that a check passed.
    pub fn pass(&self, check: Check) {
        let mut phase = self.phase();
        phase.obstacles.remove(&check);
        phase.passed.insert(check);
    }

    /// Records that the service has started.
    pub fn start(&self) {
        *self.phase() = StartupPhase { has_started: true, ..StartupPhase::default() };
    }

    /// The problems for which the service waits. Empty once it has started.
    pub(crate) fn obstacles(&self) -> Vec<(Check, String)> {
        let phase = self.phase();
        let waiting = "the service has not started to consume";
        let missing = (!phase.has_started).then(|| (Check::Queues, waiting.to_owned()));
        let found = Check::ALL
            .iter()
            .filter_map(|check| Some((*check, phase.obstacles.get(check)?.clone())));
        found.chain(missing).collect()
    }

    /// Whether the result of `check` is known.
    pub(crate) fn is_known(&self, check: Check) -> bool {
        let phase = self.phase();
        phase.has_started || phase.passed.contains(&check) || phase.obstacles.contains_key(&check)
    }

    fn phase(&self) -> MutexGuard<'_, StartupPhase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of the HTTP server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on. Port 0 selects a free port.
    pub addr: SocketAddr,
    /// The tokens for the admin API and the page, as the service starts. [`AppState::tokens`] are
    /// the present ones.
    pub admin_tokens: AccessTokens,
    /// Maximum duration of a request, including its body.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Maximum time until the head of the next request of a connection is complete.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Maximum concurrent connections, not counting WebSockets. Beyond it, the connection that has
    /// been idle longest is closed.
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
    /// The replica that answers.
    pub replica: Replica,
    /// The record of signups and jobs.
    pub ledger: Ledger,
    /// The last write to the database.
    pub last_write: Heartbeat,
    /// Whether a task of the process has ended that should not.
    pub defect: Arc<OnceLock<&'static str>>,
    /// The metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The client, for the state of its circuit breaker.
    pub customerio: Arc<CustomerIo>,
    /// The delay tiers.
    pub ladder: Ladder,
    /// Whether the service is stopping.
    pub shutdown: Shutdown,
    /// The files with certificates and keys.
    pub certificates: CertificateFiles,
    /// What the service waits for until it consumes messages.
    pub startup: StartupStatus,
    /// The services that need RabbitMQ, once it is connected.
    pub connected: Arc<OnceLock<ConnectedServices>>,
    /// Progress, breaker changes and counts, for WebSocket clients.
    pub live: LiveFeed,
    /// One permit per WebSocket client.
    pub websockets: Arc<Semaphore>,
    /// The tokens for the admin API and the page.
    pub tokens: LiveTokens,
    /// What the last integrity check has compared.
    pub last_comparison: Arc<LastComparison>,
    /// The sessions of browsers that were ended, and their salt.
    pub sessions: Arc<Sessions>,
    /// Delays the responses to wrong tokens.
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
    /// The outcomes of all replicas, for WebSocket clients.
    pub outcomes: OutcomeFeed,
    /// The state of the queues.
    pub queues: QueueMonitor,
    /// What is missing of the topology.
    pub topology: TopologyGuard,
}

impl AppState {
    /// The services that need RabbitMQ, or a 503 while it is not connected.
    pub(crate) fn connected(&self) -> Result<&ConnectedServices, Problem> {
        self.connected.get().ok_or_else(|| {
            Problem::unavailable(
                "the service has not started yet: /readyz says what it waits for; retry when it \
                    returns 200",
            )
        })
    }

    /// Fails with a 503 if one of the two Customer.io credentials is missing.
    pub(crate) fn require_credentials(&self) -> Result<(), Problem> {
        match self.customerio.missing_credential() {
            None => Ok(()),
            Some(variable) => Err(Problem::unavailable(format!(
                "{variable} is not set, so no job is sent; set it, and retry when /readyz returns \
                    200"
            ))),
        }
    }
}
