//! One connection to RabbitMQ that is opened again when it was lost.

use std::{sync::Arc, time::Duration};

use lapin::{
    Channel, Connection, ConnectionProperties, options::QueueDeclareOptions, types::FieldTable,
    uri::AMQPUri,
};
use prometheus::IntCounter;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;

use super::{
    Config, Error, Topology, WorkQueue,
    while_connected::{lost, request, unless_lost},
};
use crate::runtime::{backoff::until_done, metrics::Metrics};

/// Messages that are ready in the work queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Events of all types.
    pub events: u32,
    /// Those of the jobs queue.
    pub jobs: u32,
}

impl Backlog {
    /// All of them.
    pub fn total(self) -> u32 {
        self.events + self.jobs
    }
}

/// A connection that is there when it is asked for.
#[derive(Debug)]
pub struct Link {
    name: &'static str,
    uri: AMQPUri,
    connect_timeout: Duration,
    topology: Arc<Topology>,
    current: Mutex<Option<Arc<Connection>>>,
    reconnects: IntCounter,
}

impl Link {
    /// Opens the connection called `name` for the first time and applies the topology. Waits for a
    /// broker that does not answer; fails if the URL can't be read or the topology does not fit.
    pub async fn open(
        name: &'static str,
        config: &Config,
        topology: Arc<Topology>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, Error> {
        let link = Arc::new(Self {
            name,
            uri: parse_url(config)?,
            connect_timeout: config.connect_timeout,
            topology,
            current: Mutex::new(None),
            reconnects: metrics.reconnects.with_label_values(&[name]),
        });
        let first =
            until_done("connecting to RabbitMQ", Error::is_transient, || link.connect()).await?;
        *link.current.lock().await = Some(Arc::new(first));
        Ok(link)
    }

    /// What it is for.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the connection is up. While it is being opened, it is not.
    pub fn is_connected(&self) -> bool {
        let Ok(current) = self.current.try_lock() else { return false };
        current.as_ref().is_some_and(|connection| connection.status().connected())
    }

    /// A fresh channel, on a connection that is opened again for it where that is needed.
    pub(super) async fn channel(&self) -> Result<Channel, Error> {
        let connection = self.connection().await?;
        let opened =
            unless_lost(|| !connection.status().connected(), connection.create_channel()).await;
        opened.unwrap_or_else(|| Err(lost())).map_err(Error::doing("opening a channel"))
    }

    /// Messages that wait in the work queues.
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

    /// Messages that wait in the delay tiers.
    pub async fn in_tiers(&self) -> Result<u32, Error> {
        let mut ready = 0;
        for queue in self.topology.tier_queues() {
            ready += self.depth(queue).await?;
        }
        Ok(ready)
    }

    /// Messages that are ready in `queue`.
    pub async fn depth(&self, queue: &str) -> Result<u32, Error> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared =
            channel.queue_declare(queue.to_owned().into(), options, FieldTable::default());
        Ok(request(&channel, "counting waiting messages", declared).await?.message_count())
    }

    /// Applies the topology again: something that it holds was found missing.
    pub(super) async fn apply_topology(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        self.in_time(self.topology.apply(&connection)).await
    }

    /// Closes the connection. What was not acknowledged is delivered again.
    pub async fn close(&self) {
        let Some(connection) = self.current.lock().await.take() else { return };
        let closed = async {
            connection.close(200, "stopping".into()).await.map_err(Error::doing("closing"))
        };
        if let Err(error) = self.in_time(closed).await {
            tracing::debug!(%error, "closing the {} connection", self.name);
        }
    }

    /// One attempt at a live connection; callers pause between attempts.
    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut current = self.current.lock().await;
        if let Some(connection) =
            current.as_ref().filter(|connection| connection.status().connected())
        {
            return Ok(connection.clone());
        }
        *current = None;
        let connection = Arc::new(self.connect().await?);
        self.reconnects.inc();
        tracing::info!(connection = self.name, "connected to RabbitMQ again");
        *current = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("customerio-sync {}", self.name).into());
        let connecting = async {
            let connection = Connection::connect_uri(self.uri.clone(), properties)
                .await
                .map_err(Error::Connect)?;
            self.topology.apply(&connection).await?;
            Ok(connection)
        };
        self.in_time(connecting).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.connect_timeout;
        tokio::time::timeout(limit, work).await.unwrap_or(Err(Error::ConnectTimeout(limit)))
    }
}

/// What in the broker is not as `topology` has it, without changing anything.
pub async fn differences(config: &Config, topology: &Topology) -> Result<Vec<Error>, Error> {
    let connecting = Connection::connect_uri(parse_url(config)?, ConnectionProperties::default());
    let connection = tokio::time::timeout(config.connect_timeout, connecting).await;
    let connection = connection
        .map_err(|_| Error::ConnectTimeout(config.connect_timeout))?
        .map_err(Error::Connect)?;
    let differences = topology.differences(&connection).await;
    // Channels that ended with a difference may still be closing; the connection ends either way.
    let _ = connection.close(200, "done".into()).await;
    differences
}

/// The virtual host that the URL names; `/` where there is no URL.
pub fn vhost(config: &Config) -> Result<String, Error> {
    if config.url.expose_secret().is_empty() {
        Ok("/".to_owned())
    } else {
        Ok(parse_url(config)?.vhost)
    }
}

fn parse_url(config: &Config) -> Result<AMQPUri, Error> {
    let mut uri: AMQPUri = config.url.expose_secret().parse().map_err(Error::Url)?;
    if uri.query.heartbeat.is_none() {
        uri.query.heartbeat = Some(u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX));
    }
    Ok(uri)
}
