//! `POST /api/v1/signups/customerio/unprocessable/{id}/dismiss`: resolves a message that nobody
//! needs.

use axum::{Extension, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::unprocessable::list::unknown,
        http::{
            auth::Identity,
            extract::{Json, NoParameters, PathId, Query, ReasonText},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    ledger::Resolution,
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Why {
    /// Why, for those who look later.
    #[schema(value_type = String, min_length = 1, max_length = 500,
    pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$")]
    reason: ReasonText,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DismissedMessage {
    id: Uuid,
}

/// Dismiss a message.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/unprocessable/{failureId}/dismiss",
    operation_id = "dismissUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")), request_body = Why,
    responses((status = 200, body = DismissedMessage), Problems)
)]
pub(crate) async fn dismiss(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
    Json(why): Json<Why>,
) -> Result<axum::Json<DismissedMessage>, Problem> {
    let resolution = Resolution::Dismissed(&why.reason.0);
    if !state.ledger.resolve_unprocessable(id, resolution, &identity.name).await? {
        return Err(unknown());
    }
    Ok(axum::Json(DismissedMessage { id }))
}
