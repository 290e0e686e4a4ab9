//! `GET /integrity`: shows whether anything was lost, duplicated or abandoned.

#![expect(clippy::disallowed_methods, reason = "an edge: the response carries its time")]

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        http::{
            extract::{NoParameters, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    flows::integrity::{self, IntegrityReport},
    ledger::Drift,
};

/// Everything that was received, and where it is now. While messages are in transit, ledger and
/// queues may differ for a moment; a discrepancy that lasts for ten minutes is real.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IntegrityView {
    /// Whether there are no discrepancies.
    holds: bool,
    checked_at: DateTime<Utc>,
    /// When open jobs and failures were compared with each other and with queues. A comparison that
    /// takes half a second or more, and finds nothing, is reused for 50 times its duration, up to
    /// five minutes. The totals and the kinds `balance` and `failure_queue` are as of `checkedAt`.
    compared_at: DateTime<Utc>,
    published: ReceivedTotals,
    accounted_for: AccountedFor,
    queues: QueuesView,
    /// The discrepancies.
    drift: Vec<DriftView>,
}

/// Everything that was received from the work queues. Each event and message counts once.
#[derive(Debug, Serialize, ToSchema)]
struct ReceivedTotals {
    /// Jobs that events created.
    jobs: i64,
    /// Unprocessable messages.
    unprocessable: i64,
    total: i64,
}

/// Where everything that was received is now.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AccountedFor {
    completed: i64,
    failed_open: i64,
    dismissed: i64,
    pending: i64,
    processing: i64,
    /// Unprocessable messages in the mirror, including resolved ones.
    unprocessable: i64,
    total: i64,
}

/// Messages that are ready, and the number that the failure queue should contain.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct QueuesView {
    /// In the work queues, not received yet.
    work: u32,
    /// In the delay tiers.
    tiers: u32,
    /// In the failure queue.
    failed: u32,
    /// In the queue of the mirror.
    mirror: u32,
    /// Open failures in the mirror.
    open_failures: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DriftView {
    kind: Drift,
    count: i64,
    /// Some of the jobs, if they are known.
    job_ids: Vec<Uuid>,
    /// Its meaning, and its fix.
    meaning: &'static str,
}

/// Show whether anything was lost, duplicated or abandoned.
#[utoipa::path(
    get, path = "/integrity", operation_id = "showIntegrity",
    tag = "overview",
    responses((status = 200, body = IntegrityView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<IntegrityView>, Problem> {
    let connected = state.connected()?;
    let connection = connected.connections.first().ok_or_else(|| {
        Problem::unavailable("RabbitMQ is not connected yet; retry when /readyz returns 200")
    })?;
    let calls_are_paused = !state.customerio.breaker().is_closed();
    let last = &state.last_comparison;
    match integrity::check(&state.ledger, connection, calls_are_paused, last).await {
        Ok(report) => Ok(Json(view(report))),
        Err(integrity::Error::Ledger(error)) => Err(error.into()),
        Err(integrity::Error::Broker(error)) => Err(Problem::unavailable(format!(
            "reading the queues failed: {error}; retry when /readyz returns 200"
        ))),
    }
}

fn view(report: IntegrityReport) -> IntegrityView {
    let IntegrityReport { balance, queues, compared_at, drifted } = report;
    let drift = drifted.into_iter().map(|one| DriftView {
        kind: one.drift,
        count: one.count,
        job_ids: one.jobs,
        meaning: meaning(one.drift),
    });
    let drift: Vec<_> = drift.collect();
    IntegrityView {
        holds: drift.is_empty(),
        checked_at: Utc::now(),
        compared_at,
        published: ReceivedTotals {
            jobs: balance.jobs_received,
            unprocessable: balance.unprocessable_received,
            total: balance.received(),
        },
        accounted_for: AccountedFor {
            completed: balance.completed,
            failed_open: balance.failed_open,
            dismissed: balance.dismissed,
            pending: balance.pending,
            processing: balance.processing,
            unprocessable: balance.unprocessable,
            total: balance.accounted_for(),
        },
        queues: QueuesView {
            work: queues.work,
            tiers: queues.tiers,
            failed: queues.failed,
            mirror: queues.mirror,
            open_failures: balance.open_failures,
        },
        drift,
    }
}

const fn meaning(drift: Drift) -> &'static str {
    match drift {
        Drift::Balance => {
            "there are more or fewer jobs and messages than were received; the tables were changed \
                by hand"
        }
        Drift::Waiting => {
            "more jobs wait for a retry than the delay tiers contain messages, because messages \
                were purged or lost; two minutes after a job is due, its message is published again"
        }
        Drift::Overdue => {
            "jobs are overdue and no message for them is in a queue; their messages are published \
                again within minutes, and POST /process runs them now"
        }
        Drift::Stuck => {
            "jobs have been processing for too long, because their replica stopped; POST /cleanup \
                returns them to pending"
        }
        Drift::NotMirrored => {
            "failed jobs have no open failure in the mirror; they are parked again within minutes, \
                and can be retried now"
        }
        Drift::NotFailed => {
            "the mirror has open failures of jobs that have not failed, or duplicates; the tables \
                were changed by hand"
        }
        Drift::Flags => {
            "signups are flagged as failed and have no failed job, or the reverse; the tables were \
                changed by hand"
        }
        Drift::FailureQueue => {
            "the failure queue does not contain one message per open failure, because somebody \
                consumed messages or has them open now; the sweep corrects it within a minute"
        }
    }
}
