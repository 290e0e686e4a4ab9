//! `POST /unprocessable/{id}/reveal`: shows a message unmasked, and records it in the audit log.

use axum::{Extension, Json, extract::State};

use crate::admin::{
    api::unprocessable::list::{SHOWN, UnprocessableView, unknown},
    http::{
        auth::Identity,
        extract::{NoParameters, PathId, Query},
        problem::{Problem, Problems},
    },
    state::AppState,
};

/// Show a message unmasked, and record it in the audit log.
#[utoipa::path(
    post, path = "/unprocessable/{failureId}/reveal",
    operation_id = "revealUnprocessable", tag = "unprocessable",
    params(("failureId" = uuid::Uuid, Path, description = "The message.")),
    responses((status = 200, body = UnprocessableView), Problems)
)]
pub(crate) async fn reveal(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<UnprocessableView>, Problem> {
    let message = state.ledger.reveal_unprocessable(id, &identity.name, SHOWN).await?;
    let message = message.ok_or_else(unknown)?;
    Ok(Json(UnprocessableView::new(message, SHOWN)))
}
