//! A job with its signup, and the state after an attempt.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AttemptId, Failure, Reason, Signup, SyncPhase};
use crate::runtime::trace::TraceContext;

/// A sync job as the ledger stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: Uuid,
    /// The signup it belongs to.
    pub signup_id: Uuid,
    /// Which of the signup's two jobs it is.
    pub phase: SyncPhase,
    /// Number of restarts.
    pub run: i32,
    /// Retries scheduled in this run.
    pub attempt: i32,
    /// Maximum retries per run.
    pub max_attempts: i32,
    /// Whether an operator started this run.
    pub manual_retry: bool,
    /// Time of its event.
    pub occurred_at: DateTime<Utc>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When the first attempt of this run failed.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// `traceparent` of its event ([`TraceContext`]).
    pub traceparent: Option<String>,
    /// `tracestate` of its event.
    pub tracestate: Option<String>,
}

impl Job {
    /// The next attempt, or the one in flight.
    pub fn attempt_id(&self) -> AttemptId {
        AttemptId { job_id: self.id, run: self.run, attempt: self.attempt }
    }

    /// The trace context of its event.
    pub fn trace_context(&self) -> TraceContext {
        TraceContext::new(self.traceparent.as_deref(), self.tracestate.as_deref())
    }
}

/// A job that was claimed, with everything that a call needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedJob {
    /// The job.
    pub job: Job,
    /// Its signup.
    pub signup: Signup,
}

/// A job after an attempt, as the ledger recorded it. The messages that must follow are built from
/// it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobReport {
    /// The job. If a retry was scheduled, `attempt` includes it.
    pub job: Job,
    /// The person identifier of the attempt.
    pub contact_id: Option<String>,
    /// Where the message that led to it came from. `None` if that is not known.
    pub origin: Option<MessageOrigin>,
    /// The consequence of the attempt.
    pub verdict: Verdict,
    /// Whether the job was completed in mock mode, so that Customer.io does not have the data.
    pub mock: bool,
    /// When that was recorded.
    pub at: DateTime<Utc>,
}

/// Where a message came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageOrigin {
    /// Its exchange.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
}

/// The consequence of an attempt: an end state of the job, or a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted by Customer.io, or in mock mode.
    Complete,
    /// Wait on a delay tier, then make the next attempt.
    Retry {
        /// Name of the tier.
        tier: String,
        /// Time until the next attempt.
        wait: Duration,
        /// The failure of the attempt.
        failure: Failure,
    },
    /// Wait for an operator.
    Fail {
        /// Why no further attempt is made.
        reason: Reason,
        /// The failure of the attempt.
        failure: Failure,
    },
}

impl Verdict {
    /// The failure of the attempt, if it failed.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Complete => None,
            Self::Retry { failure, .. } | Self::Fail { failure, .. } => Some(failure),
        }
    }
}

/// A message that asks for one attempt of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobMessage {
    /// The job.
    pub job_id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    pub phase: SyncPhase,
    /// The run that it belongs to. `None` means the current one.
    pub run: Option<i32>,
    /// The attempt that it asks for.
    pub attempt: i32,
}
