//! One message of a work queue: what it asks for, or why it was rejected.

#![expect(clippy::disallowed_methods, reason = "an edge: a message is rejected now")]

use std::borrow::Borrow;

use tokio::time::Instant;

use crate::{
    broker::{
        Acker, Delivery, JOBS_EXCHANGE, JobBody, Message, Origin, OriginalMessage, WorkQueue,
        headers,
    },
    event::{self, EventType, Rejected, body_id},
    job::{AttemptId, JobMessage},
    ledger::{Arrival, Source},
    runtime::trace::{KeyValue, SpanKind, SpanParent, SpanStart, TraceContext, TraceSpan},
};

/// A message that asks for work, from its delivery to its acknowledgement.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) arrival: Arrival,
    pub(super) envelope: Envelope,
}

impl Borrow<Arrival> for InFlight {
    fn borrow(&self) -> &Arrival {
        &self.arrival
    }
}

/// A message that can't be parsed or stored.
#[derive(Debug)]
pub(super) struct RejectedMessage {
    pub(super) envelope: Envelope,
    pub(super) why: Rejected,
}

/// The parts of a delivery that are needed to park it and to acknowledge it. A job that an operator
/// runs has an envelope without a delivery.
#[derive(Debug)]
pub(super) struct Envelope {
    /// The exchange that it came from. For a replay, that of the message that it replays.
    exchange: String,
    /// The routing key that belongs to `exchange`.
    routing_key: String,
    message_id: Option<String>,
    body: Vec<u8>,
    /// Id of the failure that this message replays.
    replay_of: Option<String>,
    trace: TraceContext,
    pub(super) acker: Option<Acker>,
    /// It ends with the envelope.
    pub(super) span: TraceSpan,
}

/// Parses a delivery.
pub(super) fn parse(
    queue: WorkQueue,
    delivery: Delivery,
) -> Result<InFlight, Box<RejectedMessage>> {
    let source = match queue {
        WorkQueue::Events(event_type) => {
            parse_event(event_type, queue, &delivery).map(|event| Source::Event(Box::new(event)))
        }
        WorkQueue::Jobs => parse_job(&delivery).map(Source::Job),
    };
    let (redelivered, trace) = (delivery.redelivered, delivery.trace_context());
    let envelope = Envelope::of_delivery(queue, delivery, trace.clone());
    match source {
        Ok(source) => Ok(InFlight { arrival: Arrival { source, redelivered, trace }, envelope }),
        Err(why) => Err(Box::new(RejectedMessage { envelope, why })),
    }
}

impl Envelope {
    fn of_delivery(queue: WorkQueue, delivery: Delivery, trace: TraceContext) -> Self {
        let span = delivery.process_span(|| match queue {
            // Later hops and redeliveries start a trace, so that no trace lasts for hours.
            WorkQueue::Events(_) if !delivery.redelivered => SpanParent::Message(trace.clone()),
            WorkQueue::Events(_) | WorkQueue::Jobs => SpanParent::LinkedMessage(trace.clone()),
        });
        let replay_of = delivery.headers.text(headers::REPLAY_OF).map(str::to_owned);
        let origin =
            Origin::of_delivery(&delivery.exchange, &delivery.routing_key, &delivery.headers);
        let (exchange, routing_key) = (origin.exchange.to_owned(), origin.routing_key.to_owned());
        let Delivery { message_id, body, acker, .. } = delivery;
        Self { exchange, routing_key, message_id, body, replay_of, trace, acker: Some(acker), span }
    }

    /// The envelope of a job that an operator runs.
    pub(super) fn of_operator(trace: TraceContext) -> Self {
        let span = TraceSpan::start(|| SpanStart {
            name: "process job".into(),
            kind: SpanKind::Internal,
            parent: SpanParent::LinkedMessage(trace),
            attributes: Vec::new(),
        });
        Self {
            exchange: JOBS_EXCHANGE.to_owned(),
            routing_key: String::new(),
            message_id: None,
            body: Vec::new(),
            replay_of: None,
            trace: TraceContext::default(),
            acker: None,
            span,
        }
    }

    /// Records in the span how the message or the attempt ended.
    pub(super) fn record_outcome(&self, outcome: &'static str) {
        self.span.add(|| vec![KeyValue::new("customerio_sync.outcome", outcome)]);
    }

    /// When RabbitMQ delivered it. `None` for a job that an operator runs.
    pub(super) fn delivered_at(&self) -> Option<Instant> {
        self.acker.as_ref().map(Acker::delivered_at)
    }

    /// Whether it can be acknowledged, or need not be.
    pub(super) fn is_current(&self) -> bool {
        self.acker.as_ref().is_none_or(Acker::is_current)
    }

    pub(super) async fn requeue(self) {
        self.record_outcome("requeued");
        if let Some(acker) = self.acker {
            acker.requeue().await;
        }
    }

    pub(super) fn origin(&self) -> Origin<'_> {
        Origin { exchange: &self.exchange, routing_key: &self.routing_key }
    }

    /// The message that parks this one, with its body unchanged. It takes the body: such messages
    /// may be large.
    pub(super) fn unprocessable(&mut self, why: &Rejected) -> Message {
        // The same body under another routing key is another message, and a replay that fails again
        // is a new failure.
        let [message_id, replay_of] =
            [&self.message_id, &self.replay_of].map(|id| id.as_deref().unwrap_or_default());
        let names = [self.exchange.as_str(), &self.routing_key, message_id, replay_of, ""];
        let mut identity = names.join("\0").into_bytes();
        identity.extend_from_slice(&self.body);
        let id = body_id(&identity).to_string();
        let body = std::mem::take(&mut self.body);
        Message::unprocessable(
            &id,
            why,
            chrono::Utc::now(),
            self.origin(),
            OriginalMessage {
                message_id: self.message_id.as_deref(),
                properties: self.acker.as_ref().map(Acker::properties).unwrap_or_default(),
                trace: self.trace.clone(),
                body,
            },
        )
    }
}

fn parse_event(
    event_type: EventType,
    queue: WorkQueue,
    delivery: &Delivery,
) -> Result<event::Event, Rejected> {
    // A message published to the default exchange has the queue's name as its routing key.
    let expected = [event_type.routing_key(), queue.name()];
    if !expected.contains(&delivery.routing_key.as_str()) {
        let found = &delivery.routing_key;
        return Err(Rejected::new(
            "routing key",
            format!("unknown event {found:?}, expected {:?}", expected[0]),
        ));
    }
    event::parse(delivery.raw_event(event_type))
}

fn parse_job(delivery: &Delivery) -> Result<JobMessage, Rejected> {
    let body: JobBody = serde_json::from_slice(&delivery.body)
        .map_err(|error| Rejected::new("$", format!("expected a message for a job: {error}")))?;
    let attempt_id = delivery
        .message_id
        .as_deref()
        .and_then(AttemptId::parse)
        .filter(|attempt_id| attempt_id.job_id == body.job_id);
    Ok(JobMessage {
        job_id: body.job_id,
        signup_id: body.signup_id,
        phase: body.sync_phase,
        run: attempt_id.map(|attempt_id| attempt_id.run),
        attempt: body.attempt,
    })
}
