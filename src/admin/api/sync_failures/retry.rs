//! `POST /sync-failures/retry`: retries all failures of a selection at a limited rate, or previews
//! it.

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    admin::{
        http::{
            auth::Identity,
            extract::{Json, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    customerio::Mode,
    ledger::{BulkRetry, Preview, Selection},
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DryRunParameters {
    /// Whether to return a preview and change nothing.
    #[serde(default)]
    #[param(default = false)]
    pub(crate) dry_run: bool,
}

/// The preview.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DryRun {
    /// Always true.
    dry_run: bool,
    /// Jobs that would be retried or dismissed.
    eligible: i64,
    /// Of these, the jobs whose event is older than 72 hours: Customer.io starts no campaign
    /// for them.
    older_than72_hours: i64,
    /// Matching jobs that would not change.
    not_eligible: Vec<NotEligible>,
}

/// Matching jobs that would not change for one reason.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct NotEligible {
    reason: IneligibleReason,
    count: i64,
    /// The reason in words.
    meaning: &'static str,
}

#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum IneligibleReason {
    Dismissed,
    Waiting,
    UnderWay,
}

impl DryRun {
    pub(crate) fn new(preview: &Preview) -> Self {
        let reasons = [
            (
                IneligibleReason::Dismissed,
                preview.dismissed,
                "the failure was dismissed; to restart it, retry its signup",
            ),
            (
                IneligibleReason::Waiting,
                preview.waiting,
                "the job waits for its next attempt, which is scheduled",
            ),
            (IneligibleReason::UnderWay, preview.in_flight, "an attempt is in flight"),
        ];
        let found = reasons.into_iter().filter(|(_, count, _)| *count > 0);
        Self {
            dry_run: true,
            eligible: preview.eligible,
            older_than72_hours: preview.late,
            not_eligible: found
                .map(|(reason, count, meaning)| NotEligible { reason, count, meaning })
                .collect(),
        }
    }
}

/// Retry all failures of a selection.
///
/// Returns at once. The bulk retry proceeds at a limited rate, survives restarts of the service,
/// and can be shown and cancelled. Without a filter, every open failure is selected. With `mock`,
/// the jobs that were completed in mock mode are selected instead, and sent for real.
#[utoipa::path(
    post, path = "/sync-failures/retry", operation_id = "retryFailures",
    tag = "bulk", params(DryRunParameters),
    request_body = Selection,
    responses(
        (status = 200, description = "With dryRun, the preview.", body = DryRun),
        (status = 202, description = "The bulk retry was created.", body = BulkRetry),
        (
            status = 409, description = "With `mock`, while the service is in mock mode.",
            body = Problem, content_type = "application/problem+json",
        ),
        Problems,
    )
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<DryRunParameters>,
    Json(selection): Json<Selection>,
) -> Result<Response, Problem> {
    if parameters.dry_run {
        let preview = state.ledger.preview(&selection).await?;
        return Ok(axum::Json(DryRun::new(&preview)).into_response());
    }
    if selection.mock {
        require_live(&state)?;
    }
    let bulk = state.ledger.create_bulk_retry(&selection, &identity.name).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(bulk)).into_response())
}

/// Fails if the service would not send the jobs to Customer.io.
fn require_live(state: &AppState) -> Result<(), Problem> {
    state.require_credentials()?;
    match state.customerio.mode() {
        Mode::Live => Ok(()),
        Mode::Mock => Err(Problem::new(
            StatusCode::CONFLICT,
            "the service is in mock mode, so the jobs would only be marked again; set \
                CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY, restart the service, and retry",
        )),
    }
}
