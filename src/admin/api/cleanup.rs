//! `POST /api/v1/signups/customerio/cleanup`: jobs that were left in `processing` go back to
//! `pending`.

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
pub(crate) struct Cleaned {
    /// Jobs that went back.
    reset_count: i64,
}

/// Put jobs back to pending that have been processing for over five minutes.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/cleanup", operation_id = "cleanUpJobs", tag = "jobs",
    responses((status = 200, body = Cleaned), Problems)
)]
pub(crate) async fn cleanup(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<Cleaned>, Problem> {
    Ok(Json(Cleaned { reset_count: state.ledger.cleanup(&identity.name).await? }))
}
