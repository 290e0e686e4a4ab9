//! `POST /process`: runs jobs that are ready, and waits for them.

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
    flows::sync::ProcessError,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ProcessParameters {
    /// Maximum jobs.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 500, default = 10)]
    limit: Option<Limit>,
}

/// How the jobs ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProcessSummary {
    processed: usize,
    succeeded: usize,
    failed: usize,
    retrying: usize,
}

/// Run jobs that are ready.
#[utoipa::path(
    post, path = "/process", operation_id = "processJobs", tag = "jobs",
    params(ProcessParameters),
    responses((status = 200, body = ProcessSummary), Problems)
)]
pub(crate) async fn process(
    State(state): State<AppState>,
    Query(parameters): Query<ProcessParameters>,
) -> Result<Json<ProcessSummary>, Problem> {
    let limit = parameters.limit.map_or(10, |limit| limit.0);
    state.require_credentials()?;
    let processed =
        state.connected()?.pipeline.process(limit).await.map_err(|error| match error {
            ProcessError::Ledger(error) => error.into(),
            refused => Problem::unavailable(refused.to_string()),
        })?;
    Ok(Json(ProcessSummary {
        processed: processed.succeeded + processed.failed + processed.retrying,
        succeeded: processed.succeeded,
        failed: processed.failed,
        retrying: processed.retrying,
    }))
}
