//! `POST /breaker/close`: closes the circuit breakers of all replicas.

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::{
        http::{
            auth::Identity,
            extract::{NoParameters, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    customerio::BreakerStatus,
};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BreakerClosed {
    /// The circuit breaker of the replica that answered. The others close theirs within a second.
    breaker: BreakerStatus,
}

/// End a pause of the calls to Customer.io, or close the circuit breaker.
///
/// Calls resume with one job, and more while it succeeds. If the cause remains, the breaker opens
/// again.
#[utoipa::path(
    post, path = "/breaker/close", operation_id = "closeBreaker", tag = "overview",
    responses((status = 200, body = BreakerClosed), Problems)
)]
pub(crate) async fn close(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<BreakerClosed>, Problem> {
    state.ledger.resume_calls(&identity.name).await?;
    state.customerio.close_breaker();
    Ok(Json(BreakerClosed { breaker: state.customerio.breaker() }))
}
