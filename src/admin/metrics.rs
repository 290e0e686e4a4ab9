//! `GET /metrics`, in the Prometheus text format.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderName, header::CONTENT_TYPE},
};

use crate::{
    admin::state::AppState,
    customerio::{BreakerReason, BreakerStatus},
    job::Status,
    runtime::metrics::Metrics,
};

/// Maximum time for counting the jobs. After that, the ledger's gauges keep their last values.
const COUNT_TIMEOUT: Duration = Duration::from_secs(3);

/// Renders all metrics. The gauges of the ledger are read per request.
pub(crate) async fn render(
    State(state): State<AppState>,
) -> ([(HeaderName, &'static str); 1], String) {
    match tokio::time::timeout(COUNT_TIMEOUT, state.ledger.stats()).await {
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
        Ok(Err(error)) => tracing::warn!(%error, "counting jobs for the metrics failed"),
        Err(_) => tracing::warn!("counting jobs for the metrics took too long"),
    }
    set_breaker(&state.metrics, &state.customerio.breaker());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render())
}

fn set_breaker(metrics: &Metrics, breaker: &BreakerStatus) {
    metrics.breaker_open.set((!breaker.is_closed()).into());
    for &reason in BreakerReason::ALL {
        let since = breaker.since.filter(|_| breaker.reason == Some(reason));
        let seconds = since.map_or(0, |since| since.timestamp());
        metrics.breaker_open_since.with_label_values(&[reason.as_str()]).set(seconds);
    }
}
