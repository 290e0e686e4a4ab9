//! `GET /stats`: counts jobs, failures and signups, and shows the queues and the circuit breaker.

#![expect(
    clippy::disallowed_methods,
    reason = "an edge: the response carries the time of the next probe"
)]

use std::time::Duration;

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::{
        http::{
            extract::{NoParameters, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    broker::{FAILED_QUEUE, QUARANTINE_QUEUE, QueueReading},
    customerio::{BreakerReason, BreakerState, Mode},
    job::{Status, SyncPhase},
    ledger::{ActivityMinute, Overview, RecentSignups, ReplicaBreaker},
    runtime::text_enum::known,
};

/// Maximum time for reading the ledger.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum duration of one statement. PostgreSQL ends it before the response is given up.
const STATEMENT_LIMIT: Duration = Duration::from_secs(4);

/// Counts of jobs, failures and signups.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatsView {
    /// The mode of the replica that answers.
    mode: Mode,
    by_status: ByStatus,
    by_phase: EndedByPhase,
    /// Completed jobs that were completed in mock mode and not sent since.
    mock_completed: i64,
    /// Open unprocessable messages.
    unprocessable: i64,
    /// Messages in quarantine. Null if RabbitMQ did not answer within a second.
    quarantined: Option<u32>,
    /// Outcomes that RabbitMQ has not confirmed.
    outcomes_waiting: i64,
    /// Failed jobs that are not dismissed.
    open_failures: i64,
    /// Age of the oldest pending job in seconds; 0 if no job is pending.
    oldest_pending_seconds: i64,
    #[serde(rename = "last24Hours")]
    last_24_hours: RecentSignups,
    breaker: BreakerView,
    /// The work queues, the mirror's queue and the failure queue.
    queues: Vec<QueueView>,
    /// Messages that are ready in the work queues and in the mirror's queue: what they contain is
    /// in no other count. Null if it is unknown.
    messages_waiting: Option<u64>,
    /// The attempts of the last hour, one row per minute that had any, oldest first.
    last_hour: Vec<MinuteView>,
    /// URL of the failure queue in RabbitMQ's management UI, if `http.management_url` is set.
    failure_queue_url: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ByStatus {
    pending: i64,
    processing: i64,
    completed: i64,
    failed: i64,
}

/// Ended jobs by phase.
#[derive(Debug, Serialize, ToSchema)]
struct EndedByPhase {
    completed: ByPhase,
    failed: ByPhase,
}

#[derive(Debug, Serialize, ToSchema)]
struct ByPhase {
    initial: i64,
    enriched: i64,
}

/// The state of a queue.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct QueueView {
    name: &'static str,
    /// Messages that are ready. Null if RabbitMQ did not answer within a second.
    ready: Option<u32>,
    /// Consumers, of all replicas. Null if RabbitMQ did not answer within a second.
    consumers: Option<u32>,
}

/// The circuit breaker that is worst of those of all replicas.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BreakerView {
    state: BreakerState,
    reason: Option<BreakerReason>,
    /// When it opened. Null while it is closed.
    since: Option<DateTime<Utc>>,
    /// When the next probe is due. Null while it is closed or half-open.
    next_probe_at: Option<DateTime<Utc>>,
    /// The replica whose breaker this is, as `HOST:PID`: the one that answers, unless that of
    /// another replica is worse.
    replica: String,
    /// The meaning of its state, in words.
    meaning: &'static str,
}

/// Attempts that started in one minute.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct MinuteView {
    /// Start of the minute.
    at: DateTime<Utc>,
    completed: i64,
    retried: i64,
    failed: i64,
}

/// Show counts, the queues and the circuit breaker.
#[utoipa::path(
    get, path = "/stats", operation_id = "showStats", tag = "overview",
    responses((status = 200, body = StatsView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<StatsView>, Problem> {
    // The queues first: a message that leaves its queue after that is in the ledger's counts.
    let queues = match state.connected.get() {
        Some(connected) => connected.queues.read().await,
        None => QueueReading::unknown(),
    };
    let overview =
        tokio::time::timeout(LEDGER_TIMEOUT, state.ledger.overview(STATEMENT_LIMIT)).await;
    let overview = overview.map_err(|_| {
        Problem::unavailable(format!(
            "the database did not answer within {LEDGER_TIMEOUT:?}; retry when /readyz returns 200"
        ))
    })??;
    let others = overview.breakers.iter().filter(|breaker| breaker.replica != state.replica.id);
    let breaker = worst(own_breaker(&state), others.filter_map(breaker_of));
    let mode = state.customerio.mode();
    Ok(Json(view(overview, mode, breaker, &queues, state.config.queue_url(FAILED_QUEUE))))
}

fn own_breaker(state: &AppState) -> BreakerView {
    let breaker = state.customerio.breaker();
    BreakerView {
        state: breaker.state,
        reason: breaker.reason,
        since: breaker.since,
        next_probe_at: state.customerio.probe_in().map(|wait| Utc::now() + wait),
        replica: state.replica.name.to_string(),
        meaning: meaning(breaker.reason),
    }
}

/// The breaker of another replica. `None` if only a newer release knows its state.
fn breaker_of(reported: &ReplicaBreaker) -> Option<BreakerView> {
    let reason = known(reported.reason.as_deref());
    Some(BreakerView {
        state: known(Some(reported.state.as_str()))?,
        reason,
        since: reported.since,
        next_probe_at: reported.next_probe_at,
        replica: reported.name.clone(),
        meaning: meaning(reason),
    })
}

/// The worst of the breakers: one that is not closed, and of those the one that needs a person most
/// urgently. Of equal ones, the first.
fn worst(own: BreakerView, others: impl Iterator<Item = BreakerView>) -> BreakerView {
    let severity = |breaker: &BreakerView| match (breaker.state, breaker.reason) {
        (BreakerState::Closed, _) => 0,
        (_, None) => 1,
        (_, Some(BreakerReason::RetryAfter)) => 2,
        (_, Some(BreakerReason::Outage)) => 3,
        (_, Some(BreakerReason::Credentials)) => 4,
    };
    others.fold(own, |worst, other| if severity(&other) > severity(&worst) { other } else { worst })
}

fn meaning(reason: Option<BreakerReason>) -> &'static str {
    match reason {
        None => "calls go through",
        Some(BreakerReason::Outage) => {
            "Customer.io does not answer; one job at a time probes, the others wait and spend no \
                retry"
        }
        Some(BreakerReason::Credentials) => {
            "Customer.io refuses the credentials, or the region is wrong; set the site id, the API \
                key and the region; the jobs wait"
        }
        Some(BreakerReason::RetryAfter) => {
            "Customer.io asked for a pause; no calls are made until it ends, and the jobs wait"
        }
    }
}

fn queue_view(reading: &QueueReading) -> QueueView {
    QueueView {
        name: reading.name,
        ready: reading.state.map(|state| state.ready),
        consumers: reading.state.map(|state| state.consumers),
    }
}

/// The messages that wait for a consumer. The failure queue contains what is counted already, and
/// nobody consumes the quarantine.
fn messages_waiting(queues: &[QueueReading]) -> Option<u64> {
    let waiting =
        queues.iter().filter(|queue| ![FAILED_QUEUE, QUARANTINE_QUEUE].contains(&queue.name));
    waiting.map(|queue| queue.state.map(|state| u64::from(state.ready))).sum()
}

fn quarantined(queues: &[QueueReading]) -> Option<u32> {
    let quarantine = queues.iter().find(|queue| queue.name == QUARANTINE_QUEUE)?;
    Some(quarantine.state?.ready)
}

fn view(
    overview: Overview,
    mode: Mode,
    breaker: BreakerView,
    queues: &[QueueReading],
    failure_queue_url: Option<String>,
) -> StatsView {
    let stats = overview.stats;
    let by_phase = |status| ByPhase {
        initial: stats.of(status, SyncPhase::Initial),
        enriched: stats.of(status, SyncPhase::Enriched),
    };
    StatsView {
        mode,
        by_status: ByStatus {
            pending: stats.of_status(Status::Pending),
            processing: stats.of_status(Status::Processing),
            completed: stats.of_status(Status::Completed),
            failed: stats.of_status(Status::Failed),
        },
        by_phase: EndedByPhase {
            completed: by_phase(Status::Completed),
            failed: by_phase(Status::Failed),
        },
        mock_completed: stats.mock_completed,
        unprocessable: stats.unprocessable,
        quarantined: quarantined(queues),
        outcomes_waiting: stats.outcomes_waiting,
        open_failures: stats.open_failures,
        oldest_pending_seconds: stats.oldest_pending_seconds,
        last_24_hours: overview.last_24_hours,
        breaker,
        queues: queues.iter().map(queue_view).collect(),
        messages_waiting: messages_waiting(queues),
        last_hour: overview.last_hour.into_iter().map(minute_view).collect(),
        failure_queue_url,
    }
}

fn minute_view(minute: ActivityMinute) -> MinuteView {
    MinuteView {
        at: minute.at,
        completed: minute.completed,
        retried: minute.retried,
        failed: minute.failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(state: BreakerState, reason: Option<BreakerReason>, replica: &str) -> BreakerView {
        let meaning = meaning(reason);
        let replica = replica.to_owned();
        BreakerView { state, reason, since: None, next_probe_at: None, replica, meaning }
    }

    #[test]
    fn the_worst_breaker_is_shown_and_of_equal_ones_the_own() {
        let closed = |replica| breaker(BreakerState::Closed, None, replica);
        let outage = |replica| breaker(BreakerState::Open, Some(BreakerReason::Outage), replica);
        let refused =
            |replica| breaker(BreakerState::HalfOpen, Some(BreakerReason::Credentials), replica);
        let replica = |own, others: Vec<_>| worst(own, others.into_iter()).replica;
        assert_eq!(replica(closed("own"), vec![closed("b")]), "own");
        assert_eq!(replica(closed("own"), vec![closed("b"), outage("c")]), "c");
        assert_eq!(replica(outage("own"), vec![outage("b"), closed("c")]), "own");
        assert_eq!(replica(outage("own"), vec![refused("b"), outage("c")]), "b");
    }
}
