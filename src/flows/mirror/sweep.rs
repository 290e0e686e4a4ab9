//! Keeps the failure queue equal to the open failures of the mirror.
//!
//! When queue and mirror differ, the sweep reads every message once ([`QueueReader`]): a resolved
//! failure or a duplicate is removed; a message without a failure is mirrored; all others stay. At
//! the end, open failures that had no message are parked again. So it publishes only what is
//! missing. A sweep that is interrupted loses nothing.

#![expect(clippy::disallowed_methods, reason = "an edge: the interval of the sweep")]

use std::{collections::HashSet, sync::Arc};

use futures_util::future::join_all;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Config, read, store};
use crate::{
    broker::{
        self, Acker, Connection, Delivery, FAILED_QUEUE, MIRROR_QUEUE, Message, Origin, Publisher,
        QueueReader, ReparkedMessage,
    },
    ledger::{self, FailedMessage, LeaderTask, Ledger, OpenFailures, ParkedFailure},
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Sweeps the failure queue.
#[derive(Debug)]
pub struct Sweeper {
    /// Settings.
    pub config: Config,
    /// Consumes the failure queue.
    pub connection: Arc<Connection>,
    /// Parks failures again.
    pub publisher: Publisher,
    /// Lists the open failures.
    pub ledger: Ledger,
    /// Reports whether this replica sweeps.
    pub metrics: Arc<Metrics>,
}

/// The number of messages that a sweep kept, removed, mirrored and parked again.
#[derive(Debug, Default, PartialEq, Eq)]
struct SweepSummary {
    kept: usize,
    removed: usize,
    mirrored: usize,
    reparked: usize,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

impl Sweeper {
    /// Compares at intervals, and sweeps if there is a difference, until shutdown. One replica at a
    /// time does this.
    pub async fn run(self, shutdown: Shutdown) {
        let mut leader = self.ledger.leader_lock(LeaderTask::FailureQueue, self.metrics.clone());
        let mut last_sweep = Instant::now();
        let mut differed = false;
        loop {
            tokio::select! {
                () = shutdown.draining() => break,
                () = tokio::time::sleep(self.config.compare_interval) => {}
            }
            let compared = async {
                if !leader.try_acquire().await? {
                    return Ok(false);
                }
                let differs = self.differs().await?;
                // A difference that is gone at the second comparison was a message between queues.
                if (differs && differed) || last_sweep.elapsed() > self.config.sweep_interval {
                    self.sweep(&shutdown).await?;
                    last_sweep = Instant::now();
                    return Ok(false);
                }
                Ok::<_, Error>(differs)
            };
            differed = compared.await.unwrap_or_else(|error| {
                tracing::warn!(
                    %error,
                    "comparing the failure queue with the mirror failed, retrying"
                );
                false
            });
        }
        leader.release().await;
    }

    /// Whether the number of messages differs from the number of open failures. While messages wait
    /// to be mirrored, this is unknown, and about as many as were mirrored just now are on their
    /// way.
    async fn differs(&self) -> Result<bool, Error> {
        if self.connection.depth(MIRROR_QUEUE).await? > 0 {
            return Ok(false);
        }
        let parked = self.connection.depth(FAILED_QUEUE).await?;
        let OpenFailures { open, recent } = self.ledger.count_open_failures().await?;
        Ok((i64::from(parked) - open).abs() > recent)
    }

    async fn sweep(&self, shutdown: &Shutdown) -> Result<(), Error> {
        let began = self.ledger.now().await?;
        let depth = self.connection.depth(FAILED_QUEUE).await? as usize;
        let batch_size = usize::from(self.config.batch_size.get());
        let (mut swept, mut seen) = (SweepSummary::default(), HashSet::new());
        let reader = QueueReader::open(self.connection.clone(), FAILED_QUEUE).await?;
        let mut read = 0;
        while read < depth && !shutdown.is_draining() {
            let batch = reader.read(batch_size.min(depth - read)).await?;
            if batch.is_empty() {
                // A person may be reading some in the management UI.
                break;
            }
            read += batch.len();
            self.sort(batch, &mut seen, &mut swept).await?;
        }
        reader.close().await?;
        if read >= depth && !shutdown.is_draining() {
            self.park_missing(began, &seen, &mut swept).await?;
        }
        tracing::info!(?swept, "the failure queue was swept");
        Ok(())
    }

    /// Handles each message of a batch as its failure requires.
    async fn sort(
        &self,
        batch: Vec<Delivery>,
        seen: &mut HashSet<String>,
        swept: &mut SweepSummary,
    ) -> Result<(), Error> {
        let (messages, ackers): (Vec<FailedMessage>, Vec<Acker>) =
            batch.into_iter().map(read).unzip();
        let ids: Vec<_> = messages.iter().map(|message| message.message_id.clone()).collect();
        let mut are_open = self.ledger.are_open(&ids).await?;
        let unknown: Vec<_> =
            messages.into_iter().filter(|one| !are_open.contains_key(&one.message_id)).collect();
        if !unknown.is_empty() {
            store(&self.ledger, &unknown).await?;
            swept.mirrored += unknown.len();
            are_open = self.ledger.are_open(&ids).await?;
        }
        for (id, acker) in ids.into_iter().zip(ackers) {
            if are_open.get(&id) == Some(&true) && seen.insert(id) {
                swept.kept += 1;
            } else {
                swept.removed += 1;
                acker.ack().await;
            }
        }
        Ok(())
    }

    /// Parks the open failures that were mirrored before the sweep began and whose message was not
    /// in the queue.
    async fn park_missing(
        &self,
        began: chrono::DateTime<chrono::Utc>,
        seen: &HashSet<String>,
        swept: &mut SweepSummary,
    ) -> Result<(), Error> {
        let limit = self.config.batch_size.get();
        let mut after = Uuid::nil();
        loop {
            let open = self.ledger.open_failures_after(after, began, limit.into()).await?;
            let Some(last) = open.last() else { return Ok(()) };
            after = last.id;
            let missing = open.iter().filter(|failure| !seen.contains(&failure.message_id));
            let messages: Vec<_> = missing.map(reparked).collect();
            swept.reparked += messages.len();
            join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        }
    }
}

fn reparked(failure: &ParkedFailure) -> Message {
    Message::reparked(ReparkedMessage {
        message_id: &failure.message_id,
        reason: failure.reason,
        error_message: &failure.error_message,
        failed_at: failure.failed_at,
        origin: Origin { exchange: &failure.exchange, routing_key: &failure.routing_key },
        headers: &failure.headers,
        content_type: failure.content_type.as_deref(),
        body: &failure.body,
    })
}
