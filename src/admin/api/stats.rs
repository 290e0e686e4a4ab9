//! `GET /api/v1/signups/customerio/stats`: where things stand, in numbers.

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
    customerio::GateReason,
    flows::sync::Processor,
    job::{Status, SyncPhase},
    ledger::{self, Stats},
};

/// Counts of jobs, failures and signups.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatsView {
    by_status: ByStatus,
    by_phase: ByEnd,
    /// Messages that could not be understood and are open.
    unprocessable: i64,
    /// Failed jobs that are not dismissed.
    open_failures: i64,
    /// Age of the oldest pending job, in seconds; 0 without one.
    oldest_pending_seconds: i64,
    today: Today,
    gate: Gate,
    /// The tries of the last hour, a row a minute in which there were any, oldest first.
    last_hour: Vec<MinuteView>,
    /// Where the failure queue can be looked at, if the settings say where RabbitMQ's management UI
    /// is.
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
struct ByEnd {
    completed: ByPhase,
    failed: ByPhase,
}

#[derive(Debug, Serialize, ToSchema)]
struct ByPhase {
    initial: i64,
    enriched: i64,
}

/// Signups of today (UTC) that Customer.io does not have yet.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Today {
    not_synced: i64,
    /// When the oldest of them came.
    oldest_at: Option<DateTime<Utc>>,
}

/// Whether Customer.io is called, by the replica that answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Gate {
    state: GateState,
    reason: Option<GateReason>,
    /// Since when no calls are made.
    since: Option<DateTime<Utc>>,
    /// Seconds until the next probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<u64>,
    /// Why it is in this state, in words.
    meaning: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum GateState {
    /// Calls go through.
    Closed,
    /// No calls are made.
    Open,
}

/// Tries that ended in one minute.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct MinuteView {
    /// Its start.
    at: DateTime<Utc>,
    completed: i64,
    retried: i64,
    failed: i64,
}

/// Tell where things stand.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/stats", operation_id = "showStats", tag = "overview",
    responses((status = 200, body = StatsView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<StatsView>, Problem> {
    let (stats, minutes) = tokio::try_join!(state.ledger.stats(), state.ledger.activity())?;
    Ok(Json(view(&stats, minutes, gate(&state), state.config.queue_url("customerio-sync.failed"))))
}

fn gate(state: &AppState) -> Gate {
    let processor = state.ready.get().map(|ready| &ready.processor);
    let gate = processor.map(Processor::gate);
    let reason = gate.as_ref().and_then(|gate| gate.reason);
    let meaning = match reason {
        None => "calls go through",
        Some(GateReason::Outage) => {
            "Customer.io does not answer; one job probes now and then, the others wait and spend \
                no retry"
        }
        Some(GateReason::Credentials) => {
            "credentials refused: set the site id, the API key and the region; the jobs wait"
        }
        Some(GateReason::Asked) => {
            "Customer.io asked to be left alone; no calls are made until then, and nothing is lost"
        }
    };
    Gate {
        state: if reason.is_some() { GateState::Open } else { GateState::Closed },
        reason,
        since: gate.and_then(|gate| gate.since),
        seconds: processor.and_then(Processor::probe_in).map(|wait| wait.as_secs()),
        meaning,
    }
}

fn view(
    stats: &Stats,
    minutes: Vec<ledger::Minute>,
    gate: Gate,
    failure_queue_url: Option<String>,
) -> StatsView {
    let by_phase = |status| ByPhase {
        initial: stats.of(status, SyncPhase::Initial),
        enriched: stats.of(status, SyncPhase::Enriched),
    };
    StatsView {
        by_status: ByStatus {
            pending: stats.of_status(Status::Pending),
            processing: stats.of_status(Status::Processing),
            completed: stats.of_status(Status::Completed),
            failed: stats.of_status(Status::Failed),
        },
        by_phase: ByEnd {
            completed: by_phase(Status::Completed),
            failed: by_phase(Status::Failed),
        },
        unprocessable: stats.unprocessable,
        open_failures: stats.open_failures,
        oldest_pending_seconds: stats.oldest_pending_seconds,
        today: Today { not_synced: stats.unsynced_today, oldest_at: stats.oldest_unsynced_today },
        gate,
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
