//! The mirror: copies the failure queue into PostgreSQL, where failures can be searched and
//! resolved.
//!
//! A message is acknowledged after its row is committed; a repeat changes nothing. Resolved
//! failures are removed from the failure queue by the sweep ([`sweep`]).

#![expect(clippy::disallowed_methods, reason = "an edge: a message without a time failed now")]

mod sweep;

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use chrono::Utc;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    broker::{
        self, Acker, Connection, Delivery, MIRROR_QUEUE, Origin, WindowLimit, WorkQueue, capped,
        headers,
    },
    event::{self, body_id},
    job::{AttemptId, Reason, SyncPhase},
    ledger::{self, FailedMessage, Ledger, MessageJob},
    runtime::{backoff::retry_forever, metrics::Metrics, shutdown::Shutdown, trace::SpanParent},
};

/// Settings of the mirror and of the sweep.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Maximum rows per transaction.
    pub batch_size: NonZeroU16,
    /// Time between two comparisons of the failure queue with the mirror. A difference that lasts
    /// starts a sweep.
    #[serde(with = "humantime_serde")]
    pub compare_interval: Duration,
    /// Time after which a sweep starts without a difference.
    #[serde(with = "humantime_serde")]
    pub sweep_interval: Duration,
}

pub use sweep::Sweeper;

/// Mirrors the failure queue.
#[derive(Debug)]
pub struct Mirror {
    /// Settings.
    pub config: Config,
    /// Consumes the mirror's queue.
    pub connection: Arc<Connection>,
    /// Stores the failures.
    pub ledger: Ledger,
    /// Counts the mirrored failures.
    pub metrics: Arc<Metrics>,
}

impl Mirror {
    /// Mirrors until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let batch_size = self.config.batch_size.get();
        let (sender, mut deliveries) = mpsc::channel(batch_size.into());
        tokio::spawn(broker::consume(
            self.connection.clone(),
            MIRROR_QUEUE,
            WindowLimit::new(batch_size),
            shutdown,
            sender,
            |delivery| delivery,
        ));
        let mut batch = Vec::new();
        while deliveries.recv_many(&mut batch, batch_size.into()).await > 0 {
            let span = |delivery: &Delivery| {
                delivery.process_span(|| SpanParent::LinkedMessage(delivery.trace_context()))
            };
            let spans: Vec<_> = batch.iter().map(span).collect();
            let (messages, ackers): (Vec<_>, Vec<_>) = batch.drain(..).map(read).unzip();
            let what = "copying failures into the mirror";
            for portion in portions(&messages) {
                retry_forever(what, || store(&self.ledger, portion)).await;
            }
            for message in &messages {
                self.metrics.mirrored.with_label_values(&[message.reason.as_str()]).inc();
            }
            Acker::ack_all(ackers).await;
            drop(spans);
        }
    }
}

/// Maximum bytes of the bodies that one transaction stores, since the client of PostgreSQL copies
/// them. A larger body is stored alone.
const TRANSACTION_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Divides messages into portions of at most [`TRANSACTION_BYTES_MAX`].
fn portions(messages: &[FailedMessage]) -> Vec<&[FailedMessage]> {
    let mut portions = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, message) in messages.iter().enumerate() {
        bytes += message.body.len();
        if bytes > TRANSACTION_BYTES_MAX && index > start {
            portions.push(&messages[start..index]);
            (start, bytes) = (index, message.body.len());
        }
    }
    portions.push(&messages[start..]);
    portions
}

/// Stores messages. If PostgreSQL refuses the data of one, the others are stored, and that one
/// without what may be refused: one message never blocks the others.
fn store<'a>(
    ledger: &'a Ledger,
    messages: &'a [FailedMessage],
) -> BoxFuture<'a, Result<(), ledger::Error>> {
    Box::pin(async move {
        match (ledger.mirror(messages).await, messages) {
            (Err(error), [message]) if !error.is_transient() => {
                tracing::error!(%error, "a message of the failure queue can't be stored whole");
                ledger.mirror(&[reduced(message, &error)]).await
            }
            (Err(error), messages) if !error.is_transient() => {
                let (first, second) = messages.split_at(messages.len() / 2);
                store(ledger, first).await?;
                store(ledger, second).await
            }
            (stored, _) => stored,
        }
    })
}

/// A message with its body, and without everything else that its publisher chose.
fn reduced(message: &FailedMessage, error: &ledger::Error) -> FailedMessage {
    FailedMessage {
        // The id of an event is its publisher's choice.
        job: message.job.clone().filter(|job| matches!(job, MessageJob::Named(_))),
        error_message: capped(&format!("the message can't be stored whole: {error}")),
        error_path: None,
        headers: Value::Object(serde_json::Map::new()),
        content_type: None,
        original_exchange: String::new(),
        original_routing_key: String::new(),
        ..message.clone()
    }
}

/// Reads a message of the failure queue.
fn read(delivery: Delivery) -> (FailedMessage, Acker) {
    // Anybody may publish to the failure exchange, so no header is copied whole.
    let header = |key: &str| delivery.headers.text(key).map(capped);
    let reason: Option<Reason> = header(headers::REASON).and_then(|reason| reason.parse().ok());
    let dead_letter = DeadLetter::of(&delivery).filter(|_| reason.is_none());
    let original_id = dead_letter.as_ref().and_then(|_| delivery.message_id.clone());
    let message = match dead_letter {
        Some(dead_letter) => dead_letter.message(&delivery),
        None => FailedMessage {
            message_id: match (&reason, &delivery.message_id) {
                // This service published it.
                (Some(_), Some(id)) => capped(id),
                _ => identity(&delivery.exchange, &delivery.routing_key, &delivery),
            },
            attempt_id: delivery.message_id.as_deref().and_then(AttemptId::parse),
            job: header(headers::JOB_ID).and_then(|id| id.parse().ok()).map(MessageJob::Named),
            reason: reason.unwrap_or(Reason::Unprocessable),
            error_type: header(headers::ERROR_TYPE).and_then(|kind| kind.parse().ok()),
            error_message: header(headers::ERROR_MESSAGE)
                .unwrap_or_else(|| "published to the failure exchange without a reason".to_owned()),
            error_path: header(headers::ERROR_PATH),
            headers: Value::Null,
            content_type: delivery.content_type.clone(),
            body: Vec::new(),
            original_exchange: header(headers::ORIGINAL_EXCHANGE).unwrap_or_default(),
            original_routing_key: header(headers::ORIGINAL_ROUTING_KEY).unwrap_or_default(),
            failed_at: header(headers::FAILED_AT)
                .and_then(|at| at.parse().ok())
                .unwrap_or_else(Utc::now),
        },
    };
    let mut all_headers = delivery.headers.into_json();
    if message.attempt_id.is_none() {
        // A replay restores them.
        let encoding = delivery.content_encoding.map(Value::from);
        let timestamp = delivery.timestamp.map(Value::from);
        for (name, value) in [
            (headers::ORIGINAL_CONTENT_ENCODING, encoding),
            (headers::ORIGINAL_TIMESTAMP, timestamp),
        ] {
            if let Some(value) = value {
                all_headers[name] = value;
            }
        }
    }
    if let Some(id) = original_id.filter(|_| message.attempt_id.is_none()) {
        // It is an event. A replay gives the message its id again.
        all_headers[headers::ORIGINAL_MESSAGE_ID] = id.into();
    }
    let message = FailedMessage { headers: all_headers, body: delivery.body, ..message };
    (message, delivery.acker)
}

/// The id of a message that this service did not publish. Its `message_id` is its publisher's
/// business: two messages may have the same. Messages that are equal in origin, `message_id` and
/// body are one, since a redelivery looks like a copy.
fn identity(exchange: &str, routing_key: &str, delivery: &Delivery) -> String {
    let message_id = delivery.message_id.as_deref().unwrap_or_default();
    let mut content = [exchange, routing_key, message_id, ""].join("\0").into_bytes();
    content.extend_from_slice(&delivery.body);
    format!("message:{}", body_id(&content))
}

/// Error message of the failures with [`Reason::DeliveryLimit`].
const DELIVERY_LIMIT_MESSAGE: &str = "RabbitMQ dead-lettered the message at its delivery limit: \
    every consumer that received it was lost";

/// A message of a work queue that RabbitMQ dead-lettered.
struct DeadLetter {
    exchange: String,
    routing_key: String,
    /// The queue that it was in.
    queue: WorkQueue,
    reason: Reason,
}

impl DeadLetter {
    /// Reads the newest death, which comes first (<https://www.rabbitmq.com/docs/dlx>).
    fn of(delivery: &Delivery) -> Option<Self> {
        let death = delivery.headers.get(headers::DEATH)?.get(0)?;
        let reason = match death.get("reason")?.as_str()? {
            "delivery_limit" => Reason::DeliveryLimit,
            "expired" => Reason::Expired,
            _ => return None,
        };
        let queue = death.get("queue")?.as_str()?;
        let queue = WorkQueue::ALL.into_iter().find(|one| one.name() == queue)?;
        let exchange = death["exchange"].as_str().unwrap_or_default();
        let routing_key = death["routing-keys"][0].as_str().unwrap_or_default();
        let origin = Origin::of_delivery(exchange, routing_key, &delivery.headers);
        Some(Self {
            exchange: origin.exchange.to_owned(),
            routing_key: origin.routing_key.to_owned(),
            queue,
            reason,
        })
    }

    fn message(self, delivery: &Delivery) -> FailedMessage {
        // Recovery publishes the message of a job again, so only a given-up one fails its job.
        let is_given_up = self.reason == Reason::DeliveryLimit;
        let attempt_id = self.attempt_id(delivery).filter(|_| is_given_up);
        let job = self.job(delivery).filter(|_| is_given_up);
        let error_message = match self.reason {
            Reason::DeliveryLimit => DELIVERY_LIMIT_MESSAGE.to_owned(),
            _ => format!("the message expired in the queue {}", self.queue.name()),
        };
        let id = match attempt_id {
            Some(attempt_id) => attempt_id.to_string(),
            None => identity(&self.exchange, &self.routing_key, delivery),
        };
        FailedMessage {
            message_id: format!("{id}:{}", self.reason),
            attempt_id,
            job,
            reason: self.reason,
            error_type: None,
            error_message,
            error_path: None,
            headers: Value::Null,
            content_type: delivery.content_type.clone(),
            body: Vec::new(),
            original_exchange: self.exchange,
            original_routing_key: self.routing_key,
            failed_at: Utc::now(),
        }
    }

    /// The attempt that the message asked for. The id of an event is its publisher's choice.
    fn attempt_id(&self, delivery: &Delivery) -> Option<AttemptId> {
        match self.queue {
            WorkQueue::Jobs => AttemptId::parse(delivery.message_id.as_deref()?),
            WorkQueue::Events(_) => None,
        }
    }

    /// The job that the message was for, if it can be parsed.
    fn job(&self, delivery: &Delivery) -> Option<MessageJob> {
        let WorkQueue::Events(event_type) = self.queue else {
            return Some(MessageJob::Named(self.attempt_id(delivery)?.job_id));
        };
        let event = event::parse(delivery.raw_event(event_type)).ok()?;
        let phase = SyncPhase::of(&event.details);
        Some(MessageJob::OfEvent { signup_id: event.signup_id, phase, event_id: event.id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_size(bytes: usize) -> FailedMessage {
        FailedMessage {
            message_id: String::new(),
            attempt_id: None,
            job: None,
            reason: Reason::Unprocessable,
            error_type: None,
            error_message: String::new(),
            error_path: None,
            headers: Value::Null,
            content_type: None,
            body: vec![0; bytes],
            original_exchange: String::new(),
            original_routing_key: String::new(),
            failed_at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn large_bodies_are_stored_in_several_transactions() {
        const MIB: usize = 1024 * 1024;
        let messages = [1, 7 * MIB, MIB, 20 * MIB, 1, 4 * MIB, 4 * MIB].map(of_size);
        let sizes: Vec<_> = portions(&messages).into_iter().map(<[_]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 2, 1]);
        assert_eq!(portions(&messages[..1]).len(), 1);
    }
}
