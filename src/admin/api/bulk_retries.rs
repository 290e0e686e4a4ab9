//! `GET /bulk-retries`, `GET /bulk-retries/{id}`, `POST /bulk-retries/{id}/cancel`: shows bulk
//! retries, and cancels one.

use axum::{Extension, Json, extract::State, http::StatusCode};
use chrono::DateTime;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::{
        http::{
            auth::Identity,
            extract::{NoParameters, PathId, Query},
            mask::mask_address,
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    ledger::{BulkRetry, Cancellation},
};

/// Maximum bulk retries per response.
const ITEMS_MAX: i64 = 20;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BulkRetryList {
    /// The bulk retries that changed last, latest first, at most 20.
    items: Vec<BulkRetry>,
}

/// List the latest bulk retries.
#[utoipa::path(
    get, path = "/bulk-retries", operation_id = "listBulkRetries",
    tag = "bulk",
    responses((status = 200, body = BulkRetryList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkRetryList>, Problem> {
    let items = state.ledger.bulk_retries(DateTime::UNIX_EPOCH, ITEMS_MAX).await?;
    let items = items.into_iter().map(|bulk| view(bulk, &identity)).collect();
    Ok(Json(BulkRetryList { items }))
}

/// Show one bulk retry.
#[utoipa::path(
    get, path = "/bulk-retries/{bulkRetryId}",
    operation_id = "showBulkRetry", tag = "bulk",
    params(("bulkRetryId" = uuid::Uuid, Path, description = "The bulk retry.")),
    responses((status = 200, body = BulkRetry), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkRetry>, Problem> {
    let bulk = state.ledger.bulk_retry(id).await?.ok_or_else(unknown)?;
    Ok(Json(view(bulk, &identity)))
}

/// Cancel a bulk retry. The jobs that it has restarted continue.
#[utoipa::path(
    post, path = "/bulk-retries/{bulkRetryId}/cancel",
    operation_id = "cancelBulkRetry", tag = "bulk",
    params(("bulkRetryId" = uuid::Uuid, Path, description = "The bulk retry.")),
    responses(
        (status = 200, body = BulkRetry),
        (
            status = 409, description = "The bulk retry has already ended.", body = Problem,
            content_type = "application/problem+json",
        ),
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
        Cancellation::Cancelled(bulk) => Ok(Json(view(*bulk, &identity))),
        Cancellation::AlreadyEnded(bulk) => {
            let detail = format!(
                "the bulk retry is already {}; only a running one can be cancelled",
                bulk.status
            );
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Cancellation::Unknown => Err(unknown()),
    }
}

/// Masks the search text of a bulk retry, which may be a part of an address or of a name.
fn view(mut bulk: BulkRetry, identity: &Identity) -> BulkRetry {
    if identity.is_masked(false) {
        bulk.selection.search = bulk.selection.search.as_deref().map(mask_address);
    }
    bulk
}

fn unknown() -> Problem {
    Problem::not_found("no such bulk retry")
}
