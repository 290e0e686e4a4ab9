//! The words of a sync job: its phase, its status, how a call for it ended.
//!
//! Pure data. The names in quotes are the ones the database, the messages and the HTTP answers use.

mod work;

use std::fmt;

use chrono::{DateTime, Utc};
use ulid::Ulid;
use uuid::Uuid;

use crate::runtime::text_enum::text_enum;
pub use work::{Ending, Job, JobMessage, Report, Signup, Work};

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
    /// Where a job stands.
    Status {
        /// Waits for its message to arrive from a queue or a tier.
        Pending = "pending",
        /// Claimed by one message; a call may be under way.
        Processing = "processing",
        /// Accepted by Customer.io. Never made again.
        Completed = "completed",
        /// Refused or exhausted; waits for an operator or a new event.
        Failed = "failed",
    }
}

text_enum! {
    /// What kind of trouble a call met.
    ErrorType {
        /// 429.
        RateLimit = "rate_limit",
        /// Any 5xx.
        ServerError = "server_error",
        /// Refused, reset, DNS, TLS, time-out.
        Network = "network",
        /// Everything else: refused data, refused credentials, a signup not known yet.
        Other = "other",
    }
}

text_enum! {
    /// Why a message is in the failure queue.
    Reason {
        /// The call after the last tier failed too.
        Exhausted = "exhausted",
        /// Customer.io, or one of its documented limits, refused the data.
        Permanent = "permanent",
        /// The message could not be understood.
        Unprocessable = "unprocessable",
        /// The broker gave the message up after too many deliveries.
        DeliveryLimit = "delivery-limit",
    }
}

impl SyncPhase {
    /// The name of the event that this phase tracks in Customer.io.
    pub const fn tracked_event(self) -> &'static str {
        match self {
            Self::Initial => "signup_submitted",
            Self::Enriched => "signup_extraction_confirmed",
        }
    }
}

/// A namespace of our own for version 5 UUIDs (RFC 9562, section 5.5).
const NAMESPACE: Uuid = Uuid::from_u128(0x5a6c_9f0e_3b41_4d0b_9a57_c1d0_5e11_2c7d);

/// The id of the job of one signup and phase. Every replica derives the same one.
pub fn job_id(signup_id: Uuid, phase: SyncPhase) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("job:{signup_id}:{phase}").as_bytes())
}

/// The id of the tracked event of one signup and phase.
///
/// It depends on nothing else, so every attempt, replica and manual retry sends the same id and
/// Customer.io ignores the repeats. Any 128 bits are a valid ULID (<https://github.com/ulid/spec>);
/// these are a hash, so its time part means nothing.
pub fn tracked_event_id(signup_id: Uuid, phase: SyncPhase) -> Ulid {
    Ulid(Uuid::new_v5(&NAMESPACE, format!("event:{signup_id}:{phase}").as_bytes()).as_u128())
}

/// One try of one job: which job, which run of it, which attempt of that run.
///
/// `run` counts how often the job was started afresh, by hand or by a new event; `attempt` counts
/// the retries that were scheduled in this run. Its text, `job:run:attempt`, is the `message_id` of
/// the job's messages: a repeat has the id of the first, a new try has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The job.
    pub job_id: Uuid,
    /// How often the job was started afresh before.
    pub run: i32,
    /// Retries scheduled so far in this run; 0 on the first call.
    pub attempt: i32,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.job_id, self.run, self.attempt)
    }
}

impl Ticket {
    /// Reads the text that `Display` writes; anything after a further colon is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        Some(Self {
            job_id: parts.next()?.parse().ok()?,
            run: parts.next()?.parse().ok()?,
            attempt: parts.next()?.parse().ok()?,
        })
    }
}

/// What went wrong in one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind, for filters and counters.
    pub error_type: ErrorType,
    /// What happened, in words for an operator.
    pub message: String,
}

/// How one try of one job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Customer.io took it.
    Accepted,
    /// Trying again may help.
    Retryable {
        /// What went wrong.
        failure: Failure,
        /// How long Customer.io asked to be left alone, if it did.
        retry_after: Option<std::time::Duration>,
    },
    /// Trying the same again can't help.
    Refused(Failure),
}

/// One try, measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When the call was begun.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: std::time::Duration,
    /// The HTTP status, if an answer came.
    pub http_status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
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
    fn a_ticket_reads_what_it_writes() {
        let ticket = Ticket { job_id: Uuid::from_u128(1), run: 2, attempt: 3 };
        assert_eq!(Ticket::parse(&ticket.to_string()), Some(ticket));
        assert_eq!(Ticket::parse(&format!("{ticket}:failed")), Some(ticket));
        assert_eq!(Ticket::parse("not a ticket"), None);
    }

    #[test]
    fn an_unknown_text_is_told_what_is_known() {
        let error = "done".parse::<Status>().expect_err("no such status");
        assert_eq!(
            error.to_string(),
            r#"unknown value "done", expected one of pending, processing, completed, failed"#
        );
    }
}
