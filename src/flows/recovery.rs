//! Finds jobs that no message would advance, and lets them continue. One replica at a time does
//! this.
//!
//! - A job that has been `processing` for more than five minutes is reset to `pending`: its owner
//!   is gone.
//! - A pending job that is overdue has probably lost its message, unless calls are paused. It is
//!   published again, at most once within `resend_after`. Its message may wait in a queue after
//!   all. Then the second one is harmless, since the ledger answers it; a flood of them would not
//!   be. So at most `batch_size` are published per check, and more only while the queues are short.
//! - A failed job that is not in the mirror was lost on its way there, unless messages still wait
//!   for the mirror. It is parked again.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::Deserialize;

use crate::{
    broker::{self, Connection, JOBS_EXCHANGE, MIRROR_QUEUE, Message, Origin, Publisher},
    ledger::{self, LeaderLock, LeaderTask, Ledger, RecoveryLimits},
    runtime::{metrics::Metrics, shutdown::Shutdown, text_enum::text_enum},
};

/// Settings of recovery.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time between checks.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Time after which a pending job counts as one that lost its message.
    #[serde(with = "humantime_serde")]
    pub overdue_after: Duration,
    /// Minimum time between two messages that are published for one job.
    #[serde(with = "humantime_serde")]
    pub resend_after: Duration,
    /// Maximum messages that are published at a time. While more than that wait in the work queues,
    /// it is the maximum per check.
    pub batch_size: NonZeroU16,
}

text_enum! {
    /// The action of recovery on a job.
    RecoveryAction {
        /// It was reset to `pending`.
        Reset = "reset",
        /// Its message was published again.
        Resent = "resent",
        /// Its failure was parked again.
        Reparked = "reparked",
    }
}

/// Republishes lost messages and resets abandoned jobs.
#[derive(Debug)]
pub struct Recovery {
    /// Settings.
    pub config: Config,
    /// Counts the messages in the queues.
    pub connection: Arc<Connection>,
    /// Publishes the lost messages again.
    pub publisher: Publisher,
    /// Finds the jobs.
    pub ledger: Ledger,
    /// Counts the recovered jobs.
    pub metrics: Arc<Metrics>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

impl Recovery {
    /// Checks at intervals until shutdown. While calls are paused, overdue jobs are left alone.
    pub async fn run(self, calls_are_paused: impl Fn() -> bool, shutdown: Shutdown) {
        let mut leader = self.ledger.leader_lock(LeaderTask::Recovery, self.metrics.clone());
        loop {
            // The first check is not immediate: RabbitMQ redelivers what an earlier process left.
            tokio::select! {
                () = shutdown.draining() => break,
                () = tokio::time::sleep(self.config.interval) => {}
            }
            if let Err(error) = self.check(&mut leader, &calls_are_paused).await {
                tracing::warn!(%error, "the check for lost messages failed, retrying");
            }
        }
        leader.release().await;
    }

    async fn check(
        &self,
        leader: &mut LeaderLock,
        calls_are_paused: &impl Fn() -> bool,
    ) -> Result<(), Error> {
        if !leader.try_acquire().await? {
            return Ok(());
        }
        let reset = self.ledger.cleanup(ledger::SERVICE).await?;
        self.count(RecoveryAction::Reset, reset.unsigned_abs());
        self.repark_unmirrored().await?;
        while !calls_are_paused() {
            let waiting = self.connection.backlog().await?.total();
            let lost = self.ledger.take_overdue(self.limits()).await?;
            let messages: Vec<_> = lost.iter().map(Message::job).collect();
            join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
            self.count(RecoveryAction::Resent, lost.len() as u64);
            let batch_size = self.config.batch_size.get();
            if lost.len() < batch_size.into() || waiting > batch_size.into() {
                break;
            }
        }
        Ok(())
    }

    async fn repark_unmirrored(&self) -> Result<(), Error> {
        if self.connection.depth(MIRROR_QUEUE).await? > 0 {
            return Ok(());
        }
        let unmirrored = self.ledger.take_unmirrored(self.limits()).await?;
        let origin = Origin { exchange: JOBS_EXCHANGE, routing_key: "" };
        let messages: Vec<_> = unmirrored
            .iter()
            .map(|one| Message::failed(&one.job, one.reason, &one.failure, one.at, origin))
            .collect();
        join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        self.count(RecoveryAction::Reparked, messages.len() as u64);
        Ok(())
    }

    fn limits(&self) -> RecoveryLimits {
        let Config { overdue_after, resend_after, batch_size, .. } = self.config;
        RecoveryLimits { overdue_after, resend_after, jobs: batch_size.get().into() }
    }

    fn count(&self, action: RecoveryAction, jobs: u64) {
        if jobs > 0 {
            let what = match action {
                RecoveryAction::Reset => "abandoned jobs were reset to pending",
                RecoveryAction::Resent => "lost messages of overdue jobs were published again",
                RecoveryAction::Reparked => {
                    "failures that were missing from the mirror were parked again"
                }
            };
            tracing::warn!(jobs, action = action.as_str(), "{what}");
            self.metrics.recovered.with_label_values(&[action.as_str()]).inc_by(jobs);
        }
    }
}
