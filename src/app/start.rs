//! Waits for the database and for RabbitMQ, in whatever order they become usable, and then starts
//! the flows.
//!
//! No problem of a server ends the program: `/readyz` and the log name the problem and its fix, and
//! the service continues when it is fixed.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;

use super::{Running, flows::FlowContext};
use crate::{
    admin::{self, Check, ConnectedServices, StartupStatus},
    broker::{self, Address, Connection, Publisher, Topology},
    config::Config,
    customerio::CustomerIo,
    ledger::{self, Ledger, Schema},
    runtime::{backoff::Backoff, metrics::Metrics, shutdown::Shutdown},
};

/// The parts that exist before the servers are usable.
pub(super) struct Start {
    pub(super) config: Config,
    pub(super) http_addr: SocketAddr,
    pub(super) ledger: Ledger,
    pub(super) address: Arc<Address>,
    pub(super) topology: Arc<Topology>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) customerio: Arc<CustomerIo>,
    pub(super) shutdown: Shutdown,
    /// What `/readyz` reports until the flows run.
    pub(super) status: StartupStatus,
    /// The services that the endpoints need and that need RabbitMQ.
    pub(super) connected: Arc<OnceLock<ConnectedServices>>,
}

/// A condition that is not met, and the check that it belongs to.
struct Obstacle {
    check: Check,
    reason: String,
}

impl Start {
    /// Waits for each condition in turn, then starts the flows. Returns `None` at shutdown.
    pub(super) async fn run(self, started: watch::Sender<bool>) -> Option<Running> {
        self.wait_for(|| self.prepare_database()).await?;
        let consuming = self.wait_for(|| self.open("consume")).await?;
        let publishing = self.wait_for(|| self.open("publish")).await?;
        self.wait_for(async || self.require_credentials()).await?;
        let context = FlowContext {
            publisher: Publisher::new(
                publishing.clone(),
                &self.config.broker,
                self.metrics.clone(),
            ),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
            consuming: consuming.clone(),
            publishing: publishing.clone(),
            customerio: self.customerio.clone(),
        };
        let flows = context.start(self.config, &self.connected);
        self.status.clear();
        started.send_replace(true);
        tracing::info!(http_addr = %self.http_addr, "the service is running");
        Some(Running { connections: vec![consuming, publishing], flows })
    }

    /// Repeats `attempt` until it succeeds. Returns `None` at shutdown. A problem is logged when it
    /// is new.
    async fn wait_for<T, F: Future<Output = Result<T, Obstacle>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Option<T> {
        let mut backoff = Backoff::default();
        let waiting = async {
            loop {
                let Obstacle { check, reason } = match attempt().await {
                    Ok(value) => return value,
                    Err(obstacle) => obstacle,
                };
                if self.status.report(check, &reason) {
                    tracing::warn!(check = check.as_str(), "waiting to start: {reason}");
                }
                backoff.wait().await;
            }
        };
        tokio::select! {
            () = self.shutdown.draining() => None,
            value = waiting => Some(value),
        }
    }

    /// Applies the migrations, or checks that somebody has.
    async fn prepare_database(&self) -> Result<(), Obstacle> {
        let unusable = |error: ledger::Error| {
            obstacle(Check::Database, format!("{error}; {}", self.ledger.fix(&error)))
        };
        if self.ledger.has_transaction_pooler().await.map_err(unusable)? {
            let reason = "the connections go through a pooler in transaction mode, where prepared \
                statements and advisory locks do not work; use its session mode, or PostgreSQL's \
                own address";
            return Err(obstacle(Check::Database, reason));
        }
        if self.config.database.migrate {
            self.ledger.migrate().await.map_err(|error| obstacle(Check::Schema, error))?;
        }
        match self.ledger.schema().await.map_err(unusable)?.problem() {
            Some(problem) => Err(obstacle(Check::Schema, format!("{problem}; {}", Schema::FIX))),
            None => Ok(()),
        }
    }

    /// Fails if one of the two credentials is missing: messages would wait unacknowledged.
    fn require_credentials(&self) -> Result<(), Obstacle> {
        match self.customerio.missing_credential() {
            Some(variable) => {
                Err(obstacle(Check::Credentials, admin::missing_credential(variable)))
            }
            None => Ok(()),
        }
    }

    async fn open(&self, name: &'static str) -> Result<Arc<Connection>, Obstacle> {
        let opened =
            Connection::open(name, self.address.clone(), self.topology.clone(), &self.metrics);
        opened.await.map_err(|error| {
            let check = if is_about_topology(&error) { Check::Topology } else { Check::Broker };
            let fix = broker::fix(&self.address, self.config.topology.declare, &error);
            obstacle(check, format!("{error}; {fix}"))
        })
    }
}

fn obstacle(check: Check, reason: impl Display) -> Obstacle {
    Obstacle { check, reason: reason.to_string() }
}

fn is_about_topology(error: &broker::Error) -> bool {
    matches!(
        error,
        broker::Error::Inequivalent(_)
            | broker::Error::Missing(_)
            | broker::Error::NotPermitted { .. }
    )
}
