//! A connection to RabbitMQ that is reopened when it is lost.

use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};

use lapin::{Channel, options::QueueDeclareOptions, types::FieldTable};
use prometheus::IntCounter;
use tokio::{sync::Mutex, time::timeout};

use super::{
    Address, ConsumerStates, Error, Topology, WorkQueue,
    diagnose::{detail, fix},
    guard::report,
    spans::ServerAddress,
    while_connected::{connection_lost, request, while_connected},
};
use crate::runtime::metrics::{GaugeGuard, Metrics, QueueMetrics};

/// Messages that are ready in the work queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Events of all types.
    pub events: u32,
    /// Messages of the jobs queue.
    pub jobs: u32,
}

impl Backlog {
    /// Number of messages in all work queues.
    pub fn total(self) -> u32 {
        self.events + self.jobs
    }
}

/// The state of a queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that are ready; without those that are delivered and unacknowledged.
    pub ready: u32,
    /// Consumers, of all replicas.
    pub consumers: u32,
}

/// Whether a connection is opened for the first time, when nothing needs to exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    First,
    Again,
}

/// A connection to RabbitMQ. If it is lost, the next use reopens it.
#[derive(Debug)]
pub struct Connection {
    name: &'static str,
    address: Arc<Address>,
    server: ServerAddress,
    topology: Arc<Topology>,
    /// Held while the connection is reopened, so that one attempt is made at a time.
    reopening: Mutex<()>,
    current: RwLock<Option<Arc<lapin::Connection>>>,
    /// Why the last attempt to connect failed, and the fix.
    problem: StdMutex<Option<String>>,
    reconnects: IntCounter,
    consumers: ConsumerStates,
    /// Failed attempts to connect.
    failures: IntCounter,
    queues: QueueMetrics,
}

impl Connection {
    /// Tries once to open the connection called `name`, and applies the topology.
    pub async fn open(
        name: &'static str,
        address: Arc<Address>,
        topology: Arc<Topology>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, Error> {
        let connection = Self {
            name,
            server: ServerAddress::of(&address.uri()),
            address,
            topology,
            reopening: Mutex::new(()),
            current: RwLock::default(),
            problem: StdMutex::default(),
            reconnects: metrics.reconnects.with_label_values(&[name]),
            consumers: ConsumerStates::default(),
            failures: metrics.connections.failures.with_label_values(&[name]),
            queues: metrics.queues.clone(),
        };
        let first = connection.connect(Opening::First).await?;
        connection.set_current(Some(Arc::new(first)));
        Ok(Arc::new(connection))
    }

    /// The name, which states its purpose.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The address of the broker, for spans.
    pub(super) fn server(&self) -> &ServerAddress {
        &self.server
    }

    /// Whether the connection is open.
    pub fn is_connected(&self) -> bool {
        self.current().is_some()
    }

    /// Why the connection is down, and the fix. `None` if it is open, or was lost just now.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection, if it is open.
    fn current(&self) -> Option<Arc<lapin::Connection>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|connection| connection.status().connected())
    }

    fn set_current(&self, connection: Option<Arc<lapin::Connection>>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// The consumers on this connection.
    pub fn consumers(&self) -> &ConsumerStates {
        &self.consumers
    }

    /// Opens a channel, after reopening the connection if it is lost.
    pub(super) async fn channel(&self) -> Result<Channel, Error> {
        let connection = self.connection().await?;
        let opened =
            while_connected(|| !connection.status().connected(), connection.create_channel()).await;
        opened.unwrap_or_else(|| Err(connection_lost())).map_err(Error::doing("opening a channel"))
    }

    /// Counts the messages that are ready in the work queues.
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        let mut backlog = Backlog { events: 0, jobs: 0 };
        for queue in WorkQueue::ALL {
            let waiting = self.depth(queue.name()).await?;
            match queue {
                WorkQueue::Events(_) => backlog.events += waiting,
                WorkQueue::Jobs => backlog.jobs += waiting,
            }
        }
        Ok(backlog)
    }

    /// Counts the messages in the delay tiers.
    pub async fn messages_in_tiers(&self) -> Result<u32, Error> {
        let mut ready = 0;
        for queue in self.topology.tier_queues() {
            ready += self.depth(queue).await?;
        }
        Ok(ready)
    }

    /// Counts the messages that are ready in `queue`.
    pub async fn depth(&self, queue: &str) -> Result<u32, Error> {
        Ok(self.queue_state(queue).await?.ready)
    }

    /// The names of all queues of this service.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.topology.queue_names()
    }

    /// Counts the ready messages and the consumers of `queue`.
    pub async fn queue_state(&self, queue: &str) -> Result<QueueState, Error> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared =
            channel.queue_declare(queue.to_owned().into(), options, FieldTable::default());
        let queue = request(&channel, "counting the messages of a queue", declared).await?;
        Ok(QueueState { ready: queue.message_count(), consumers: queue.consumer_count() })
    }

    /// Reports that this replica consumes `queue` until the guard is dropped.
    pub(super) fn consuming(&self, queue: &str) -> GaugeGuard {
        GaugeGuard::new(&self.queues.consuming.with_label_values(&[queue]))
    }

    /// Counts a message of `queue` whose properties were repaired.
    pub(super) fn count_repaired(&self, queue: &str) {
        self.queues.repaired.with_label_values(&[queue]).inc();
    }

    /// Restores what is missing of the topology, logs it and counts it.
    pub(super) async fn restore_topology(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        self.restore(&connection).await
    }

    async fn restore(&self, connection: &lapin::Connection) -> Result<(), Error> {
        let restoring = self.topology.restore(connection, |name| report(name, &self.queues));
        Box::pin(self.in_time(restoring)).await
    }

    /// Closes the connection. RabbitMQ redelivers unacknowledged messages.
    pub async fn close(&self) {
        let _reopening = self.reopening.lock().await;
        let Some(connection) = self.current() else { return };
        self.set_current(None);
        let closed = async {
            connection.close(200, "stopping".into()).await.map_err(Error::doing("closing"))
        };
        if let Err(error) = self.in_time(closed).await {
            tracing::debug!(%error, connection = self.name, "closing the connection failed");
        }
    }

    /// Returns the open connection, or tries once to open it. Callers pause between attempts.
    async fn connection(&self) -> Result<Arc<lapin::Connection>, Error> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let _reopening = self.reopening.lock().await;
        // Another caller may have reopened it meanwhile.
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        self.set_current(None);
        // Boxed, since every publish and every consumer would have room for it.
        let connection = Arc::new(Box::pin(self.connect(Opening::Again)).await?);
        self.reconnects.inc();
        tracing::info!(connection = self.name, "reconnected to RabbitMQ");
        self.set_current(Some(connection.clone()));
        Ok(connection)
    }

    async fn connect(&self, opening: Opening) -> Result<lapin::Connection, Error> {
        let connecting = async {
            let connection = self.in_time(self.address.connect(self.name)).await?;
            if opening == Opening::Again && self.topology.declares() {
                // RabbitMQ 3.10 may close the connection that publishes to a queue while that is
                // deleted. So what is missing is reported here as well.
                self.restore(&connection).await?;
            }
            self.in_time(self.topology.apply(&connection)).await?;
            Ok(connection)
        };
        let connected = connecting.await;
        let problem = connected.as_ref().err().map(|error| {
            self.failures.inc();
            format!("{}; {}", detail(error), fix(&self.address, self.topology.declares(), error))
        });
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        connected
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.address.connect_timeout();
        timeout(limit, work).await.unwrap_or(Err(Error::ConnectTimeout(limit)))
    }
}
