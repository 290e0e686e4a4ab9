//! `GET /api/v1/signups/customerio/integrity`: whether anything was lost, doubled or left behind.

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
    flows::integrity::{self, Findings},
    ledger::Drift,
};

/// What was taken in against what became of it. While messages are on their way, ledger and queues
/// may differ for a moment; a drift that stays for ten minutes is real.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IntegrityView {
    /// Whether nothing is amiss.
    holds: bool,
    checked_at: DateTime<Utc>,
    published: Published,
    accounted_for: AccountedFor,
    queues: QueuesView,
    /// What is not as it should be; empty when it holds.
    drift: Vec<DriftView>,
}

/// What was taken in from the work queues, each event and message once.
#[derive(Debug, Serialize, ToSchema)]
struct Published {
    /// Jobs that events have made.
    jobs: i64,
    /// Messages that could not be understood.
    unprocessable: i64,
    total: i64,
}

/// Where it is now.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AccountedFor {
    completed: i64,
    failed_open: i64,
    dismissed: i64,
    pending: i64,
    processing: i64,
    /// Messages in the mirror that could not be understood, the resolved ones, too.
    unprocessable: i64,
    total: i64,
}

/// Messages that are ready, and the failures that the failure queue should hold.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct QueuesView {
    /// In the work queues, not taken in yet.
    work: u32,
    /// In the delay tiers.
    tiers: u32,
    /// In the failure queue.
    failed: u32,
    /// On their way into the mirror.
    mirror: u32,
    /// Failures that are open in the mirror.
    open_failures: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DriftView {
    kind: Drift,
    count: i64,
    /// Some of the jobs, where they are known.
    job_ids: Vec<Uuid>,
    /// What it is, and what mends it.
    meaning: &'static str,
}

/// Tell whether anything was lost, doubled or left behind.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/integrity", operation_id = "showIntegrity",
    tag = "overview",
    responses((status = 200, body = IntegrityView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<IntegrityView>, Problem> {
    let ready = state.ready()?;
    let link = ready
        .links
        .first()
        .ok_or_else(|| Problem::unavailable("there is no connection to the broker"))?;
    match integrity::look(&state.ledger, link, ready.processor.gate().is_shut).await {
        Ok(findings) => Ok(Json(view(findings))),
        Err(integrity::Error::Ledger(error)) => Err(error.into()),
        Err(integrity::Error::Broker(error)) => Err(Problem::unavailable(format!(
            "the queues can't be looked at: {error}; try again when /readyz says ready"
        ))),
    }
}

fn view(Findings { balance: b, queues, drifted }: Findings) -> IntegrityView {
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
        published: Published {
            jobs: b.jobs_taken_in,
            unprocessable: b.unprocessable_taken_in,
            total: b.taken_in(),
        },
        accounted_for: AccountedFor {
            completed: b.completed,
            failed_open: b.failed_open,
            dismissed: b.dismissed,
            pending: b.pending,
            processing: b.processing,
            unprocessable: b.unprocessable,
            total: b.accounted_for(),
        },
        queues: QueuesView {
            work: queues.work,
            tiers: queues.tiers,
            failed: queues.failed,
            mirror: queues.mirror,
            open_failures: b.open_failures,
        },
        drift,
    }
}

const fn meaning(drift: Drift) -> &'static str {
    match drift {
        Drift::Balance => {
            "more or fewer jobs and messages are there than were taken in: somebody has changed \
                the tables by hand"
        }
        Drift::Waiting => {
            "jobs wait for a retry and the delay tiers hold fewer messages, so some were purged \
                or lost; they are sent \
             again two minutes after they are due"
        }
        Drift::Overdue => {
            "jobs are long due and nobody works on them; they are sent again within minutes, or \
                at once by \
             POST …/process"
        }
        Drift::Stuck => {
            "jobs are processed for too long, their replica is gone; POST …/cleanup puts them back"
        }
        Drift::NotMirrored => {
            "failed jobs are in no list of the mirror; they are parked again within minutes, and \
                can be retried at once"
        }
        Drift::NotFailed => {
            "the mirror has open failures of jobs that have not failed, or has one twice: \
                somebody has changed the \
             tables by hand"
        }
        Drift::Flags => {
            "signups are flagged as failed and have no failed job, or the other way round: \
                somebody has changed the \
             tables by hand"
        }
        Drift::FailureQueue => {
            "the failure queue differs from the open failures, because somebody took messages, or \
                looks at them now; a \
             sweep brings it in line within a minute"
        }
    }
}
