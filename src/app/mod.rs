//! Builds the service from its settings, and knows the order in which its parts start and stop.
//!
//! HTTP starts first, so that the probes answer while the service waits for the database and for
//! RabbitMQ ([`start`]).

mod flows;
mod labels;
mod reload;
mod start;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    admin::{self, LiveTokens},
    broker::{self, Address, Connection, Topology},
    config::Config,
    customerio::{self, CustomerIo},
    flows::{feed::LiveFeed, gauges::LedgerGauges, rate_limit},
    ledger::{self, Ledger},
    runtime::{replica::Replica, shutdown::Shutdown},
};
use reload::Reload;
use start::Start;

/// Why the service could not start. Only wrong settings and a port in use prevent that; the service
/// waits for its servers.
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

/// The service, which may still wait for its servers.
#[derive(Debug)]
pub struct App {
    shutdown: Shutdown,
    http_addr: SocketAddr,
    tokens: LiveTokens,
    ledger: Ledger,
    /// Waits for the servers, and returns the parts that need them. `None` at shutdown.
    starting: JoinHandle<Option<Running>>,
    has_started: watch::Receiver<bool>,
    /// The HTTP server, the live feed, the counts for the metrics, and the lease on the call rate,
    /// which the flows need until they end.
    services: JoinSet<()>,
    grace: Duration,
}

/// The parts that need the servers.
#[derive(Debug)]
struct Running {
    connections: Vec<Arc<Connection>>,
    /// They end by themselves when the shutdown starts.
    flows: JoinSet<()>,
}

impl App {
    /// Starts the service. It serves HTTP when this returns, and consumes messages when the
    /// database and RabbitMQ are usable, see [`App::started`].
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.require_database()?;
        config.require_broker()?;
        let metrics = Arc::new(labels::metrics(&config.retry.delays));
        let shutdown = Shutdown::default();
        let breaker = config.breaker.clone();
        let customerio =
            CustomerIo::new(&config.customerio, &config.tls, breaker, metrics.clone())?;
        let customerio = Arc::new(customerio);
        let max_attempts = config.retry.delays.max_attempts();
        let replica = Replica::start();
        let ledger = Ledger::new(&config.database, &config.tls, max_attempts)?.of_replica(&replica);
        let address = Address::new(&config.broker, &config.tls)?;
        let connected = Arc::new(OnceLock::new());
        let startup = admin::StartupStatus::default();
        let tokens = LiveTokens::new(config.http.admin_tokens.clone());
        let state = admin::AppState {
            config: Arc::new(config.http.clone()),
            replica,
            ledger: ledger.clone(),
            metrics: metrics.clone(),
            customerio: customerio.clone(),
            ladder: config.retry.delays.clone(),
            shutdown: shutdown.clone(),
            startup: startup.clone(),
            connected: connected.clone(),
            live: LiveFeed::default(),
            certificates: config.certificate_files(),
            websockets: Arc::new(Semaphore::new(config.http.websocket_clients)),
            tokens: tokens.clone(),
            sessions: Arc::default(),
            login_throttle: Arc::default(),
        };
        let (mut services, http_addr) = listen(config.http.addr, state.clone()).await?;
        start_services(&config, state, address.clone(), &mut services);
        let grace = config.lifecycle.grace;
        let (started, has_started) = watch::channel(false);
        let start = Start {
            topology: Arc::new(Topology::new(&config.retry.delays, &config.topology)),
            config,
            http_addr,
            ledger: ledger.clone(),
            address,
            metrics,
            customerio,
            shutdown: shutdown.clone(),
            status: startup,
            connected,
        };
        let starting = tokio::spawn(start.run(started));
        Ok(Self { shutdown, http_addr, tokens, ledger, starting, has_started, services, grace })
    }

    /// The address of the HTTP server.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// The tokens of the HTTP server, which can be replaced while it runs.
    pub fn tokens(&self) -> &LiveTokens {
        &self.tokens
    }

    /// Waits until the service consumes messages.
    pub async fn started(&self) {
        // It fails only if the service was stopped before it started.
        let _ = self.has_started.clone().wait_for(|has_started| *has_started).await;
    }

    /// Stops the service: ends the intake, finishes the work in flight within the grace period, and
    /// closes the connections. RabbitMQ redelivers the messages of unfinished work.
    pub async fn stop(mut self) {
        self.shutdown.drain();
        if let Ok(Some(running)) = self.starting.await {
            running.stop(self.grace).await;
        }
        self.shutdown.end();
        let ended = async { while self.services.join_next().await.is_some() {} };
        if tokio::time::timeout(SERVICES_SHUTDOWN_TIMEOUT, ended).await.is_err() {
            tracing::debug!("the HTTP server did not end in time and is aborted");
        }
        self.services.shutdown().await;
        // A connection to a server that no longer answers would not be released.
        let _ = tokio::time::timeout(SERVICES_SHUTDOWN_TIMEOUT, self.ledger.close()).await;
    }
}

impl Running {
    async fn stop(mut self, grace: Duration) {
        let ended = async { while self.flows.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!(
                ?grace,
                "the grace period ended before the work in flight was finished; its messages \
                    will be redelivered"
            );
        }
        self.flows.shutdown().await;
        for connection in &self.connections {
            connection.close().await;
        }
    }
}

/// Starts what needs neither RabbitMQ nor a schema.
fn start_services(
    config: &Config,
    state: admin::AppState,
    address: Arc<Address>,
    services: &mut JoinSet<()>,
) {
    let admin::AppState { ledger, metrics, customerio, shutdown, live, replica, tokens, .. } =
        state;
    let reload = Reload {
        ledger: ledger.clone(),
        address,
        customerio: customerio.clone(),
        tokens,
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    };
    services.spawn(reload.run(config));
    let ledger_gauges =
        LedgerGauges { config: config.metrics.clone(), ledger: ledger.clone(), metrics };
    services.spawn(ledger_gauges.run(shutdown.clone()));
    services.spawn(live.run(ledger.clone(), customerio.watch_breaker(), shutdown.clone()));
    let rate = config.customerio.requests_per_second;
    services.spawn(rate_limit::run(replica, rate, customerio, ledger, shutdown));
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
