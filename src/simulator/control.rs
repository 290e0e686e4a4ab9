//! `/_sim/`: scripts faults, sets what is not documented, and returns what the simulator received.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    Fault, Shared, Sim,
    store::{PersonKey, Settings},
};

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/_sim/faults", get(list_faults).post(add_fault).delete(clear_faults))
        .route("/_sim/people", get(|State(sim): Sim| async move { Json(sim.store.people()) }))
        .route("/_sim/people/{identifier}", get(person))
        .route("/_sim/events", get(|State(sim): Sim| async move { Json(sim.store.events()) }))
        .route("/_sim/calls", get(|State(sim): Sim| async move { Json(sim.store.calls()) }))
        .route("/_sim/summary", get(|State(sim): Sim| async move { Json(sim.store.summary()) }))
        .route("/_sim/settings", get(settings).put(set_settings))
        .route("/_sim/received", axum::routing::delete(clear_received))
}

async fn list_faults(State(sim): Sim) -> Json<Vec<Fault>> {
    Json(sim.faults.list())
}

/// Adds one fault or a list of faults.
async fn add_fault(State(sim): Sim, Json(script): Json<Value>) -> Response {
    let faults = if script.is_array() { script } else { json!([script]) };
    match serde_json::from_value::<Vec<Fault>>(faults) {
        Ok(faults) => {
            faults.into_iter().for_each(|fault| sim.faults.add(fault));
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => {
            (StatusCode::BAD_REQUEST, Json(json!({ "error": error.to_string() }))).into_response()
        }
    }
}

async fn clear_faults(State(sim): Sim) -> StatusCode {
    sim.faults.clear();
    StatusCode::NO_CONTENT
}

async fn settings(State(sim): Sim) -> Json<Settings> {
    Json(sim.store.settings())
}

async fn set_settings(State(sim): Sim, Json(settings): Json<Settings>) -> StatusCode {
    sim.store.set(settings);
    StatusCode::NO_CONTENT
}

async fn clear_received(State(sim): Sim) -> StatusCode {
    sim.store.clear();
    StatusCode::NO_CONTENT
}

/// Returns a person by id or e-mail address.
async fn person(State(sim): Sim, Path(identifier): Path<String>) -> Response {
    let find_by = |kind| sim.store.person(&PersonKey::new(kind, &identifier));
    match find_by("id").or_else(|| find_by("email")) {
        Some(person) => Json(person).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
