//! `GET /api/v1/signups/customerio/failure-groups`: open failures by what they have in common.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::view::diagnosis::VerdictView,
        http::{
            extract::{NoParameters, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    job::{ErrorType, SyncPhase},
    ledger::Group,
};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GroupList {
    /// The largest first, 200 at most.
    items: Vec<GroupView>,
}

/// Failures with one signature.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct GroupView {
    /// The error message with numbers, ids, addresses and quoted values taken out.
    signature: String,
    error_type: ErrorType,
    count: i64,
    first_seen: Option<DateTime<Utc>>,
    last_seen: Option<DateTime<Utc>>,
    /// The job that failed last.
    sample_job_id: Uuid,
    sample_signup_id: Uuid,
    sample_sync_phase: SyncPhase,
    /// What was said of it.
    sample_message: String,
    verdict: VerdictView,
}

/// Group the open failures.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/failure-groups", operation_id = "listFailureGroups",
    tag = "failures",
    responses((status = 200, body = GroupList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<GroupList>, Problem> {
    let groups = state.ledger.groups().await?;
    Ok(Json(GroupList { items: groups.into_iter().map(view).collect() }))
}

fn view(group: Group) -> GroupView {
    let sample = group.sample;
    let verdict = VerdictView::of(&sample.case());
    GroupView {
        signature: group.signature,
        error_type: group.error_type,
        count: group.count,
        first_seen: group.first_seen,
        last_seen: group.last_seen,
        sample_job_id: sample.job_id,
        sample_signup_id: sample.signup_id,
        sample_sync_phase: sample.sync_phase,
        sample_message: sample.error_message,
        verdict,
    }
}
