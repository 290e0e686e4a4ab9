//! A job and its signup as the tables have them, and what they are outside of this module.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{Error, arrival::Standing};
use crate::{
    event::{BetSlip, Customer},
    job::{Ending, ErrorType, Failure, Job, Reason, Report, Signup},
};

/// One row of jobs joined with signups. The times that depend on the present are taken by the
/// database's clock.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) signup_id: Uuid,
    pub(super) sync_phase: String,
    pub(super) status: String,
    pub(super) run: i32,
    pub(super) attempt_count: i32,
    pub(super) max_attempts: i32,
    pub(super) manual_retry: bool,
    pub(super) event_id: String,
    pub(super) earlier_events: Option<Vec<String>>,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) first_failed_at: Option<DateTime<Utc>>,
    pub(super) failed_at: Option<DateTime<Utc>>,
    pub(super) failed_reason: Option<String>,
    pub(super) completed_at: Option<DateTime<Utc>>,
    pub(super) error_type: Option<String>,
    pub(super) error_message: Option<String>,
    pub(super) traceparent: Option<String>,
    pub(super) claim: Option<Uuid>,
    pub(super) claimed_by: Option<String>,
    pub(super) contact_id: Option<String>,
    pub(super) now: DateTime<Utc>,
    pub(super) is_stale: bool,
    pub(super) due_in_ms: f64,
    pub(super) operator_id: Option<String>,
    pub(super) operator_name: Option<String>,
    pub(super) customer_id: Option<String>,
    pub(super) email: Option<String>,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    pub(super) phone: Option<String>,
    pub(super) state: Option<String>,
    pub(super) attributes: Value,
    pub(super) extraction_id: Option<String>,
    pub(super) bet_amount: Option<f64>,
    pub(super) team_bet_on: Option<String>,
    pub(super) odds: Option<Value>,
    pub(super) confidence: Option<f64>,
}

/// The columns of a [`Job`].
#[derive(Debug)]
pub(super) struct JobColumns {
    pub(super) id: Uuid,
    pub(super) signup_id: Uuid,
    pub(super) sync_phase: String,
    pub(super) run: i32,
    pub(super) attempt_count: i32,
    pub(super) max_attempts: i32,
    pub(super) manual_retry: bool,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) first_failed_at: Option<DateTime<Utc>>,
    pub(super) traceparent: Option<String>,
}

impl TryFrom<JobColumns> for Job {
    type Error = Error;

    fn try_from(row: JobColumns) -> Result<Self, Error> {
        Ok(Self {
            id: row.id,
            signup_id: row.signup_id,
            phase: row.sync_phase.parse()?,
            run: row.run,
            attempt: row.attempt_count,
            max_attempts: row.max_attempts,
            manual_retry: row.manual_retry,
            occurred_at: row.occurred_at,
            created_at: row.created_at,
            first_failed_at: row.first_failed_at,
            traceparent: row.traceparent,
        })
    }
}

impl Row {
    pub(super) fn standing(&self) -> Result<Standing<'_>, Error> {
        Ok(Standing {
            id: self.id,
            status: self.status.parse()?,
            run: self.run,
            attempt: self.attempt_count,
            event_id: &self.event_id,
            earlier_events: self.earlier_events.as_deref().unwrap_or_default(),
            claimed_by: self.claimed_by.as_deref(),
            is_stale: self.is_stale,
            due_in: self.due_in(),
        })
    }

    fn due_in(&self) -> Duration {
        Duration::from_secs_f64(self.due_in_ms.max(0.0) / 1000.0)
    }

    pub(super) fn job(&self) -> Result<Job, Error> {
        Ok(Job {
            id: self.id,
            signup_id: self.signup_id,
            phase: self.sync_phase.parse()?,
            run: self.run,
            attempt: self.attempt_count,
            max_attempts: self.max_attempts,
            manual_retry: self.manual_retry,
            occurred_at: self.occurred_at,
            created_at: self.created_at,
            first_failed_at: self.first_failed_at,
            traceparent: self.traceparent.clone(),
        })
    }

    pub(super) fn signup(&mut self) -> Signup {
        let bet_slip =
            match (self.bet_amount, self.team_bet_on.take(), self.odds.take(), self.confidence) {
                (Some(bet_amount), Some(team_bet_on), Some(odds), Some(confidence)) => {
                    Some(BetSlip { bet_amount, team_bet_on, odds, confidence })
                }
                _ => None,
            };
        Signup {
            operator_id: self.operator_id.take(),
            operator_name: self.operator_name.take(),
            customer: Customer {
                id: self.customer_id.take(),
                email: self.email.take(),
                first_name: self.first_name.take(),
                last_name: self.last_name.take(),
                phone: self.phone.take(),
                state: self.state.take(),
            },
            attributes: match self.attributes.take() {
                Value::Object(map) => map,
                _ => serde_json::Map::new(),
            },
            extraction_id: self.extraction_id.take(),
            bet_slip,
        }
    }

    /// How the last try ended, for a job that is not processing.
    pub(super) fn report(&self) -> Result<Report, Error> {
        let failure = || -> Result<Failure, Error> {
            let error_type = self.error_type.as_deref().map_or(Ok(ErrorType::Other), str::parse)?;
            Ok(Failure { error_type, message: self.error_message.clone().unwrap_or_default() })
        };
        let ending = if self.status == "completed" {
            Ending::Completed { at: self.completed_at.unwrap_or(self.updated_at) }
        } else if self.status == "failed" {
            let reason = self.failed_reason.as_deref().map_or(Ok(Reason::Exhausted), str::parse)?;
            Ending::Failed {
                reason,
                failure: failure()?,
                at: self.failed_at.unwrap_or(self.updated_at),
            }
        } else {
            Ending::Retrying { failure: failure()?, wait: self.due_in() }
        };
        Ok(Report { job: self.job()?, contact_id: self.contact_id.clone(), ending })
    }
}
