//! The messages that go out, made from what the ledger has written down.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    headers::Headers,
    topology::{EVENTS_EXCHANGE, FAILED_EXCHANGE, UPDATES_EXCHANGE, tier_name},
};
use crate::{
    job::{Ending, Failure, Job, Reason, Report},
    retry::Tier,
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

const JSON: &str = "application/json";

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Message {
    /// An event, as an upstream service publishes it.
    pub fn event(routing_key: &str, content_type: Option<&str>, body: Vec<u8>) -> Self {
        Self {
            exchange: EVENTS_EXCHANGE.to_owned(),
            routing_key: routing_key.to_owned(),
            // The topology is applied before, so there is a queue; pipelining on one channel is many times faster.
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
    pub fn failed(job: &Job, reason: Reason, failure: &Failure, at: DateTime<Utc>, origin: Origin<'_>) -> Self {
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

    /// Parks a message that can't be understood, its body as it came. `id` names the message, the same for a repeat.
    pub fn unprocessable(
        id: &str,
        reason: &str,
        at: DateTime<Utc>,
        origin: Origin<'_>,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> Self {
        Self {
            exchange: FAILED_EXCHANGE.to_owned(),
            routing_key: String::new(),
            mandatory: true,
            destination: "failed",
            message_id: format!("unprocessable:{id}"),
            content_type: content_type.map(str::to_owned),
            headers: failure_headers(
                Headers::default().text("x-error-message", reason),
                Reason::Unprocessable,
                at,
                origin,
            ),
            body,
        }
    }

    /// Tells the world how a job ended; `None` for one that goes on.
    pub fn outcome(report: &Report) -> Option<Self> {
        let (routing_key, suffix, at) = match &report.ending {
            Ending::Completed { at } => ("sign_up.customerio_synced", "synced", at),
            Ending::Failed { at, .. } => ("sign_up.customerio_sync_failed", "sync_failed", at),
            Ending::Retrying { .. } => return None,
        };
        let message_id = format!("{}:{suffix}", report.job.ticket());
        let body = outcome_body(report, routing_key, &message_id, *at);
        Some(Self {
            exchange: UPDATES_EXCHANGE.to_owned(),
            routing_key: routing_key.to_owned(),
            mandatory: false,
            destination: "outcome",
            message_id,
            content_type: Some(JSON.to_owned()),
            headers: Headers::default().optional("traceparent", report.job.traceparent.as_deref()),
            body: body.to_string().into_bytes(),
        })
    }
}

fn job_body(job: &Job) -> Vec<u8> {
    let body = json!({
        "job_id": job.id,
        "signup_id": job.signup_id,
        "sync_phase": job.phase.as_str(),
        "attempt": job.attempt,
    });
    body.to_string().into_bytes()
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

fn failure_headers(headers: Headers, reason: Reason, at: DateTime<Utc>, origin: Origin<'_>) -> Headers {
    headers
        .text("x-reason", reason.as_str())
        .text("x-failed-at", time(at))
        .text("x-original-exchange", origin.exchange)
        .text("x-original-routing-key", origin.routing_key)
}

fn outcome_body(report: &Report, event_type: &str, id: &str, at: DateTime<Utc>) -> Value {
    let job = &report.job;
    let mut body = json!({
        "type": event_type,
        "id": id,
        "time": time(at),
        "signupId": job.signup_id,
        "jobId": job.id,
        "syncPhase": job.phase.as_str(),
        "contactId": report.contact_id,
        "attemptCount": job.attempt,
        "manualRetry": job.manual_retry,
    });
    if let Ending::Failed { reason, failure, .. } = &report.ending {
        body["errorType"] = failure.error_type.as_str().into();
        body["errorMessage"] = failure.message.as_str().into();
        body["exhaustedRetries"] = (*reason == Reason::Exhausted).into();
    }
    body
}
