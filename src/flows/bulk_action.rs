//! Takes the steps of bulk actions: dismissals in batches, and replays at a bounded rate.
//!
//! Every replica runs this; the ledger lets one at a time take a step. A crash between the confirm
//! of a replayed message and its record repeats the replay. The repeat of an event changes nothing,
//! and a message that is still unprocessable becomes the same failure again.

use std::{num::NonZeroU32, time::Duration};

use crate::{
    broker::{Message, MessageProperties, Origin, OriginalMessage, Publisher, WorkQueue, headers},
    ledger::{self, BulkActionStep, Ledger, MessageSource, OpenMessage, ReplayLimits, ReplayStep},
    runtime::{backoff::Backoff, shutdown::Shutdown, trace::TraceContext},
};

/// Time between two polls for a bulk action.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after each step of a dismissal, which leaves the database to others.
const DISMISSAL_PAUSE: Duration = Duration::from_millis(50);
/// Steps of a replay per second, unless a step would have fewer than one message.
const REPLAY_STEPS_PER_SECOND: u32 = 5;
/// Maximum time for the messages of one step of a replay. It is shorter than the time for which the
/// ledger reserves them.
const REPLAY_STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause of a replay whose messages RabbitMQ did not confirm in time.
const UNCONFIRMED_PAUSE: Duration = Duration::from_secs(10);

/// Takes the steps of bulk actions.
#[derive(Debug)]
pub struct BulkActions {
    /// Maximum messages that are replayed per second.
    pub replays_per_second: NonZeroU32,
    /// Resolves the failures and messages.
    pub ledger: Ledger,
    /// Publishes the replayed messages.
    pub publisher: Publisher,
}

/// The origins of messages that can be replayed.
pub fn replay_sources() -> Vec<MessageSource> {
    let origins = WorkQueue::ALL.into_iter().flat_map(WorkQueue::origins);
    origins.map(|(exchange, routing_key)| MessageSource { exchange, routing_key }).collect()
}

/// The work queue that `message` came from, and the message that replays it there. `None` if it
/// came from elsewhere.
pub fn replay_of(message: OpenMessage) -> Option<(WorkQueue, Message)> {
    let origin = Origin { exchange: &message.exchange, routing_key: &message.routing_key };
    let queue = origin.queue()?;
    let header = |name: &str| message.headers.get(name).and_then(|value| value.as_str());
    let original = OriginalMessage {
        message_id: header(headers::ORIGINAL_MESSAGE_ID),
        trace: TraceContext::new(header(headers::TRACEPARENT), header(headers::TRACESTATE)),
        properties: MessageProperties::restored(&message.headers, message.content_type.as_deref()),
        body: message.body,
    };
    Some((queue, Message::replay(message.id, queue, origin, original)))
}

impl BulkActions {
    /// Takes steps until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        while !shutdown.is_draining() {
            match self.step(&shutdown).await {
                Ok(pause) => {
                    backoff.reset();
                    wait(&shutdown, pause).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a step of a bulk action failed, retrying");
                    tokio::select! {
                        () = shutdown.draining() => {}
                        () = backoff.wait() => {}
                    }
                }
            }
        }
    }

    /// Takes a step. Returns the pause before the next one.
    async fn step(&self, shutdown: &Shutdown) -> Result<Duration, ledger::Error> {
        let (messages_max, pace) = self.replay_step();
        let sources = replay_sources();
        let replays = ReplayLimits { sources: &sources, messages_max };
        let step = match self.ledger.bulk_action_step(replays).await? {
            BulkActionStep::Idle => return Ok(POLL_INTERVAL),
            BulkActionStep::Done => return Ok(DISMISSAL_PAUSE),
            BulkActionStep::Replay(step) => step,
        };
        let replayed = tokio::select! {
            () = shutdown.draining() => None,
            replayed = tokio::time::timeout(REPLAY_STEP_TIMEOUT, self.replay(&step)) => {
                replayed.ok()
            }
        };
        match replayed {
            Some(result) => {
                result?;
                self.ledger.end_replay_step(step.action, step.is_last, pace).await?;
                Ok(pace)
            }
            None => {
                tracing::warn!(
                    bulk_action_id = %step.action,
                    "a step of a bulk replay was not completed, retrying"
                );
                self.ledger.end_replay_step(step.action, false, UNCONFIRMED_PAUSE).await?;
                Ok(POLL_INTERVAL)
            }
        }
    }

    /// Publishes the messages of a step one after the other, so that one body at a time is in
    /// memory, and records each.
    async fn replay(&self, step: &ReplayStep) -> Result<(), ledger::Error> {
        for id in &step.messages {
            // An operator may have resolved it meanwhile.
            let Some(message) = self.ledger.open_message(*id).await? else { continue };
            let Some((_, message)) = replay_of(message) else { continue };
            self.publisher.publish(&message).await;
            self.ledger.record_replay(*id, step.action, &step.actor).await?;
        }
        Ok(())
    }

    /// The maximum messages per step of a replay, and the time between two steps.
    fn replay_step(&self) -> (i64, Duration) {
        let rate = self.replays_per_second.get();
        let messages = (rate / REPLAY_STEPS_PER_SECOND).max(1);
        (messages.into(), Duration::from_secs(1) * messages / rate)
    }
}

async fn wait(shutdown: &Shutdown, time: Duration) {
    tokio::select! {
        () = shutdown.draining() => {}
        () = tokio::time::sleep(time) => {}
    }
}
