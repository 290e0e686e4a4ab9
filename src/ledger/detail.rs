//! Everything that is known about one job.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    row::SignupRow,
};
use crate::{
    event::Customer,
    job::{ErrorType, Signup, Status, SyncPhase},
};

/// A job, its signup, its attempts and its audit trail.
#[derive(Debug, Clone, PartialEq)]
pub struct JobDetail {
    /// The job.
    pub job: StoredJob,
    /// Its signup.
    pub signup: Signup,
    /// The flags of the signup.
    pub flags: SignupFlags,
    /// Its latest attempts, oldest first.
    pub attempts: Vec<StoredAttempt>,
    /// Whether it has earlier attempts.
    pub has_earlier_attempts: bool,
    /// The latest entries of its audit trail, oldest first.
    pub audit: Vec<StoredAudit>,
    /// Whether its audit trail has earlier entries.
    pub has_earlier_audit: bool,
}

/// A job as its row stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredJob {
    /// Its id.
    pub id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    pub phase: SyncPhase,
    /// Its status.
    pub status: Status,
    /// Number of restarts.
    pub run: i32,
    /// Retries scheduled in this run.
    pub attempt_count: i32,
    /// Maximum retries per run.
    pub max_attempts: i32,
    /// When the next attempt is due.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// When the last call started.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// The kind of error.
    pub error_type: Option<ErrorType>,
    /// The error message.
    pub error_message: Option<String>,
    /// The error signature.
    pub error_signature: Option<String>,
    /// Why no further attempt is made. A text, since a newer release may have written it.
    pub reason: Option<String>,
    /// Whether an operator started this run.
    pub manual_retry: bool,
    /// Whether it was completed in mock mode and not sent since.
    pub mock: bool,
    /// The person identifier of the last attempt.
    pub contact_id: Option<String>,
    /// The event that created or last restarted it.
    pub event_id: String,
    /// Time of that event.
    pub occurred_at: DateTime<Utc>,
    /// The time that the event stated, if it was too far ahead and was replaced.
    pub stated_at: Option<DateTime<Utc>>,
    /// What it did not do, if it is completed. A text, since a newer release may have written it.
    pub warning: Option<String>,
    /// When the job was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When the first attempt of this run failed.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// When the job failed.
    pub failed_at: Option<DateTime<Utc>>,
    /// When Customer.io accepted it.
    pub completed_at: Option<DateTime<Utc>>,
    /// When its failure was dismissed.
    pub dismissed_at: Option<DateTime<Utc>>,
    /// Why its failure was dismissed.
    pub dismissed_reason: Option<String>,
}

/// The flags of a signup that say whether Customer.io has the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignupFlags {
    /// Customer.io has the person.
    pub synced: bool,
    /// When one of its jobs was last completed.
    pub synced_at: Option<DateTime<Utc>>,
    /// The person identifier.
    pub contact_id: Option<String>,
    /// One of its jobs has failed.
    pub sync_failed: bool,
    /// The error message of that job.
    pub sync_error: Option<String>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAttempt {
    /// The run that it belongs to.
    pub run: i32,
    /// Retries scheduled before it.
    pub attempt: i32,
    /// When the call started.
    pub started_at: DateTime<Utc>,
    /// Its duration in milliseconds.
    pub duration_ms: f64,
    /// The HTTP status, if there was a response.
    pub http_status: Option<i32>,
    /// The kind of error.
    pub error_type: Option<ErrorType>,
    /// The cause of its failure. A text, since a newer release may have written it.
    pub error_cause: Option<String>,
    /// The error message.
    pub error_message: Option<String>,
    /// The tier in which the job waited for the next attempt.
    pub tier: Option<String>,
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAudit {
    /// The action. A text, since a newer release may have written it.
    pub action: String,
    /// The actor.
    pub actor: String,
    /// The details, a JSON object.
    pub details: Value,
    /// When it was done.
    pub created_at: DateTime<Utc>,
}

/// Maximum attempts, and maximum audit entries, in one response: the latest.
const HISTORY_ROWS_MAX: i64 = 200;

impl Ledger {
    /// Everything about one job. `None` if it does not exist.
    pub async fn job_detail(&self, id: Uuid) -> Result<Option<JobDetail>, Error> {
        let Some(job) = self.stored_job(id).await? else { return Ok(None) };
        let (signup, flags, attempts, audit) = tokio::try_join!(
            self.signup(job.signup_id),
            self.flags_of(job.signup_id),
            self.attempts_of(id),
            self.audit_of(&job)
        )?;
        let (attempts, has_earlier_attempts) = latest(attempts);
        let (audit, has_earlier_audit) = latest(audit);
        Ok(Some(JobDetail {
            job,
            signup,
            flags,
            attempts,
            has_earlier_attempts,
            audit,
            has_earlier_audit,
        }))
    }

    async fn stored_job(&self, id: Uuid) -> Result<Option<StoredJob>, Error> {
        sqlx::query_as!(
            StoredJob,
            r#"
            SELECT id, signup_id, sync_phase AS "phase: _", status AS "status: _", run,
                attempt_count, max_attempts, next_retry_at, last_attempt_at,
                error_type AS "error_type: _", error_message, error_signature,
                failed_reason AS reason, manual_retry, mock, contact_id, event_id, occurred_at,
                stated_at, warning, created_at, updated_at, first_failed_at, failed_at,
                completed_at, dismissed_at, dismissed_reason
            FROM signup_customerio_sync_jobs
            WHERE id = $1
            "#,
            id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading a job"))
    }

    async fn signup(&self, id: Uuid) -> Result<Signup, Error> {
        let row = sqlx::query_file_as!(SignupRow, "src/ledger/read_signup.sql", id)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("reading a signup"))?;
        Ok(row.signup())
    }

    async fn flags_of(&self, signup: Uuid) -> Result<SignupFlags, Error> {
        sqlx::query_as!(
            SignupFlags,
            r#"
            SELECT customerio_synced AS synced, customerio_synced_at AS synced_at,
                customerio_contact_id AS contact_id, customerio_sync_failed AS sync_failed,
                customerio_sync_error AS sync_error
            FROM signups
            WHERE id = $1
            "#,
            signup
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("reading the flags of a signup"))
    }

    /// The attempts of a job, latest first: one more than a response contains.
    async fn attempts_of(&self, job: Uuid) -> Result<Vec<StoredAttempt>, Error> {
        let attempts = sqlx::query_as!(
            StoredAttempt,
            r#"
            SELECT run, attempt, started_at, duration_ms, http_status,
                error_type AS "error_type: _", error_cause, error_message, tier
            FROM sync_attempts
            WHERE job_id = $1
            ORDER BY id DESC
            LIMIT $2
            "#,
            job,
            HISTORY_ROWS_MAX + 1
        );
        attempts.fetch_all(&self.pool).await.map_err(Error::doing("reading attempts"))
    }

    /// The audit trail of a job, latest first: one entry more than a response contains.
    async fn audit_of(&self, job: &StoredJob) -> Result<Vec<StoredAudit>, Error> {
        let audit = sqlx::query_as!(
            StoredAudit,
            r#"
            SELECT action, actor, details, created_at
            FROM audit_logs
            WHERE signup_id = $1 AND COALESCE(details ->> 'jobId', $2) = $2
            ORDER BY id DESC
            LIMIT $3
            "#,
            job.signup_id,
            job.id.to_string(),
            HISTORY_ROWS_MAX + 1
        );
        audit.fetch_all(&self.pool).await.map_err(Error::doing("reading the audit trail"))
    }

    /// Returns the customer of a job unmasked, and records in the audit log that `actor` revealed
    /// it. `None` if the job does not exist.
    pub async fn reveal(&self, id: Uuid, actor: &str) -> Result<Option<Customer>, Error> {
        let Some(job) = self.stored_job(id).await? else { return Ok(None) };
        let signup = self.signup(job.signup_id).await?;
        let mut connection =
            self.pool.acquire().await.map_err(Error::doing("recording a reveal"))?;
        let details = json!({ "jobId": id, "syncPhase": job.phase });
        let entry =
            AuditEntry { action: AuditAction::Reveal, signup_id: Some(job.signup_id), details };
        audit::insert(&mut connection, actor, &[entry]).await?;
        Ok(Some(signup.customer))
    }
}

/// The rows of a response, oldest first, and whether there are earlier ones. `rows` are in the
/// reverse order.
fn latest<T>(mut rows: Vec<T>) -> (Vec<T>, bool) {
    let rows_max = HISTORY_ROWS_MAX as usize;
    let has_earlier = rows.len() > rows_max;
    rows.truncate(rows_max);
    rows.reverse();
    (rows, has_earlier)
}
