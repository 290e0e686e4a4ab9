//! `GET /jobs/{jobId}`: shows everything that is known about one job.

use std::collections::BTreeMap;

use axum::{Extension, Json, extract::State};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::view::{customer::CustomerView, diagnosis::DiagnosisView},
        http::{
            auth::Identity,
            extract::{PathId, Query},
            mask::{mask, mask_identifier, mask_json, mask_text},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    broker::{FAILED_QUEUE, WorkQueue, tier_queue_of},
    diagnosis::FailureFacts,
    event::{Number, Scalar},
    job::{ErrorType, Reason, Signup, Status, SyncPhase, Warning, tracked_event_id},
    ledger::{JobDetail, SignupFlags, StoredAttempt, StoredAudit, StoredJob},
    retry::{Ladder, Tier},
    runtime::text_enum::known,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct JobParameters {
    /// Whether e-mail addresses, names, phone number and attributes are masked. They always are for
    /// the role viewer and in the session of a browser.
    #[serde(default)]
    #[param(default = false)]
    masked: bool,
}

/// A job, its signup, its attempts and its audit trail.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobDetailView {
    job: JobView,
    signup: SignupView,
    /// The latest 200 attempts, oldest first.
    attempts: Vec<AttemptView>,
    /// Whether there are earlier attempts.
    has_earlier_attempts: bool,
    /// The latest 200 audit entries, oldest first.
    audit: Vec<AuditView>,
    /// Whether there are earlier audit entries.
    has_earlier_audit: bool,
    /// The delay tiers, in order.
    ladder: Vec<TierView>,
    /// The diagnosis of its failure. Null if it has none.
    verdict: Option<DiagnosisView>,
    /// URL of the queue with its message in RabbitMQ's management UI, if `http.management_url` is
    /// set.
    queue_url: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct JobView {
    job_id: Uuid,
    signup_id: Uuid,
    sync_phase: SyncPhase,
    status: Status,
    /// Number of restarts, by an operator or by a new event.
    run: i32,
    attempt_count: i32,
    max_attempts: i32,
    next_retry_at: Option<DateTime<Utc>>,
    last_attempt_at: Option<DateTime<Utc>>,
    error_type: Option<ErrorType>,
    error_message: Option<String>,
    signature: Option<String>,
    reason: Option<Reason>,
    manual_retry: bool,
    /// Whether it was completed in mock mode, so that Customer.io does not have the data.
    mock: bool,
    contact_id: Option<String>,
    /// The id of the tracked event in Customer.io, the same for every attempt.
    tracked_event_id: String,
    /// The event that created or last restarted it.
    event_id: String,
    occurred_at: DateTime<Utc>,
    /// The time that the event stated, if it was more than five minutes ahead. The time of its
    /// arrival, `occurredAt`, has replaced it.
    stated_at: Option<DateTime<Utc>>,
    /// What a completed job did not do: `email_not_changed`.
    warning: Option<Warning>,
    /// The warning in words.
    warning_message: Option<&'static str>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    first_failed_at: Option<DateTime<Utc>>,
    failed_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    dismissed_at: Option<DateTime<Utc>>,
    dismissed_reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SignupView {
    signup_id: Uuid,
    operator_id: Option<String>,
    operator_name: Option<String>,
    customer: CustomerView,
    phone: Option<String>,
    state: Option<String>,
    #[schema(value_type = Object)]
    attributes: BTreeMap<String, AttributeView>,
    extraction_id: Option<String>,
    bet_slip: Option<BetSlipView>,
    customerio_synced: bool,
    customerio_synced_at: Option<DateTime<Utc>>,
    customerio_contact_id: Option<String>,
    customerio_sync_failed: bool,
    customerio_sync_error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum AttributeView {
    Masked(&'static str),
    Whole(Scalar),
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BetSlipView {
    #[schema(value_type = f64)]
    bet_amount: Number,
    team_bet_on: String,
    /// A string or a number, as received.
    #[schema(value_type = serde_json::Value)]
    odds: Scalar,
    #[schema(value_type = f64)]
    confidence: Number,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AttemptView {
    run: i32,
    attempt: i32,
    started_at: DateTime<Utc>,
    duration_ms: f64,
    http_status: Option<i32>,
    error_type: Option<ErrorType>,
    error_message: Option<String>,
    /// The tier in which the job waited for the next attempt.
    tier: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AuditView {
    action: String,
    actor: String,
    #[schema(value_type = Object)]
    details: Value,
    created_at: DateTime<Utc>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TierView {
    name: String,
    delay_seconds: f64,
}

/// Show one job.
#[utoipa::path(
    get, path = "/jobs/{jobId}", operation_id = "showJob", tag = "jobs",
    params(("jobId" = Uuid, Path, description = "The job."), JobParameters),
    responses((status = 200, body = JobDetailView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(parameters): Query<JobParameters>,
) -> Result<Json<JobDetailView>, Problem> {
    let detail = state.ledger.job_detail(id).await?;
    let detail = detail.ok_or_else(|| Problem::not_found("no such job"))?;
    let queue = queue_of(&detail, &state.ladder);
    let queue_url = queue.and_then(|queue| state.config.queue_url(&queue));
    let masked = identity.is_masked(parameters.masked);
    Ok(Json(view(detail, &state.ladder, queue_url, masked)))
}

/// The queue that contains the job's message, as far as the ledger shows.
fn queue_of(detail: &JobDetail, ladder: &Ladder) -> Option<String> {
    let job = &detail.job;
    match job.status {
        Status::Failed => Some(FAILED_QUEUE.to_owned()),
        Status::Pending if job.next_retry_at.is_some() => {
            let last = detail.attempts.last().and_then(|attempt| attempt.tier.clone());
            let tier = last.or_else(|| ladder.tiers().first().map(|tier| tier.name.clone()))?;
            Some(tier_queue_of(&tier))
        }
        Status::Pending | Status::Processing => Some(WorkQueue::Jobs.name().to_owned()),
        Status::Completed => None,
    }
}

fn view(
    detail: JobDetail,
    ladder: &Ladder,
    queue_url: Option<String>,
    masked: bool,
) -> JobDetailView {
    let JobDetail { job, signup, flags, attempts, audit, .. } = detail;
    let last = attempts.last();
    let verdict = job.error_message.is_some().then(|| {
        DiagnosisView::of(&FailureFacts {
            reason: known(job.reason.as_deref()),
            cause: known(last.and_then(|attempt| attempt.error_cause.as_deref())),
            error_type: job.error_type,
            http_status: last.and_then(|attempt| attempt.http_status?.try_into().ok()),
            occurred_at: Some(job.occurred_at),
        })
    });
    let tier =
        |tier: &Tier| TierView { name: tier.name.clone(), delay_seconds: tier.delay.as_secs_f64() };
    JobDetailView {
        signup: signup_view(job.signup_id, signup, flags, masked),
        job: job_view(job, masked),
        attempts: attempts.into_iter().map(|row| attempt_view(row, masked)).collect(),
        has_earlier_attempts: detail.has_earlier_attempts,
        has_earlier_audit: detail.has_earlier_audit,
        audit: audit.into_iter().map(|row| audit_view(row, masked)).collect(),
        ladder: ladder.tiers().iter().map(tier).collect(),
        verdict,
        queue_url,
    }
}

fn job_view(job: StoredJob, masked: bool) -> JobView {
    let warning: Option<Warning> = known(job.warning.as_deref());
    JobView {
        tracked_event_id: tracked_event_id(job.signup_id, job.phase).to_string(),
        job_id: job.id,
        signup_id: job.signup_id,
        sync_phase: job.phase,
        status: job.status,
        run: job.run,
        attempt_count: job.attempt_count,
        max_attempts: job.max_attempts,
        next_retry_at: job.next_retry_at,
        last_attempt_at: job.last_attempt_at,
        error_type: job.error_type,
        error_message: free_text(job.error_message, masked),
        signature: job.error_signature,
        reason: known(job.reason.as_deref()),
        manual_retry: job.manual_retry,
        mock: job.mock,
        contact_id: contact(job.contact_id, masked),
        event_id: job.event_id,
        occurred_at: job.occurred_at,
        stated_at: job.stated_at,
        warning,
        warning_message: warning.map(Warning::text),
        created_at: job.created_at,
        updated_at: job.updated_at,
        first_failed_at: job.first_failed_at,
        failed_at: job.failed_at,
        completed_at: job.completed_at,
        dismissed_at: job.dismissed_at,
        dismissed_reason: free_text(job.dismissed_reason, masked),
    }
}

fn signup_view(signup_id: Uuid, signup: Signup, flags: SignupFlags, masked: bool) -> SignupView {
    let mut customer = signup.customer;
    let (phone, state) = (customer.phone.take(), customer.state.take());
    let bet_slip = signup.bet_slip.map(|slip| BetSlipView {
        bet_amount: slip.bet_amount,
        team_bet_on: slip.team_bet_on,
        odds: slip.odds,
        confidence: slip.confidence,
    });
    // Any attribute may be personal data: upstream services choose them.
    let shown = |(name, value): (String, Scalar)| {
        (name, if masked { AttributeView::Masked("***") } else { AttributeView::Whole(value) })
    };
    SignupView {
        signup_id,
        operator_id: signup.operator_id,
        operator_name: signup.operator_name,
        phone: if masked { phone.as_deref().map(mask) } else { phone },
        state,
        customer: CustomerView::from(customer).masked_if(masked),
        attributes: signup.attributes.into_iter().map(shown).collect(),
        extraction_id: signup.extraction_id,
        bet_slip,
        customerio_synced: flags.synced,
        customerio_synced_at: flags.synced_at,
        customerio_contact_id: contact(flags.contact_id, masked),
        customerio_sync_failed: flags.sync_failed,
        customerio_sync_error: free_text(flags.sync_error, masked),
    }
}

/// A person identifier, which may be an e-mail address.
fn contact(id: Option<String>, masked: bool) -> Option<String> {
    if masked { id.as_deref().map(mask_identifier) } else { id }
}

/// A text that may quote personal data.
fn free_text(text: Option<String>, masked: bool) -> Option<String> {
    if masked { text.as_deref().map(mask_text) } else { text }
}

fn attempt_view(row: StoredAttempt, masked: bool) -> AttemptView {
    AttemptView {
        run: row.run,
        attempt: row.attempt,
        started_at: row.started_at,
        duration_ms: row.duration_ms,
        http_status: row.http_status,
        error_type: row.error_type,
        error_message: free_text(row.error_message, masked),
        tier: row.tier,
    }
}

fn audit_view(row: StoredAudit, masked: bool) -> AuditView {
    let mut details = row.details;
    if masked {
        mask_json(&mut details);
    }
    AuditView { action: row.action, actor: row.actor, details, created_at: row.created_at }
}
