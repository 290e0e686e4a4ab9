//! `GET /asyncapi.json`: describes the messages and the frames of the WebSockets, from the types
//! that are parsed and written (AsyncAPI 3.0,
//! <https://www.asyncapi.com/docs/reference/specification/v3.0.0>).

use axum::Json;
use serde_json::{Map, Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use super::PREFIX;
use crate::{
    broker::{
        EVENTS_EXCHANGE, FAILED_EXCHANGE, JobBody, OutcomeBody, OutcomeType, UPDATES_EXCHANGE,
        WorkQueue, headers,
    },
    event::{self, CLOUDEVENTS_CONTENT_TYPE, EventType},
    flows::feed::{MissedFrames, Notice},
    job::{ErrorType, Reason, SyncPhase},
};

const JSON: &str = "application/json";
/// Name of the message for an unprocessable message.
const UNPROCESSABLE: &str = Reason::Unprocessable.as_str();

/// Named schemas, and the schemas that they refer to.
#[derive(Default)]
struct Schemas(Map<String, Value>);

impl Schemas {
    fn add<T: ToSchema + PartialSchema>(&mut self, name: &str) {
        let mut referred = Vec::new();
        T::schemas(&mut referred);
        self.add_all(name, T::schema(), referred);
    }

    fn add_all(
        &mut self,
        name: &str,
        schema: RefOr<Schema>,
        referred: Vec<(String, RefOr<Schema>)>,
    ) {
        for (name, schema) in referred.into_iter().chain([(name.to_owned(), schema)]) {
            self.0.insert(name, serde_json::to_value(schema).expect("a schema is JSON"));
        }
    }
}

/// Returns the description.
pub(crate) async fn show() -> Json<Value> {
    let mut schemas = Schemas::default();
    for (name, event_type) in
        [("SignupSubmitted", EventType::Submitted), ("ExtractionConfirmed", EventType::Confirmed)]
    {
        let (schema, referred) = event::schema(event_type);
        schemas.add_all(name, schema, referred);
    }
    schemas.add::<JobBody>("Job");
    schemas.add::<OutcomeBody>("Outcome");
    schemas.add::<Notice>("Notice");
    schemas.add::<MissedFrames>("MissedFrames");
    Json(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "customerio-sync",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The messages that customerio-sync consumes from and publishes to \
                RabbitMQ, and the frames of its WebSockets. /openapi.json describes the HTTP API.",
        },
        "defaultContentType": JSON,
        "channels": channels(),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": schemas.0 },
    }))
}

/// A reference to a part of `components` or of `channels`.
fn reference(place: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/{place}/{name}") })
}

fn message(name: &str) -> Value {
    reference("components/messages", name)
}

fn queue(queue: WorkQueue) -> Value {
    json!({
        "amqp": {
            "is": "queue",
            "queue": {
                "name": queue.name(),
                "durable": true,
                "exclusive": false,
                "autoDelete": false,
            },
        },
    })
}

fn exchange(name: &str, kind: &str) -> Value {
    json!({
        "amqp": {
            "is": "routingKey",
            "exchange": { "name": name, "type": kind, "durable": true, "autoDelete": false },
        },
    })
}

fn channels() -> Value {
    let [submitted, confirmed] = EventType::ALL;
    json!({
        "signupSubmitted": {
            "address": submitted.routing_key(),
            "description": format!("A person signed up. Published to {EVENTS_EXCHANGE}."),
            "messages": { "signupSubmitted": message("signupSubmitted") },
            "bindings": queue(WorkQueue::Events(submitted)),
        },
        "extractionConfirmed": {
            "address": confirmed.routing_key(),
            "description": format!(
                "The bet slip in a person's upload was read and confirmed. Published to \
                    {EVENTS_EXCHANGE}."
            ),
            "messages": { "extractionConfirmed": message("extractionConfirmed") },
            "bindings": queue(WorkQueue::Events(confirmed)),
        },
        "outcomes": {
            "address": "{outcome}",
            "parameters": { "outcome": { "enum": OutcomeType::ALL } },
            "messages": { "outcome": message("outcome") },
            "bindings": exchange(UPDATES_EXCHANGE, "topic"),
        },
        "failures": {
            "address": FAILED_EXCHANGE,
            "description": "Failed jobs, and unprocessable messages.",
            "messages": {
                "failedJob": message("failedJob"),
                (UNPROCESSABLE): message(UNPROCESSABLE),
            },
            "bindings": exchange(FAILED_EXCHANGE, "fanout"),
        },
        "webSocket": {
            "address": format!("{PREFIX}/ws"),
            "description": "The outcomes of all replicas.",
            "messages": { "outcome": message("outcome"), "missed": message("missed") },
            "bindings": { "ws": { "method": "GET" } },
        },
        "live": {
            "address": format!("{PREFIX}/live"),
            "description": "Progress of bulk retries, breaker changes, and counts.",
            "messages": { "notice": message("notice"), "missed": message("missed") },
            "bindings": { "ws": { "method": "GET" } },
        },
    })
}

fn operations() -> Value {
    let operation = |action: &str, channel: &str| {
        let channel = reference("channels", channel);
        json!({ "action": action, "channel": channel })
    };
    json!({
        "receiveSignupSubmitted": operation("receive", "signupSubmitted"),
        "receiveExtractionConfirmed": operation("receive", "extractionConfirmed"),
        "sendOutcome": operation("send", "outcomes"),
        "sendFailure": operation("send", "failures"),
        "sendFrame": operation("send", "webSocket"),
        "sendNotice": operation("send", "live"),
    })
}

fn messages() -> Value {
    let payload = |schema: &str| reference("components/schemas", schema);
    let event = |schema: &str| {
        json!({
            "contentType": JSON,
            "payload": payload(schema),
            "description": format!(
                "Bare, or a CloudEvents 1.0 event: structured, with the event in the field `data` \
                    ({CLOUDEVENTS_CONTENT_TYPE}, or any content type), or binary, with the \
                    attributes in headers that begin with `cloudEvents:` or `cloudEvents_`. At \
                    most {} KiB of UTF-8; a content encoding other than `identity` and `utf-8` is \
                    rejected. The id, at most {} bytes, is the first of CloudEvents `id`, \
                    `event_id`, `message_id` and a hash of the body. The time is the first of \
                    `occurred_at`, CloudEvents `time`, the AMQP timestamp and the time of arrival.",
                event::EVENT_BYTES_MAX / 1024,
                event::EVENT_ID_BYTES_MAX,
            ),
            "headers": { "type": "object", "properties": event_headers() },
            "bindings": { "amqp": { "contentEncoding": "utf-8" } },
        })
    };
    let mut of_job = job_headers();
    of_job.extend(failure_headers());
    json!({
        "signupSubmitted": event("SignupSubmitted"),
        "extractionConfirmed": event("ExtractionConfirmed"),
        "outcome": { "contentType": JSON, "payload": payload("Outcome") },
        "failedJob": {
            "contentType": JSON,
            "payload": payload("Job"),
            "headers": {
                "type": "object",
                "properties": of_job,
                "required": [headers::JOB_ID, headers::REASON, headers::FAILED_AT],
            },
        },
        (UNPROCESSABLE): {
            "description": "The body of the original message, byte for byte.",
            "headers": {
                "type": "object",
                "properties": failure_headers(),
                "required": [headers::REASON, headers::FAILED_AT, headers::ERROR_MESSAGE],
            },
        },
        "notice": { "contentType": JSON, "payload": payload("Notice") },
        "missed": { "contentType": JSON, "payload": payload("MissedFrames") },
    })
}

/// The headers of an event that the service reads.
fn event_headers() -> Map<String, Value> {
    let [prefix, _] = headers::CLOUD_EVENTS_PREFIXES;
    let attributes = ["specversion", "id", "type", "time"].map(|name| format!("{prefix}{name}"));
    let names = [headers::TRACEPARENT, headers::TRACESTATE].map(str::to_owned);
    attributes.into_iter().chain(names).map(|name| (name, json!({ "type": "string" }))).collect()
}

/// The headers of every message of the failure queue.
fn failure_headers() -> Map<String, Value> {
    let text = || json!({ "type": "string" });
    [
        (headers::ERROR_MESSAGE, text()),
        (headers::ERROR_PATH, text()),
        (headers::FAILED_AT, json!({ "type": "string", "format": "date-time" })),
        (headers::ORIGINAL_EXCHANGE, text()),
        (headers::ORIGINAL_ROUTING_KEY, text()),
        (headers::REASON, json!({ "enum": Reason::ALL })),
        (headers::TRACEPARENT, text()),
        (headers::TRACESTATE, text()),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into_iter()
    .collect()
}

/// The headers of the messages of a job.
fn job_headers() -> Map<String, Value> {
    let uuid = || json!({ "type": "string", "format": "uuid" });
    [
        (headers::JOB_ID, uuid()),
        (headers::SIGNUP_ID, uuid()),
        (headers::SYNC_PHASE, json!({ "enum": SyncPhase::ALL })),
        (headers::ATTEMPT, json!({ "type": "integer" })),
        (headers::ERROR_TYPE, json!({ "enum": ErrorType::ALL })),
        (headers::FIRST_FAILED_AT, json!({ "type": "string", "format": "date-time" })),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into_iter()
    .collect()
}
