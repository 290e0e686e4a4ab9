//! `POST /sync-failures/dismiss`: resolves the failures of a selection without a retry.

use axum::{
    Extension,
    extract::State,
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
    ledger::{Selection, search_text, signature_text},
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

/// The result of a dismissal.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DismissedCount {
    dismissed: i64,
}

/// Dismiss the failures of a selection. Without a filter, every open failure is selected.
#[utoipa::path(
    post, path = "/sync-failures/dismiss",
    operation_id = "dismissFailures", tag = "failures", params(DryRunParameters),
    request_body = Dismissal,
    responses(
        (
            status = 200,
            description = "The number of dismissed failures; with dryRun, the preview.",
            body = DismissResponse,
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
    let dismissed = state.ledger.dismiss(&selection, &reason.0, &identity.name).await?;
    Ok(axum::Json(DismissedCount { dismissed }).into_response())
}

/// Either of the two responses, for the description.
#[derive(ToSchema)]
#[schema(as = DismissResponse)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum DismissResponse {
    DismissedCount(DismissedCount),
    DryRun(DryRun),
}
