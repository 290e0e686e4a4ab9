//! `GET /healthz` and `GET /readyz`.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde_json::{Value, json};

use crate::{admin::state::AppState, customerio::BreakerReason};

/// Maximum time for the database to answer a probe.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reports that the process serves HTTP.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

/// Reports whether the service is ready: the database and RabbitMQ answer, Customer.io has not
/// refused the credentials, and the service is not stopping. A 503 lists the reasons why it is not.
pub(crate) async fn ready(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    let mut reasons = Vec::new();
    match tokio::time::timeout(DATABASE_TIMEOUT, state.ledger.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => reasons.push(format!("database: {error}")),
        Err(_) => reasons.push(format!("database: no answer within {DATABASE_TIMEOUT:?}")),
    }
    match state.connected.get() {
        None => reasons.push("broker: not connected yet".to_owned()),
        Some(connected) => {
            for connection in &connected.connections {
                if !connection.is_connected() {
                    reasons.push(format!("broker: the {} connection is down", connection.name()));
                }
            }
            reasons
                .extend(connected.publisher.problem().map(|problem| format!("broker: {problem}")));
        }
    }
    if state.customerio.breaker().reason == Some(BreakerReason::Credentials) {
        reasons.push("Customer.io: credentials refused".to_owned());
    }
    if state.shutdown.is_draining() {
        reasons.push("stopping".to_owned());
    }
    if reasons.is_empty() {
        return (StatusCode::OK, Json(json!({ "status": "ready" })));
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "reasons": reasons })))
}
