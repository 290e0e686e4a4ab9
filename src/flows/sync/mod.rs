//! The sync pipeline: messages become calls to Customer.io, calls become end states or retries.
//!
//! Deliveries are gathered into batches ([`intake`]). Each batch is claimed, pushed, decided,
//! settled and acknowledged ([`batch`]); several run side by side. A permit is acquired
//! before a batch is gathered, and released when the batch ends. Messages that need no call are
//! handled beside them ([`aside`]).

mod aside;
mod batch;
mod claim;
mod inbound;
mod intake;
mod parallelism;
mod process;
mod progress;
mod signups;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use crate::{
    broker::{Connection, Publisher},
    customerio::CustomerIo,
    job::OutboxSender,
    ledger::Ledger,
    retry::Ladder,
    runtime::{
        backoff::retry_forever,
        metrics::{GaugeGuard, Metrics},
        shutdown::Shutdown,
    },
};
pub use aside::SkipReason;
pub use batch::AttemptResult;
use intake::Intake;
pub use intake::IntakeResult;
pub use parallelism::BatchLimit;
pub use process::{ProcessCounts, ProcessError};
pub use progress::BatchProgress;

/// Settings of the pipeline.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Maximum deliveries per batch.
    pub batch_size: NonZeroUsize,
    /// Maximum batches in flight while calls are fast.
    pub batches_in_flight: NonZeroUsize,
    /// Maximum batches in flight while calls are slow.
    pub batches_in_flight_max: NonZeroUsize,
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
    /// Messages that need no call, and jobs that operators run ([`Pipeline::process`]). Shutdown
    /// waits for them.
    pub processing: TaskTracker,
    /// Limits how many unprocessable messages are parked at a time.
    pub parking: Semaphore,
    /// Limits the batches in flight.
    pub batch_limit: BatchLimit,
    /// Whether the batches in flight make progress.
    pub progress: BatchProgress,
    /// Whether the database was away for too long for a batch. Then nothing is consumed.
    pub database_is_away: watch::Sender<bool>,
    /// Whether messages are delivered to this process.
    pub is_consuming: watch::Sender<bool>,
}

/// Maximum unprocessable messages that are parked at a time.
pub const PARKED_AT_A_TIME: usize = 4;

/// Pause before the second restart of the intake. Each further one is twice as long.
const AWAY_PAUSE_MIN: Duration = Duration::from_secs(30);
/// The longest pause.
const AWAY_PAUSE_MAX: Duration = Duration::from_mins(10);

/// Why the intake was stopped.
enum IntakeEnd {
    /// The service stops, or a consumer has ended.
    Stopped,
    /// The database is away.
    DatabaseAway,
}

impl Pipeline {
    /// Consumes all work queues until shutdown, then finishes the batches in flight. While the
    /// database is away, nothing is consumed: messages would be held until RabbitMQ closes their
    /// channel, and be counted towards their delivery limit.
    #[expect(clippy::disallowed_methods, reason = "an edge: how long the intake ran")]
    pub async fn run(self: Arc<Self>, connection: Arc<Connection>) {
        let mut batches = JoinSet::new();
        let mut pause = Duration::ZERO;
        loop {
            let started = Instant::now();
            let mut intake = Intake::start(&connection, &self);
            self.is_consuming.send_replace(true);
            let end = self.run_batches(&mut intake, &mut batches).await;
            intake.stop().await;
            self.is_consuming.send_replace(false);
            match end {
                IntakeEnd::Stopped => break,
                IntakeEnd::DatabaseAway => {
                    // The database may accept the check and refuse what a batch writes. Each round
                    // counts as a delivery.
                    if started.elapsed() > AWAY_PAUSE_MAX {
                        pause = Duration::ZERO;
                    }
                    self.wait_for_database(pause).await;
                    pause = (pause * 2).clamp(AWAY_PAUSE_MIN, AWAY_PAUSE_MAX);
                }
            }
        }
        while let Some(ended) = batches.join_next().await {
            log_panic(ended);
        }
        self.processing.close();
        self.processing.wait().await;
        self.outbox.close();
    }

    /// Runs batches, side by side, until the intake ends.
    async fn run_batches(
        self: &Arc<Self>,
        intake: &mut Intake,
        batches: &mut JoinSet<()>,
    ) -> IntakeEnd {
        let mut database_is_away = self.database_is_away.subscribe();
        loop {
            let next = async {
                let permit = self.batch_limit.permit().await;
                self.batch_limit.wait_for_others(|| intake.has_large_batch()).await;
                intake.next_batch().await.map(|batch| (permit, batch))
            };
            let (permit, batch) = tokio::select! {
                biased;
                () = is_true(&mut database_is_away) => return IntakeEnd::DatabaseAway,
                next = next => match next {
                    Some(next) => next,
                    None => return IntakeEnd::Stopped,
                },
            };
            let pipeline = self.clone();
            let in_flight = GaugeGuard::new(&self.metrics.batches_in_flight);
            batches.spawn(async move {
                pipeline.run_batch(batch).await;
                pipeline.batch_limit.end(permit);
                drop(in_flight);
            });
            while let Some(ended) = batches.try_join_next() {
                log_panic(ended);
            }
        }
    }

    /// Waits for `pause`, and until the database accepts writes, or until shutdown.
    async fn wait_for_database(&self, pause: Duration) {
        tracing::warn!("the database is away, so nothing is consumed until it accepts writes");
        tokio::select! {
            () = self.shutdown.draining() => return,
            () = async {
                tokio::time::sleep(pause).await;
                retry_forever("writing to the database", || self.ledger.check_writes()).await;
            } => {}
        }
        self.database_is_away.send_replace(false);
        tracing::info!("the database accepts writes, consuming again");
    }
}

async fn is_true(value: &mut watch::Receiver<bool>) {
    if value.wait_for(|value| *value).await.is_err() {
        std::future::pending().await
    }
}

/// Logs the panic of a batch. Its messages are requeued, and its claims are released.
fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a batch panicked; its messages are requeued");
    }
}
