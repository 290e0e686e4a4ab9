//! `GET /stats`: counts jobs, failures and signups, and shows the circuit breaker.

#![expect(
    clippy::disallowed_methods,
    reason = "an edge: the response carries the time of the next probe"
)]

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
    broker::FAILED_QUEUE,
    customerio::{BreakerReason, BreakerState, Mode},
    job::{Status, SyncPhase},
    ledger::{self, Stats},
};

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
    /// Failed jobs that are not dismissed.
    open_failures: i64,
    /// Age of the oldest pending job in seconds; 0 if no job is pending.
    oldest_pending_seconds: i64,
    today: TodayStats,
    breaker: BreakerView,
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

/// Signups of today (UTC) that are not in Customer.io.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TodayStats {
    not_synced: i64,
    /// When the oldest of them was received.
    oldest_at: Option<DateTime<Utc>>,
}

/// The circuit breaker of the replica that answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BreakerView {
    state: BreakerState,
    reason: Option<BreakerReason>,
    /// When it opened. Null while it is closed.
    since: Option<DateTime<Utc>>,
    /// When the next probe is due. Null while it is closed or half-open.
    next_probe_at: Option<DateTime<Utc>>,
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

/// Show counts and the circuit breaker.
#[utoipa::path(
    get, path = "/stats", operation_id = "showStats", tag = "overview",
    responses((status = 200, body = StatsView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<StatsView>, Problem> {
    let (stats, minutes) = tokio::try_join!(state.ledger.stats(), state.ledger.activity())?;
    let (mode, breaker) = (state.customerio.mode(), breaker(&state));
    Ok(Json(view(&stats, minutes, mode, breaker, state.config.queue_url(FAILED_QUEUE))))
}

fn breaker(state: &AppState) -> BreakerView {
    let breaker = state.customerio.breaker();
    let meaning = match breaker.reason {
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
    };
    BreakerView {
        state: breaker.state,
        reason: breaker.reason,
        since: breaker.since,
        next_probe_at: state.customerio.probe_in().map(|wait| Utc::now() + wait),
        meaning,
    }
}

fn view(
    stats: &Stats,
    minutes: Vec<ledger::ActivityMinute>,
    mode: Mode,
    breaker: BreakerView,
    failure_queue_url: Option<String>,
) -> StatsView {
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
        open_failures: stats.open_failures,
        oldest_pending_seconds: stats.oldest_pending_seconds,
        today: TodayStats {
            not_synced: stats.unsynced_today,
            oldest_at: stats.oldest_unsynced_today,
        },
        breaker,
        last_hour: minutes
            .into_iter()
            .map(|m| MinuteView {
                at: m.at,
                completed: m.completed,
                retried: m.retried,
                failed: m.failed,
            })
            .collect(),
        failure_queue_url,
    }
}
