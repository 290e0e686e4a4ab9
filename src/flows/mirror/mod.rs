//! The mirror: copies the failure queue into PostgreSQL, where failures can be searched and
//! resolved.
//!
//! A message is acknowledged after its row is committed; a repeat changes nothing. Resolved
//! failures are removed from the failure queue by the sweep ([`sweep`]).

#![expect(clippy::disallowed_methods, reason = "an edge: a message without a time failed now")]

mod sweep;

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use chrono::Utc;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    broker::{self, Acker, Connection, Delivery, MIRROR_QUEUE, Origin, WorkQueue, capped, headers},
    event::{self, EventDetails, EventType, RawEvent, body_id},
    job::{AttemptId, Reason, SyncPhase, job_id},
    ledger::{FailedMessage, Ledger},
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
            self.connection,
            MIRROR_QUEUE,
            batch_size,
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
            // PostgreSQL can store every row: the text was written by this service or cleaned.
            retry_forever("copying failures into the mirror", || self.ledger.mirror(&messages))
                .await;
            for message in &messages {
                self.metrics.mirrored.with_label_values(&[message.reason.as_str()]).inc();
            }
            for (acker, span) in ackers.into_iter().zip(spans) {
                acker.ack().await;
                drop(span);
            }
        }
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
            message_id: identity(&delivery),
            attempt_id: delivery.message_id.as_deref().and_then(AttemptId::parse),
            job_id: header(headers::JOB_ID).and_then(|id| id.parse().ok()),
            given_up_event: None,
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
    if let Some(id) = original_id.filter(|_| message.attempt_id.is_none()) {
        // It is an event. A replay gives the message its id again.
        all_headers[headers::ORIGINAL_MESSAGE_ID] = id.into();
    }
    let message = FailedMessage { headers: all_headers, body: delivery.body, ..message };
    (message, delivery.acker)
}

/// The message's id, or an id derived from its body.
fn identity(delivery: &Delivery) -> String {
    delivery.message_id.clone().unwrap_or_else(|| format!("body:{}", body_id(&delivery.body)))
}

/// Error message of the failures with [`Reason::DeliveryLimit`].
const DELIVERY_LIMIT_MESSAGE: &str = "RabbitMQ dead-lettered the message at its delivery limit: \
    every consumer that received it was lost";

/// A message of a work queue that RabbitMQ dead-lettered at its delivery limit.
struct DeadLetter {
    exchange: String,
    routing_key: String,
}

impl DeadLetter {
    /// Reads the newest death, which comes first (<https://www.rabbitmq.com/docs/dlx>).
    fn of(delivery: &Delivery) -> Option<Self> {
        let death = delivery.headers.get(headers::DEATH)?.get(0)?;
        let exchange = death["exchange"].as_str().unwrap_or_default();
        let routing_key = death["routing-keys"][0].as_str().unwrap_or_default();
        let origin = Origin::of_delivery(exchange, routing_key, &delivery.headers);
        (death.get("reason")?.as_str()? == "delivery_limit").then(|| Self {
            exchange: origin.exchange.to_owned(),
            routing_key: origin.routing_key.to_owned(),
        })
    }

    fn message(self, delivery: &Delivery) -> FailedMessage {
        let attempt_id = delivery.message_id.as_deref().and_then(AttemptId::parse);
        let event = self.event(delivery);
        let job_id = attempt_id
            .map(|attempt_id| attempt_id.job_id)
            .or_else(|| event.as_ref().map(|(job_id, _)| *job_id));
        FailedMessage {
            message_id: format!("{}:delivery-limit", identity(delivery)),
            attempt_id,
            job_id,
            given_up_event: event.map(|(_, id)| id),
            reason: Reason::DeliveryLimit,
            error_type: None,
            error_message: DELIVERY_LIMIT_MESSAGE.to_owned(),
            error_path: None,
            headers: Value::Null,
            content_type: delivery.content_type.clone(),
            body: Vec::new(),
            original_exchange: self.exchange,
            original_routing_key: self.routing_key,
            failed_at: Utc::now(),
        }
    }

    /// The job and the id of the event, if it can be parsed.
    fn event(&self, delivery: &Delivery) -> Option<(uuid::Uuid, String)> {
        // A message published to the default exchange has the queue's name as its routing key.
        let is_of_type = |one: &EventType| {
            [one.routing_key(), WorkQueue::Events(*one).name()].contains(&self.routing_key.as_str())
        };
        let event_type = EventType::ALL.into_iter().find(is_of_type)?;
        let raw = RawEvent {
            event_type,
            content_type: delivery.content_type.as_deref(),
            message_id: delivery.message_id.as_deref(),
            body: &delivery.body,
        };
        let event = event::parse(raw).ok()?;
        let phase = match event.details {
            EventDetails::Submitted { .. } => SyncPhase::Initial,
            EventDetails::Confirmed { .. } => SyncPhase::Enriched,
        };
        Some((job_id(event.signup_id, phase), event.id))
    }
}
