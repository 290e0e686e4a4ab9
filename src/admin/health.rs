//! `GET /healthz` and `GET /readyz`.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde_json::{Value, json};

use crate::{admin::state::AppState, customerio::GateReason};

/// How long the database may take to answer a probe.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process lives.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

/// Whether work can be done: database and broker answer, and the service is not stopping. With the
/// reasons when not.
pub(crate) async fn ready(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    let mut reasons = Vec::new();
    match tokio::time::timeout(PATIENCE, state.ledger.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => reasons.push(format!("database: {error}")),
        Err(_) => reasons.push(format!("database: no answer within {PATIENCE:?}")),
    }
    match state.ready.get() {
        None => reasons.push("broker: not connected yet".to_owned()),
        Some(ready) => {
            for link in &ready.links {
                if !link.is_connected() {
                    reasons.push(format!("broker: the {} connection is down", link.name()));
                }
            }
            reasons.extend(ready.publisher.trouble().map(|trouble| format!("broker: {trouble}")));
            if ready.processor.gate().reason == Some(GateReason::Credentials) {
                reasons.push("Customer.io: credentials refused".to_owned());
            }
        }
    }
    if state.lifecycle.is_draining() {
        reasons.push("stopping".to_owned());
    }
    if reasons.is_empty() {
        return (StatusCode::OK, Json(json!({ "status": "ready" })));
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "reasons": reasons })))
}
