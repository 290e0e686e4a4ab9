//! Keeps the failure queue in line with the mirror: its messages are the failures that are open.
//!
//! AMQP can't take a message out of the middle of a queue. So, when the queue and the mirror
//! differ, every message that is there is taken once: one that was resolved, or that is there
//! twice, is acknowledged away; one that is open is published to the tail and confirmed before it
//! is acknowledged; one that the mirror does not know is mirrored. At the end, open failures that
//! had no message are parked again. Cut short at any point, this loses nothing: at worst a message
//! is there twice until the next sweep.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{Config, read};
use crate::{
    broker::{
        self, Delivery, FAILED_QUEUE, Link, MIRROR_QUEUE, Message, Origin, Parked, Publisher,
        Receipt,
    },
    ledger::{self, Duty, FailedMessage, Ledger, ParkedFailure},
    runtime::shutdown::Lifecycle,
};

/// How long the broker may take to deliver the next message of a queue that holds some.
const PATIENCE: Duration = Duration::from_secs(5);

/// What sweeps.
#[derive(Debug)]
pub struct Sweeper {
    /// Settings.
    pub config: Config,
    /// Where messages are taken.
    pub link: Arc<Link>,
    /// Where they are parked again.
    pub publisher: Publisher,
    /// The truth.
    pub ledger: Ledger,
}

/// What one sweep did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Swept {
    kept: usize,
    removed: usize,
    mirrored: usize,
    parked_again: usize,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

impl Sweeper {
    /// Compares now and then, and sweeps where there is a difference, until nothing new is to be
    /// taken. One replica at a time does it.
    pub async fn run(self, lifecycle: Lifecycle) {
        let mut lead = self.ledger.stand_by(Duty::FailureQueue);
        let mut last_full = Instant::now();
        let mut differed = false;
        loop {
            tokio::select! {
                () = lifecycle.draining() => break,
                () = tokio::time::sleep(self.config.compare_interval) => {}
            }
            let looked = async {
                if !lead.is_ours().await? {
                    return Ok(false);
                }
                let differs = self.differs().await?;
                // A difference that is gone at the second look was a message on its way.
                if (differs && differed) || last_full.elapsed() > self.config.sweep_interval {
                    self.sweep(&lifecycle).await?;
                    last_full = Instant::now();
                    return Ok(false);
                }
                Ok::<_, Error>(differs)
            };
            differed = looked.await.unwrap_or_else(|error| {
                tracing::warn!(%error, "comparing the failure queue with the mirror failed, \
                    trying again");
                false
            });
        }
        lead.end().await;
    }

    /// Whether the queue holds another number of messages than failures are open. While the mirror
    /// lags, that is not known.
    async fn differs(&self) -> Result<bool, Error> {
        if self.link.depth(MIRROR_QUEUE).await? > 0 {
            return Ok(false);
        }
        let (parked, open) =
            (self.link.depth(FAILED_QUEUE).await?, self.ledger.count_open_failures().await?);
        Ok(i64::from(parked) != open)
    }

    async fn sweep(&self, lifecycle: &Lifecycle) -> Result<(), Error> {
        let began = self.ledger.now().await?;
        let depth = self.link.depth(FAILED_QUEUE).await? as usize;
        let (mut swept, mut seen) = (Swept::default(), HashSet::new());
        // The consumer's own life: it ends with the sweep, and what it holds then goes back to the
        // queue.
        let consuming = Lifecycle::default();
        let batch_size = self.config.batch_size.get();
        let (sender, mut deliveries) = mpsc::channel(batch_size.into());
        tokio::spawn(broker::consume(
            self.link.clone(),
            FAILED_QUEUE,
            batch_size,
            consuming.clone(),
            sender,
            |one| one,
        ));
        let mut taken = 0;
        while taken < depth && !lifecycle.is_draining() {
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
        let is_full = taken >= depth && !lifecycle.is_draining();
        consuming.end();
        if is_full {
            self.park_missing(began, &seen, &mut swept).await?;
        }
        tracing::info!(?swept, "the failure queue was brought in line with the mirror");
        Ok(())
    }

    /// Takes each message of a batch where its failure says that it belongs.
    async fn sort(
        &self,
        batch: Vec<Delivery>,
        seen: &mut HashSet<String>,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let (messages, receipts): (Vec<FailedMessage>, Vec<Receipt>) =
            batch.into_iter().map(read).unzip();
        let ids: Vec<_> = messages.iter().map(|message| message.message_id.clone()).collect();
        let mut failures = self.failures(&ids).await?;
        let unknown: Vec<_> =
            messages.into_iter().filter(|one| !failures.contains_key(&one.message_id)).collect();
        if !unknown.is_empty() {
            self.ledger.mirror(&unknown).await?;
            swept.mirrored += unknown.len();
            failures = self.failures(&ids).await?;
        }
        let keep = |id: &String, seen: &mut HashSet<String>| {
            failures.get(id).filter(|failure| failure.is_open && seen.insert(id.clone()))
        };
        let kept: Vec<_> = ids.iter().map(|id| keep(id, seen)).collect();
        swept.kept += kept.iter().flatten().count();
        swept.removed += kept.iter().filter(|one| one.is_none()).count();
        let messages: Vec<_> = kept.into_iter().flatten().map(parked).collect();
        join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        for receipt in receipts {
            receipt.ack().await;
        }
        Ok(())
    }

    async fn failures(&self, ids: &[String]) -> Result<HashMap<String, ParkedFailure>, Error> {
        let failures = self.ledger.failures_of(ids).await?;
        Ok(failures.into_iter().map(|failure| (failure.message_id.clone(), failure)).collect())
    }

    /// Parks the open failures that were mirrored before the sweep began and that the queue did not
    /// hold.
    async fn park_missing(
        &self,
        began: chrono::DateTime<chrono::Utc>,
        seen: &HashSet<String>,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let limit = self.config.batch_size.get();
        let mut after = Uuid::nil();
        loop {
            let open = self.ledger.open_failures_after(after, began, limit.into()).await?;
            let Some(last) = open.last() else { return Ok(()) };
            after = last.id;
            let missing = open.iter().filter(|failure| !seen.contains(&failure.message_id));
            let messages: Vec<_> = missing.map(parked).collect();
            swept.parked_again += messages.len();
            join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
        }
    }
}

/// At least one delivery and `most` at most, unless none comes.
async fn next_batch(deliveries: &mut mpsc::Receiver<Delivery>, most: usize) -> Vec<Delivery> {
    let mut batch = Vec::new();
    if tokio::time::timeout(PATIENCE, deliveries.recv_many(&mut batch, most)).await.is_err() {
        tracing::warn!(
            "the failure queue holds messages that are not delivered; somebody may be looking at \
                them"
        );
    }
    batch
}

fn parked(failure: &ParkedFailure) -> Message {
    Message::parked(Parked {
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
