//! Version 1 of the Track API, which the official client libraries use.

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde_json::{Map, Value, json};

use super::{
    Sim, accepted, json_response,
    store::{PersonKey, TrackedEvent},
};

pub(super) async fn region() -> Response {
    let body = json!({
        "url": "track.customer.io",
        "data_center": "us",
        "region": "us",
        "environment_id": 1,
    });
    json_response(StatusCode::OK, &body)
}

/// A `cio_…` identifier is one of Customer.io's own; one with an `@` is taken for an address.
fn identifier(text: &str) -> PersonKey {
    let kind = if text.starts_with("cio_") {
        "cio_id"
    } else if text.contains('@') {
        "email"
    } else {
        "id"
    };
    PersonKey::new(kind, text)
}

fn refuse(message: impl Into<String>) -> Response {
    json_response(StatusCode::BAD_REQUEST, &json!({ "meta": { "errors": [message.into()] } }))
}

fn parse_object(body: &Bytes) -> Result<Map<String, Value>, Box<Response>> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(body).map_err(|error| Box::new(refuse(format!("invalid JSON: {error}"))))
}

pub(super) async fn identify(State(sim): Sim, Path(id): Path<String>, body: Bytes) -> Response {
    let attributes = match parse_object(&body) {
        Ok(attributes) => attributes,
        Err(refused) => return *refused,
    };
    if let Some(refused) = sim.faults.refusal(&id) {
        return refuse(refused.message);
    }
    if let Err(error) = super::v2::check_attributes(&attributes) {
        return refuse(format!("{}: {}", error.field, error.message));
    }
    let timestamp = attributes.get("_timestamp").and_then(Value::as_i64);
    sim.store.identify(identifier(&id), &attributes, timestamp);
    accepted()
}

pub(super) async fn delete(State(sim): Sim, Path(id): Path<String>) -> Response {
    sim.store.delete(identifier(&id));
    accepted()
}

pub(super) async fn track(State(sim): Sim, Path(id): Path<String>, body: Bytes) -> Response {
    let mut event = match parse_object(&body) {
        Ok(event) => event,
        Err(refused) => return *refused,
    };
    if let Some(refused) = sim.faults.refusal(&id) {
        return refuse(refused.message);
    }
    let Some(name) =
        event.get("name").and_then(Value::as_str).map(str::trim).filter(|name| !name.is_empty())
    else {
        return refuse("event name is required");
    };
    let name = name.to_owned();
    let attributes = match event.remove("data") {
        Some(Value::Object(data)) => data,
        _ => Map::new(),
    };
    let event = TrackedEvent {
        id: event.get("id").and_then(Value::as_str).map(str::to_owned),
        name,
        person: String::new(),
        timestamp: event.get("timestamp").and_then(Value::as_i64),
        attributes,
        repeats: 0,
    };
    sim.store.track(identifier(&id), event);
    accepted()
}
