//! Counts the work in the ledger and the messages in the queues in the background, so that
//! `/metrics` reads memory alone.
//!
//! Every replica counts, and the counts are the same on all of them. A gauge has no value before
//! the first count. If RabbitMQ does not answer, the gauges of the queues have no value; if the
//! database does not answer, the gauges of the ledger keep their values, and the time of the last
//! count shows their age.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::{
    broker::Connection,
    job::Status,
    ledger::{self, Ledger, OpenWork},
    runtime::{
        metrics::{Metrics, ServerConnection},
        shutdown::Shutdown,
        text_enum::text_enum,
    },
};

/// Settings of the gauges.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time between two counts of the open work and of the messages in the queues.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Time between two counts of the completed jobs.
    #[serde(with = "humantime_serde")]
    pub completed_interval: Duration,
}

/// Maximum time for the database to answer a short query, including the wait for a connection.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum duration of a count of the open work.
const OPEN_COUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum duration of a count of the completed jobs.
const COMPLETED_COUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum time for RabbitMQ to count the messages of one queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);

text_enum! {
    /// The age of the event of an open job, compared with the 72 hours after which it starts no
    /// campaign at Customer.io.
    LateState {
        /// More than 60 hours.
        DueSoon = "due_soon",
        /// More than 72 hours.
        Passed = "passed",
    }
}

/// Counts the work in the ledger.
#[derive(Debug)]
pub struct LedgerGauges {
    /// Settings.
    pub config: Config,
    /// Counts.
    pub ledger: Ledger,
    /// Publishes the counts.
    pub metrics: Arc<Metrics>,
}

impl LedgerGauges {
    /// Counts at intervals until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.draining() => {}
            () = every(self.config.interval, || self.count_open_work()) => {}
            () = every(self.config.completed_interval, || self.count_completed()) => {}
        }
    }

    async fn count_open_work(&self) {
        let connections = &self.metrics.connections;
        let database = [ServerConnection::Database.as_str()];
        let pinged = answer("pinging the database", DATABASE_TIMEOUT, self.ledger.ping()).await;
        connections.connected.with_label_values(&database).set(pinged.is_some().into());
        if pinged.is_none() {
            connections.failures.with_label_values(&database).inc();
            return;
        }
        let version = self.ledger.schema_version();
        let version = answer("reading the version of the schema", DATABASE_TIMEOUT, version).await;
        match version.flatten() {
            Some(version) => self.metrics.ledger.schema_version.set(version),
            None => self.metrics.ledger.schema_version.clear(),
        }
        // The database ends a count that takes too long; the second limit is for its answer.
        let limit = OPEN_COUNT_TIMEOUT + DATABASE_TIMEOUT;
        let work = self.ledger.open_work(OPEN_COUNT_TIMEOUT);
        if let Some(work) = answer("counting the open work", limit, work).await {
            self.publish(&work);
        }
    }

    fn publish(&self, work: &OpenWork) {
        let gauges = &self.metrics.ledger;
        let by_status = [
            (Status::Pending, work.pending),
            (Status::Processing, work.processing),
            (Status::Failed, work.failed),
        ];
        for (status, count) in by_status {
            gauges.jobs.with_label_values(&[status.as_str()]).set(count);
        }
        let late = [(LateState::DueSoon, work.late_soon), (LateState::Passed, work.late)];
        for (state, count) in late {
            gauges.late_jobs.with_label_values(&[state.as_str()]).set(count);
        }
        gauges.open_failures.set(work.open_failures);
        gauges.overdue_jobs.set(work.overdue);
        gauges.oldest_overdue.set(work.oldest_overdue_seconds);
        gauges.oldest_processing.set(work.oldest_processing_seconds);
        gauges.unsynced_signups.set(work.unsynced_signups);
        gauges.oldest_unsynced.set(work.oldest_unsynced_seconds);
        gauges.outcomes_waiting.set(work.outcomes_waiting);
        gauges.oldest_outbox.set(work.oldest_outbox_seconds);
        gauges.bulk_retries_running.set(work.bulk_retries_running);
        gauges.last_read.set(work.read_at);
    }

    async fn count_completed(&self) {
        let limit = COMPLETED_COUNT_TIMEOUT + DATABASE_TIMEOUT;
        let count = self.ledger.completed_jobs(COMPLETED_COUNT_TIMEOUT);
        if let Some(count) = answer("counting the completed jobs", limit, count).await {
            self.metrics.ledger.jobs.with_label_values(&[Status::Completed.as_str()]).set(count);
        }
    }
}

/// Counts the messages in the queues.
#[derive(Debug)]
pub struct QueueGauges {
    /// Settings.
    pub config: Config,
    /// Counts.
    pub connection: Arc<Connection>,
    /// Publishes the counts.
    pub metrics: Arc<Metrics>,
}

impl QueueGauges {
    /// Counts at intervals until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.draining() => {}
            () = every(self.config.interval, || self.count()) => {}
        }
    }

    async fn count(&self) {
        let gauges = &self.metrics.queues;
        // Those who need the connection reopen it; a count can wait.
        if !self.connection.is_connected() {
            gauges.ready.reset();
            gauges.consumers.reset();
            return;
        }
        for queue in self.connection.queues() {
            let counted = timeout(QUEUE_TIMEOUT, self.connection.queue_state(queue)).await;
            if let Ok(Ok(counts)) = counted {
                gauges.ready.with_label_values(&[queue]).set(counts.ready.into());
                gauges.consumers.with_label_values(&[queue]).set(counts.consumers.into());
                continue;
            }
            tracing::debug!(queue, ?counted, "the messages of a queue were not counted");
            // It fails if there is no series, and then there is nothing to remove.
            let _ = gauges.ready.remove_label_values(&[queue]);
            let _ = gauges.consumers.remove_label_values(&[queue]);
        }
    }
}

/// Calls `work` at once, and then after each interval.
async fn every<F: Future<Output = ()>>(interval: Duration, mut work: impl FnMut() -> F) {
    loop {
        work().await;
        sleep(interval).await;
    }
}

/// Waits for an answer of the database. Logs why there is none.
async fn answer<T>(
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, ledger::Error>>,
) -> Option<T> {
    match timeout(limit, work).await {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(error)) => tracing::warn!(%error, "{doing} failed, retrying"),
        Err(_) => tracing::warn!("{doing} took longer than {limit:?}, retrying"),
    }
    None
}
