//! Finds jobs that nobody works on any more and sends them on their way again. One replica at a
//! time does it.
//!
//! - A job that has been `processing` for over five minutes goes back to `pending`: whoever held it
//!   is gone.
//! - A pending job that is long overdue has lost its message, if none waits in the queue that it
//!   would be in and calls are made: it is published again, and not once more before
//!   `send_again_after`. A message too many does no harm, since the ledger answers it; a flood of
//!   them would.
//! - A failed job that the mirror does not have was lost on its way there, if none is on that way
//!   now: it is parked again.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::Deserialize;

use crate::{
    broker::{self, JOBS_EXCHANGE, Link, MIRROR_QUEUE, Message, Origin, Publisher},
    ledger::{self, Duty, Lead, Ledger, Suspects},
    runtime::{metrics::Metrics, shutdown::Lifecycle},
};

/// Settings of the recovery.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often it looks.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long after its time a pending job counts as one that lost its message.
    #[serde(with = "humantime_serde")]
    pub overdue_after: Duration,
    /// How long the message that was sent again may take before another is sent.
    #[serde(with = "humantime_serde")]
    pub send_again_after: Duration,
    /// Messages that are sent again at one look at most.
    pub batch_size: NonZeroU16,
}

/// What recovers.
#[derive(Debug)]
pub struct Recovery {
    /// Settings.
    pub config: Config,
    /// Where the work queues are looked at.
    pub link: Arc<Link>,
    /// Where messages are sent again.
    pub publisher: Publisher,
    /// The truth.
    pub ledger: Ledger,
    /// What is counted.
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
    /// Looks now and then until nothing new is to be taken. While `is_held` says that no calls are
    /// made, overdue jobs wait where they are.
    pub async fn run(self, is_held: impl Fn() -> bool, lifecycle: Lifecycle) {
        let mut lead = self.ledger.stand_by(Duty::Recovery);
        loop {
            // First after a while: what an earlier process left is delivered again in the meantime.
            tokio::select! {
                () = lifecycle.draining() => break,
                () = tokio::time::sleep(self.config.interval) => {}
            }
            if let Err(error) = self.look(&mut lead, &is_held).await {
                tracing::warn!(%error, "looking for lost jobs failed, trying again");
            }
        }
        lead.end().await;
    }

    async fn look(&self, lead: &mut Lead, is_held: impl Fn() -> bool) -> Result<(), Error> {
        if !lead.is_ours().await? {
            return Ok(());
        }
        let reset = self.ledger.cleanup(ledger::SERVICE).await?;
        self.count("reset", reset);
        self.park_unmirrored().await?;
        let backlog = self.link.backlog().await?;
        let Some(suspects) = Suspects::among(backlog.events, backlog.jobs, is_held()) else {
            return Ok(());
        };
        let Config { overdue_after, send_again_after, batch_size, .. } = self.config;
        let lost = self
            .ledger
            .take_overdue(suspects, overdue_after, send_again_after, batch_size.get().into())
            .await?;
        let messages: Vec<_> = lost.iter().map(Message::job).collect();
        join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        self.count("sent_again", i64::try_from(lost.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    async fn park_unmirrored(&self) -> Result<(), Error> {
        if self.link.depth(MIRROR_QUEUE).await? > 0 {
            return Ok(());
        }
        let Config { overdue_after, send_again_after, batch_size, .. } = self.config;
        let unmirrored = self
            .ledger
            .take_unmirrored(overdue_after, send_again_after, batch_size.get().into())
            .await?;
        let origin = Origin { exchange: JOBS_EXCHANGE, routing_key: "" };
        let messages: Vec<_> = unmirrored
            .iter()
            .map(|one| Message::failed(&one.job, one.reason, &one.failure, one.at, origin))
            .collect();
        join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        self.count("parked_again", i64::try_from(messages.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn count(&self, what: &str, jobs: i64) {
        if jobs > 0 {
            tracing::warn!(jobs, "recovered: {what}");
            self.metrics.recovered.with_label_values(&[what]).inc_by(jobs.unsigned_abs());
        }
    }
}
