//! `POST /api/v1/signups/customerio/sync-failures/dismiss`: resolves the failures of a selection
//! without a retry.

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
        api::sync_failures::retry::{DryRun, Parameters},
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

/// A selection as a retry takes it, and why its failures need none.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Dismissal {
    /// Why, for those who look later.
    #[schema(value_type = String, min_length = 1, max_length = 500,
    pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$")]
    reason: ReasonText,
    /// Only this phase.
    sync_phase: Option<SyncPhase>,
    /// Only this kind of trouble.
    error_type: Option<ErrorType>,
    /// A part of the customer's e-mail address or name, in any case.
    #[serde(default, deserialize_with = "search_text")]
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$")]
    search: Option<String>,
    /// Only this error signature, as the groups have it.
    #[serde(default, deserialize_with = "signature_text")]
    #[schema(max_length = 240, pattern = r"^[^\u0000]*$")]
    signature: Option<String>,
    /// Only these jobs.
    job_ids: Option<Vec<Uuid>>,
}

/// How many were dismissed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Dismissed {
    dismissed: i64,
}

/// Dismiss the failures of a selection. Without a filter, every open failure is meant.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/sync-failures/dismiss",
    operation_id = "dismissFailures", tag = "failures", params(Parameters),
    request_body = Dismissal,
    responses(
        (status = 200, description = "How many were dismissed; with dryRun, what would be \
            done.", body = DismissAnswer),
        Problems,
    )
)]
pub(crate) async fn dismiss(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<Parameters>,
    Json(dismissal): Json<Dismissal>,
) -> Result<Response, Problem> {
    let Dismissal { reason, sync_phase, error_type, search, signature, job_ids } = dismissal;
    let selection = Selection { sync_phase, error_type, search, signature, job_ids };
    if parameters.dry_run {
        let preview = state.ledger.preview(&selection).await?;
        return Ok(axum::Json(DryRun::new(&preview)).into_response());
    }
    let dismissed = state.ledger.dismiss(&selection, &reason.0, &identity.name).await?;
    Ok(axum::Json(Dismissed { dismissed }).into_response())
}

/// Either of the two answers, for the description.
#[derive(ToSchema)]
#[schema(as = DismissAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes; nobody makes one")]
pub(crate) enum DismissAnswer {
    Dismissed(Dismissed),
    DryRun(DryRun),
}
