//! Keeps the failure queue equal to the open failures of the mirror.
//!
//! AMQP can't remove a message from the middle of a queue. So, when queue and mirror differ, the
//! sweep consumes every message once: a resolved failure or a duplicate is acknowledged; an open
//! failure is published to the tail and confirmed before the original is acknowledged; a message
//! without a failure is mirrored. At the end, open failures that had no message are parked again. A
//! sweep that is interrupted loses nothing: at worst a message is duplicated until the next sweep.

#![expect(clippy::disallowed_methods, reason = "an edge: the interval of the sweep")]

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{Config, read, store};
use crate::{
    broker::{
        self, Acker, Connection, Delivery, FAILED_QUEUE, MIRROR_QUEUE, Message, Origin, Publisher,
        ReparkedMessage,
    },
    ledger::{self, FailedMessage, LeaderTask, Ledger, ParkedFailure},
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Maximum time until RabbitMQ delivers the next message of a queue that is not empty.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// to be mirrored, this is unknown.
    async fn differs(&self) -> Result<bool, Error> {
        if self.connection.depth(MIRROR_QUEUE).await? > 0 {
            return Ok(false);
        }
        let (parked, open) =
            (self.connection.depth(FAILED_QUEUE).await?, self.ledger.count_open_failures().await?);
        Ok(i64::from(parked) != open)
    }

    async fn sweep(&self, shutdown: &Shutdown) -> Result<(), Error> {
        let began = self.ledger.now().await?;
        let depth = self.connection.depth(FAILED_QUEUE).await? as usize;
        let (mut swept, mut seen) = (SweepSummary::default(), HashSet::new());
        // The consumer ends with the sweep; RabbitMQ requeues the messages that are unacknowledged
        // then.
        let consuming = Shutdown::default();
        let batch_size = self.config.batch_size.get();
        let (sender, mut deliveries) = mpsc::channel(batch_size.into());
        tokio::spawn(broker::consume(
            self.connection.clone(),
            FAILED_QUEUE,
            batch_size,
            consuming.clone(),
            sender,
            |one| one,
        ));
        let mut taken = 0;
        while taken < depth && !shutdown.is_draining() {
            let batch =
                next_batch(&mut deliveries, usize::from(batch_size).min(depth - taken)).await;
            if batch.is_empty() {
                break;
            }
            taken += batch.len();
            if let Err(error) = self.sort(batch, &mut seen, &mut swept).await {
                consuming.end();
                return Err(error);
            }
        }
        let is_complete = taken >= depth && !shutdown.is_draining();
        consuming.end();
        if is_complete {
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
        let mut failures = self.failures(&ids).await?;
        let unknown: Vec<_> =
            messages.into_iter().filter(|one| !failures.contains_key(&one.message_id)).collect();
        if !unknown.is_empty() {
            store(&self.ledger, &unknown).await?;
            swept.mirrored += unknown.len();
            failures = self.failures(&ids).await?;
        }
        let keep = |id: &String, seen: &mut HashSet<String>| {
            failures.get(id).filter(|failure| failure.is_open && seen.insert(id.clone()))
        };
        let kept: Vec<_> = ids.iter().map(|id| keep(id, seen)).collect();
        swept.kept += kept.iter().flatten().count();
        swept.removed += kept.iter().filter(|one| one.is_none()).count();
        let messages: Vec<_> = kept.into_iter().flatten().map(reparked).collect();
        join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        for acker in ackers {
            acker.ack().await;
        }
        Ok(())
    }

    async fn failures(&self, ids: &[String]) -> Result<HashMap<String, ParkedFailure>, Error> {
        let failures = self.ledger.failures_of(ids).await?;
        Ok(failures.into_iter().map(|failure| (failure.message_id.clone(), failure)).collect())
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

/// Returns between one and `limit` deliveries; none if RabbitMQ delivers none in time.
async fn next_batch(deliveries: &mut mpsc::Receiver<Delivery>, limit: usize) -> Vec<Delivery> {
    let mut batch = Vec::new();
    if tokio::time::timeout(DELIVERY_TIMEOUT, deliveries.recv_many(&mut batch, limit))
        .await
        .is_err()
    {
        tracing::warn!(
            "the failure queue is not empty, and RabbitMQ delivers none of its messages; a person \
                may be reading them in the management UI"
        );
    }
    batch
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
