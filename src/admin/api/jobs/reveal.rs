//! `POST /jobs/{jobId}/reveal`: shows a customer unmasked, and records it in the audit log.

use axum::{Extension, Json, extract::State};

use crate::admin::{
    api::view::customer::RevealedCustomer,
    http::{
        auth::Identity,
        extract::{NoParameters, PathId, Query},
        problem::{Problem, Problems},
    },
    state::AppState,
};

/// Show the customer of a job unmasked, and record it in the audit log.
#[utoipa::path(
    post, path = "/jobs/{jobId}/reveal", operation_id = "revealCustomer",
    tag = "jobs",
    params(("jobId" = uuid::Uuid, Path, description = "The job.")),
    responses((status = 200, body = RevealedCustomer), Problems)
)]
pub(crate) async fn reveal(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<RevealedCustomer>, Problem> {
    let customer = state.ledger.reveal(id, &identity.name).await?;
    let customer = customer.ok_or_else(|| Problem::not_found("no such job"))?;
    Ok(Json(customer.into()))
}
