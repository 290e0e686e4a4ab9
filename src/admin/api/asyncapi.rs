//! `GET /asyncapi.json`: the messages that come in and go out, and the frames of the WebSocket,
//! described from the types that are parsed and written (AsyncAPI 3.0,
//! <https://www.asyncapi.com/docs/reference/specification/v3.0.0>).

use axum::Json;
use serde_json::{Map, Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    broker::{JobBody, OutcomeBody, WorkQueue},
    event::{self, EventType},
    flows::feed::Notice,
};

/// Named schemas, each with those that it refers to.
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

/// The description.
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
    Json(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "customerio-sync",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The messages that customerio-sync takes from and publishes to \
                RabbitMQ, and the frames of its WebSocket. /openapi.json describes the HTTP API.",
        },
        "defaultContentType": "application/json",
        "channels": channels(),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": schemas.0 },
    }))
}

fn message(name: &str) -> Value {
    json!({ "$ref": format!("#/components/messages/{name}") })
}

fn queue(queue: WorkQueue) -> Value {
    json!({ "amqp": { "is": "queue", "queue": { "name": queue.name(), "durable": true,
    "exclusive": false, "autoDelete": false } } })
}

fn exchange(name: &str, kind: &str) -> Value {
    json!({ "amqp": { "is": "routingKey", "exchange": { "name": name, "type": kind,
    "durable": true, "autoDelete": false } } })
}

fn channels() -> Value {
    let [submitted, confirmed] = EventType::ALL;
    json!({
        "signupSubmitted": {
            "address": submitted.routing_key(),
            "description": "A person signed up. Published to the exchange signup.events.",
            "messages": { "signupSubmitted": message("signupSubmitted") },
            "bindings": queue(WorkQueue::Events(submitted)),
        },
        "extractionConfirmed": {
            "address": confirmed.routing_key(),
            "description": "The bet slip of an upload was read and confirmed. Published to the \
                exchange signup.events.",
            "messages": { "extractionConfirmed": message("extractionConfirmed") },
            "bindings": queue(WorkQueue::Events(confirmed)),
        },
        "outcomes": {
            "address": "sign_up.{outcome}",
            "parameters": { "outcome": { "enum": ["customerio_synced",
            "customerio_sync_failed"] } },
            "messages": { "outcome": message("outcome") },
            "bindings": exchange("signup.updates", "topic"),
        },
        "failures": {
            "address": "customerio-sync.failed",
            "description": "What has failed for good, and what could not be understood.",
            "messages": { "failedJob": message("failedJob"),
            "unprocessable": message("unprocessable") },
            "bindings": exchange("customerio-sync.failed", "fanout"),
        },
        "webSocket": {
            "address": "/api/v1/signups/customerio/ws",
            "messages": { "outcome": message("outcome"), "notice": message("notice") },
            "bindings": { "ws": { "method": "GET" } },
        },
    })
}

fn operations() -> Value {
    let operation = |action: &str, channel: &str| {
        json!({ "action": action,
    "channel": { "$ref": format!("#/channels/{channel}") } })
    };
    json!({
        "takeSignupSubmitted": operation("receive", "signupSubmitted"),
        "takeExtractionConfirmed": operation("receive", "extractionConfirmed"),
        "tellOutcome": operation("send", "outcomes"),
        "parkFailure": operation("send", "failures"),
        "pushFrame": operation("send", "webSocket"),
    })
}

fn messages() -> Value {
    let payload = |schema: &str| json!({ "$ref": format!("#/components/schemas/{schema}") });
    let text = json!({ "type": "string" });
    let of_failure = json!({
        "x-error-message": text, "x-failed-at": { "type": "string", "format": "date-time" },
        "x-original-exchange": text, "x-original-routing-key": text,
        "x-reason": { "enum": ["exhausted", "permanent", "unprocessable", "delivery-limit"] },
    });
    let mut of_job = json!({
        "x-job-id": { "type": "string", "format": "uuid" }, "x-signup-id": { "type": "string",
        "format": "uuid" },
        "x-sync-phase": { "enum": ["initial", "enriched"] }, "x-attempt": { "type": "integer" },
        "x-error-type": { "enum": ["rate_limit", "server_error", "network", "other"] },
        "x-first-failed-at": { "type": "string", "format": "date-time" }, "traceparent": text,
    });
    if let (Value::Object(of_job), Value::Object(of_failure)) = (&mut of_job, &of_failure) {
        of_job.extend(of_failure.clone());
    }
    json!({
        "signupSubmitted": {
            "contentType": "application/json", "payload": payload("SignupSubmitted"),
            "description": "Bare, or under `data` of a CloudEvents 1.0 event \
                (application/cloudevents+json). At most 256 KiB.",
        },
        "extractionConfirmed": {
            "contentType": "application/json", "payload": payload("ExtractionConfirmed"),
            "description": "Bare, or under `data` of a CloudEvents 1.0 event \
                (application/cloudevents+json). At most 256 KiB.",
        },
        "outcome": { "contentType": "application/json", "payload": payload("Outcome") },
        "failedJob": {
            "contentType": "application/json", "payload": payload("Job"),
            "headers": { "type": "object", "properties": of_job, "required": ["x-job-id",
            "x-reason", "x-failed-at"] },
        },
        "unprocessable": {
            "description": "The body is the original's, byte for byte.",
            "headers": { "type": "object", "properties": of_failure, "required": ["x-reason",
            "x-failed-at", "x-error-message"] },
        },
        "notice": { "contentType": "application/json", "payload": payload("Notice") },
    })
}
