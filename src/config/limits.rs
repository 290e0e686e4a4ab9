//! Values that have the right type and cannot work: a zero interval would be a busy loop, a zero
//! time limit would fail every call. They are rejected at startup.

use std::{path::Path, time::Duration};

use super::Config;

/// Longer durations are typing errors.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Retentions are longer than anything else. PostgreSQL's timestamps go back further.
const RETENTION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Returns the first key whose value cannot work, and what was found and expected.
pub(super) fn check(config: &Config) -> Result<(), (&'static str, String)> {
    durations(config)?;
    counts(config)?;
    relations(config)?;
    let url = |result: Result<(), String>, key| result.map_err(|problem| (key, problem));
    url(crate::ledger::check_url(&config.database), "database.url")?;
    url(crate::broker::check_url(&config.broker), "broker.url")?;
    url(crate::customerio::check_url(&config.customerio), "customerio.track_url")
}

fn durations(config: &Config) -> Result<(), (&'static str, String)> {
    let shortest = Duration::from_millis(1);
    let at_least = |key, value, min| {
        if (min..=DURATION_MAX).contains(&value) {
            return Ok(());
        }
        let problem = format!("found {value:?}, expected {min:?} to 366 days");
        Err((key, problem))
    };
    // RabbitMQ's heartbeat has a resolution of one second, and 0 disables it.
    at_least("broker.heartbeat", config.broker.heartbeat, Duration::from_secs(1))?;
    for (key, value) in [
        ("database.acquire_timeout", config.database.acquire_timeout),
        ("database.claim_lease", config.database.claim_lease),
        ("broker.connect_timeout", config.broker.connect_timeout),
        ("customerio.timeout", config.customerio.timeout),
        ("customerio.connect_timeout", config.customerio.connect_timeout),
        ("breaker.probe_after", config.breaker.probe_after),
        ("breaker.probe_interval_max", config.breaker.probe_interval_max),
        ("sync.hold", config.sync.hold),
        ("mirror.compare_interval", config.mirror.compare_interval),
        ("mirror.sweep_interval", config.mirror.sweep_interval),
        ("recovery.interval", config.recovery.interval),
        ("recovery.overdue_after", config.recovery.overdue_after),
        ("recovery.resend_after", config.recovery.resend_after),
        ("outcomes.max_age", config.outcomes.max_age),
        ("integrity.interval", config.integrity.interval),
        ("metrics.interval", config.metrics.interval),
        ("metrics.completed_interval", config.metrics.completed_interval),
        ("http.request_timeout", config.http.request_timeout),
        ("http.header_timeout", config.http.header_timeout),
        ("lifecycle.grace", config.lifecycle.grace),
    ] {
        at_least(key, value, shortest)?;
    }
    for (key, value) in [
        ("retention.attempts", config.retention.attempts),
        ("retention.audit", config.retention.audit),
        ("retention.failures", config.retention.failures),
        ("retention.jobs", config.retention.jobs),
    ] {
        if value > RETENTION_MAX {
            let problem =
                format!("found {value:?}, expected at most 100 years, or 0s for no limit");
            return Err((key, problem));
        }
    }
    Ok(())
}

fn counts(config: &Config) -> Result<(), (&'static str, String)> {
    let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    for (key, value, min, max) in [
        ("database.max_connections", config.database.max_connections.into(), 1, 10_000),
        ("database.http_connections", config.database.http_connections.into(), 1, 10_000),
        // RabbitMQ allows 2047 channels per connection by default; some are used otherwise.
        ("broker.publish_channels", size(config.broker.publish_channels.get()), 1, 2_000),
        // With a limit of 1, the first crash of a consumer would fail its message.
        ("topology.delivery_limit", config.topology.delivery_limit.into(), 2, u32::MAX.into()),
        // A job needs at least two.
        ("customerio.max_operations", size(config.customerio.max_operations), 2, 10_000),
        ("sync.batch_size", size(config.sync.batch_size.get()), 1, 10_000),
        ("sync.batches_in_flight", size(config.sync.batches_in_flight.get()), 1, 1_000),
        ("sync.batches_in_flight_max", size(config.sync.batches_in_flight_max.get()), 1, 1_000),
        ("http.connections", size(config.http.connections), 1, 1_000_000),
        ("http.websocket_clients", size(config.http.websocket_clients), 0, 1_000_000),
    ] {
        if !(min..=max).contains(&value) {
            return Err((key, format!("found {value}, expected {min} to {max}")));
        }
    }
    Ok(())
}

fn relations(config: &Config) -> Result<(), (&'static str, String)> {
    let (lease, call) = (config.database.claim_lease, config.customerio.timeout);
    if lease <= call {
        let problem = format!(
            "found {lease:?}, expected more than customerio.timeout, which is {call:?}: another \
                message would take over a job during its call"
        );
        return Err(("database.claim_lease", problem));
    }
    let is_set = |path: &Path| !path.as_os_str().is_empty();
    for (key, certificate, private_key) in [
        ("broker.client_certificate", &config.broker.client_certificate, &config.broker.client_key),
        (
            "database.client_certificate",
            &config.database.client_certificate,
            &config.database.client_key,
        ),
    ] {
        if is_set(certificate) != is_set(private_key) {
            let problem = "expected both the client certificate and the client key, or neither";
            return Err((key, problem.to_owned()));
        }
    }
    Ok(())
}
