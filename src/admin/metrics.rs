//! `GET /metrics`, in the Prometheus text format.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderName, header::CONTENT_TYPE},
};

use crate::job::Status;

/// How long counting the ledger may take before the gauges are left as they were.
const PATIENCE: Duration = Duration::from_secs(3);

/// All metrics. The gauges of the ledger are read when they are asked for.
pub(super) async fn render(State(state): State<super::State>) -> ([(HeaderName, &'static str); 1], String) {
    match tokio::time::timeout(PATIENCE, state.ledger.stats()).await {
        Ok(Ok(stats)) => {
            for &status in Status::ALL {
                state.metrics.jobs_by_status.with_label_values(&[status.as_str()]).set(stats.of_status(status));
            }
            state.metrics.open_failures.set(stats.open_failures + stats.unprocessable);
            state.metrics.oldest_pending.set(stats.oldest_pending_seconds);
        }
        Ok(Err(error)) => tracing::warn!(%error, "counting the ledger for the metrics failed"),
        Err(_) => tracing::warn!("counting the ledger for the metrics took too long"),
    }
    let is_shut = state.ready.get().is_some_and(|ready| ready.processor.gate().is_shut);
    state.metrics.gate_open.set(is_shut.into());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render())
}
