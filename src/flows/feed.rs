//! The live feed: outcomes of all replicas, the progress of bulk retries, and the state of the
//! circuit breaker, for every subscriber.
//!
//! Nothing is consumed while there are no subscribers. A slow subscriber misses frames and receives
//! their number; it never delays another.

#![expect(clippy::disallowed_methods, reason = "an edge: the progress since the subscription")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};
use utoipa::ToSchema;

use crate::{
    broker::{Connection, OutcomeEvent, subscribe_outcomes},
    customerio::BreakerStatus,
    ledger::{BulkRetry, Ledger},
    runtime::shutdown::Shutdown,
};

/// Maximum frames that a slow subscriber may lag behind.
const LAG_FRAMES_MAX: usize = 4096;
/// Maximum time that a new subscriber waits for the subscription to outcomes.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two queries for the progress of bulk retries.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// A frame that is not an outcome.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum Notice {
    /// A bulk retry made progress.
    #[serde(rename = "bulk_retry.progress", rename_all = "camelCase")]
    Progress {
        /// The bulk retry.
        bulk_retry: BulkRetry,
    },
    /// The circuit breaker of one replica opened, closed, or is open for another reason.
    #[serde(rename = "breaker.changed")]
    Breaker {
        /// Its new state.
        breaker: BreakerStatus,
    },
    /// The subscriber missed frames.
    #[serde(rename = "feed.missed")]
    Missed {
        /// Their number. Absent if it is unknown, after the connection to RabbitMQ was lost.
        #[serde(skip_serializing_if = "Option::is_none")]
        missed: Option<u64>,
    },
}

impl Notice {
    /// Returns the notice as a text frame.
    pub fn frame(&self) -> Bytes {
        serde_json::to_vec(self).expect("a notice is valid JSON").into()
    }
}

/// A handle to the feed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed(Arc<FeedShared>);

#[derive(Debug)]
struct FeedShared {
    frames: broadcast::Sender<Bytes>,
    is_live: watch::Sender<bool>,
    wanted: Notify,
}

/// A subscription to the frames from now on.
#[derive(Debug)]
pub struct FeedSubscriber(broadcast::Receiver<Bytes>);

impl FeedSubscriber {
    /// Returns the next frame, or `None` when the feed has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        match self.0.recv().await {
            Ok(frame) => Some(frame),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some(Notice::Missed { missed: Some(missed) }.frame())
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self(Arc::new(FeedShared {
            frames: broadcast::Sender::new(LAG_FRAMES_MAX),
            is_live: watch::Sender::new(false),
            wanted: Notify::new(),
        }))
    }
}

impl Feed {
    /// Subscribes. What happens after this returns is not missed, unless RabbitMQ is unreachable.
    pub async fn subscribe(&self) -> FeedSubscriber {
        let subscriber = FeedSubscriber(self.0.frames.subscribe());
        self.0.wanted.notify_one();
        let mut is_live = self.0.is_live.subscribe();
        // Without RabbitMQ, the subscriber receives `feed.missed` when it is back.
        let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, is_live.wait_for(|is_live| *is_live)).await;
        subscriber
    }

    /// Consumes outcomes while there are subscribers, until shutdown.
    pub async fn run(
        self,
        connection: Arc<Connection>,
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
                () = self.forward_outcomes(connection.clone()) => {}
                () = self.send_progress(&ledger) => {}
                () = self.send_breaker_changes(&mut breaker) => {}
                () = self.0.frames.closed() => {}
            }
            self.0.is_live.send_replace(false);
        }
    }

    async fn forward_outcomes(&self, connection: Arc<Connection>) {
        subscribe_outcomes(connection, |event| match event {
            OutcomeEvent::Outcome(body) => self.send(body.into()),
            OutcomeEvent::Subscribed => {
                if self.0.is_live.send_replace(true) {
                    self.send(Notice::Missed { missed: None }.frame());
                }
            }
        })
        .await;
    }

    async fn send_progress(&self, ledger: &Ledger) {
        let mut since = Utc::now() - TimeDelta::seconds(10);
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            ticks.tick().await;
            match ledger.bulk_retries(since, 20).await {
                Ok(bulks) => {
                    since = bulks.first().map_or(since, |latest| latest.updated_at);
                    for bulk_retry in bulks {
                        self.send(Notice::Progress { bulk_retry }.frame());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "reading the progress of bulk retries failed")
                }
            }
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
                self.send(Notice::Breaker { breaker }.frame());
            }
        }
    }

    fn send(&self, frame: Bytes) {
        // It fails only if there is no subscriber.
        let _ = self.0.frames.send(frame);
    }
}
