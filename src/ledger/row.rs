//! Jobs and signups, as the claiming transaction reads them.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::types::Json;
use uuid::Uuid;

use super::arrival::JobSnapshot;
use crate::{
    event::{BetSlip, Customer, Number, Scalar},
    job::{
        Claimant, ErrorType, Failure, Job, JobReport, Reason, Signup, StatedTimes, Status,
        SyncPhase, Verdict,
    },
    runtime::text_enum::known,
};

/// A row of the jobs. Times that depend on the present are computed by the database's clock.
#[derive(Debug)]
pub(super) struct JobRow {
    pub(super) id: Uuid,
    pub(super) signup_id: Uuid,
    pub(super) sync_phase: SyncPhase,
    pub(super) status: Status,
    pub(super) run: i32,
    pub(super) attempt_count: i32,
    pub(super) max_attempts: i32,
    pub(super) manual_retry: bool,
    pub(super) event_id: String,
    pub(super) earlier_events: Option<Vec<String>>,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) stated_at: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) first_failed_at: Option<DateTime<Utc>>,
    pub(super) failed_at: Option<DateTime<Utc>>,
    /// A text, since a newer release may have written it.
    pub(super) failed_reason: Option<String>,
    pub(super) completed_at: Option<DateTime<Utc>>,
    pub(super) mock: bool,
    pub(super) error_type: Option<ErrorType>,
    pub(super) error_message: Option<String>,
    pub(super) traceparent: Option<String>,
    pub(super) tracestate: Option<String>,
    pub(super) claim: Option<Uuid>,
    pub(super) claimed_by: Option<Claimant>,
    pub(super) contact_id: Option<String>,
    pub(super) is_stale: bool,
    pub(super) owner_is_gone: Option<bool>,
    pub(super) due_in_ms: f64,
}

impl JobRow {
    pub(super) fn snapshot(&self) -> JobSnapshot<'_> {
        JobSnapshot {
            id: self.id,
            status: self.status,
            run: self.run,
            attempt: self.attempt_count,
            event_id: &self.event_id,
            earlier_events: self.earlier_events.as_deref().unwrap_or_default(),
            claimed_by: self.claimed_by.as_ref(),
            is_stale: self.is_stale,
            owner_is_gone: self.owner_is_gone,
            due_in: self.due_in(),
        }
    }

    fn due_in(&self) -> Duration {
        Duration::from_secs_f64(self.due_in_ms.max(0.0) / 1000.0)
    }

    pub(super) fn job(&self) -> Job {
        Job {
            id: self.id,
            signup_id: self.signup_id,
            phase: self.sync_phase,
            run: self.run,
            attempt: self.attempt_count,
            max_attempts: self.max_attempts,
            manual_retry: self.manual_retry,
            occurred_at: self.occurred_at,
            created_at: self.created_at,
            first_failed_at: self.first_failed_at,
            traceparent: self.traceparent.clone(),
            tracestate: self.tracestate.clone(),
        }
    }

    /// How the last attempt ended, for a job that is not processing.
    pub(super) fn report(&self) -> JobReport {
        let failure = || Failure {
            error_type: self.error_type.unwrap_or(ErrorType::Other),
            cause: None,
            message: self.error_message.clone().unwrap_or_default(),
        };
        let (verdict, at) = match self.status {
            Status::Completed => (Verdict::Complete, self.completed_at),
            Status::Failed => {
                let reason = known(self.failed_reason.as_deref()).unwrap_or(Reason::Exhausted);
                (Verdict::Fail { reason, failure: failure() }, self.failed_at)
            }
            Status::Pending | Status::Processing => {
                let (tier, wait) = (String::new(), self.due_in());
                (Verdict::Retry { tier, wait, failure: failure() }, None)
            }
        };
        JobReport {
            job: self.job(),
            contact_id: self.contact_id.clone(),
            origin: None,
            verdict,
            mock: self.mock,
            at: at.unwrap_or(self.updated_at),
        }
    }
}

/// A row of `lock_signups.sql`: the time of the transaction, and a signup if there is one.
#[derive(Debug)]
pub(super) struct SignupRow {
    pub(super) now: DateTime<Utc>,
    pub(super) id: Option<Uuid>,
    pub(super) operator_id: Option<String>,
    pub(super) operator_name: Option<String>,
    pub(super) customer_id: Option<String>,
    pub(super) email: Option<String>,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    pub(super) phone: Option<String>,
    pub(super) state: Option<String>,
    pub(super) attributes: Option<Json<BTreeMap<String, Box<RawValue>>>>,
    pub(super) customer_as_of: Option<DateTime<Utc>>,
    pub(super) submitted_at: Option<DateTime<Utc>>,
    pub(super) extraction_id: Option<String>,
    pub(super) bet_amount: Option<f64>,
    pub(super) team_bet_on: Option<String>,
    pub(super) odds: Option<Json<Box<RawValue>>>,
    pub(super) confidence: Option<f64>,
    pub(super) confirmed_at: Option<DateTime<Utc>>,
    pub(super) value_times: Option<Json<StoredTimes>>,
    pub(super) exact_numbers: Option<Json<BTreeMap<String, Box<RawValue>>>>,
    pub(super) contact_id: Option<String>,
    pub(super) is_contact_accepted: Option<bool>,
}

impl SignupRow {
    pub(super) fn signup(self) -> Signup {
        let Json(mut exact) = self.exact_numbers.unwrap_or_default();
        let mut number = |name: &str, rounded: f64| Number::stored(rounded, exact.remove(name));
        let bet_slip = match (self.bet_amount, self.team_bet_on, self.odds, self.confidence) {
            (Some(bet_amount), Some(team_bet_on), Some(Json(odds)), Some(confidence)) => {
                Some(BetSlip {
                    bet_amount: number("bet_amount", bet_amount),
                    team_bet_on,
                    odds: Scalar::stored(odds),
                    confidence: number("confidence", confidence),
                })
            }
            _ => None,
        };
        let Json(attributes) = self.attributes.unwrap_or_default();
        let attributes = attributes.into_iter();
        let (customer, submission) = (self.customer_as_of, self.submitted_at);
        let times = self.value_times.map(|Json(times)| times).unwrap_or_default();
        Signup {
            operator_id: self.operator_id,
            operator_name: self.operator_name,
            customer: Customer {
                id: self.customer_id,
                email: self.email,
                first_name: self.first_name,
                last_name: self.last_name,
                phone: self.phone,
                state: self.state,
            },
            attributes: attributes.map(|(name, json)| (name, Scalar::stored(json))).collect(),
            extraction_id: self.extraction_id,
            bet_slip,
            stated: StatedTimes {
                customer,
                submission,
                confirmation: self.confirmed_at,
                older: times.valid(customer, submission),
            },
            contact_id: self.contact_id,
            is_contact_accepted: self.is_contact_accepted.unwrap_or(false),
        }
    }
}

/// The column `value_times`. The release before does not write it, but it may change the columns
/// that it refers to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct StoredTimes {
    /// The `customer_as_of` that the times of values about the person belong to.
    customer: Option<DateTime<Utc>>,
    /// The `submitted_at` that the other times belong to.
    submission: Option<DateTime<Utc>>,
    values: BTreeMap<String, DateTime<Utc>>,
}

impl StoredTimes {
    /// `None` if no time has to be stored.
    pub(super) fn of(stated: &StatedTimes) -> Option<Self> {
        let StatedTimes { customer, submission, older, .. } = stated;
        (!older.is_empty()).then(|| Self {
            customer: *customer,
            submission: *submission,
            values: older.clone(),
        })
    }

    /// The times that belong to the present columns.
    fn valid(
        self,
        customer: Option<DateTime<Utc>>,
        submission: Option<DateTime<Utc>>,
    ) -> BTreeMap<String, DateTime<Utc>> {
        let (of_customer, of_submission) =
            (self.customer == customer, self.submission == submission);
        let mut values = self.values;
        values.retain(
            |name, _| {
                if StatedTimes::is_of_customer(name) { of_customer } else { of_submission }
            },
        );
        values
    }
}
