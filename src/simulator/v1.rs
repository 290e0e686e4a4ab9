//! Version 1 of the Track API, which the official client libraries use.

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{
    Sim, accepted, json_response,
    store::{PersonKey, RawAttributes, TrackedEvent},
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

fn parse_object(body: &Bytes) -> Result<RawAttributes, Box<Response>> {
    if body.is_empty() {
        return Ok(RawAttributes::new());
    }
    serde_json::from_slice(body).map_err(|error| Box::new(refuse(format!("invalid JSON: {error}"))))
}

/// A member of an object, if it has this type.
fn read<T: DeserializeOwned>(object: &RawAttributes, name: &str) -> Option<T> {
    serde_json::from_str(object.get(name)?.get()).ok()
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
    let timestamp = read(&attributes, "_timestamp");
    sim.store.identify(identifier(&id), attributes, timestamp);
    accepted()
}

pub(super) async fn delete(State(sim): Sim, Path(id): Path<String>) -> Response {
    sim.store.delete(&identifier(&id));
    accepted()
}

pub(super) async fn track(State(sim): Sim, Path(id): Path<String>, body: Bytes) -> Response {
    let event = match parse_object(&body) {
        Ok(event) => event,
        Err(refused) => return *refused,
    };
    if let Some(refused) = sim.faults.refusal(&id) {
        return refuse(refused.message);
    }
    let name: String = read(&event, "name").unwrap_or_default();
    let name = name.trim().to_owned();
    if name.is_empty() {
        return refuse("event name is required");
    }
    let event = TrackedEvent {
        id: read(&event, "id"),
        name,
        timestamp: read(&event, "timestamp"),
        attributes: read(&event, "data").unwrap_or_default(),
    };
    sim.store.track(&identifier(&id), event);
    accepted()
}
