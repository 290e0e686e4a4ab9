//! One delivery of a work queue, read: what it asks for, or why it can't be understood.

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    broker::{Delivery, Message, Origin, Receipt, WorkQueue},
    event::{self, EventType, RawEvent, Rejected, body_id},
    job::{JobMessage, SyncPhase, Ticket},
    ledger::{Arrival, Source},
};

/// A delivery and its place in the world.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) envelope: Envelope,
    pub(super) read: Result<Arrival, Rejected>,
}

/// What is needed of a delivery to park it and to acknowledge it.
#[derive(Debug)]
pub(super) struct Envelope {
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    content_type: Option<String>,
    body: Vec<u8>,
    pub(super) receipt: Receipt,
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
        let read = source.map(|source| Arrival { source, redelivered: delivery.redelivered, traceparent });
        let Delivery { exchange, routing_key, message_id, content_type, body, receipt, .. } = delivery;
        Self { envelope: Envelope { exchange, routing_key, message_id, content_type, body, receipt }, read }
    }
}

impl Envelope {
    pub(super) fn origin(&self) -> Origin<'_> {
        Origin { exchange: &self.exchange, routing_key: &self.routing_key }
    }

    /// The message that parks this one as it came.
    pub(super) fn unprocessable(&self, why: &Rejected) -> Message {
        let mut identity = self.message_id.clone().unwrap_or_default().into_bytes();
        identity.push(0);
        identity.extend_from_slice(&self.body);
        let id = body_id(&identity).to_string();
        let content_type = self.content_type.as_deref();
        Message::unprocessable(
            &id,
            &why.to_string(),
            chrono::Utc::now(),
            self.origin(),
            content_type,
            self.body.clone(),
        )
    }
}

fn read_event(event_type: EventType, queue: WorkQueue, delivery: &Delivery) -> Result<event::Event, Rejected> {
    // A person who publishes straight to the queue does so with the queue's name.
    let expected = [event_type.routing_key(), queue.name()];
    if !expected.contains(&delivery.routing_key.as_str()) {
        let found = &delivery.routing_key;
        return Err(Rejected::new("routing key", format!("unknown event {found:?}, expected {:?}", expected[0])));
    }
    event::parse(RawEvent {
        event_type,
        content_type: delivery.content_type.as_deref(),
        message_id: delivery.message_id.as_deref(),
        body: &delivery.body,
    })
}

/// The body of a message for a job.
#[derive(Deserialize)]
struct JobBody {
    job_id: Uuid,
    signup_id: Uuid,
    sync_phase: String,
    attempt: i32,
}

fn read_job(delivery: &Delivery) -> Result<JobMessage, Rejected> {
    let body: JobBody = serde_json::from_slice(&delivery.body)
        .map_err(|error| Rejected::new("$", format!("not a message for a job: {error}")))?;
    let phase: SyncPhase = body.sync_phase.parse().map_err(|error| Rejected::new("sync_phase", format!("{error}")))?;
    let ticket = delivery.message_id.as_deref().and_then(Ticket::parse).filter(|ticket| ticket.job_id == body.job_id);
    Ok(JobMessage {
        job_id: body.job_id,
        signup_id: body.signup_id,
        phase,
        run: ticket.map(|ticket| ticket.run),
        attempt: body.attempt,
    })
}
