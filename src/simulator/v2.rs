//! Version 2 of the Track API: `/entity` with one operation, `/batch` with many.

use std::sync::Arc;

use axum::{body::Bytes, extract::State, http::StatusCode, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use ulid::Ulid;

use super::{
    EventIds, Shared, accepted, json_response,
    store::{BatchOrder, PersonKey, RawAttributes, TrackedEvent},
};

const MAX_BATCH_BYTES: usize = 500_000;
const MAX_OPERATION_BYTES: usize = 32_000;

/// Refusal of an operation or of a request.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: &'static str,
    pub(super) field: String,
    pub(super) message: String,
}

fn refusal(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal { reason, field: field.into(), message: message.into() }
}

impl Refusal {
    fn json(&self, batch_index: Option<usize>) -> Value {
        let mut error =
            json!({ "reason": self.reason, "field": self.field, "message": self.message });
        if let Some(index) = batch_index {
            error["batch_index"] = index.into();
        }
        error
    }

    fn whole(&self) -> Response {
        json_response(StatusCode::BAD_REQUEST, &json!({ "errors": [self.json(None)] }))
    }
}

#[derive(Deserialize)]
struct BatchRequest<'a> {
    #[serde(borrow)]
    batch: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct BatchOperation {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    identifiers: Map<String, Value>,
    #[serde(default)]
    action: String,
    id: Option<String>,
    name: Option<String>,
    timestamp: Option<i64>,
    #[serde(default)]
    attributes: RawAttributes,
}

/// Refuses single items with a 207 and accepts the others. A body that is not a batch of operations
/// gets a 400.
pub(super) async fn batch(State(sim): State<Arc<Shared>>, body: Bytes) -> Response {
    if body.len() > MAX_BATCH_BYTES {
        return refusal(
            "invalid",
            "batch",
            format!("request is {} bytes, the maximum is {MAX_BATCH_BYTES}", body.len()),
        )
        .whole();
    }
    let batch: BatchRequest<'_> = match serde_json::from_slice(&body) {
        Ok(batch) => batch,
        Err(error) => return refusal("parse_error", "batch", error.to_string()).whole(),
    };
    let operations: Result<Vec<BatchOperation>, _> =
        batch.batch.iter().map(|raw| serde_json::from_str(raw.get())).collect();
    let operations = match operations {
        Ok(operations) => operations,
        Err(error) => return refusal("parse_error", "batch", error.to_string()).whole(),
    };
    let events = operations.iter().filter_map(|operation| operation.id.clone()).collect();
    let mut response = match operations.iter().find_map(|operation| refused_whole(&sim, operation))
    {
        Some(refused) => refused.whole(),
        None => apply_each(&sim, operations, &batch),
    };
    response.extensions_mut().insert(EventIds(events));
    response
}

fn apply_each(sim: &Shared, operations: Vec<BatchOperation>, batch: &BatchRequest<'_>) -> Response {
    let mut operations: Vec<_> = operations.into_iter().zip(&batch.batch).enumerate().collect();
    if sim.store.settings().batch_order == BatchOrder::Reversed {
        operations.reverse();
    }
    let mut errors = Vec::new();
    for (index, (operation, raw)) in operations {
        if let Err(refused) = apply(sim, operation, raw.get().len()) {
            errors.push(refused.json(Some(index)));
        }
    }
    if errors.is_empty() {
        accepted()
    } else {
        json_response(StatusCode::MULTI_STATUS, &json!({ "errors": errors }))
    }
}

/// Returns the ids of the events in a batch, for calls that end with a fault. Returns none if the
/// batch cannot be parsed.
pub(super) fn event_ids(body: &[u8]) -> EventIds {
    #[derive(Deserialize)]
    struct OperationBatch {
        batch: Vec<BatchOperation>,
    }
    let operations =
        serde_json::from_slice::<OperationBatch>(body).map(|batch| batch.batch).unwrap_or_default();
    EventIds(operations.into_iter().filter_map(|operation| operation.id).collect())
}

/// Returns the scripted refusal of the whole batch because of this item, if any.
fn refused_whole(sim: &Shared, operation: &BatchOperation) -> Option<Refusal> {
    let (_, text) = identify_by(&operation.identifiers).ok()?;
    let scripted = sim.faults.refusal(&text).filter(|one| one.refused_whole)?;
    Some(refusal("invalid", scripted.field, scripted.message))
}

pub(super) async fn entity(State(sim): State<Arc<Shared>>, body: Bytes) -> Response {
    let applied = serde_json::from_slice(&body)
        .map_err(|error: serde_json::Error| refusal("parse_error", "", error.to_string()))
        .and_then(|operation| apply(&sim, operation, body.len()));
    applied.map_or_else(|refused| refused.whole(), |()| accepted())
}

fn apply(sim: &Shared, operation: BatchOperation, bytes: usize) -> Result<(), Refusal> {
    if bytes > MAX_OPERATION_BYTES {
        return Err(refusal(
            "invalid",
            "",
            format!("operation is {bytes} bytes, the maximum is {MAX_OPERATION_BYTES}"),
        ));
    }
    if operation.kind != "person" {
        return Err(refusal("invalid", "type", "the simulator supports only people"));
    }
    let (identifier, text) = identify_by(&operation.identifiers)?;
    if let Some(refused) = sim.faults.refusal(&text) {
        return Err(refusal("invalid", refused.field, refused.message));
    }
    match operation.action.as_str() {
        "identify" => {
            check_attributes(&operation.attributes)?;
            sim.store.identify(identifier, operation.attributes, operation.timestamp);
        }
        "event" => {
            let event = event(operation)?;
            sim.store.track(&identifier, event);
        }
        "delete" => sim.store.delete(&identifier),
        _ => return Err(refusal("invalid", "action", "expected identify, event or delete")),
    }
    Ok(())
}

fn identify_by(identifiers: &Map<String, Value>) -> Result<(PersonKey, String), Refusal> {
    let mut entries = identifiers.iter();
    let (Some((kind, value)), None) = (entries.next(), entries.next()) else {
        return Err(refusal(
            "invalid",
            "identifiers",
            "exactly one of id, email, phone and cio_id is required",
        ));
    };
    if !["id", "email", "phone", "cio_id"].contains(&kind.as_str()) {
        return Err(refusal("invalid", "identifiers", format!("unknown identifier {kind}")));
    }
    let text = match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(refusal("required", format!("identifiers.{kind}"), "a value is required")),
    };
    if kind == "id" && text.len() > 150 {
        return Err(refusal("invalid", "identifiers.id", "id cannot be longer than 150 bytes"));
    }
    Ok((PersonKey::new(kind, &text), text))
}

pub(super) fn check_attributes(attributes: &RawAttributes) -> Result<(), Refusal> {
    if attributes.len() > 300 {
        return Err(refusal("invalid", "attributes", "cannot have more than 300 attributes"));
    }
    for (name, value) in attributes {
        let field = format!("attributes.{name}");
        if name.len() > 150 {
            return Err(refusal("invalid", field, "property name cannot be longer than 150 bytes"));
        }
        let text = serde_json::from_str::<String>(value.get());
        let size = text.map_or(value.get().len(), |text| text.len());
        if size > 1000 {
            return Err(refusal(
                "invalid",
                field,
                "property value cannot be longer than 1000 bytes",
            ));
        }
    }
    Ok(())
}

fn event(operation: BatchOperation) -> Result<TrackedEvent, Refusal> {
    let name = operation.name.as_deref().unwrap_or_default().trim().to_owned();
    if name.is_empty() || name.len() > 100 {
        return Err(refusal("required", "name", "an event name of 1 to 100 bytes is required"));
    }
    if let Some(id) = &operation.id
        && Ulid::from_string(id).is_err()
    {
        return Err(refusal("invalid", "id", "must be a valid ULID"));
    }
    Ok(TrackedEvent {
        id: operation.id,
        name,
        timestamp: operation.timestamp,
        attributes: operation.attributes,
    })
}
