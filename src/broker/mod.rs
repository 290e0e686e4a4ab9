//! RabbitMQ: the topology, deliveries that come in, messages that go out.
//!
//! Consuming and publishing use a connection each, since a connection that the broker blocks stops
//! acknowledging, too. A connection that is lost is opened again with growing pauses; delivery tags
//! of the old one are never used on the new one, and the broker delivers again what was not
//! acknowledged.

mod connection;
mod consumer;
mod headers;
mod message;
mod publisher;
mod subscription;
mod topology;
mod while_connected;

use std::{
    num::{NonZeroU16, NonZeroUsize},
    time::Duration,
};

use secrecy::SecretString;
use serde::Deserialize;

pub use connection::{Backlog, Link, differences, vhost};
pub use consumer::{Acknowledged, Delivery, Receipt, consume};
pub use headers::{HeaderMap, capped};
pub use message::{
    JobBody, Message, ORIGINAL_ID_HEADER, Origin, Original, OutcomeBody, OutcomeType, Parked,
    REPLAY_HEADER,
};
pub use publisher::Publisher;
pub use subscription::{Heard, listen};
pub use topology::{FAILED_QUEUE, JOBS_EXCHANGE, MIRROR_QUEUE, Topology, WorkQueue};

/// Settings of the connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `amqp://…` or `amqps://…`; RabbitMQ 3.10 or newer.
    pub url: SecretString,
    /// Heartbeat interval (<https://www.rabbitmq.com/docs/heartbeats>).
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long a connection attempt may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Deliveries in hand at most, a queue.
    pub prefetch: NonZeroU16,
    /// Channels for mandatory publishes; each has one unconfirmed publish at most.
    pub publish_channels: NonZeroUsize,
}

/// Settings of the topology.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyConfig {
    /// Whether exchanges and queues are declared, or only checked.
    pub declare: bool,
    /// How often the broker delivers a message of a work queue before it gives it up to the failure
    /// exchange.
    pub delivery_limit: u32,
}

/// What can go wrong with the broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL can't be read.
    #[error("the AMQP URL can't be read: {0}; expected amqp://user:password@host:5672/vhost")]
    Url(String),
    /// No connection came about.
    #[error("connecting to RabbitMQ: {0}")]
    Connect(lapin::Error),
    /// The connection attempt took too long.
    #[error("connecting to RabbitMQ: no answer within {0:?}")]
    ConnectTimeout(Duration),
    /// A request failed.
    #[error("{doing}: {source}")]
    Request {
        /// What was being attempted.
        doing: &'static str,
        /// The broker's answer.
        source: lapin::Error,
    },
    /// An exchange or a queue stands with other arguments than ours.
    #[error("{0}; change or delete it, or change the setting that names this value")]
    Inequivalent(String),
    /// An exchange or a queue is missing and may not be declared.
    #[error(
        "{0} does not exist and topology.declare is false; declare it with `customerio-sync \
            topology`"
    )]
    Missing(String),
}

impl Error {
    fn doing(doing: &'static str) -> impl FnOnce(lapin::Error) -> Self {
        move |source| Self::Request { doing, source }
    }

    /// Whether trying again may help. A difference between what stands in the broker and what is
    /// configured stays.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Url(_) | Self::Inequivalent(_) | Self::Missing(_))
    }
}
