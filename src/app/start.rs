//! Waits for the database and for RabbitMQ, in whatever order they become usable, and then starts
//! the flows.
//!
//! No problem of a server ends the program: `/readyz` and the log name the problem and its fix, and
//! the service continues when it is fixed.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use super::{Running, flows::FlowContext};
use crate::{
    admin::{self, Check, ConnectedServices, StartupStatus},
    broker::{self, Address, Connection, Publisher, Topology},
    config::Config,
    customerio::CustomerIo,
    ledger::{self, Ledger, POOLER_FIX, POOLER_PROBLEM, Schema},
    runtime::{backoff::Backoff, metrics::Metrics, shutdown::Shutdown},
};

/// Maximum time for reading the version of the schema.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Waits until database and broker are usable, then starts the flows. Returns `None` at
    /// shutdown.
    pub(super) async fn run(self, started: watch::Sender<bool>) -> Option<Running> {
        let database = self.wait_for(|| self.prepare_database().boxed());
        let broker = async {
            let consuming = self.wait_for(|| self.open("consume").boxed()).await?;
            Some((consuming, self.wait_for(|| self.open("publish").boxed()).await?))
        };
        let (database, broker) = tokio::join!(database, broker);
        let ((), (consuming, publishing)) = database.zip(broker)?;
        self.wait_for(|| std::future::ready(self.require_credentials()).boxed()).await?;
        self.wait_for(|| self.appear().boxed()).await?;
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
        self.status.start();
        started.send_replace(true);
        tracing::info!(http_addr = %self.http_addr, "the service is running");
        Some(Running { connections: vec![consuming, publishing], flows })
    }

    /// Repeats `attempt` until it succeeds. Returns `None` at shutdown. A problem is logged when it
    /// is new.
    async fn wait_for<'a, T>(
        &'a self,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, Obstacle>>,
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

    /// Applies the migrations that are missing, or checks that somebody has.
    async fn prepare_database(&self) -> Result<(), Obstacle> {
        let with_fix = |error: &ledger::Error| format!("{error}; {}", self.ledger.fix(error));
        let unusable = |error: ledger::Error| obstacle(Check::Database, with_fix(&error));
        if self.ledger.has_transaction_pooler().await.map_err(unusable)? {
            let reason = format!("{POOLER_PROBLEM}; {POOLER_FIX}");
            return Err(obstacle(Check::Database, reason));
        }
        self.status.pass(Check::Database);
        let mut schema = self.schema().await?;
        if schema.problem().is_some() && self.config.database.migrate {
            // Another replica may take long to apply them.
            self.status.report(Check::Schema, "applying the migrations");
            let migrated = self.ledger.migrate().await;
            migrated.map_err(|error| obstacle(Check::Schema, with_fix(&error)))?;
            schema = self.schema().await?;
        }
        if let Some(problem) = schema.problem() {
            return Err(obstacle(Check::Schema, format!("{problem}; {}", Schema::FIX)));
        }
        self.status.pass(Check::Schema);
        Ok(())
    }

    async fn schema(&self) -> Result<Schema, Obstacle> {
        let read = tokio::time::timeout(SCHEMA_TIMEOUT, self.ledger.schema()).await;
        let silence = || format!("no answer within {SCHEMA_TIMEOUT:?}");
        let read = read.map_err(|_| {
            let reason = format!("{}; {}", silence(), self.ledger.fix_of_silence());
            obstacle(Check::Database, reason)
        })?;
        read.map_err(|error| {
            obstacle(Check::Database, format!("{error}; {}", self.ledger.fix(&error)))
        })
    }

    /// Shows the other replicas that this one lives.
    async fn appear(&self) -> Result<(), Obstacle> {
        match self.ledger.appear().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(obstacle(Check::Database, "the lock of this replica is taken")),
            Err(error) => {
                let fix = self.ledger.fix(&error);
                Err(obstacle(Check::Database, format!("{error}; {fix}")))
            }
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
        let topology = self.topology.clone();
        let opened = Connection::open(name, self.address.clone(), topology, &self.metrics).await;
        let connection = opened.map_err(|error| {
            let check = if is_about_topology(&error) { Check::Topology } else { Check::Broker };
            if check == Check::Topology {
                self.status.pass(Check::Broker);
            }
            let fix = broker::fix(&self.address, self.config.topology.declare, &error);
            obstacle(check, format!("{}; {fix}", broker::detail(&error)))
        })?;
        self.status.pass(Check::Broker);
        self.status.pass(Check::Topology);
        // Once the service has started, each scrape asks the connections.
        self.metrics.connections.connected.with_label_values(&[name]).set(1);
        Ok(connection)
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
