//! What WebSocket clients receive: outcomes of all replicas ([`OutcomeFeed`]), and the progress of
//! bulk retries, changes of the circuit breaker, and counts ([`LiveFeed`]).
//!
//! Nothing is consumed or counted while there are no subscribers. A slow subscriber misses frames
//! and receives their number; it never delays another.

mod live;
mod outcomes;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;

pub use live::{LiveFeed, Notice};
pub use outcomes::OutcomeFeed;

/// Maximum frames that a slow subscriber may lag behind.
const LAG_FRAMES_MAX: usize = 4096;

/// The frame that follows a gap, in both feeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum MissedFrames {
    /// The subscriber missed frames.
    #[serde(rename = "feed.missed")]
    Missed {
        /// Their number. Absent if it is unknown, after the connection to RabbitMQ was lost.
        #[serde(skip_serializing_if = "Option::is_none")]
        missed: Option<u64>,
    },
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
                Some(frame(&MissedFrames::Missed { missed: Some(missed) }))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The text frame of a value.
fn frame(content: &impl Serialize) -> Bytes {
    serde_json::to_vec(content).expect("a frame is valid JSON").into()
}
