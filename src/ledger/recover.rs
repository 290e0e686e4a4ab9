//! Jobs that nobody holds: those that wait for a try that is due, and those whose holder is gone.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Ledger, row::JobColumns};
use crate::job::{Job, JobMessage};

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
        rows.into_iter().map(|row| message(row.id, row.signup_id, row.sync_phase, row.run, row.attempt_count)).collect()
    }

    /// Pending jobs that have been due for longer than `overdue` and were not taken here for `again`, oldest first,
    /// `limit` at most. Each that is answered has to be published.
    pub async fn take_overdue(&self, overdue: Duration, again: Duration, limit: i64) -> Result<Vec<Job>, Error> {
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
                ORDER BY created_at
                LIMIT $3
                FOR UPDATE SKIP LOCKED
            )
            RETURNING id, signup_id, sync_phase, run, attempt_count, max_attempts, manual_retry, occurred_at,
                created_at, first_failed_at, traceparent
            "#,
            overdue.as_secs_f64(),
            again.as_secs_f64(),
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding overdue jobs"))?;
        rows.into_iter().map(Job::try_from).collect()
    }

    /// Puts jobs back to pending that have been processing for over five minutes, and says how many. Whoever held one
    /// can't settle it any more.
    pub async fn cleanup(&self, actor: &str) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"
            WITH reset AS (
                UPDATE signup_customerio_sync_jobs
                SET status = 'pending', claim = NULL, claimed_at = NULL, updated_at = now()
                WHERE status = 'processing'
                    AND COALESCE(claimed_at, last_attempt_at, updated_at) < now() - interval '5 minutes'
                RETURNING id, signup_id, sync_phase
            ), audited AS (
                INSERT INTO audit_logs (action, signup_id, actor, details)
                SELECT 'customerio_cleanup', signup_id, $1, jsonb_build_object('jobId', id, 'syncPhase', sync_phase)
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
