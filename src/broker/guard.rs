//! Restores exchanges, queues and bindings that somebody has deleted.
//!
//! RabbitMQ ends the consumers of a deleted queue, and drops what is published without a binding.
//! Recovery and the sweep publish the messages again that the ledger knows of.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::{Connection, Error, WorkQueue, diagnose::detail};
use crate::runtime::{metrics::QueueMetrics, shutdown::Shutdown};

/// Time between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum duration of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks the topology at intervals. Its clones share the last result.
#[derive(Debug, Clone)]
pub struct TopologyGuard {
    connection: Arc<Connection>,
    /// What is missing and may not be declared.
    problem: Arc<Mutex<Option<String>>>,
}

impl TopologyGuard {
    /// A guard that uses `connection`.
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection, problem: Arc::default() }
    }

    /// What is missing and may not be declared by this service, with the fix.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.draining() => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
            if !self.connection.is_connected() {
                // The topology is applied when it is opened again.
                continue;
            }
            let problem = match timeout(CHECK_TIMEOUT, self.connection.restore_topology()).await {
                Ok(Ok(())) => None,
                Ok(Err(error @ (Error::Missing(_) | Error::NotPermitted { .. }))) => {
                    Some(format!("{}; declare it again", detail(&error)))
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "checking the topology failed, retrying");
                    continue;
                }
                Err(_) => {
                    tracing::warn!("checking the topology took longer than {CHECK_TIMEOUT:?}");
                    continue;
                }
            };
            *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        }
    }
}

/// Logs and counts an exchange or a queue that was missing.
pub(super) fn report(name: &str, metrics: &QueueMetrics) {
    let is_event_queue =
        |queue: WorkQueue| matches!(queue, WorkQueue::Events(_)) && queue.name() == name;
    let loss = if WorkQueue::ALL.into_iter().any(is_event_queue) {
        "events that were in it, or were published since it was deleted, are lost"
    } else {
        "the messages that the ledger knows of are published again"
    };
    tracing::error!(object = name, "a part of the topology was missing and is restored: {loss}");
    metrics.restored.with_label_values(&[name]).inc();
}
