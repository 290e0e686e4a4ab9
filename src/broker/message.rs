//! The messages that go out, made from what the ledger has written down.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    headers::Headers,
    topology::{
        EVENTS_EXCHANGE, FAILED_EXCHANGE, FAILED_QUEUE, JOBS_EXCHANGE, UPDATES_EXCHANGE, tier_name,
    },
};
use crate::{
    job::{Ending, ErrorType, Failure, Job, Reason, Report, SyncPhase},
    retry::Tier,
    runtime::text_enum::text_enum,
};

/// A message to publish. It is always persistent.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    /// Whether it counts as not published when no queue takes it.
    pub(super) mandatory: bool,
    /// What it is, for metrics.
    pub(super) destination: &'static str,
    /// Empty: none.
    pub(super) message_id: String,
    pub(super) content_type: Option<String>,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
}

/// Where a message that failed came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Its exchange.
    pub exchange: &'a str,
    /// Its routing key.
    pub routing_key: &'a str,
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original<'a> {
    /// Its `message_id`.
    pub message_id: Option<&'a str>,
    /// Its `content_type`.
    pub content_type: Option<&'a str>,
    /// Its body.
    pub body: Vec<u8>,
}

/// A failure that is to be parked again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parked<'a> {
    /// The id of its message.
    pub message_id: &'a str,
    /// Why it is there.
    pub reason: Reason,
    /// What went wrong.
    pub error_message: &'a str,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
    /// Where the failed message came from.
    pub origin: Origin<'a>,
    /// The headers that its message had, an object.
    pub headers: &'a serde_json::Value,
    /// Its content type.
    pub content_type: Option<&'a str>,
    /// Its body.
    pub body: &'a [u8],
}

const JSON: &str = "application/json";

/// Names the failure that a replayed message was.
pub const REPLAY_HEADER: &str = "x-replay-of";
/// The `message_id` that a parked message came with.
pub const ORIGINAL_ID_HEADER: &str = "x-original-message-id";

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Message {
    /// An event, as an upstream service publishes it.
    pub fn event(routing_key: &str, content_type: Option<&str>, body: Vec<u8>) -> Self {
        Self {
            exchange: EVENTS_EXCHANGE.to_owned(),
            routing_key: routing_key.to_owned(),
            // The topology is applied before, so there is a queue; pipelining on one channel is
            // many times faster.
            mandatory: false,
            destination: "event",
            message_id: Uuid::now_v7().to_string(),
            content_type: Some(content_type.unwrap_or(JSON).to_owned()),
            headers: Headers::default(),
            body,
        }
    }

    /// Lets a job wait on `tier` for its next try.
    pub fn retry(job: &Job, tier: &Tier, failure: Option<&Failure>) -> Self {
        Self {
            exchange: tier_name(tier),
            routing_key: String::new(),
            mandatory: true,
            destination: "tier",
            message_id: job.ticket().to_string(),
            content_type: Some(JSON.to_owned()),
            headers: job_headers(job, failure),
            body: job_body(job),
        }
    }

    /// Parks a failed job.
    pub fn failed(
        job: &Job,
        reason: Reason,
        failure: &Failure,
        at: DateTime<Utc>,
        origin: Origin<'_>,
    ) -> Self {
        Self {
            exchange: FAILED_EXCHANGE.to_owned(),
            routing_key: String::new(),
            mandatory: true,
            destination: "failed",
            message_id: format!("{}:failed", job.ticket()),
            content_type: Some(JSON.to_owned()),
            headers: failure_headers(job_headers(job, Some(failure)), reason, at, origin),
            body: job_body(job),
        }
    }

    /// Asks for the try that `job` stands at now.
    pub fn job(job: &Job) -> Self {
        Self {
            exchange: JOBS_EXCHANGE.to_owned(),
            routing_key: String::new(),
            mandatory: true,
            destination: "jobs",
            message_id: job.ticket().to_string(),
            content_type: Some(JSON.to_owned()),
            headers: job_headers(job, None),
            body: job_body(job),
        }
    }

    /// Publishes a message that could not be understood again, as it came. `failure_id` goes with
    /// it, so that it can be told from the first one if it fails again.
    pub fn replay(failure_id: Uuid, origin: Origin<'_>, original: Original<'_>) -> Self {
        Self {
            exchange: origin.exchange.to_owned(),
            routing_key: origin.routing_key.to_owned(),
            mandatory: true,
            destination: "replay",
            message_id: original.message_id.unwrap_or_default().to_owned(),
            content_type: original.content_type.map(str::to_owned),
            headers: Headers::default().text(REPLAY_HEADER, failure_id.to_string()),
            body: original.body,
        }
    }

    /// Parks a failure again, in the queue that people look at and nowhere else.
    pub fn parked(parked: Parked<'_>) -> Self {
        // What others, or a broker, put into the headers is not passed on.
        let ours = [
            "x-job-id",
            "x-signup-id",
            "x-sync-phase",
            "x-error-type",
            "x-first-failed-at",
            "traceparent",
        ];
        let text = |key: &str| parked.headers.get(key).and_then(|value| value.as_str());
        let mut headers = Headers::default()
            .text("x-error-message", parked.error_message)
            .optional(ORIGINAL_ID_HEADER, text(ORIGINAL_ID_HEADER));
        for key in ours {
            headers = headers.optional(key, text(key));
        }
        if let Some(attempt) = parked.headers.get("x-attempt").and_then(|value| value.as_i64()) {
            headers = headers.number("x-attempt", attempt.try_into().unwrap_or(i32::MAX));
        }
        Self {
            exchange: String::new(),
            routing_key: FAILED_QUEUE.to_owned(),
            mandatory: true,
            destination: "failed",
            message_id: parked.message_id.to_owned(),
            content_type: parked.content_type.map(str::to_owned),
            headers: failure_headers(headers, parked.reason, parked.failed_at, parked.origin),
            body: parked.body.to_vec(),
        }
    }

    /// Parks a message that can't be understood, its body as it came. `id` names the message, the
    /// same for a repeat.
    pub fn unprocessable(
        id: &str,
        reason: &str,
        at: DateTime<Utc>,
        origin: Origin<'_>,
        original: Original<'_>,
    ) -> Self {
        Self {
            exchange: FAILED_EXCHANGE.to_owned(),
            routing_key: String::new(),
            mandatory: true,
            destination: "failed",
            message_id: format!("unprocessable:{id}"),
            content_type: original.content_type.map(str::to_owned),
            headers: failure_headers(
                Headers::default()
                    .text("x-error-message", reason)
                    .optional(ORIGINAL_ID_HEADER, original.message_id),
                Reason::Unprocessable,
                at,
                origin,
            ),
            body: original.body,
        }
    }

    /// Tells the world how a job ended; `None` for one that goes on.
    pub fn outcome(report: &Report) -> Option<Self> {
        let (outcome, suffix, at) = match &report.ending {
            Ending::Completed { at } => (OutcomeType::Synced, "synced", at),
            Ending::Failed { at, .. } => (OutcomeType::SyncFailed, "sync_failed", at),
            Ending::Retrying { .. } => return None,
        };
        let message_id = format!("{}:{suffix}", report.job.ticket());
        let body = outcome_body(report, outcome, &message_id, *at);
        Some(Self {
            exchange: UPDATES_EXCHANGE.to_owned(),
            routing_key: outcome.as_str().to_owned(),
            mandatory: false,
            destination: "outcome",
            message_id,
            content_type: Some(JSON.to_owned()),
            headers: Headers::default().optional("traceparent", report.job.traceparent.as_deref()),
            body: serde_json::to_vec(&body).expect("an outcome is JSON"),
        })
    }
}

/// The body of a message for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobBody {
    /// The job.
    pub job_id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    pub sync_phase: SyncPhase,
    /// Retries that were scheduled so far.
    pub attempt: i32,
}

/// The body of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeBody {
    r#type: OutcomeType,
    /// The same for a repeat.
    id: String,
    /// When it was written down (RFC 3339).
    #[schema(format = DateTime)]
    time: String,
    signup_id: Uuid,
    job_id: Uuid,
    sync_phase: SyncPhase,
    /// The person identifier that was used.
    contact_id: Option<String>,
    /// Retries that were scheduled.
    attempt_count: i32,
    /// Whether an operator started this run.
    manual_retry: bool,
    /// Of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_type: Option<ErrorType>,
    /// Of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    /// Of a failure: whether all retries were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    exhausted_retries: Option<bool>,
}

text_enum! {
    /// The two outcomes, which are their routing keys, too.
    OutcomeType {
        /// Customer.io has it.
        Synced = "sign_up.customerio_synced",
        /// It has failed.
        SyncFailed = "sign_up.customerio_sync_failed",
    }
}

fn job_body(job: &Job) -> Vec<u8> {
    let body = JobBody {
        job_id: job.id,
        signup_id: job.signup_id,
        sync_phase: job.phase,
        attempt: job.attempt,
    };
    serde_json::to_vec(&body).expect("a job body is JSON")
}

fn job_headers(job: &Job, failure: Option<&Failure>) -> Headers {
    Headers::default()
        .text("x-job-id", job.id.to_string())
        .text("x-signup-id", job.signup_id.to_string())
        .text("x-sync-phase", job.phase.as_str())
        .number("x-attempt", job.attempt)
        .optional("x-error-type", failure.map(|failure| failure.error_type.as_str()))
        .optional("x-error-message", failure.map(|failure| failure.message.as_str()))
        .optional("x-first-failed-at", job.first_failed_at.map(time))
        .optional("traceparent", job.traceparent.as_deref())
}

fn failure_headers(
    headers: Headers,
    reason: Reason,
    at: DateTime<Utc>,
    origin: Origin<'_>,
) -> Headers {
    headers
        .text("x-reason", reason.as_str())
        .text("x-failed-at", time(at))
        .text("x-original-exchange", origin.exchange)
        .text("x-original-routing-key", origin.routing_key)
}

fn outcome_body(report: &Report, r#type: OutcomeType, id: &str, at: DateTime<Utc>) -> OutcomeBody {
    let job = &report.job;
    let failure = match &report.ending {
        Ending::Failed { reason, failure, .. } => Some((failure, *reason == Reason::Exhausted)),
        _ => None,
    };
    OutcomeBody {
        r#type,
        id: id.to_owned(),
        time: time(at),
        signup_id: job.signup_id,
        job_id: job.id,
        sync_phase: job.phase,
        contact_id: report.contact_id.clone(),
        attempt_count: job.attempt,
        manual_retry: job.manual_retry,
        error_type: failure.map(|(failure, _)| failure.error_type),
        error_message: failure.map(|(failure, _)| failure.message.clone()),
        exhausted_retries: failure.map(|(_, is_exhausted)| is_exhausted),
    }
}
