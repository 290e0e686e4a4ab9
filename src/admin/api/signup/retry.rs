//! `POST /{signupId}/retry`: restarts the failed jobs of a signup.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::publish::{PublishStatus, publish_jobs},
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
pub(crate) struct RetrySignupParameters {
    /// Only the job of this phase.
    #[param(inline)]
    sync_phase: Option<SyncPhase>,
}

/// The restarted jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RetriedJobs {
    retried: Vec<RetriedJob>,
    count: usize,
    /// Present only if RabbitMQ has not confirmed the messages yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RetriedJob {
    job_id: Uuid,
    sync_phase: SyncPhase,
}

/// Restart the failed jobs of a signup with a first attempt.
#[utoipa::path(
    post, path = "/{signupId}/retry", operation_id = "retrySignup",
    tag = "failures",
    params(("signupId" = Uuid, Path, description = "The signup."), RetrySignupParameters),
    responses((status = 200, body = RetriedJobs), Problems)
)]
pub(crate) async fn retry(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(signup_id): PathId,
    Query(parameters): Query<RetrySignupParameters>,
) -> Result<Json<RetriedJobs>, Problem> {
    let connected = state.connected()?;
    let jobs = state.ledger.retry_signup(signup_id, parameters.sync_phase, &identity.name).await?;
    if jobs.is_empty() {
        let detail = "no job of this signup and phase has failed; only a failed job can be \
            retried";
        return Err(Problem::not_found(detail));
    }
    let published = publish_jobs(&connected.publisher, &jobs).await;
    Ok(Json(RetriedJobs {
        retried: jobs
            .iter()
            .map(|job| RetriedJob { job_id: job.id, sync_phase: job.phase })
            .collect(),
        count: jobs.len(),
        notice: (published == PublishStatus::Pending).then_some(
            "the retry is recorded, but RabbitMQ has not confirmed its message yet; the message is \
                published as soon as the broker is back",
        ),
    }))
}
