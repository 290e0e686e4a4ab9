//! Everything that is known of one job.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Error, Ledger, audit};
use crate::{
    event::Customer,
    job::{ErrorType, Reason, Signup, Status, SyncPhase},
};

/// A job, its signup, its tries and its audit trail.
#[derive(Debug, Clone, PartialEq)]
pub struct JobDetail {
    /// The job.
    pub job: JobRow,
    /// Its signup.
    pub signup: Signup,
    /// What the signup says of its own synchronisation.
    pub flags: SignupFlags,
    /// Its tries, oldest first.
    pub attempts: Vec<AttemptRow>,
    /// What was done to it, oldest first.
    pub audit: Vec<AuditRow>,
}

/// A job as its row has it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    pub phase: SyncPhase,
    /// Its status.
    pub status: Status,
    /// How often it was started afresh.
    pub run: i32,
    /// Retries that were scheduled in this run.
    pub attempt_count: i32,
    /// Retries allowed in a run.
    pub max_attempts: i32,
    /// When the next try is due.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// When the last call was begun.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// The kind of trouble.
    pub error_type: Option<ErrorType>,
    /// What was said.
    pub error_message: Option<String>,
    /// The message without what differs.
    pub error_signature: Option<String>,
    /// Why no further try is made.
    pub reason: Option<Reason>,
    /// Whether an operator started this run.
    pub manual_retry: bool,
    /// The person identifier of the last try.
    pub contact_id: Option<String>,
    /// The event that made it, or started it afresh.
    pub event_id: String,
    /// When that event happened.
    pub occurred_at: DateTime<Utc>,
    /// When the job was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When the first try of this run failed.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// When it failed for good.
    pub failed_at: Option<DateTime<Utc>>,
    /// When Customer.io took it.
    pub completed_at: Option<DateTime<Utc>>,
    /// When its failure was dismissed.
    pub dismissed_at: Option<DateTime<Utc>>,
    /// Why its failure was dismissed.
    pub dismissed_reason: Option<String>,
}

/// The columns of a signup that say whether Customer.io has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignupFlags {
    /// Customer.io has the person.
    pub synced: bool,
    /// Since when.
    pub synced_at: Option<DateTime<Utc>>,
    /// Under which identifier.
    pub contact_id: Option<String>,
    /// One of its jobs has failed.
    pub sync_failed: bool,
    /// What was said.
    pub sync_error: Option<String>,
}

/// One try.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRow {
    /// The run it belonged to.
    pub run: i32,
    /// Retries that were scheduled before it.
    pub attempt: i32,
    /// When the call was begun.
    pub started_at: DateTime<Utc>,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// The status of the answer, if one came.
    pub http_status: Option<i32>,
    /// The kind of trouble.
    pub error_type: Option<String>,
    /// What was said.
    pub error_message: Option<String>,
    /// Where the job waited for the next try.
    pub tier: Option<String>,
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// What was done.
    pub action: String,
    /// By whom.
    pub actor: String,
    /// With which details.
    pub details: Value,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Tries, and entries of the audit log, in one answer at most: the latest.
const MOST: i64 = 200;

impl Ledger {
    /// All of one job; `None` if there is no such job.
    pub async fn job_detail(&self, id: Uuid) -> Result<Option<JobDetail>, Error> {
        let Some(job) = self.job_row(id).await? else { return Ok(None) };
        let ((signup, flags), attempts, audit) = tokio::try_join!(
            self.signup(job.signup_id),
            self.attempts_of(id),
            self.audit_of(&job)
        )?;
        Ok(Some(JobDetail { job, signup, flags, attempts, audit }))
    }

    async fn job_row(&self, id: Uuid) -> Result<Option<JobRow>, Error> {
        let row = sqlx::query!("SELECT * FROM signup_customerio_sync_jobs WHERE id = $1", id)
            .fetch_optional(&self.pool)
            .await
            .map_err(Error::doing("reading a job"))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(JobRow {
            id: row.id,
            signup_id: row.signup_id,
            phase: row.sync_phase.parse()?,
            status: row.status.parse()?,
            run: row.run,
            attempt_count: row.attempt_count,
            max_attempts: row.max_attempts,
            next_retry_at: row.next_retry_at,
            last_attempt_at: row.last_attempt_at,
            error_type: row.error_type.as_deref().map(str::parse).transpose()?,
            error_message: row.error_message,
            error_signature: row.error_signature,
            reason: row.failed_reason.as_deref().map(str::parse).transpose()?,
            manual_retry: row.manual_retry,
            contact_id: row.contact_id,
            event_id: row.event_id,
            occurred_at: row.occurred_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
            first_failed_at: row.first_failed_at,
            failed_at: row.failed_at,
            completed_at: row.completed_at,
            dismissed_at: row.dismissed_at,
            dismissed_reason: row.dismissed_reason,
        }))
    }

    async fn signup(&self, id: Uuid) -> Result<(Signup, SignupFlags), Error> {
        let row = sqlx::query!("SELECT * FROM signups WHERE id = $1", id)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("reading a signup"))?;
        let bet_slip = match (row.bet_amount, row.team_bet_on, row.odds, row.confidence) {
            (Some(bet_amount), Some(team_bet_on), Some(odds), Some(confidence)) => {
                Some(crate::event::BetSlip { bet_amount, team_bet_on, odds, confidence })
            }
            _ => None,
        };
        let signup = Signup {
            operator_id: row.operator_id,
            operator_name: row.operator_name,
            customer: Customer {
                id: row.customer_id,
                email: row.email,
                first_name: row.first_name,
                last_name: row.last_name,
                phone: row.phone,
                state: row.state,
            },
            attributes: row.attributes.as_object().cloned().unwrap_or_default(),
            extraction_id: row.extraction_id,
            bet_slip,
        };
        let flags = SignupFlags {
            synced: row.customerio_synced,
            synced_at: row.customerio_synced_at,
            contact_id: row.customerio_contact_id,
            sync_failed: row.customerio_sync_failed,
            sync_error: row.customerio_sync_error,
        };
        Ok((signup, flags))
    }

    async fn attempts_of(&self, job: Uuid) -> Result<Vec<AttemptRow>, Error> {
        let attempts = sqlx::query_as!(
            AttemptRow,
            r#"
            SELECT run, attempt, started_at, duration_ms, http_status, error_type, error_message,
            tier
            FROM sync_attempts
            WHERE job_id = $1
            ORDER BY id DESC
            LIMIT $2
            "#,
            job,
            MOST
        );
        let mut attempts =
            attempts.fetch_all(&self.pool).await.map_err(Error::doing("reading attempts"))?;
        attempts.reverse();
        Ok(attempts)
    }

    async fn audit_of(&self, job: &JobRow) -> Result<Vec<AuditRow>, Error> {
        let audit = sqlx::query_as!(
            AuditRow,
            r#"
            SELECT action, actor, details, created_at
            FROM audit_logs
            WHERE signup_id = $1 AND COALESCE(details ->> 'jobId', $2) = $2
            ORDER BY id DESC
            LIMIT $3
            "#,
            job.signup_id,
            job.id.to_string(),
            MOST
        );
        let mut audit =
            audit.fetch_all(&self.pool).await.map_err(Error::doing("reading the audit trail"))?;
        audit.reverse();
        Ok(audit)
    }

    /// The customer of a job, for `actor`, who is written down; `None` if there is no such job.
    pub async fn reveal(&self, id: Uuid, actor: &str) -> Result<Option<Customer>, Error> {
        let Some(job) = self.job_row(id).await? else { return Ok(None) };
        let (signup, _) = self.signup(job.signup_id).await?;
        let mut connection =
            self.pool.acquire().await.map_err(Error::doing("auditing a reveal"))?;
        let details = json!({ "jobId": id, "syncPhase": job.phase });
        let entry =
            audit::Entry { action: "customerio_reveal", signup_id: Some(job.signup_id), details };
        audit::insert(&mut connection, actor, &[entry]).await?;
        Ok(Some(signup.customer))
    }
}
