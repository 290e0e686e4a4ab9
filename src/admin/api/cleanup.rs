//! `POST /cleanup`: resets abandoned jobs from `processing` to `pending`.

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::admin::{
    http::{
        auth::Identity,
        extract::{NoParameters, Query},
        problem::{Problem, Problems},
    },
    state::AppState,
};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CleanupResult {
    /// Number of jobs that were reset.
    reset_count: i64,
}

/// Reset jobs that have been `processing` for more than five minutes to `pending`.
#[utoipa::path(
    post, path = "/cleanup", operation_id = "cleanUpJobs", tag = "jobs",
    responses((status = 200, body = CleanupResult), Problems)
)]
pub(crate) async fn cleanup(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<CleanupResult>, Problem> {
    Ok(Json(CleanupResult { reset_count: state.ledger.cleanup(&identity.name).await? }))
}
