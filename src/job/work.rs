//! A job with what is known of its signup, and how a try of it ended.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Failure, Reason, SyncPhase, Ticket};
use crate::event::{BetSlip, Customer};

/// A sync job as the ledger has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id, the same on every replica ([`super::job_id`]).
    pub id: Uuid,
    /// The signup it belongs to.
    pub signup_id: Uuid,
    /// Which of the signup's two jobs it is.
    pub phase: SyncPhase,
    /// How often it was started afresh.
    pub run: i32,
    /// Retries scheduled in this run.
    pub attempt: i32,
    /// Retries allowed in a run.
    pub max_attempts: i32,
    /// Whether an operator started this run.
    pub manual_retry: bool,
    /// When its event happened.
    pub occurred_at: DateTime<Utc>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When the first try of this run failed.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// The trace its event belongs to.
    pub traceparent: Option<String>,
}

impl Job {
    /// The try that is next, or under way.
    pub fn ticket(&self) -> Ticket {
        Ticket { job_id: self.id, run: self.run, attempt: self.attempt }
    }
}

/// What is known of a signup.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signup {
    /// The operator the person signed up with.
    pub operator_id: Option<String>,
    /// Its name.
    pub operator_name: Option<String>,
    /// The person. Without an e-mail address the signup is not known yet.
    pub customer: Customer,
    /// Passed through to the profile.
    pub attributes: Map<String, Value>,
    /// The extraction that read the bet slip.
    pub extraction_id: Option<String>,
    /// The bet slip, once it was confirmed.
    pub bet_slip: Option<BetSlip>,
}

/// A job that was claimed, with all that a call needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The job.
    pub job: Job,
    /// Its signup.
    pub signup: Signup,
}

/// Where a job stands after a try, as the ledger has written it down.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The job. After a retry was scheduled, its attempt counts that retry.
    pub job: Job,
    /// The person identifier of the try.
    pub contact_id: Option<String>,
    /// How the try ended.
    pub ending: Ending,
}

/// How a try ended for its job.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// Customer.io has it.
    Completed {
        /// When that was written down.
        at: DateTime<Utc>,
    },
    /// It waits for its next try.
    Retrying {
        /// What went wrong.
        failure: Failure,
        /// How long it has to wait from now.
        wait: Duration,
    },
    /// It waits for an operator.
    Failed {
        /// Why no further try is made.
        reason: Reason,
        /// What went wrong.
        failure: Failure,
        /// When that was written down.
        at: DateTime<Utc>,
    },
}

/// A message that asks for one try of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobMessage {
    /// The job.
    pub job_id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    pub phase: SyncPhase,
    /// The run it belongs to; without one, whichever is current.
    pub run: Option<i32>,
    /// The attempt it asks for.
    pub attempt: i32,
}

impl Report {
    /// How it ended, in one word for logs.
    pub fn ending_name(&self) -> &'static str {
        match self.ending {
            Ending::Completed { .. } => "completed",
            Ending::Retrying { .. } => "retrying",
            Ending::Failed { .. } => "failed",
        }
    }
}
