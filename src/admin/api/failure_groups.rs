//! `GET /failure-groups`: groups the open failures by signature.

use axum::{Extension, Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::view::diagnosis::DiagnosisView,
        http::{
            auth::Identity,
            extract::{NoParameters, Query},
            mask::mask_text,
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    job::{ErrorType, SyncPhase},
    ledger::FailureGroup,
};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FailureGroupList {
    /// The groups, largest first, at most 200.
    items: Vec<FailureGroupView>,
}

/// Failures with the same signature.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FailureGroupView {
    /// The error message without numbers, ids, addresses and quoted values.
    signature: String,
    error_type: ErrorType,
    count: i64,
    first_seen: Option<DateTime<Utc>>,
    last_seen: Option<DateTime<Utc>>,
    /// The job that failed last.
    sample_job_id: Uuid,
    sample_signup_id: Uuid,
    sample_sync_phase: SyncPhase,
    /// Its error message.
    sample_message: String,
    verdict: DiagnosisView,
}

/// Group the open failures.
#[utoipa::path(
    get, path = "/failure-groups", operation_id = "listFailureGroups",
    tag = "failures",
    responses((status = 200, body = FailureGroupList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<FailureGroupList>, Problem> {
    let groups = state.ledger.groups().await?;
    let masked = identity.is_masked(false);
    let items = groups.into_iter().map(|group| view(group, masked)).collect();
    Ok(Json(FailureGroupList { items }))
}

fn view(group: FailureGroup, masked: bool) -> FailureGroupView {
    let sample = group.sample;
    let verdict = DiagnosisView::of(&sample.facts());
    FailureGroupView {
        signature: group.signature,
        error_type: group.error_type,
        count: group.count,
        first_seen: group.first_seen,
        last_seen: group.last_seen,
        sample_job_id: sample.job_id,
        sample_signup_id: sample.signup_id,
        sample_sync_phase: sample.sync_phase,
        sample_message: if masked {
            mask_text(&sample.error_message)
        } else {
            sample.error_message
        },
        verdict,
    }
}
