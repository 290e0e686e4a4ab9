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
    task::JoinHandle,
};

use crate::{
    admin::{self, LiveTokens},
    broker::{self, Address, Connection, Topology},
    config::Config,
    customerio::{self, CustomerIo},
    flows::{feed::LiveFeed, gauges::LedgerGauges, rate_limit},
    ledger::{self, Ledger},
    runtime::{
        heartbeat::Heartbeat, metrics::Metrics, replica::Replica, shutdown::Shutdown, tasks::Tasks,
    },
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
    /// Makes `/healthz` fail.
    defect: Arc<OnceLock<&'static str>>,
    ledger: Ledger,
    /// Waits for the servers, and returns the parts that need them. `None` at shutdown.
    starting: Option<JoinHandle<Option<Running>>>,
    /// Present once the service has started.
    running: Option<Running>,
    has_started: watch::Receiver<bool>,
    /// The HTTP server, the live feed, the counts for the metrics, the session for locks, and the
    /// lease on the call rate, which the flows need until they end.
    services: Tasks,
    grace: Duration,
}

/// The parts that need the servers.
#[derive(Debug)]
struct Running {
    connections: Vec<Arc<Connection>>,
    /// They end by themselves when the shutdown starts.
    flows: Tasks,
}

impl App {
    /// Starts the service. It serves HTTP when this returns, and consumes messages when the
    /// database and RabbitMQ are usable, see [`App::started`].
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.require_database()?;
        config.require_broker()?;
        let topology = Arc::new(Topology::new(&config.retry.delays, &config.topology));
        let metrics = Arc::new(labels::metrics(&config.retry.delays, &topology));
        let shutdown = Shutdown::default();
        let breaker = config.breaker.clone();
        let customerio =
            CustomerIo::new(&config.customerio, &config.tls, breaker, metrics.clone())?;
        let customerio = Arc::new(customerio);
        let max_attempts = config.retry.delays.max_attempts();
        let replica = Replica::start();
        let ledger = Ledger::new(&config.database, &config.tls, max_attempts)?.of_replica(&replica);
        let address = Address::new(&config.broker, &config.tls)?;
        let state = admin_state(&config, &ledger, &customerio, &metrics, &shutdown, &replica);
        let admin::AppState { connected, startup, tokens, last_write, defect, .. } = state.clone();
        let (started, has_started) = watch::channel(false);
        let mut services = Tasks::default();
        let http_addr = listen(config.http.addr, state.clone(), &mut services).await?;
        start_services(&config, state, address.clone(), &mut services);
        let leases = LeaseKeeper {
            ledger: ledger.clone(),
            customerio: customerio.clone(),
            replica,
            last_write,
        };
        leases.start(&config, has_started.clone(), &shutdown, &mut services);
        let grace = config.lifecycle.grace;
        let start = Start {
            topology,
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
        Ok(Self {
            shutdown,
            http_addr,
            tokens,
            defect,
            ledger,
            starting: Some(starting),
            running: None,
            has_started,
            services,
            grace,
        })
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

    /// Waits until a task ends although the service was not stopped, which is a defect. Returns
    /// the task's name.
    pub async fn task_ended(&mut self) -> &'static str {
        let name = self.next_ended().await;
        let _ = self.defect.set(name);
        name
    }

    async fn next_ended(&mut self) -> &'static str {
        loop {
            if let Some(running) = &mut self.running {
                tokio::select! {
                    Some(name) = self.services.next_ended() => return name,
                    Some(name) = running.flows.next_ended() => return name,
                }
            }
            let Some(starting) = &mut self.starting else { return "start" };
            tokio::select! {
                Some(name) = self.services.next_ended() => return name,
                running = starting => {
                    self.starting = None;
                    self.running = running.ok().flatten();
                }
            }
        }
    }

    /// Stops the service: ends the intake, finishes the work in flight within the grace period, and
    /// closes the connections. RabbitMQ redelivers the messages of unfinished work.
    pub async fn stop(mut self) {
        self.shutdown.drain();
        let running = match (self.running, self.starting) {
            (None, Some(starting)) => starting.await.ok().flatten(),
            (running, _) => running,
        };
        if let Some(running) = running {
            running.stop(self.grace).await;
        }
        self.shutdown.end();
        let ended = self.services.join_all();
        if tokio::time::timeout(SERVICES_SHUTDOWN_TIMEOUT, ended).await.is_err() {
            tracing::debug!("the HTTP server did not end in time and is aborted");
        }
        self.services.abort_all().await;
        // A connection to a server that no longer answers would not be released.
        let _ = tokio::time::timeout(SERVICES_SHUTDOWN_TIMEOUT, self.ledger.close()).await;
    }
}

impl Running {
    async fn stop(mut self, grace: Duration) {
        if tokio::time::timeout(grace, self.flows.join_all()).await.is_err() {
            tracing::warn!(
                ?grace,
                "the grace period ended before the work in flight was finished; its messages \
                    will be redelivered"
            );
        }
        self.flows.abort_all().await;
        for connection in &self.connections {
            connection.close().await;
        }
    }
}

/// What the endpoints need.
fn admin_state(
    config: &Config,
    ledger: &Ledger,
    customerio: &Arc<CustomerIo>,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
    replica: &Replica,
) -> admin::AppState {
    admin::AppState {
        config: Arc::new(config.http.clone()),
        replica: replica.clone(),
        ledger: ledger.with_own_connections(config.database.http_connections),
        last_write: Heartbeat::default(),
        defect: Arc::default(),
        metrics: metrics.clone(),
        customerio: customerio.clone(),
        ladder: config.retry.delays.clone(),
        shutdown: shutdown.clone(),
        startup: admin::StartupStatus::default(),
        connected: Arc::new(OnceLock::new()),
        live: LiveFeed::default(),
        certificates: config.certificate_files(),
        websockets: Arc::new(Semaphore::new(config.http.websocket_clients)),
        tokens: LiveTokens::new(config.http.admin_tokens.clone()),
        last_comparison: Arc::default(),
        sessions: Arc::default(),
        login_throttle: Arc::default(),
    }
}

/// Keeps what other replicas rely on: the lease on the call rate, and the session for locks.
struct LeaseKeeper {
    ledger: Ledger,
    customerio: Arc<CustomerIo>,
    replica: Replica,
    last_write: Heartbeat,
}

impl LeaseKeeper {
    fn start(
        self,
        config: &Config,
        mut has_started: watch::Receiver<bool>,
        shutdown: &Shutdown,
        services: &mut Tasks,
    ) {
        let Self { ledger, customerio, replica, last_write } = self;
        let (total, ending) = (config.customerio.requests_per_second, shutdown.clone());
        let renewing =
            rate_limit::run(replica, total, customerio, ledger.clone(), last_write, ending.clone());
        services.spawn("call rate", renewing);
        services.spawn("session for locks", async move {
            // The start opens the session.
            let started = async { has_started.wait_for(|has_started| *has_started).await.is_ok() };
            tokio::select! {
                () = ending.ended() => return,
                true = started => {}
                else => return ending.ended().await,
            }
            ledger.stay_present(ending).await;
        });
    }
}

/// Starts what needs neither RabbitMQ nor a schema.
fn start_services(
    config: &Config,
    state: admin::AppState,
    address: Arc<Address>,
    services: &mut Tasks,
) {
    let watchdog = admin::watch_progress(state.clone());
    let admin::AppState { ledger, metrics, customerio, shutdown, live, tokens, .. } = state;
    let reload = Reload {
        ledger: ledger.clone(),
        address,
        customerio: customerio.clone(),
        tokens,
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    };
    services.spawn("reload", reload.run(config));
    services.spawn("watchdog", watchdog);
    let ledger_gauges =
        LedgerGauges { config: config.metrics.clone(), ledger: ledger.clone(), metrics };
    services.spawn("ledger gauges", ledger_gauges.run(shutdown.clone()));
    services.spawn("live feed", live.run(ledger, customerio.watch_breaker(), shutdown));
}

async fn listen(
    addr: SocketAddr,
    state: admin::AppState,
    services: &mut Tasks,
) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    services.spawn("HTTP server", admin::serve(listener, state));
    Ok(addr)
}
