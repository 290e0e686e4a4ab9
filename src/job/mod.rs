//! The vocabulary of a sync job: its phase, its status, the outcome of an attempt.
//!
//! Pure data. The texts in quotes are the ones that the database, the messages and the HTTP
//! responses use.

mod claimant;
mod outbox;
mod signup;
mod work;

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use ulid::Ulid;
use uuid::Uuid;

use crate::{event::EventDetails, runtime::text_enum::text_enum};
pub use claimant::Claimant;
pub use outbox::{MessageKind, OutboxRow, OutboxSender};
pub use signup::{Signup, StatedTimes};
pub use work::{ClaimedJob, Job, JobMessage, JobReport, MessageOrigin, Verdict};

text_enum! {
    /// Which of a signup's two jobs this is.
    SyncPhase {
        /// The person signed up: identify, track `signup_submitted`.
        Initial = "initial",
        /// The bet slip was confirmed: identify with it, track `signup_extraction_confirmed`.
        Enriched = "enriched",
    }
}

text_enum! {
    /// The state of a job.
    Status {
        /// Waits for its message to arrive from a queue or a tier.
        Pending = "pending",
        /// Claimed by one message; a call may be in flight.
        Processing = "processing",
        /// Accepted by Customer.io; it never runs again. Or marked as completed in mock mode; then
        /// an operator may restart it.
        Completed = "completed",
        /// Refused or exhausted; waits for an operator or a new event.
        Failed = "failed",
    }
}

text_enum! {
    /// The kind of error of a failed attempt.
    ErrorType {
        /// 429.
        RateLimit = "rate_limit",
        /// Any 5xx.
        ServerError = "server_error",
        /// Refused, reset, DNS, TLS, timeout.
        Network = "network",
        /// Everything else: refused data, refused credentials, a signup not known yet.
        Other = "other",
    }
}

text_enum! {
    /// Why a message is in the failure queue.
    Reason {
        /// The call after the last tier failed.
        Exhausted = "exhausted",
        /// Customer.io, or one of its documented limits, refused the data.
        Permanent = "permanent",
        /// The message could not be parsed or validated.
        Unprocessable = "unprocessable",
        /// RabbitMQ dead-lettered the message at its delivery limit.
        DeliveryLimit = "delivery-limit",
        /// The message expired in a work queue: by its own time to live, or by that of a policy.
        Expired = "expired",
    }
}

text_enum! {
    /// The cause of a failed attempt. It is set where the failure is created, and stored with the
    /// attempt.
    FailureCause {
        /// No event with the person's e-mail address has arrived.
        SignupUnknown = "signup_unknown",
        /// `customerio.identifier` is `id`, and the person has none.
        IdentifierMissing = "identifier_missing",
        /// A value exceeds a documented limit of Customer.io. No call was made.
        LimitExceeded = "limit_exceeded",
        /// 401 or 403.
        CredentialsRefused = "credentials_refused",
        /// 3xx, 404 or 405: the region or the URL is wrong.
        AddressRefused = "address_refused",
        /// 429.
        RateLimited = "rate_limited",
        /// 5xx.
        ServerError = "server_error",
        /// 408.
        RequestTimeout = "request_timeout",
        /// No complete response: refused, reset, DNS, TLS, timeout.
        NoResponse = "no_response",
        /// A success status with a body that can't be parsed, or that names no item of the call.
        ResponseUnclear = "response_unclear",
        /// Customer.io refused an operation of the job.
        ItemRefused = "item_refused",
        /// 400, 413 or 422: Customer.io refused the request.
        RequestRefused = "request_refused",
        /// Any other status.
        UnexpectedStatus = "unexpected_status",
    }
}

text_enum! {
    /// What an accepted attempt left undone.
    Warning {
        /// The person is identified by the address, so the change of it was not sent.
        EmailNotChanged = "email_not_changed",
    }
}

impl Warning {
    /// Description for an operator.
    pub const fn text(self) -> &'static str {
        match self {
            Self::EmailNotChanged => {
                "the e-mail address has changed, but it identifies the person in Customer.io, so \
                    the change was not applied; change it there"
            }
        }
    }
}

impl FailureCause {
    /// The cause of a failure of which only the HTTP status is known.
    pub const fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::CredentialsRefused,
            300..=399 | 404 | 405 => Self::AddressRefused,
            408 => Self::RequestTimeout,
            429 => Self::RateLimited,
            500..=599 => Self::ServerError,
            207 => Self::ItemRefused,
            400 | 413 | 422 => Self::RequestRefused,
            _ => Self::UnexpectedStatus,
        }
    }

    /// The error type that this cause belongs to.
    pub const fn error_type(self) -> ErrorType {
        match self {
            Self::RateLimited => ErrorType::RateLimit,
            Self::ServerError => ErrorType::ServerError,
            Self::NoResponse => ErrorType::Network,
            _ => ErrorType::Other,
        }
    }
}

impl SyncPhase {
    /// The phase of the job that an event with these details is for.
    pub const fn of(details: &EventDetails) -> Self {
        match details {
            EventDetails::Submitted { .. } => Self::Initial,
            EventDetails::Confirmed { .. } => Self::Enriched,
        }
    }

    /// Name of the event that this phase tracks in Customer.io.
    pub const fn tracked_event(self) -> &'static str {
        match self {
            Self::Initial => "signup_submitted",
            Self::Enriched => "signup_extraction_confirmed",
        }
    }
}

/// A namespace of our own for version 5 UUIDs (RFC 9562, section 5.5).
const NAMESPACE: Uuid = Uuid::from_u128(0x5a6c_9f0e_3b41_4d0b_9a57_c1d0_5e11_2c7d);

/// The id of the tracked event of one signup and phase.
///
/// It depends on nothing else, so every attempt, replica and manual retry sends the same id and
/// Customer.io ignores the repeats. Any 128 bits are a valid ULID (<https://github.com/ulid/spec>);
/// these are a hash, so the time part has no meaning.
pub fn tracked_event_id(signup_id: Uuid, phase: SyncPhase) -> Ulid {
    Ulid(Uuid::new_v5(&NAMESPACE, format!("event:{signup_id}:{phase}").as_bytes()).as_u128())
}

/// One attempt of one job: the job, its run, and the attempt of that run.
///
/// `run` is the number of restarts of the job, by an operator or by a new event; `attempt` is the
/// number of retries that were scheduled in this run. Its text, `JOB:RUN:ATTEMPT`, is the
/// `message_id` of the job's messages: a repeat has the id of the original, a new attempt has a new
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttemptId {
    /// The job.
    pub job_id: Uuid,
    /// Number of restarts before this run.
    pub run: i32,
    /// Retries scheduled so far in this run; 0 for the first call.
    pub attempt: i32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.job_id, self.run, self.attempt)
    }
}

impl AttemptId {
    /// Parses the text that `Display` writes. Anything after a further colon is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        Some(Self {
            job_id: parts.next()?.parse().ok()?,
            run: parts.next()?.parse().ok()?,
            attempt: parts.next()?.parse().ok()?,
        })
    }
}

/// The failure of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind of error, for filters and counters.
    pub error_type: ErrorType,
    /// The cause. `None` if the release that recorded the failure did not store causes.
    pub cause: Option<FailureCause>,
    /// Description for an operator.
    pub message: String,
}

impl Failure {
    /// A failure with the error type that `cause` belongs to.
    pub fn new(cause: FailureCause, message: impl Into<String>) -> Self {
        Self { error_type: cause.error_type(), cause: Some(cause), message: message.into() }
    }
}

/// The result of one attempt: what Customer.io's answer, or the lack of one, means for the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Customer.io accepted the job.
    Accepted,
    /// A retry may succeed.
    Retryable {
        /// The failure.
        failure: Failure,
        /// The pause that Customer.io asked for (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// Sending the same again can't succeed.
    Refused(Failure),
}

impl Outcome {
    /// The failure, unless the job was accepted.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Accepted => None,
            Self::Retryable { failure, .. } | Self::Refused(failure) => Some(failure),
        }
    }

    /// Like `failure`, but mutable.
    pub fn failure_mut(&mut self) -> Option<&mut Failure> {
        match self {
            Self::Accepted => None,
            Self::Retryable { failure, .. } | Self::Refused(failure) => Some(failure),
        }
    }
}

/// One attempt, with its times and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When the call started.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, if there was a response.
    pub http_status: Option<u16>,
    /// Its outcome.
    pub outcome: Outcome,
    /// Whether it was accepted in mock mode, so that no call was made.
    pub mock: bool,
    /// What it left undone, if it is accepted.
    pub warning: Option<Warning>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracked_event_id_depends_on_signup_and_phase_alone() {
        let signup = Uuid::from_u128(7);
        let id = tracked_event_id(signup, SyncPhase::Initial);
        assert_eq!(id, tracked_event_id(signup, SyncPhase::Initial));
        assert_ne!(id, tracked_event_id(signup, SyncPhase::Enriched));
        assert_ne!(id, tracked_event_id(Uuid::from_u128(8), SyncPhase::Initial));
        assert_eq!(Ulid::from_string(&id.to_string()), Ok(id), "it is a valid ULID");
    }

    #[test]
    fn an_attempt_id_parses_its_own_text() {
        let attempt_id = AttemptId { job_id: Uuid::from_u128(1), run: 2, attempt: 3 };
        assert_eq!(AttemptId::parse(&attempt_id.to_string()), Some(attempt_id));
        assert_eq!(AttemptId::parse(&format!("{attempt_id}:failed")), Some(attempt_id));
        assert_eq!(AttemptId::parse("not an id"), None);
    }

    #[test]
    fn an_unknown_text_is_an_error_that_lists_the_known_ones() {
        let error = "done".parse::<Status>().expect_err("no such status");
        assert_eq!(
            error.to_string(),
            r#"unknown value "done", expected one of pending, processing, completed, failed"#
        );
    }
}
