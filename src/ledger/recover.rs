//! Jobs that nobody holds: those that wait for a try that is due, and those whose holder is gone.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Error, Ledger, row::JobColumns};
use crate::job::{Failure, Job, JobMessage, Reason};

/// A failed job of which the mirror has no open failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Unmirrored {
    /// The job.
    pub job: Job,
    /// Why it is not tried again.
    pub reason: Reason,
    /// What went wrong.
    pub failure: Failure,
    /// When it failed.
    pub at: DateTime<Utc>,
}

/// Which messages may be lost: none of its kind waits in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspects {
    /// All.
    All,
    /// Those that come by the jobs queue, while events wait in theirs.
    JobMessages,
}

impl Suspects {
    /// Those there are while so many `events` and messages of the jobs queue wait: a message that
    /// waits may be the one that seems to be lost. There are none while no calls are made
    /// (`is_held`): jobs are long due then.
    pub fn among(events: u32, jobs: u32, is_held: bool) -> Option<Self> {
        if is_held || jobs > 0 {
            return None;
        }
        Some(if events > 0 { Self::JobMessages } else { Self::All })
    }
}

/// The columns of an [`Unmirrored`].
struct UnmirroredRow {
    id: Uuid,
    signup_id: Uuid,
    sync_phase: String,
    run: i32,
    attempt_count: i32,
    max_attempts: i32,
    manual_retry: bool,
    occurred_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
    first_failed_at: Option<DateTime<Utc>>,
    traceparent: Option<String>,
    error_type: String,
    error_message: String,
    failed_reason: Option<String>,
    failed_at: DateTime<Utc>,
}

impl TryFrom<UnmirroredRow> for Unmirrored {
    type Error = Error;

    fn try_from(row: UnmirroredRow) -> Result<Self, Error> {
        let job = Job {
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
        };
        let failure = Failure { error_type: row.error_type.parse()?, message: row.error_message };
        let reason = row.failed_reason.as_deref().map_or(Ok(Reason::Exhausted), str::parse)?;
        Ok(Self { job, reason, failure, at: row.failed_at })
    }
}

impl Ledger {
    /// Pending jobs whose next try is due, oldest first, `limit` at most. Nothing is claimed.
    pub async fn ready(&self, limit: i64) -> Result<Vec<JobMessage>, Error> {
        let rows = sqlx::query!(
            r#"
            SELECT id, signup_id, sync_phase, run, attempt_count
            FROM signup_customerio_sync_jobs
            WHERE status = 'pending' AND (next_retry_at IS NULL OR next_retry_at <= now())
            ORDER BY created_at
            LIMIT $1
            "#,
            limit
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding jobs that are ready"))?;
        let message = |id: Uuid, signup_id, phase: String, run, attempt| {
            Ok(JobMessage { job_id: id, signup_id, phase: phase.parse()?, run: Some(run), attempt })
        };
        rows.into_iter()
            .map(|row| message(row.id, row.signup_id, row.sync_phase, row.run, row.attempt_count))
            .collect()
    }

    /// Pending jobs whose message is among the `suspects`, that have been due for longer than
    /// `overdue` and were not taken here for `again`, oldest first, `limit` at most. Each that is
    /// answered has to be published.
    pub async fn take_overdue(
        &self,
        suspects: Suspects,
        overdue: Duration,
        again: Duration,
        limit: i64,
    ) -> Result<Vec<Job>, Error> {
        let rows = sqlx::query_as!(
            JobColumns,
            r#"
            UPDATE signup_customerio_sync_jobs
            SET resent_at = now()
            WHERE id IN (
                SELECT id
                FROM signup_customerio_sync_jobs
                WHERE status = 'pending'
                    AND COALESCE(next_retry_at, updated_at) < now() - make_interval(secs => $1)
                    AND (resent_at IS NULL OR resent_at < now() - make_interval(secs => $2))
                    -- A job waits for its event again when that has claimed it and nothing has
                    -- come of it yet.
                    AND ($4 OR attempt_count > 0 OR claimed_by IS NULL
                        OR claimed_by NOT LIKE 'event:%')
                ORDER BY created_at
                LIMIT $3
                FOR UPDATE SKIP LOCKED
            )
            RETURNING id, signup_id, sync_phase, run, attempt_count, max_attempts, manual_retry,
            occurred_at,
                created_at, first_failed_at, traceparent
            "#,
            overdue.as_secs_f64(),
            again.as_secs_f64(),
            limit,
            suspects == Suspects::All,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding overdue jobs"))?;
        rows.into_iter().map(Job::try_from).collect()
    }

    /// Jobs that have been failed for longer than `overdue`, of which the mirror has no open
    /// failure, and that were not taken here for `again`, `limit` at most. Each that is answered
    /// has to be parked.
    pub async fn take_unmirrored(
        &self,
        overdue: Duration,
        again: Duration,
        limit: i64,
    ) -> Result<Vec<Unmirrored>, Error> {
        let rows = sqlx::query_as!(
            UnmirroredRow,
            r#"
            UPDATE signup_customerio_sync_jobs
            SET resent_at = now()
            WHERE id IN (
                SELECT j.id
                FROM signup_customerio_sync_jobs j
                WHERE j.status = 'failed' AND j.dismissed_at IS NULL
                    AND j.failed_at < now() - make_interval(secs => $1)
                    AND (j.resent_at IS NULL OR j.resent_at < now() - make_interval(secs => $2))
                    AND NOT EXISTS (SELECT FROM sync_failures f WHERE f.job_id = j.id
                    AND f.resolved_at IS NULL)
                LIMIT $3
                FOR UPDATE SKIP LOCKED
            )
            RETURNING id, signup_id, sync_phase, run, attempt_count, max_attempts, manual_retry,
            occurred_at,
                created_at, first_failed_at, traceparent, error_type AS "error_type!",
                error_message AS "error_message!", failed_reason, failed_at AS "failed_at!"
            "#,
            overdue.as_secs_f64(),
            again.as_secs_f64(),
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding failed jobs that are not mirrored"))?;
        rows.into_iter().map(Unmirrored::try_from).collect()
    }

    /// Puts jobs back to pending that have been processing for over five minutes, and says how
    /// many. Whoever held one can't settle it any more.
    pub async fn cleanup(&self, actor: &str) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"
            WITH reset AS (
                UPDATE signup_customerio_sync_jobs
                SET status = 'pending', claim = NULL, claimed_at = NULL, updated_at = now()
                WHERE status = 'processing'
                    AND COALESCE(claimed_at, last_attempt_at,
                    updated_at) < now() - interval '5 minutes'
                RETURNING id, signup_id, sync_phase
            ), audited AS (
                INSERT INTO audit_logs (action, signup_id, actor, details)
                SELECT 'customerio_cleanup', signup_id, $1, jsonb_build_object('jobId', id,
                'syncPhase', sync_phase)
                FROM reset
            )
            SELECT count(*) AS "count!" FROM reset
            "#,
            actor
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("putting stuck jobs back"))
    }
}
