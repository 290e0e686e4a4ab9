//! `GET /bulk-actions`, `GET /bulk-actions/{id}`, `POST /bulk-actions/{id}/cancel`: shows the
//! dismissals and replays of many failures or messages, and cancels one.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::{
        http::{
            auth::Identity,
            extract::{NoParameters, PathId, Query},
            mask::{mask_json, mask_text},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    ledger::{ActionCancellation, BulkAction},
};

/// Maximum bulk actions per response.
const ITEMS_MAX: i64 = 20;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BulkActionList {
    /// The bulk actions that changed last, latest first, at most 20.
    items: Vec<BulkAction>,
}

/// List the latest bulk actions: dismissals of failures, and dismissals and replays of
/// unprocessable messages.
#[utoipa::path(
    get, path = "/bulk-actions", operation_id = "listBulkActions",
    tag = "bulk",
    responses((status = 200, body = BulkActionList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkActionList>, Problem> {
    let items = state.ledger.bulk_actions(ITEMS_MAX).await?;
    let items = items.into_iter().map(|action| view(action, &identity)).collect();
    Ok(Json(BulkActionList { items }))
}

/// Show one bulk action.
#[utoipa::path(
    get, path = "/bulk-actions/{bulkActionId}",
    operation_id = "showBulkAction", tag = "bulk",
    params(("bulkActionId" = uuid::Uuid, Path, description = "The bulk action.")),
    responses((status = 200, body = BulkAction), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BulkAction>, Problem> {
    let action = state.ledger.bulk_action(id).await?.ok_or_else(unknown)?;
    Ok(Json(view(action, &identity)))
}

/// Cancel a bulk action. What it has dismissed or replayed stays so.
#[utoipa::path(
    post, path = "/bulk-actions/{bulkActionId}/cancel",
    operation_id = "cancelBulkAction", tag = "bulk",
    params(("bulkActionId" = uuid::Uuid, Path, description = "The bulk action.")),
    responses(
        (status = 200, body = BulkAction),
        (
            status = 409, description = "The bulk action has already ended.", body = Problem,
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
) -> Result<Json<BulkAction>, Problem> {
    match state.ledger.cancel_bulk_action(id, &identity.name).await? {
        ActionCancellation::Cancelled(action) => Ok(Json(view(*action, &identity))),
        ActionCancellation::AlreadyEnded(action) => {
            let detail = format!(
                "the bulk action is already {}; only a running one can be cancelled",
                action.status
            );
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        ActionCancellation::Unknown => Err(unknown()),
    }
}

/// The action as the user may see it: the selection may contain a part of a name, and the reason
/// anything.
fn view(mut action: BulkAction, identity: &Identity) -> BulkAction {
    if identity.is_masked(false) {
        mask_json(&mut action.selection);
        action.reason = action.reason.as_deref().map(mask_text);
    }
    action
}

fn unknown() -> Problem {
    Problem::not_found("no such bulk action")
}
