//! `POST /api/v1/signups/customerio/sync-failures/retry`: retries all failures of a selection at a
//! bounded rate, or says what that would do.

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
    ledger::{BulkRetry, Preview, Selection},
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Parameters {
    /// Whether it is only said what would be done.
    #[serde(default)]
    #[param(default = false)]
    pub(crate) dry_run: bool,
}

/// What would be done.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DryRun {
    /// Always true.
    dry_run: bool,
    /// Failures that would be retried or dismissed.
    eligible: i64,
    /// Those among them whose event is older than 72 hours: Customer.io starts no campaign for them
    /// any more.
    older_than72_hours: i64,
    /// Jobs that match and would be left alone.
    not_eligible: Vec<NotEligible>,
}

/// Jobs that would be left alone for one reason.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct NotEligible {
    reason: WhyNot,
    count: i64,
    /// The reason in words.
    meaning: &'static str,
}

#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WhyNot {
    Dismissed,
    Waiting,
    UnderWay,
}

impl DryRun {
    pub(crate) fn new(preview: &Preview) -> Self {
        let reasons = [
            (
                WhyNot::Dismissed,
                preview.dismissed,
                "the failure was dismissed; retry its signup by itself to undo that",
            ),
            (
                WhyNot::Waiting,
                preview.waiting,
                "the job waits for its next try, which comes by itself",
            ),
            (WhyNot::UnderWay, preview.under_way, "the job is being tried now"),
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
/// The answer comes at once; the bulk retry is worked off at a bounded rate, survives restarts, and
/// can be looked at and cancelled. Without a filter, every open failure is meant.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/sync-failures/retry", operation_id = "retryFailures",
    tag = "bulk", params(Parameters),
    request_body = Selection,
    responses(
        (status = 200, description = "With dryRun: what would be done.", body = DryRun),
        (status = 202, description = "It is being worked off.", body = BulkRetry),
        Problems,
    )
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<Parameters>,
    Json(selection): Json<Selection>,
) -> Result<Response, Problem> {
    if parameters.dry_run {
        let preview = state.ledger.preview(&selection).await?;
        return Ok(axum::Json(DryRun::new(&preview)).into_response());
    }
    let bulk = state.ledger.create_bulk_retry(&selection, &identity.name).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(bulk)).into_response())
}
