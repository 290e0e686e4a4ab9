//! Copies the failure queue into PostgreSQL, where failures can be searched and resolved. A message
//! is acknowledged after its row is committed; a repeat changes nothing. What was resolved there is
//! swept out of the queue ([`sweep`]).

mod sweep;

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    broker::{self, Delivery, Link, MIRROR_QUEUE, Receipt},
    event::{self, Details, EventType, RawEvent, body_id},
    job::{Reason, SyncPhase, Ticket, job_id},
    ledger::{FailedMessage, Ledger},
    runtime::{backoff::until_done, metrics::Metrics, shutdown::Lifecycle},
};

/// Settings of the mirror.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows in one transaction at most.
    pub batch_size: NonZeroU16,
    /// How often the failure queue is compared with the mirror. A difference that stays is swept
    /// away.
    #[serde(with = "humantime_serde")]
    pub compare_interval: Duration,
    /// How often the failure queue is swept although no difference shows.
    #[serde(with = "humantime_serde")]
    pub sweep_interval: Duration,
}

pub use sweep::Sweeper;

/// Mirrors until nothing new is to be taken.
pub async fn run(
    config: Config,
    link: Arc<Link>,
    ledger: Ledger,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
) {
    let batch_size = config.batch_size.get();
    let (sender, mut deliveries) = mpsc::channel(batch_size.into());
    tokio::spawn(broker::consume(
        link,
        MIRROR_QUEUE,
        batch_size,
        lifecycle.clone(),
        sender,
        |delivery| delivery,
    ));
    let mut batch = Vec::new();
    while deliveries.recv_many(&mut batch, batch_size.into()).await > 0 {
        let (messages, receipts): (Vec<_>, Vec<_>) = batch.drain(..).map(read).unzip();
        // Data that the database refuses can't be: what is written was made by us or made fit.
        let mirrored =
            until_done("mirroring failures", |_| true, || ledger.mirror(&messages)).await;
        mirrored.expect("every error is tried again");
        metrics.mirrored.inc_by(messages.len() as u64);
        for receipt in receipts {
            receipt.ack().await;
        }
    }
}

fn read(delivery: Delivery) -> (FailedMessage, Receipt) {
    let given_up = DeadLetter::of(&delivery);
    let header = |key: &str| delivery.headers.text(key).map(str::to_owned);
    let reason = header("x-reason").and_then(|reason| reason.parse().ok());
    let message = match (reason, given_up) {
        (None, Some(dead_letter)) => dead_letter.message(&delivery),
        (reason, _) => FailedMessage {
            message_id: identity(&delivery),
            ticket: delivery.message_id.as_deref().and_then(Ticket::parse),
            job_id: header("x-job-id").and_then(|id| id.parse().ok()),
            given_up_event: None,
            reason: reason.unwrap_or(Reason::Unprocessable),
            error_type: header("x-error-type").and_then(|kind| kind.parse().ok()),
            error_message: header("x-error-message")
                .unwrap_or_else(|| "published to the failure exchange without a reason".to_owned()),
            headers: Value::Null,
            content_type: delivery.content_type.clone(),
            body: Vec::new(),
            original_exchange: header("x-original-exchange").unwrap_or_default(),
            original_routing_key: header("x-original-routing-key").unwrap_or_default(),
            failed_at: header("x-failed-at")
                .as_deref()
                .and_then(parse_time)
                .unwrap_or_else(Utc::now),
        },
    };
    let message =
        FailedMessage { headers: delivery.headers.into_json(), body: delivery.body, ..message };
    (message, delivery.receipt)
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    text.parse().ok()
}

/// The message's id, or one made from its body.
fn identity(delivery: &Delivery) -> String {
    delivery.message_id.clone().unwrap_or_else(|| format!("body:{}", body_id(&delivery.body)))
}

/// A message of a work queue that the broker gave up after too many deliveries.
struct DeadLetter {
    exchange: String,
    routing_key: String,
}

impl DeadLetter {
    /// The newest death comes first (<https://www.rabbitmq.com/docs/dlx>).
    fn of(delivery: &Delivery) -> Option<Self> {
        let death = delivery.headers.get("x-death")?.get(0)?;
        (death.get("reason")?.as_str()? == "delivery_limit").then(|| Self {
            exchange: death["exchange"].as_str().unwrap_or_default().to_owned(),
            routing_key: death["routing-keys"][0].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn message(self, delivery: &Delivery) -> FailedMessage {
        let ticket = delivery.message_id.as_deref().and_then(Ticket::parse);
        let event = self.event(delivery);
        let job_id = ticket
            .map(|ticket| ticket.job_id)
            .or_else(|| event.as_ref().map(|(job_id, _)| *job_id));
        FailedMessage {
            message_id: format!("{}:delivery-limit", identity(delivery)),
            ticket,
            job_id,
            given_up_event: event.map(|(_, id)| id),
            reason: Reason::DeliveryLimit,
            error_type: None,
            error_message: "the broker gave it up: every consumer that took it was cut off"
                .to_owned(),
            headers: Value::Null,
            content_type: delivery.content_type.clone(),
            body: Vec::new(),
            original_exchange: self.exchange,
            original_routing_key: self.routing_key,
            failed_at: Utc::now(),
        }
    }

    /// The job and the id of an event that can be read.
    fn event(&self, delivery: &Delivery) -> Option<(uuid::Uuid, String)> {
        let event_type =
            EventType::ALL.into_iter().find(|one| one.routing_key() == self.routing_key)?;
        let raw = RawEvent {
            event_type,
            content_type: delivery.content_type.as_deref(),
            message_id: delivery.message_id.as_deref(),
            body: &delivery.body,
        };
        let event = event::parse(raw).ok()?;
        let phase = match event.details {
            Details::Submitted { .. } => SyncPhase::Initial,
            Details::Confirmed { .. } => SyncPhase::Enriched,
        };
        Some((job_id(event.signup_id, phase), event.id))
    }
}
