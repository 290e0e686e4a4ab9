//! Builds the service from its settings, and knows the order in which its parts start and stop.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::task::TaskTracker;

use crate::{
    admin::{self, ConnectedServices},
    broker::{self, Connection, Publisher, Topology},
    config::Config,
    customerio::{self, CustomerIo},
    flows::{
        bulk_retry::BulkRetries,
        feed::Feed,
        integrity::IntegrityCheck,
        mirror::{Mirror, Sweeper},
        rate_limit,
        recovery::Recovery,
        sync::Pipeline,
    },
    ledger::{self, Ledger},
    runtime::{backoff::retry_while, metrics::Metrics, shutdown::Shutdown},
};

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The database can't be used.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// RabbitMQ can't be used.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// The Customer.io client could not be built.
    #[error(transparent)]
    CustomerIo(#[from] customerio::Error),
    /// The HTTP server could not bind its address.
    #[error("listening on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// Maximum time for the last HTTP responses, and for releasing the lease on the call rate.
const SERVICES_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The running service.
#[derive(Debug)]
pub struct App {
    shutdown: Shutdown,
    http_addr: SocketAddr,
    ledger: Ledger,
    connections: Vec<Arc<Connection>>,
    /// They end by themselves when the shutdown starts.
    flows: JoinSet<()>,
    /// The HTTP server and the lease on the call rate. The flows need them until they end.
    services: JoinSet<()>,
    grace: Duration,
}

impl App {
    /// Starts the service: HTTP first, so that the probes answer while the service waits for the
    /// database and for RabbitMQ.
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.require_database()?;
        config.require_broker()?;
        let metrics = Arc::new(Metrics::default());
        let shutdown = Shutdown::default();
        let customerio =
            Arc::new(CustomerIo::new(&config.customerio, config.breaker.clone(), metrics.clone())?);
        let ledger = Ledger::new(&config.database, config.retry.delays.max_attempts())?;
        let connected = Arc::new(OnceLock::new());
        let state = admin::AppState {
            config: Arc::new(config.http.clone()),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
            customerio: customerio.clone(),
            ladder: config.retry.delays.clone(),
            shutdown: shutdown.clone(),
            connected: connected.clone(),
            websockets: Arc::new(Semaphore::new(config.http.websocket_clients)),
            login_throttle: Arc::default(),
        };
        let (mut services, http_addr) = listen(config.http.addr, state).await?;

        if config.database.migrate {
            let is_transient = ledger::Error::is_transient;
            retry_while("applying the migrations", is_transient, || ledger.migrate()).await?;
        }
        let topology = Arc::new(Topology::new(&config.retry.delays, &config.topology));
        let consuming =
            Connection::open("consume", &config.broker, topology.clone(), &metrics).await?;
        let publishing = Connection::open("publish", &config.broker, topology, &metrics).await?;
        services.spawn(rate_limit::run(
            config.customerio.requests_per_second,
            customerio.clone(),
            ledger.clone(),
            shutdown.clone(),
        ));
        let context = FlowContext {
            publisher: Publisher::new(publishing.clone(), &config.broker, metrics.clone()),
            ledger: ledger.clone(),
            metrics,
            shutdown: shutdown.clone(),
            consuming: consuming.clone(),
            publishing: publishing.clone(),
            customerio,
        };
        let grace = config.lifecycle.grace;
        let flows = context.start(config, &connected);
        tracing::info!(%http_addr, "the service is running");
        let connections = vec![consuming, publishing];
        Ok(Self { shutdown, http_addr, ledger, connections, flows, services, grace })
    }

    /// The address of the HTTP server.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Stops the service: ends the intake, finishes the work in flight within the grace period, and
    /// closes the connections. RabbitMQ redelivers the messages of unfinished work.
    pub async fn stop(mut self) {
        self.shutdown.drain();
        let ended = async { while self.flows.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, ended).await.is_err() {
            tracing::warn!(
                grace = ?self.grace,
                "the grace period ended before the work in flight was finished; its messages \
                    will be redelivered"
            );
        }
        self.flows.shutdown().await;
        for connection in &self.connections {
            connection.close().await;
        }
        self.shutdown.end();
        let ended = async { while self.services.join_next().await.is_some() {} };
        if tokio::time::timeout(SERVICES_SHUTDOWN_TIMEOUT, ended).await.is_err() {
            tracing::debug!("the HTTP server did not end in time and is aborted");
        }
        self.services.shutdown().await;
        self.ledger.close().await;
    }
}

/// The parts that the flows are built from.
struct FlowContext {
    ledger: Ledger,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    consuming: Arc<Connection>,
    publishing: Arc<Connection>,
    publisher: Publisher,
    customerio: Arc<CustomerIo>,
}

impl FlowContext {
    /// Starts every flow, and makes the services that need RabbitMQ available to the endpoints.
    fn start(self, config: Config, connected: &OnceLock<ConnectedServices>) -> JoinSet<()> {
        let mut flows = JoinSet::new();
        self.start_background(&config, &mut flows);
        let Self { ledger, metrics, shutdown, consuming, publishing, publisher, customerio } = self;
        let feed = Feed::default();
        let breaker = customerio.watch_breaker();
        flows.spawn(feed.clone().run(consuming.clone(), ledger.clone(), breaker, shutdown.clone()));
        let mirror = Mirror {
            config: config.mirror,
            connection: consuming.clone(),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
        };
        flows.spawn(mirror.run(shutdown.clone()));
        let pipeline = Arc::new(Pipeline {
            config: config.sync,
            prefetch: config.broker.prefetch.get(),
            ladder: config.retry.delays,
            ledger,
            publisher: publisher.clone(),
            customerio,
            metrics,
            shutdown,
            processing: TaskTracker::new(),
        });
        flows.spawn(pipeline.clone().run(consuming.clone()));
        let connections = vec![consuming, publishing];
        connected.get_or_init(|| ConnectedServices { connections, publisher, pipeline, feed });
        flows
    }

    /// Starts the flows that act at intervals, on one replica at a time.
    fn start_background(&self, config: &Config, flows: &mut JoinSet<()>) {
        let calls_are_paused = {
            let customerio = self.customerio.clone();
            move || !customerio.breaker().is_closed()
        };
        let calls_are_scarce = {
            let (rate_limiter, calls_are_paused) =
                (self.customerio.rate_limiter().clone(), calls_are_paused.clone());
            move || rate_limiter.is_saturated() || calls_are_paused()
        };
        let bulk_retries = BulkRetries {
            config: config.bulk_retry.clone(),
            connection: self.publishing.clone(),
            ledger: self.ledger.clone(),
            publisher: self.publisher.clone(),
        };
        flows.spawn(bulk_retries.run(calls_are_scarce, self.shutdown.clone()));
        let sweeper = Sweeper {
            config: config.mirror.clone(),
            connection: self.consuming.clone(),
            publisher: self.publisher.clone(),
            ledger: self.ledger.clone(),
        };
        flows.spawn(sweeper.run(self.shutdown.clone()));
        let integrity = IntegrityCheck {
            config: config.integrity.clone(),
            connection: self.consuming.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
        };
        flows.spawn(integrity.run(calls_are_paused.clone(), self.shutdown.clone()));
        let recovery = Recovery {
            config: config.recovery.clone(),
            connection: self.publishing.clone(),
            publisher: self.publisher.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
        };
        flows.spawn(recovery.run(calls_are_paused, self.shutdown.clone()));
    }
}

async fn listen(
    addr: SocketAddr,
    state: admin::AppState,
) -> Result<(JoinSet<()>, SocketAddr), Error> {
    let failed = |source| Error::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    let mut services = JoinSet::new();
    services.spawn(admin::serve(listener, state));
    Ok((services, addr))
}
