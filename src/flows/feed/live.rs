//! The progress of bulk retries, changes of this replica's circuit breaker, and counts. They come
//! from the ledger and from this process, so this feed works without RabbitMQ.

#![expect(clippy::disallowed_methods, reason = "an edge: the progress since the subscription")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::TimeDelta;
use serde::Serialize;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};
use utoipa::ToSchema;

use super::{FeedSubscriber, LAG_FRAMES_MAX, frame};
use crate::{
    customerio::BreakerStatus,
    ledger::{BulkRetry, Ledger, LiveCounts},
    runtime::{backoff::retry_forever, shutdown::Shutdown},
};

/// Time between two queries for the progress of bulk retries.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum and maximum pause between two counts.
const COUNT_PAUSE_MIN: Duration = Duration::from_secs(1);
const COUNT_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pause after a count, as a multiple of its duration: counting takes a tenth of the time.
const COUNT_PAUSE_FACTOR: u32 = 9;
/// Maximum duration of a statement that counts.
const COUNT_STATEMENT_LIMIT: Duration = Duration::from_secs(5);

/// A frame of the live feed.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum Notice {
    /// A bulk retry made progress.
    #[serde(rename = "bulk_retry.progress", rename_all = "camelCase")]
    Progress {
        /// The bulk retry.
        bulk_retry: BulkRetry,
    },
    /// The circuit breaker of the replica that serves this client opened, closed, or is open for
    /// another reason.
    #[serde(rename = "breaker.changed")]
    Breaker {
        /// Its new state.
        breaker: BreakerStatus,
    },
    /// The counts have changed.
    #[serde(rename = "counts.changed")]
    Counts {
        /// The new counts.
        counts: LiveCounts,
    },
}

/// A handle to the live feed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveFeed(Arc<LiveFeedShared>);

#[derive(Debug)]
struct LiveFeedShared {
    frames: broadcast::Sender<Bytes>,
    wanted: Notify,
}

impl Default for LiveFeed {
    fn default() -> Self {
        Self(Arc::new(LiveFeedShared {
            frames: broadcast::Sender::new(LAG_FRAMES_MAX),
            wanted: Notify::new(),
        }))
    }
}

impl LiveFeed {
    /// Subscribes.
    pub fn subscribe(&self) -> FeedSubscriber {
        let subscriber = FeedSubscriber(self.0.frames.subscribe());
        self.0.wanted.notify_one();
        subscriber
    }

    /// Sends frames while there are subscribers, until shutdown.
    pub async fn run(
        self,
        ledger: Ledger,
        mut breaker: watch::Receiver<BreakerStatus>,
        shutdown: Shutdown,
    ) {
        loop {
            tokio::select! {
                () = shutdown.draining() => return,
                () = self.0.wanted.notified() => {}
            }
            tokio::select! {
                () = shutdown.draining() => return,
                () = self.send_progress(&ledger) => {}
                () = self.send_counts(&ledger) => {}
                () = self.send_breaker_changes(&mut breaker) => {}
                () = self.0.frames.closed() => {}
            }
        }
    }

    async fn send_progress(&self, ledger: &Ledger) {
        // By the clock of the database, as the times of the bulk retries.
        let now = retry_forever("reading the time of the database", || ledger.now()).await;
        let mut since = now - TimeDelta::seconds(10);
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            ticks.tick().await;
            match ledger.bulk_retries(since, 20).await {
                Ok(bulks) => {
                    since = bulks.first().map_or(since, |latest| latest.updated_at);
                    for bulk_retry in bulks {
                        self.send(&Notice::Progress { bulk_retry });
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "reading the progress of bulk retries failed")
                }
            }
        }
    }

    async fn send_counts(&self, ledger: &Ledger) {
        let mut last = None;
        loop {
            let start = Instant::now();
            match ledger.live_counts(COUNT_STATEMENT_LIMIT).await {
                Ok(counts) if last.as_ref() == Some(&counts) => {}
                Ok(counts) => {
                    self.send(&Notice::Counts { counts: counts.clone() });
                    last = Some(counts);
                }
                Err(error) => tracing::debug!(%error, "counting for the live feed failed"),
            }
            let pause = start.elapsed() * COUNT_PAUSE_FACTOR;
            tokio::time::sleep(pause.clamp(COUNT_PAUSE_MIN, COUNT_PAUSE_MAX)).await;
        }
    }

    async fn send_breaker_changes(&self, breaker: &mut watch::Receiver<BreakerStatus>) {
        // A probe makes the breaker half-open, often many times per second. That is not worth a
        // frame.
        let summary = |status: &BreakerStatus| (status.is_closed(), status.reason);
        let mut last = summary(&breaker.borrow_and_update());
        while breaker.changed().await.is_ok() {
            let breaker = breaker.borrow_and_update().clone();
            if std::mem::replace(&mut last, summary(&breaker)) != summary(&breaker) {
                self.send(&Notice::Breaker { breaker });
            }
        }
    }

    fn send(&self, notice: &Notice) {
        // It fails only if there is no subscriber.
        let _ = self.0.frames.send(frame(notice));
    }
}
