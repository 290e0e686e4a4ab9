//! `POST /api/v1/signups/customerio/{signupId}/retry`: a signup's failed jobs start again now.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::publish::{Published, publish_jobs},
        http::{
            auth::Identity,
            extract::{PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    job::SyncPhase,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Parameters {
    /// Only the job of this phase.
    #[param(inline)]
    sync_phase: Option<SyncPhase>,
}

/// The jobs that start again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Retried {
    retried: Vec<RetriedJob>,
    count: usize,
    /// There only if the broker has not taken the messages yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RetriedJob {
    job_id: Uuid,
    sync_phase: SyncPhase,
}

/// Start the failed jobs of a signup again, from attempt 0.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/{signupId}/retry", operation_id = "retrySignup",
    tag = "failures",
    params(("signupId" = Uuid, Path, description = "The signup."), Parameters),
    responses((status = 200, body = Retried), Problems)
)]
pub(crate) async fn retry(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(signup_id): PathId,
    Query(parameters): Query<Parameters>,
) -> Result<Json<Retried>, Problem> {
    let ready = state.ready()?;
    let jobs = state.ledger.retry_signup(signup_id, parameters.sync_phase, &identity.name).await?;
    if jobs.is_empty() {
        let detail = "no job of this signup and phase has failed; a job that waits or is done \
            can't be retried";
        return Err(Problem::not_found(detail));
    }
    let published = publish_jobs(&ready.publisher, &jobs).await;
    Ok(Json(Retried {
        retried: jobs
            .iter()
            .map(|job| RetriedJob { job_id: job.id, sync_phase: job.phase })
            .collect(),
        count: jobs.len(),
        notice: (published == Published::NotYet).then_some(
            "the retry is written down and the broker has not confirmed its message yet; it is \
                sent as soon as the broker is back",
        ),
    }))
}
