//! The sync pipeline: messages become calls to Customer.io, calls become end states or retries.
//!
//! Deliveries are gathered into batches ([`intake`]). Each batch is claimed, pushed, decided,
//! settled and acknowledged ([`batch`]); several run side by side. A permit is acquired
//! before a batch is gathered, and released when the batch ends.

mod batch;
mod claim;
mod inbound;
mod intake;
mod process;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};
use tokio_util::task::TaskTracker;

use crate::{
    broker::{Connection, Publisher},
    customerio::CustomerIo,
    job::OutboxSender,
    ledger::Ledger,
    retry::Ladder,
    runtime::{
        metrics::{GaugeGuard, Metrics},
        shutdown::Shutdown,
    },
};
pub use batch::{AttemptResult, SkipReason};
use intake::Intake;
pub use intake::IntakeResult;
pub use process::{ProcessCounts, ProcessError};

/// Settings of the pipeline.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Maximum deliveries per batch.
    pub batch_size: NonZeroUsize,
    /// Maximum batches in flight.
    pub batches_in_flight: NonZeroUsize,
    /// How long a message stays unacknowledged while calls are paused, before its job waits on a
    /// delay tier.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
}

/// The sync pipeline. All batches, and the jobs that operators run, share one.
#[derive(Debug)]
pub struct Pipeline {
    /// Settings.
    pub config: Config,
    /// Maximum unacknowledged deliveries per work queue.
    pub prefetch: u16,
    /// The delay tiers.
    pub ladder: Ladder,
    /// Where jobs are claimed and settled.
    pub ledger: Ledger,
    /// Publishes what must be confirmed before a delivery is acknowledged.
    pub publisher: Publisher,
    /// Takes the messages that must follow settled jobs.
    pub outbox: OutboxSender,
    /// Shared with the admin API, which shows its circuit breaker.
    pub customerio: Arc<CustomerIo>,
    /// Counters of messages, attempts and failures.
    pub metrics: Arc<Metrics>,
    /// Ends the intake; batches in flight are finished.
    pub shutdown: Shutdown,
    /// Jobs that operators run ([`Pipeline::process`]). Shutdown waits for them.
    pub processing: TaskTracker,
}

impl Pipeline {
    /// Consumes all work queues until shutdown, then finishes the batches in flight.
    pub async fn run(self: Arc<Self>, connection: Arc<Connection>) {
        let permits = Arc::new(Semaphore::new(self.config.batches_in_flight.get()));
        let mut intake = Intake::start(&connection, &self);
        let mut batches = JoinSet::new();
        loop {
            let permit =
                permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            let Some(messages) = intake.next_batch(&self.shutdown).await else { break };
            let pipeline = self.clone();
            let in_flight = GaugeGuard::new(&self.metrics.batches_in_flight);
            batches.spawn(async move {
                pipeline.run_batch(messages).await;
                drop((permit, in_flight));
            });
            while let Some(ended) = batches.try_join_next() {
                log_panic(ended);
            }
        }
        intake.requeue_rest().await;
        while let Some(ended) = batches.join_next().await {
            log_panic(ended);
        }
        self.processing.close();
        self.processing.wait().await;
        self.outbox.close();
    }
}

/// Logs the panic of a batch. Its deliveries stay unacknowledged; RabbitMQ redelivers them when the
/// connection closes.
fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a batch panicked; its messages will be redelivered");
    }
}
