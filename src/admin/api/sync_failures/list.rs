//! `GET /sync-failures`: lists the open failures, one page per request.

use axum::{Extension, Json, extract::State};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::view::{customer::CustomerView, diagnosis::DiagnosisView},
        http::{
            auth::{Identity, Role},
            extract::{Limit, Offset, Query},
            mask::mask_text,
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    job::{ErrorType, Status, SyncPhase},
    ledger::{FailedJob, FailurePage, SearchMatch, Selection, search_text, signature_text},
};

/// The filters and the page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FailureListParameters {
    /// Only this phase.
    #[param(inline)]
    sync_phase: Option<SyncPhase>,
    /// Only this kind of error.
    #[param(inline)]
    error_type: Option<ErrorType>,
    /// A part of the customer's e-mail address or name, case-insensitive. With the role viewer, the
    /// whole address or the whole name.
    #[serde(default, deserialize_with = "search_text")]
    #[param(max_length = 200, pattern = r"^[^\u0000]*$")]
    search: Option<String>,
    /// Only this error signature, as the groups show it.
    #[serde(default, deserialize_with = "signature_text")]
    #[param(max_length = 240, pattern = r"^[^\u0000]*$")]
    signature: Option<String>,
    /// Maximum items in the response.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 500, default = 50)]
    limit: Option<Limit>,
    /// Number of items to skip.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000, default = 0)]
    offset: Option<Offset>,
    /// Whether e-mail addresses and names are masked. They always are for the role viewer and in
    /// the session of a browser.
    #[serde(default)]
    #[param(default = false)]
    masked: bool,
}

/// A page of failures.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailureList {
    /// The items, most attempts first, then latest attempt first.
    items: Vec<FailureItem>,
    /// Number of items on all pages, exact to 10,000.
    total: i64,
    /// False if there are more items than `total`.
    total_is_exact: bool,
    /// The limit that was applied.
    limit: i64,
    /// The offset that was applied.
    offset: i64,
}

/// A failed job, and what its failure means.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailureItem {
    job_id: Uuid,
    signup_id: Uuid,
    sync_phase: SyncPhase,
    status: Status,
    /// Retries that were scheduled.
    attempt_count: i32,
    /// Maximum retries.
    max_attempts: i32,
    error_type: ErrorType,
    error_message: String,
    /// The error message without numbers, ids, addresses and quoted values.
    signature: Option<String>,
    /// When the last call started.
    last_attempt_at: Option<DateTime<Utc>>,
    failed_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    customer: CustomerView,
    verdict: DiagnosisView,
}

impl FailureItem {
    pub(crate) fn new(job: FailedJob, masked: bool) -> Self {
        let verdict = DiagnosisView::of(&job.facts());
        let customer = CustomerView {
            id: job.customer_id,
            email: job.email,
            first_name: job.first_name,
            last_name: job.last_name,
        };
        Self {
            job_id: job.job_id,
            signup_id: job.signup_id,
            sync_phase: job.sync_phase,
            status: job.status,
            attempt_count: job.attempt_count,
            max_attempts: job.max_attempts,
            error_type: job.error_type,
            error_message: if masked { mask_text(&job.error_message) } else { job.error_message },
            signature: job.error_signature,
            last_attempt_at: job.last_attempt_at,
            failed_at: job.failed_at,
            created_at: job.created_at,
            customer: customer.masked_if(masked),
            verdict,
        }
    }
}

/// List the open failures.
#[utoipa::path(
    get, path = "/sync-failures", operation_id = "listFailures",
    tag = "failures", params(FailureListParameters),
    responses((status = 200, body = FailureList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<FailureListParameters>,
) -> Result<Json<FailureList>, Problem> {
    let selection = Selection {
        sync_phase: parameters.sync_phase,
        error_type: parameters.error_type,
        search: parameters.search,
        signature: parameters.signature,
        job_ids: None,
        mock: false,
    };
    let limit = parameters.limit.map_or(50, |limit| limit.0);
    let offset = parameters.offset.map_or(0, |offset| offset.0);
    // By parts, a viewer could reconstruct what is masked.
    let search_match = match identity.role {
        Role::Viewer => SearchMatch::Whole,
        Role::Operator => SearchMatch::Part,
    };
    let FailurePage { items, total, total_is_exact } =
        state.ledger.failures(&selection, search_match, limit, offset).await?;
    let masked = identity.is_masked(parameters.masked);
    let items = items.into_iter().map(|job| FailureItem::new(job, masked)).collect();
    Ok(Json(FailureList { items, total, total_is_exact, limit, offset }))
}
