//! Builds the service from its settings, and knows the order in which it starts and stops.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{
    admin,
    broker::{self, Link, Publisher, Topology},
    config::Config,
    customerio::{self, CustomerIo},
    flows::{
        bulk_retry,
        feed::Feed,
        integrity::Watch,
        mirror::{self, Sweeper},
        rate_limit,
        recovery::Recovery,
        sync::Sync,
    },
    ledger::{self, Ledger},
    runtime::{backoff::until_done, metrics::Metrics, shutdown::Lifecycle},
};

/// What keeps the service from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The database.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// The Customer.io client.
    #[error(transparent)]
    CustomerIo(#[from] customerio::Error),
    /// The HTTP server.
    #[error("listening on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// How long the HTTP server may take to end its answers, and the share of the calls to be given up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The service, running.
#[derive(Debug)]
pub struct App {
    lifecycle: Lifecycle,
    http_addr: SocketAddr,
    ledger: Ledger,
    links: Vec<Arc<Link>>,
    /// They end by themselves when nothing new is taken.
    flows: JoinSet<()>,
    /// What the flows need to the end: the HTTP server, and the share of the calls.
    services: JoinSet<()>,
    grace: Duration,
}

impl App {
    /// Starts the service: HTTP first, so that the probes answer while the database and the broker
    /// are waited for.
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.require_database()?;
        config.require_broker()?;
        let metrics = Arc::new(Metrics::default());
        let lifecycle = Lifecycle::default();
        let customerio =
            Arc::new(CustomerIo::new(&config.customerio, config.gate.clone(), metrics.clone())?);
        let ledger = Ledger::new(&config.database, config.retry.delays.max_attempts())?;
        let ready = Arc::new(OnceLock::new());
        let state = admin::AppState {
            config: Arc::new(config.http.clone()),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
            ladder: config.retry.delays.clone(),
            lifecycle: lifecycle.clone(),
            ready: ready.clone(),
            websockets: Arc::new(Semaphore::new(config.http.websocket_clients)),
            guesses: Arc::default(),
        };
        let (mut services, http_addr) = listen(config.http.addr, state).await?;

        if config.database.migrate {
            until_done("applying the migrations", ledger::Error::is_transient, || ledger.migrate())
                .await?;
        }
        let topology = Arc::new(Topology::new(&config.retry.delays, &config.topology));
        let consuming = Link::open("consume", &config.broker, topology.clone(), &metrics).await?;
        let publishing = Link::open("publish", &config.broker, topology, &metrics).await?;
        let publisher = Publisher::new(publishing.clone(), &config.broker, metrics.clone());
        let all_calls = config.customerio.requests_per_second;
        services.spawn(rate_limit::run(
            all_calls,
            customerio.clone(),
            ledger.clone(),
            lifecycle.clone(),
        ));
        let shared = Shared { ledger, metrics, lifecycle, consuming, publishing, publisher };
        let Shared { ledger, lifecycle, .. } = shared.clone();
        let (links, grace) = (shared.links(), config.lifecycle.grace);
        let flows = shared.start(config, customerio, &ready);
        tracing::info!(%http_addr, "serving");
        Ok(Self { lifecycle, http_addr, ledger, links, flows, services, grace })
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Stops: takes nothing new, lets what is in hand end within the grace time, closes the
    /// connections. What was not finished is delivered again.
    pub async fn stop(mut self) {
        self.lifecycle.drain();
        let ended = async { while self.flows.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, ended).await.is_err() {
            tracing::warn!(grace = ?self.grace, "the grace time is over, the rest will be \
                delivered again");
        }
        self.flows.shutdown().await;
        for link in &self.links {
            link.close().await;
        }
        self.lifecycle.end();
        let ended = async { while self.services.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WORDS, ended).await.is_err() {
            tracing::debug!("what served to the end is cut off");
        }
        self.services.shutdown().await;
        self.ledger.close().await;
    }
}

/// What the flows share.
#[derive(Clone)]
struct Shared {
    ledger: Ledger,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
    consuming: Arc<Link>,
    publishing: Arc<Link>,
    publisher: Publisher,
}

impl Shared {
    fn links(&self) -> Vec<Arc<Link>> {
        vec![self.consuming.clone(), self.publishing.clone()]
    }

    /// Starts every flow, and tells the endpoints that the broker is there.
    fn start(
        self,
        config: Config,
        customerio: Arc<CustomerIo>,
        ready: &OnceLock<admin::Ready>,
    ) -> JoinSet<()> {
        let links = self.links();
        let Self { ledger, metrics, lifecycle, consuming, publishing, publisher } = self;
        let budget = customerio.budget().clone();
        let sync = Sync {
            config: config.sync,
            prefetch: config.broker.prefetch.get(),
            ladder: config.retry.delays,
            ledger: ledger.clone(),
            publisher: publisher.clone(),
            customerio,
            metrics: metrics.clone(),
        };
        let main_flow = sync.into_flow(lifecycle.clone());
        let (feed, processor) = (Feed::default(), main_flow.processor());
        let sweeper = Sweeper {
            config: config.mirror.clone(),
            link: consuming.clone(),
            publisher: publisher.clone(),
            ledger: ledger.clone(),
        };
        let recovery = Recovery {
            config: config.recovery,
            link: publishing.clone(),
            publisher: publisher.clone(),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
        };
        let watch = Watch {
            config: config.integrity,
            link: consuming.clone(),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
        };
        let gate = processor.watch_gate();
        let is_held = {
            let processor = processor.clone();
            move || processor.gate().is_shut
        };
        let are_calls_short = {
            let is_held = is_held.clone();
            move || budget.is_exhausted() || is_held()
        };
        let at_work =
            admin::Ready { links, publisher: publisher.clone(), processor, feed: feed.clone() };
        ready.get_or_init(|| at_work);
        let mut flows = JoinSet::new();
        flows.spawn(feed.run(consuming.clone(), ledger.clone(), gate, lifecycle.clone()));
        let bulk = bulk_retry::run(
            config.bulk_retry,
            are_calls_short,
            publishing,
            ledger.clone(),
            publisher,
            lifecycle.clone(),
        );
        flows.spawn(bulk);
        flows.spawn(sweeper.run(lifecycle.clone()));
        flows.spawn(watch.run(is_held.clone(), lifecycle.clone()));
        flows.spawn(recovery.run(is_held, lifecycle.clone()));
        flows.spawn(mirror::run(config.mirror, consuming.clone(), ledger, lifecycle, metrics));
        flows.spawn(main_flow.run(consuming));
        flows
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
