//! `POST /sync-failures/dismiss`: resolves the failures of a selection without a retry.

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::sync_failures::retry::{DryRun, DryRunParameters},
        http::{
            auth::Identity,
            extract::{Json, Query, ReasonText},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    job::{ErrorType, SyncPhase},
    ledger::{BulkStatus, Selection, search_text, signature_text},
};

/// A selection, as for a retry, and the reason for the dismissal.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Dismissal {
    /// The reason, for the audit log.
    #[schema(
        value_type = String, min_length = 1, max_length = 500,
        pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$",
    )]
    reason: ReasonText,
    /// Only this phase.
    sync_phase: Option<SyncPhase>,
    /// Only this kind of error.
    error_type: Option<ErrorType>,
    /// A part of the customer's e-mail address or name, case-insensitive.
    #[serde(default, deserialize_with = "search_text")]
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$")]
    search: Option<String>,
    /// Only this error signature, as the groups show it.
    #[serde(default, deserialize_with = "signature_text")]
    #[schema(max_length = 240, pattern = r"^[^\u0000]*$")]
    signature: Option<String>,
    /// Only these jobs.
    job_ids: Option<Vec<Uuid>>,
}

/// A dismissal of failures, which is a bulk action.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FailureDismissal {
    /// Id of the bulk action.
    id: Uuid,
    status: BulkStatus,
    /// Failures that matched.
    eligible: i64,
    /// Failures that are dismissed so far.
    dismissed: i64,
}

/// Dismiss the failures of a selection. Without a filter, every open failure is selected.
///
/// A selection of up to 1000 failures is usually dismissed when this returns. A larger one proceeds
/// in steps, survives restarts of the service, and can be shown and cancelled as a bulk action.
#[utoipa::path(
    post, path = "/sync-failures/dismiss",
    operation_id = "dismissFailures", tag = "failures", params(DryRunParameters),
    request_body = Dismissal,
    responses(
        (
            status = 200,
            description = "The failures are dismissed; with dryRun, the preview.",
            body = DismissResponse,
        ),
        (
            status = 202,
            description = "The bulk action was created, and dismisses the failures in steps.",
            body = FailureDismissal,
        ),
        Problems,
    )
)]
pub(crate) async fn dismiss(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<DryRunParameters>,
    Json(dismissal): Json<Dismissal>,
) -> Result<Response, Problem> {
    let Dismissal { reason, sync_phase, error_type, search, signature, job_ids } = dismissal;
    let selection = Selection { sync_phase, error_type, search, signature, job_ids, mock: false };
    if parameters.dry_run {
        let preview = state.ledger.preview(&selection).await?;
        return Ok(axum::Json(DryRun::new(&preview)).into_response());
    }
    let action = state.ledger.dismiss(&selection, &reason.0, &identity.name).await?;
    let dismissal = FailureDismissal {
        id: action.id,
        status: action.status,
        eligible: action.eligible,
        dismissed: action.done,
    };
    let status = match action.status {
        BulkStatus::Running => StatusCode::ACCEPTED,
        BulkStatus::Completed | BulkStatus::Cancelled => StatusCode::OK,
    };
    Ok((status, axum::Json(dismissal)).into_response())
}

/// Either of the two responses, for the description.
#[derive(ToSchema)]
#[schema(as = DismissResponse)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum DismissResponse {
    FailureDismissal(FailureDismissal),
    DryRun(DryRun),
}
