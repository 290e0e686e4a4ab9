//! One delivery of a work queue, read: what it asks for, or why it can't be understood.

use tokio::time::Instant;

use crate::{
    broker::{
        Delivery, JOBS_EXCHANGE, JobBody, Message, Origin, Original, REPLAY_HEADER, Receipt,
        WorkQueue,
    },
    event::{self, EventType, RawEvent, Rejected, body_id},
    job::{JobMessage, Ticket},
    ledger::{Arrival, Source},
};

/// A delivery and its place in the world.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) envelope: Envelope,
    pub(super) read: Result<Arrival, Rejected>,
}

/// What is needed of a delivery to park it and to acknowledge it. An operator's order has one that
/// names the jobs queue and acknowledges nothing.
#[derive(Debug)]
pub(super) struct Envelope {
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    content_type: Option<String>,
    body: Vec<u8>,
    /// The failure that an operator replayed with it.
    replay_of: Option<String>,
    pub(super) receipt: Option<Receipt>,
}

impl Item {
    pub(super) fn read(queue: WorkQueue, delivery: Delivery) -> Self {
        let source = match queue {
            WorkQueue::Events(event_type) => {
                read_event(event_type, queue, &delivery).map(|event| Source::Event(Box::new(event)))
            }
            WorkQueue::Jobs => read_job(&delivery).map(Source::Job),
        };
        let traceparent = delivery.headers.text("traceparent").map(str::to_owned);
        let read =
            source.map(|source| Arrival { source, redelivered: delivery.redelivered, traceparent });
        let replay_of = delivery.headers.text(REPLAY_HEADER).map(str::to_owned);
        let Delivery { exchange, routing_key, message_id, content_type, body, receipt, .. } =
            delivery;
        let receipt = Some(receipt);
        Self {
            envelope: Envelope {
                exchange,
                routing_key,
                message_id,
                content_type,
                body,
                replay_of,
                receipt,
            },
            read,
        }
    }
}

impl Envelope {
    pub(super) fn of_operator() -> Self {
        Self {
            exchange: JOBS_EXCHANGE.to_owned(),
            routing_key: String::new(),
            message_id: None,
            content_type: None,
            body: Vec::new(),
            replay_of: None,
            receipt: None,
        }
    }

    /// When the broker delivered it; an operator's order was not.
    pub(super) fn delivered_at(&self) -> Option<Instant> {
        self.receipt.as_ref().map(Receipt::delivered_at)
    }

    pub(super) async fn give_back(self) {
        if let Some(receipt) = self.receipt {
            receipt.give_back().await;
        }
    }

    pub(super) fn origin(&self) -> Origin<'_> {
        Origin { exchange: &self.exchange, routing_key: &self.routing_key }
    }

    /// The message that parks this one as it came.
    pub(super) fn unprocessable(&self, why: &Rejected) -> Message {
        // What was published to another place is another message, and a replay that fails again a
        // failure of its own.
        let [message_id, replay_of] =
            [&self.message_id, &self.replay_of].map(|id| id.as_deref().unwrap_or_default());
        let names = [self.exchange.as_str(), &self.routing_key, message_id, replay_of, ""];
        let mut identity = names.join("\0").into_bytes();
        identity.extend_from_slice(&self.body);
        let id = body_id(&identity).to_string();
        Message::unprocessable(
            &id,
            &why.to_string(),
            chrono::Utc::now(),
            self.origin(),
            Original {
                message_id: self.message_id.as_deref(),
                content_type: self.content_type.as_deref(),
                body: self.body.clone(),
            },
        )
    }
}

fn read_event(
    event_type: EventType,
    queue: WorkQueue,
    delivery: &Delivery,
) -> Result<event::Event, Rejected> {
    // A person who publishes straight to the queue does so with the queue's name.
    let expected = [event_type.routing_key(), queue.name()];
    if !expected.contains(&delivery.routing_key.as_str()) {
        let found = &delivery.routing_key;
        return Err(Rejected::new(
            "routing key",
            format!("unknown event {found:?}, expected {:?}", expected[0]),
        ));
    }
    event::parse(RawEvent {
        event_type,
        content_type: delivery.content_type.as_deref(),
        message_id: delivery.message_id.as_deref(),
        body: &delivery.body,
    })
}

fn read_job(delivery: &Delivery) -> Result<JobMessage, Rejected> {
    let body: JobBody = serde_json::from_slice(&delivery.body)
        .map_err(|error| Rejected::new("$", format!("not a message for a job: {error}")))?;
    let ticket = delivery
        .message_id
        .as_deref()
        .and_then(Ticket::parse)
        .filter(|ticket| ticket.job_id == body.job_id);
    Ok(JobMessage {
        job_id: body.job_id,
        signup_id: body.signup_id,
        phase: body.sync_phase,
        run: ticket.map(|ticket| ticket.run),
        attempt: body.attempt,
    })
}
