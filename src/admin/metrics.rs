//! `GET /metrics`, in the Prometheus text format.
//!
//! It reads memory alone, so it is answered at once while the database or RabbitMQ does not answer.
//! The counts of ledger and queues are read in the background.

use axum::{
    extract::State,
    http::{HeaderName, header::CONTENT_TYPE},
};

use crate::{
    admin::state::AppState,
    customerio::{BreakerReason, BreakerStatus, CallRateOf},
    runtime::metrics::Metrics,
};

/// Renders all metrics.
pub(crate) async fn render(
    State(state): State<AppState>,
) -> ([(HeaderName, &'static str); 1], String) {
    let metrics = &state.metrics;
    set_breaker(metrics, &state.customerio.breaker());
    metrics
        .call_rate_limit
        .with_label_values(&[CallRateOf::Share.as_str()])
        .set(state.customerio.rate_limiter().calls_per_second());
    for connection in state.connected.get().into_iter().flat_map(|one| &one.connections) {
        let connected = metrics.connections.connected.with_label_values(&[connection.name()]);
        connected.set(connection.is_connected().into());
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}

fn set_breaker(metrics: &Metrics, breaker: &BreakerStatus) {
    metrics.breaker_open.set((!breaker.is_closed()).into());
    for &reason in BreakerReason::ALL {
        let since = breaker.since.filter(|_| breaker.reason == Some(reason));
        let seconds = since.map_or(0, |since| since.timestamp());
        metrics.breaker_open_since.with_label_values(&[reason.as_str()]).set(seconds);
    }
}
