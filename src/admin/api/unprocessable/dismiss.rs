//! `POST /unprocessable/{id}/dismiss`: resolves a message that is not needed.

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
    ledger::{MessageResolution, Resolved},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DismissRequest {
    /// The reason, for the audit log.
    #[schema(
        value_type = String, min_length = 1, max_length = 500,
        pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$",
    )]
    reason: ReasonText,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DismissedMessage {
    id: Uuid,
}

/// Dismiss a message.
#[utoipa::path(
    post, path = "/unprocessable/{failureId}/dismiss",
    operation_id = "dismissUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")), request_body = DismissRequest,
    responses((status = 200, body = DismissedMessage), Problems)
)]
pub(crate) async fn dismiss(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
    Json(request): Json<DismissRequest>,
) -> Result<axum::Json<DismissedMessage>, Problem> {
    let resolution = MessageResolution::Dismissed(&request.reason.0);
    match state.ledger.resolve_unprocessable(id, resolution, &identity.name).await? {
        Resolved::Done => Ok(axum::Json(DismissedMessage { id })),
        Resolved::NotOpen => Err(unknown()),
    }
}
