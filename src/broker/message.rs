//! The messages that this service publishes, built from what the ledger recorded.

use chrono::{DateTime, SecondsFormat, Utc};
use lapin::{BasicProperties, types::ShortString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    header_map::{HeaderMap, Headers},
    names::{
        DEFAULT_EXCHANGE, EVENTS_EXCHANGE, FAILED_EXCHANGE, FAILED_QUEUE, JOBS_EXCHANGE,
        UPDATES_EXCHANGE, WorkQueue, headers, tier_queue,
    },
    original,
};
use crate::{
    event::Rejected,
    job::{
        ErrorType, Failure, Job, JobReport, MessageKind, MessageOrigin, Reason, SyncPhase, Verdict,
    },
    retry::{Ladder, Tier},
    runtime::{text_enum::text_enum, trace::TraceContext},
};

/// A message to publish. Messages are always persistent.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) destination: Destination,
    /// Empty if there is none.
    pub(super) message_id: String,
    pub(super) content_type: Option<String>,
    /// The properties and headers of the message that it parks or replays.
    pub(super) original: BasicProperties,
    pub(super) headers: Headers,
    /// The context that it carries if traces are not exported. Otherwise it carries the context of
    /// the span that publishes it.
    pub(super) trace: TraceContext,
    pub(super) body: Vec<u8>,
}

text_enum! {
    /// The kind of destination of a message, for metrics.
    Destination {
        /// The exchange of the events.
        Event = "event",
        /// A delay tier.
        Tier = "tier",
        /// The failure queue.
        FailureQueue = "failed",
        /// The jobs queue.
        JobsQueue = "jobs",
        /// The work queue that an unprocessable message came from.
        Replay = "replay",
        /// The exchange of the outcomes.
        Outcome = "outcome",
    }
}

/// The origin of a failed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Its exchange.
    pub exchange: &'a str,
    /// Its routing key.
    pub routing_key: &'a str,
}

impl From<Origin<'_>> for MessageOrigin {
    fn from(origin: Origin<'_>) -> Self {
        let Origin { exchange, routing_key } = origin;
        Self { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() }
    }
}

impl<'a> Origin<'a> {
    /// The origin of a message that was delivered from `exchange` with `routing_key`.
    ///
    /// A replay comes through the default exchange, and its headers name the origin of the message
    /// that it replays. They count only if that is an origin of the same work queue, so headers of
    /// a stranger can't lead to another queue.
    pub fn of_delivery(exchange: &'a str, routing_key: &'a str, headers: &'a HeaderMap) -> Self {
        let delivered = Self { exchange, routing_key };
        let text = |key| headers.text(key).unwrap_or_default();
        let named = Self {
            exchange: text(headers::ORIGINAL_EXCHANGE),
            routing_key: text(headers::ORIGINAL_ROUTING_KEY),
        };
        match (delivered.queue(), named.queue()) {
            (Some(queue), Some(of_named)) if exchange == DEFAULT_EXCHANGE && queue == of_named => {
                named
            }
            _ => delivered,
        }
    }

    /// The work queue that received the message. `None` if it came from elsewhere.
    pub fn queue(self) -> Option<WorkQueue> {
        WorkQueue::of_origin(self.exchange, self.routing_key)
    }
}

/// The parts of an unprocessable message that are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct OriginalMessage<'a> {
    /// Its `message_id`.
    pub message_id: Option<&'a str>,
    /// Its properties.
    pub properties: MessageProperties,
    /// Its trace context.
    pub trace: TraceContext,
    /// Its body.
    pub body: Vec<u8>,
}

/// The properties and headers of a message of a publisher.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MessageProperties(BasicProperties);

impl MessageProperties {
    /// Those that the message that parks it keeps.
    pub(super) fn kept(from: &BasicProperties) -> Self {
        Self(original::kept(from))
    }

    /// Those of a stored message: the headers are a JSON object.
    pub fn restored(headers: &serde_json::Value, content_type: Option<&str>) -> Self {
        let properties = original::restored(headers);
        Self(match content_type {
            Some(content_type) => properties.with_content_type(short(content_type)),
            None => properties,
        })
    }
}

/// Truncates to the 255 bytes of an AMQP short string.
pub(super) fn short(text: &str) -> ShortString {
    text[..text.floor_char_boundary(255)].into()
}

/// A failure to park again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReparkedMessage<'a> {
    /// The id of its message.
    pub message_id: &'a str,
    /// Why it is in the failure queue.
    pub reason: Reason,
    /// The error message.
    pub error_message: &'a str,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
    /// The origin of the failed message.
    pub origin: Origin<'a>,
    /// The headers of its message, a JSON object.
    pub headers: &'a serde_json::Value,
    /// Its content type.
    pub content_type: Option<&'a str>,
    /// Its body.
    pub body: &'a [u8],
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
            destination: Destination::Event,
            message_id: Uuid::now_v7().to_string(),
            content_type: Some(content_type.unwrap_or(JSON).to_owned()),
            original: BasicProperties::default(),
            headers: Headers::default(),
            trace: TraceContext::default(),
            body,
        }
    }

    /// The message that makes a job wait on `tier` for its next attempt.
    pub fn retry(job: &Job, tier: &Tier, failure: Option<&Failure>) -> Self {
        Self {
            exchange: tier_queue(tier),
            routing_key: String::new(),
            destination: Destination::Tier,
            message_id: job.attempt_id().to_string(),
            content_type: Some(JSON.to_owned()),
            original: BasicProperties::default(),
            headers: job_headers(job, failure),
            trace: job.trace_context(),
            body: job_body(job),
        }
    }

    /// The message that parks a failed job.
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
            destination: Destination::FailureQueue,
            message_id: format!("{}:failed", job.attempt_id()),
            content_type: Some(JSON.to_owned()),
            original: BasicProperties::default(),
            headers: failure_headers(job_headers(job, Some(failure)), reason, at, origin),
            trace: job.trace_context(),
            body: job_body(job),
        }
    }

    /// The message that asks for the current attempt of `job`.
    pub fn job(job: &Job) -> Self {
        Self {
            exchange: JOBS_EXCHANGE.to_owned(),
            routing_key: String::new(),
            destination: Destination::JobsQueue,
            message_id: job.attempt_id().to_string(),
            content_type: Some(JSON.to_owned()),
            original: BasicProperties::default(),
            headers: job_headers(job, None),
            trace: job.trace_context(),
            body: job_body(job),
        }
    }

    /// The message that replays an unprocessable message of `queue`, with its body unchanged. It
    /// reaches no other queue.
    ///
    /// It carries `failure_id`, so that it is a new failure if it fails again, and its origin, so
    /// that the new failure has the same one.
    pub fn replay(
        failure_id: Uuid,
        queue: WorkQueue,
        origin: Origin<'_>,
        original: OriginalMessage<'_>,
    ) -> Self {
        Self {
            exchange: DEFAULT_EXCHANGE.to_owned(),
            routing_key: queue.name().to_owned(),
            destination: Destination::Replay,
            message_id: original.message_id.unwrap_or_default().to_owned(),
            content_type: None,
            original: original.properties.0,
            headers: Headers::default()
                .text(headers::REPLAY_OF, failure_id.to_string())
                .text(headers::ORIGINAL_EXCHANGE, origin.exchange)
                .text(headers::ORIGINAL_ROUTING_KEY, origin.routing_key),
            trace: original.trace,
            body: original.body,
        }
    }

    /// The message that parks a failure again, in the failure queue alone.
    pub fn reparked(parked: ReparkedMessage<'_>) -> Self {
        // Headers of other origin, such as those that brokers add, are not passed on.
        let text = |key: &str| parked.headers.get(key).and_then(|value| value.as_str());
        let mut fields = Headers::default()
            .text(headers::ERROR_MESSAGE, parked.error_message)
            .optional(headers::ERROR_PATH, text(headers::ERROR_PATH))
            .optional(headers::ORIGINAL_MESSAGE_ID, text(headers::ORIGINAL_MESSAGE_ID));
        for key in headers::OF_JOB {
            fields = fields.optional(key, text(key));
        }
        if let Some(attempt) = parked.headers.get(headers::ATTEMPT).and_then(|value| value.as_i64())
        {
            fields = fields.number(headers::ATTEMPT, attempt.try_into().unwrap_or(i32::MAX));
        }
        Self {
            exchange: DEFAULT_EXCHANGE.to_owned(),
            routing_key: FAILED_QUEUE.to_owned(),
            destination: Destination::FailureQueue,
            message_id: parked.message_id.to_owned(),
            content_type: None,
            original: MessageProperties::restored(parked.headers, parked.content_type).0,
            headers: failure_headers(fields, parked.reason, parked.failed_at, parked.origin),
            trace: TraceContext::new(text(headers::TRACEPARENT), text(headers::TRACESTATE)),
            body: parked.body.to_vec(),
        }
    }

    /// The message that parks an unprocessable message, with its body unchanged. A repeat has the
    /// same `id`.
    pub fn unprocessable(
        id: &str,
        why: &Rejected,
        at: DateTime<Utc>,
        origin: Origin<'_>,
        original: OriginalMessage<'_>,
    ) -> Self {
        Self {
            exchange: FAILED_EXCHANGE.to_owned(),
            routing_key: String::new(),
            destination: Destination::FailureQueue,
            message_id: format!("unprocessable:{id}"),
            content_type: None,
            original: original.properties.0,
            headers: failure_headers(
                Headers::default()
                    .text(headers::ERROR_MESSAGE, why.to_string())
                    .text(headers::ERROR_PATH, &why.path)
                    .optional(headers::ORIGINAL_MESSAGE_ID, original.message_id),
                Reason::Unprocessable,
                at,
                origin,
            ),
            trace: original.trace,
            body: original.body,
        }
    }

    /// The message of this kind that must follow a report. `None` if the report requires none.
    pub fn of_report(kind: MessageKind, report: &JobReport, ladder: &Ladder) -> Option<Self> {
        match (kind, &report.verdict) {
            (MessageKind::Outcomes, _) => Self::outcome(report),
            (MessageKind::Retries, Verdict::Retry { wait, failure, .. }) => {
                Some(Self::retry(&report.job, ladder.waiting_for(*wait), Some(failure)))
            }
            (MessageKind::Failures, Verdict::Fail { reason, failure }) => {
                let origin = report.origin.as_ref();
                let origin = Origin {
                    exchange: origin.map_or(JOBS_EXCHANGE, |origin| &origin.exchange),
                    routing_key: origin.map_or("", |origin| &origin.routing_key),
                };
                Some(Self::failed(&report.job, *reason, failure, report.at, origin))
            }
            _ => None,
        }
    }

    /// The message that publishes the outcome of a job. `None` if the job has not ended.
    pub fn outcome(report: &JobReport) -> Option<Self> {
        let (outcome, suffix) = match &report.verdict {
            Verdict::Complete => (OutcomeType::Synced, "synced"),
            Verdict::Fail { .. } => (OutcomeType::SyncFailed, "sync_failed"),
            Verdict::Retry { .. } => return None,
        };
        let message_id = format!("{}:{suffix}", report.job.attempt_id());
        let body = outcome_body(report, outcome, &message_id);
        Some(Self {
            exchange: UPDATES_EXCHANGE.to_owned(),
            routing_key: outcome.as_str().to_owned(),
            destination: Destination::Outcome,
            message_id,
            content_type: Some(JSON.to_owned()),
            original: BasicProperties::default(),
            headers: Headers::default(),
            trace: report.job.trace_context(),
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
    /// Retries scheduled so far.
    pub attempt: i32,
}

/// The body of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeBody {
    r#type: OutcomeType,
    /// Id of the outcome. A repeat has the same id.
    id: String,
    /// When the outcome was recorded (RFC 3339).
    #[schema(format = DateTime)]
    time: String,
    signup_id: Uuid,
    job_id: Uuid,
    sync_phase: SyncPhase,
    /// The person identifier that was used.
    contact_id: Option<String>,
    /// Retries scheduled.
    attempt_count: i32,
    /// Whether an operator started this run.
    manual_retry: bool,
    /// Whether the job was completed in mock mode, so that Customer.io does not have the data.
    mock: bool,
    /// The kind of error of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_type: Option<ErrorType>,
    /// The error message of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    /// Whether a failure exhausted all retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    exhausted_retries: Option<bool>,
}

/// The fields that every outcome has, whichever release published it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they can be parsed is all that matters")]
struct OutcomeFields {
    r#type: OutcomeType,
    id: String,
    time: DateTime<Utc>,
    signup_id: Uuid,
    job_id: Uuid,
    sync_phase: SyncPhase,
    attempt_count: i32,
    manual_retry: bool,
}

/// Maximum size of an outcome that is passed on. The error message, its longest field, is at most
/// 2 KiB.
const OUTCOME_BYTES_MAX: usize = 64 * 1024;

/// Whether a message of the exchange of the outcomes is one: others may publish there as well.
pub(super) fn is_outcome(routing_key: &str, body: &[u8]) -> bool {
    // A derived `Deserialize` also accepts an array, with the fields in their order.
    body.len() <= OUTCOME_BYTES_MAX
        && body.trim_ascii_start().first() == Some(&b'{')
        && serde_json::from_slice::<OutcomeFields>(body)
            .is_ok_and(|outcome| outcome.r#type.as_str() == routing_key)
}

text_enum! {
    /// The two outcomes. Their texts are also their routing keys.
    OutcomeType {
        /// Customer.io accepted the job, or it was completed in mock mode.
        Synced = "sign_up.customerio_synced",
        /// The job failed.
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
        .text(headers::JOB_ID, job.id.to_string())
        .text(headers::SIGNUP_ID, job.signup_id.to_string())
        .text(headers::SYNC_PHASE, job.phase.as_str())
        .number(headers::ATTEMPT, job.attempt)
        .optional(headers::ERROR_TYPE, failure.map(|failure| failure.error_type.as_str()))
        .optional(headers::ERROR_MESSAGE, failure.map(|failure| failure.message.as_str()))
        .optional(headers::FIRST_FAILED_AT, job.first_failed_at.map(time))
}

fn failure_headers(
    fields: Headers,
    reason: Reason,
    at: DateTime<Utc>,
    origin: Origin<'_>,
) -> Headers {
    fields
        .text(headers::REASON, reason.as_str())
        .text(headers::FAILED_AT, time(at))
        .text(headers::ORIGINAL_EXCHANGE, origin.exchange)
        .text(headers::ORIGINAL_ROUTING_KEY, origin.routing_key)
}

fn outcome_body(report: &JobReport, r#type: OutcomeType, id: &str) -> OutcomeBody {
    let job = &report.job;
    let failure = match &report.verdict {
        Verdict::Fail { reason, failure } => Some((failure, *reason == Reason::Exhausted)),
        _ => None,
    };
    OutcomeBody {
        r#type,
        id: id.to_owned(),
        time: time(report.at),
        signup_id: job.signup_id,
        job_id: job.id,
        sync_phase: job.phase,
        contact_id: report.contact_id.clone(),
        attempt_count: job.attempt,
        manual_retry: job.manual_retry,
        mock: report.mock,
        error_type: failure.map(|(failure, _)| failure.error_type),
        error_message: failure.map(|(failure, _)| failure.message.clone()),
        exhausted_retries: failure.map(|(_, is_exhausted)| is_exhausted),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_a_whole_outcome_with_its_own_routing_key_is_passed_on() {
        let outcome = json!({
            "type": "sign_up.customerio_synced",
            "id": "7:0:0:synced",
            "time": "2025-02-18T12:00:00.000Z",
            "signupId": Uuid::nil(),
            "jobId": Uuid::nil(),
            "syncPhase": "initial",
            "contactId": null,
            "attemptCount": 0,
            "manualRetry": false,
            "aFieldOfALaterRelease": 1,
        });
        let is_outcome = |key, body: &Value| is_outcome(key, body.to_string().as_bytes());
        assert!(is_outcome("sign_up.customerio_synced", &outcome));
        assert!(!is_outcome("sign_up.customerio_sync_failed", &outcome));
        for field in ["type", "id", "time", "signupId", "jobId", "syncPhase"] {
            let mut without = outcome.clone();
            without.as_object_mut().expect("an object").remove(field);
            assert!(!is_outcome("sign_up.customerio_synced", &without), "without {field}");
        }
        for other in [json!({ "type": "x" }), json!([]), json!("x".repeat(70_000))] {
            assert!(!is_outcome("sign_up.customerio_synced", &other), "{other}");
        }
    }
}
