//! RabbitMQ: the topology, deliveries and published messages.
//!
//! Consuming and publishing use separate connections, since RabbitMQ also stops reading
//! acknowledgements from a connection that it blocks. A lost connection is reopened with growing
//! pauses. Delivery tags of the old connection are never used on the new one; RabbitMQ redelivers
//! unacknowledged messages.

mod address;
mod connection;
mod consumer;
mod delivery_channel;
mod diagnose;
mod guard;
mod header_map;
mod management;
mod message;
mod names;
mod original;
mod publisher;
mod quarantine;
mod queue_monitor;
mod queue_reader;
mod repair;
mod spans;
mod subscription;
mod topology;
mod version;
mod while_connected;
mod window;

use std::{
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;
use serde::Deserialize;

use crate::runtime::tls;

pub use address::{Address, check_url, vhost};
pub use connection::{Backlog, Connection, QueueState};
pub use consumer::{AckResult, Acker, ConsumerStates, Delivery, consume};
pub use diagnose::{check, detail, fix};
pub use guard::TopologyGuard;
pub use header_map::{HeaderMap, capped};
pub use management::check as check_management;
pub use message::{
    Destination, JobBody, Message, MessageProperties, Origin, OriginalMessage, OutcomeBody,
    OutcomeType, ReparkedMessage,
};
pub use names::{
    EVENTS_EXCHANGE, FAILED_EXCHANGE, FAILED_QUEUE, JOBS_EXCHANGE, MIRROR_QUEUE, QUARANTINE_QUEUE,
    UPDATES_EXCHANGE, WorkQueue, headers, tier_queue, tier_queue_of,
};
pub use publisher::{PublishAnswer, PublishResult, Publisher, Unroutable};
pub use queue_monitor::{QueueMonitor, QueueReading};
pub use queue_reader::QueueReader;
#[cfg(any(test, fuzzing))]
pub use repair::property as repair_property;
pub use subscription::{OutcomeEvent, OutcomeSubscription};
pub use topology::Topology;
pub use window::WindowLimit;

/// Settings of the connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `amqp://…` or `amqps://…`; RabbitMQ 3.10 or newer.
    pub url: SecretString,
    /// Heartbeat interval (<https://www.rabbitmq.com/docs/heartbeats>).
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Maximum duration of a connection attempt, including the topology.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// PEM file with the client's certificate chain, for `amqps://`. Empty for none.
    pub client_certificate: PathBuf,
    /// PEM file with the client's private key.
    pub client_key: PathBuf,
    /// Maximum unacknowledged deliveries per queue while calls are fast.
    pub prefetch: NonZeroU16,
    /// Number of channels for mandatory publishes. Each has at most one unconfirmed publish.
    pub publish_channels: NonZeroUsize,
    /// URL of the management API with user and password, for `doctor`. Empty: it is not asked.
    pub management_api: SecretString,
}

/// Settings of the topology.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyConfig {
    /// Whether exchanges and queues are declared, or only checked.
    pub declare: bool,
    /// Maximum deliveries of a message of a work queue. RabbitMQ dead-letters it to the failure
    /// exchange after that.
    pub delivery_limit: u32,
}

/// An error of RabbitMQ or of the connection to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is malformed.
    #[error("the AMQP URL is malformed: {0}")]
    Url(String),
    /// A certificate file can't be read.
    #[error(transparent)]
    Certificate(#[from] tls::UnreadableFile),
    /// The connection attempt failed.
    #[error("connecting to RabbitMQ: {0}")]
    Connect(lapin::Error),
    /// The connection attempt took too long.
    #[error("connecting to RabbitMQ: no answer within {0:?}")]
    ConnectTimeout(Duration),
    /// A request failed.
    #[error("{doing}: {source}")]
    Request {
        /// The operation that failed.
        doing: &'static str,
        /// The error of the client or of RabbitMQ.
        source: lapin::Error,
    },
    /// An exchange or a queue exists with other arguments.
    #[error("{0}")]
    Inequivalent(String),
    /// The user may not do this.
    #[error("{doing} ({name}): {text}")]
    NotPermitted {
        /// The operation that RabbitMQ refused.
        doing: &'static str,
        /// The exchange or the queue.
        name: String,
        /// RabbitMQ's text, which names the user.
        text: String,
    },
    /// An exchange or a queue exists, and the user may not compare its arguments.
    #[error("the arguments of {name} can't be compared: {text}")]
    Incomparable {
        /// The exchange or the queue.
        name: String,
        /// RabbitMQ's text, which names the user.
        text: String,
    },
    /// An exchange or a queue is missing, and nothing may be declared.
    #[error("{0} does not exist")]
    Missing(String),
}

impl Error {
    fn doing(doing: &'static str) -> impl FnOnce(lapin::Error) -> Self {
        move |source| Self::Request { doing, source }
    }

    /// Whether RabbitMQ refused a request because of the user's permissions (reply code 403).
    fn is_access_refused(&self) -> bool {
        matches!(
            self,
            Self::Request { source, .. }
                if topology::amqp_code(source).is_some_and(|(code, _)| code == 403)
        )
    }
}
