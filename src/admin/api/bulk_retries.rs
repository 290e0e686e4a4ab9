//! `GET /api/v1/signups/customerio/bulk-retries`, and one of them: looking at bulk retries, and
//! stopping one.

use axum::{Extension, Json, extract::State, http::StatusCode};
use chrono::DateTime;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::{
        http::{
            auth::Identity,
            extract::{NoParameters, PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    ledger::{BulkRetry, Cancellation},
};

/// Bulk retries in one answer at most.
const MOST: i64 = 20;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BulkRetryList {
    /// The one that went on last comes first, 20 at most.
    items: Vec<BulkRetry>,
}

/// List the latest bulk retries.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/bulk-retries", operation_id = "listBulkRetries",
    tag = "bulk",
    responses((status = 200, body = BulkRetryList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkRetryList>, Problem> {
    let items = state.ledger.bulk_retries(DateTime::UNIX_EPOCH, MOST).await?;
    Ok(Json(BulkRetryList { items }))
}

/// Show one bulk retry.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/bulk-retries/{bulkRetryId}",
    operation_id = "showBulkRetry", tag = "bulk",
    params(("bulkRetryId" = uuid::Uuid, Path, description = "The bulk retry.")),
    responses((status = 200, body = BulkRetry), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkRetry>, Problem> {
    state.ledger.bulk_retry(id).await?.map(Json).ok_or_else(unknown)
}

/// Stop a bulk retry. The jobs that it has started go on.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/bulk-retries/{bulkRetryId}/cancel",
    operation_id = "cancelBulkRetry", tag = "bulk",
    params(("bulkRetryId" = uuid::Uuid, Path, description = "The bulk retry.")),
    responses(
        (status = 200, body = BulkRetry),
        (status = 409, description = "It had ended \
            before.", body = Problem, content_type = "application/problem+json"),
        Problems,
    )
)]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkRetry>, Problem> {
    match state.ledger.cancel_bulk_retry(id, &identity.name).await? {
        Cancellation::Cancelled(bulk) => Ok(Json(*bulk)),
        Cancellation::AlreadyEnded(bulk) => {
            let detail =
                format!("it is {} already; only one that is running can be cancelled", bulk.status);
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Cancellation::Unknown => Err(unknown()),
    }
}

fn unknown() -> Problem {
    Problem::not_found("there is no bulk retry with this id")
}
