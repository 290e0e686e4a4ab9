//! `GET /metrics`, in the Prometheus text format.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderName, header::CONTENT_TYPE},
};

use crate::{
    admin::state::AppState,
    customerio::{GateReason, GateView},
    job::Status,
    runtime::metrics::Metrics,
};

/// How long counting the ledger may take before the gauges are left as they were.
const PATIENCE: Duration = Duration::from_secs(3);

/// All metrics. The gauges of the ledger are read when they are asked for.
pub(crate) async fn render(
    State(state): State<AppState>,
) -> ([(HeaderName, &'static str); 1], String) {
    match tokio::time::timeout(PATIENCE, state.ledger.stats()).await {
        Ok(Ok(stats)) => {
            for &status in Status::ALL {
                state
                    .metrics
                    .jobs_by_status
                    .with_label_values(&[status.as_str()])
                    .set(stats.of_status(status));
            }
            state.metrics.open_failures.set(stats.open_failures + stats.unprocessable);
            state.metrics.oldest_pending.set(stats.oldest_pending_seconds);
        }
        Ok(Err(error)) => tracing::warn!(%error, "counting the ledger for the metrics failed"),
        Err(_) => tracing::warn!("counting the ledger for the metrics took too long"),
    }
    if let Some(ready) = state.ready.get() {
        set_gate(&state.metrics, &ready.processor.gate());
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render())
}

fn set_gate(metrics: &Metrics, gate: &GateView) {
    metrics.gate_open.set(gate.is_shut.into());
    for &reason in GateReason::ALL {
        let since = gate.since.filter(|_| gate.reason == Some(reason));
        let seconds = since.map_or(0, |since| since.timestamp());
        metrics.gate_open_since.with_label_values(&[reason.as_str()]).set(seconds);
    }
}
