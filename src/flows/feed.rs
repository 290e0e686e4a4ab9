//! What happens, as it happens, to everybody who watches: outcomes of all replicas, and the
//! progress of bulk retries.
//!
//! Nothing is consumed while nobody watches. A watcher that reads slowly misses frames and is told
//! how many; it never holds up another.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};
use utoipa::ToSchema;

use crate::{
    broker::{Heard, Link, listen},
    customerio::GateView,
    ledger::{BulkRetry, Ledger},
    runtime::shutdown::Lifecycle,
};

/// Frames that a slow watcher may be behind.
const BACKLOG: usize = 4096;
/// How long a new watcher waits for the first frame to be possible.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the progress of bulk retries is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A frame of our own, beside the outcomes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum Notice {
    /// A bulk retry went on.
    #[serde(rename = "bulk_retry.progress", rename_all = "camelCase")]
    Progress {
        /// Where it stands.
        bulk_retry: BulkRetry,
    },
    /// The gate to Customer.io shut or opened, at one replica.
    #[serde(rename = "gate.changed")]
    Gate {
        /// How it stands now.
        gate: GateView,
    },
    /// The watcher missed frames.
    #[serde(rename = "feed.missed")]
    Missed {
        /// How many; absent if that is not known, after the broker was away.
        #[serde(skip_serializing_if = "Option::is_none")]
        missed: Option<u64>,
    },
}

impl Notice {
    /// Its text frame.
    pub fn frame(&self) -> Bytes {
        serde_json::to_vec(self).expect("a notice is valid JSON").into()
    }
}

/// The feed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    frames: broadcast::Sender<Bytes>,
    is_live: watch::Sender<bool>,
    wanted: Notify,
}

/// Frames from now on.
#[derive(Debug)]
pub struct Watcher(broadcast::Receiver<Bytes>);

impl Watcher {
    /// The next frame; `None` when the feed has ended.
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
        Self(Arc::new(Inner {
            frames: broadcast::Sender::new(BACKLOG),
            is_live: watch::Sender::new(false),
            wanted: Notify::new(),
        }))
    }
}

impl Feed {
    /// Watches from now on: what happens after this has answered is not missed, if the broker is
    /// there.
    pub async fn watch(&self) -> Watcher {
        let watcher = Watcher(self.0.frames.subscribe());
        self.0.wanted.notify_one();
        let mut is_live = self.0.is_live.subscribe();
        // Without the broker, the watcher hears of it when it is back.
        let _ = tokio::time::timeout(PATIENCE, is_live.wait_for(|is_live| *is_live)).await;
        watcher
    }

    /// Listens while there are watchers, until nothing new is to be taken.
    pub async fn run(
        self,
        link: Arc<Link>,
        ledger: Ledger,
        mut gate: watch::Receiver<GateView>,
        lifecycle: Lifecycle,
    ) {
        loop {
            tokio::select! {
                () = lifecycle.draining() => return,
                () = self.0.wanted.notified() => {}
            }
            tokio::select! {
                () = lifecycle.draining() => return,
                () = self.listen(link.clone()) => {}
                () = self.tell_progress(&ledger) => {}
                () = self.tell_of_gate(&mut gate) => {}
                () = self.0.frames.closed() => {}
            }
            self.0.is_live.send_replace(false);
        }
    }

    async fn listen(&self, link: Arc<Link>) {
        listen(link, |heard| match heard {
            Heard::Outcome(body) => self.send(body.into()),
            Heard::Started => {
                if self.0.is_live.send_replace(true) {
                    self.send(Notice::Missed { missed: None }.frame());
                }
            }
        })
        .await;
    }

    async fn tell_progress(&self, ledger: &Ledger) {
        let mut since = Utc::now() - TimeDelta::seconds(10);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        loop {
            ticks.tick().await;
            match ledger.bulk_retries(since, 20).await {
                Ok(bulks) => {
                    since = bulks.first().map_or(since, |latest| latest.updated_at);
                    for bulk_retry in bulks {
                        self.send(Notice::Progress { bulk_retry }.frame());
                    }
                }
                Err(error) => tracing::debug!(%error, "looking at the progress of bulk retries"),
            }
        }
    }

    async fn tell_of_gate(&self, gate: &mut watch::Receiver<GateView>) {
        gate.mark_unchanged();
        while gate.changed().await.is_ok() {
            let gate = gate.borrow_and_update().clone();
            self.send(Notice::Gate { gate }.frame());
        }
    }

    fn send(&self, frame: Bytes) {
        // It fails only when nobody watches.
        let _ = self.0.frames.send(frame);
    }
}
