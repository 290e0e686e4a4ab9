//! The outcomes of all replicas, as RabbitMQ delivers them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{Notify, broadcast, watch};

use super::{FeedSubscriber, LAG_FRAMES_MAX, MissedFrames, frame};
use crate::{
    broker::{Connection, OutcomeEvent, OutcomeSubscription},
    runtime::shutdown::Shutdown,
};

/// Maximum time that a new subscriber waits for the subscription to outcomes.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to the feed of outcomes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutcomeFeed(Arc<OutcomeFeedShared>);

#[derive(Debug)]
struct OutcomeFeedShared {
    frames: broadcast::Sender<Bytes>,
    is_live: watch::Sender<bool>,
    wanted: Notify,
}

impl Default for OutcomeFeed {
    fn default() -> Self {
        Self(Arc::new(OutcomeFeedShared {
            frames: broadcast::Sender::new(LAG_FRAMES_MAX),
            is_live: watch::Sender::new(false),
            wanted: Notify::new(),
        }))
    }
}

impl OutcomeFeed {
    /// Subscribes. Outcomes that are published after this returns are not missed, unless RabbitMQ
    /// is unreachable.
    pub async fn subscribe(&self) -> FeedSubscriber {
        let subscriber = FeedSubscriber(self.0.frames.subscribe());
        self.0.wanted.notify_one();
        let mut is_live = self.0.is_live.subscribe();
        // Without RabbitMQ, the subscriber receives `feed.missed` when it is back.
        let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, is_live.wait_for(|is_live| *is_live)).await;
        subscriber
    }

    /// Consumes outcomes while there are subscribers, until shutdown.
    pub async fn run(self, connection: Arc<Connection>, shutdown: Shutdown) {
        let mut subscription = OutcomeSubscription::new(connection);
        loop {
            tokio::select! {
                () = shutdown.draining() => return,
                () = self.0.wanted.notified() => {}
            }
            tokio::select! {
                () = shutdown.draining() => return,
                () = subscription.run(|event| self.forward(event)) => {}
                () = self.0.frames.closed() => {}
            }
            self.0.is_live.send_replace(false);
        }
    }

    fn forward(&self, event: OutcomeEvent) {
        match event {
            OutcomeEvent::Outcome(body) => self.send(body.into()),
            OutcomeEvent::Subscribed { is_late } => {
                self.0.is_live.send_replace(true);
                if is_late {
                    self.send(frame(&MissedFrames::Missed { missed: None }));
                }
            }
        }
    }

    fn send(&self, frame: Bytes) {
        // It fails only if there is no subscriber.
        let _ = self.0.frames.send(frame);
    }
}
