//! The state of the queues, for operators. RabbitMQ is asked at most once per two seconds, however
//! many pages are open.

#![expect(clippy::disallowed_methods, reason = "an edge: the age of the last reading")]

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::Mutex, time::Instant};

use super::{Connection, QueueState, names::REPORTED_QUEUES};

/// Maximum time for RabbitMQ to answer. After that, the state of a queue is unknown.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum age of a reading that is returned.
const READING_AGE_MAX: Duration = Duration::from_secs(2);

/// The state of one queue, or that it is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueReading {
    /// The queue.
    pub name: &'static str,
    /// Its state. `None` if RabbitMQ did not answer within a second, or the queue is missing.
    pub state: Option<QueueState>,
}

impl QueueReading {
    /// Readings of all queues while there is no connection.
    pub fn unknown() -> Vec<Self> {
        REPORTED_QUEUES.map(|name| Self { name, state: None }).into()
    }
}

/// Reads the work queues, the mirror's queue and the failure queue.
#[derive(Debug)]
pub struct QueueMonitor {
    /// The connection of the consumers, which RabbitMQ never blocks.
    connection: Arc<Connection>,
    /// The last reading and its time. Locked while RabbitMQ is asked, so that others wait for that
    /// reading.
    last: Mutex<Option<(Instant, Vec<QueueReading>)>>,
}

impl QueueMonitor {
    /// Creates a monitor that uses `connection`.
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection, last: Mutex::default() }
    }

    /// Returns the states of the queues, not older than two seconds, within about a second.
    pub async fn read(&self) -> Vec<QueueReading> {
        let mut last = self.last.lock().await;
        if let Some((read_at, readings)) = last.as_ref()
            && read_at.elapsed() < READING_AGE_MAX
        {
            return readings.clone();
        }
        // Whether the connection can be opened again is not for an operator's page to find out.
        let readings = if self.connection.is_connected() {
            join_all(REPORTED_QUEUES.map(|name| self.reading(name))).await
        } else {
            QueueReading::unknown()
        };
        *last = Some((Instant::now(), readings.clone()));
        readings
    }

    async fn reading(&self, name: &'static str) -> QueueReading {
        let state = tokio::time::timeout(READ_TIMEOUT, self.connection.queue_state(name)).await;
        let state = match state {
            Ok(Ok(state)) => Some(state),
            Ok(Err(error)) => {
                tracing::debug!(%error, queue = name, "the state of a queue is unknown");
                None
            }
            Err(_) => {
                tracing::debug!(queue = name, "RabbitMQ did not report the state of a queue");
                None
            }
        };
        QueueReading { name, state }
    }
}
