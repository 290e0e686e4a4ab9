//! `POST /api/v1/signups/customerio/process`: runs jobs that are ready, now, and waits for them.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    admin::{
        http::{
            extract::{Limit, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    flows::sync::NotProcessed,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Parameters {
    /// Jobs at most.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 500, default = 10)]
    limit: Option<Limit>,
}

/// How the jobs ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Summary {
    processed: usize,
    succeeded: usize,
    failed: usize,
    retrying: usize,
}

/// Run jobs that are ready.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/process", operation_id = "processJobs", tag = "jobs",
    params(Parameters),
    responses((status = 200, body = Summary), Problems)
)]
pub(crate) async fn process(
    State(state): State<AppState>,
    Query(parameters): Query<Parameters>,
) -> Result<Json<Summary>, Problem> {
    let limit = parameters.limit.map_or(10, |limit| limit.0);
    let processed = state.ready()?.processor.run(limit).await.map_err(|error| match error {
        NotProcessed::Ledger(error) => error.into(),
        told => Problem::unavailable(told.to_string()),
    })?;
    Ok(Json(Summary {
        processed: processed.succeeded + processed.failed + processed.retrying,
        succeeded: processed.succeeded,
        failed: processed.failed,
        retrying: processed.retrying,
    }))
}
