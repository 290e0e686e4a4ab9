//! Jobs that no message would advance: those whose message is lost, and those whose owner is gone.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Error, Ledger, audit::AuditAction};
use crate::{
    job::{ErrorType, Failure, Job, JobMessage, Reason, SyncPhase},
    runtime::{text_enum::known, trace::TraceContext},
};

/// A job that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyJob {
    /// The attempt that is due.
    pub message: JobMessage,
    /// The trace context of its event.
    pub trace: TraceContext,
}

/// A failed job without an open failure in the mirror.
#[derive(Debug, Clone, PartialEq)]
pub struct Unmirrored {
    /// The job.
    pub job: Job,
    /// Why no further attempt is made.
    pub reason: Reason,
    /// Its failure.
    pub failure: Failure,
    /// When it failed.
    pub at: DateTime<Utc>,
}

/// The overdue jobs whose message may be lost: no message of their kind waits in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostMessageScope {
    /// All overdue jobs.
    All,
    /// The jobs whose message comes from the jobs queue, while events wait in their queues.
    JobMessages,
}

/// Messages that wait in the work queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingMessages {
    /// Events of both types.
    pub events: u32,
    /// Messages of the jobs queue.
    pub jobs: u32,
}

impl LostMessageScope {
    /// Returns the jobs whose message counts as lost while these messages wait. `None` if no job
    /// does: a waiting message may be the missing one, and while calls are paused, jobs become
    /// overdue without a loss.
    pub fn for_backlog(waiting: WaitingMessages, calls_are_paused: bool) -> Option<Self> {
        if calls_are_paused || waiting.jobs > 0 {
            return None;
        }
        Some(if waiting.events > 0 { Self::JobMessages } else { Self::All })
    }
}

/// When a job's message counts as lost, and how many jobs are handled at a time.
#[derive(Debug, Clone, Copy)]
pub struct RecoveryLimits {
    /// Time after which a pending job is overdue, or a failed job should be mirrored.
    pub overdue_after: Duration,
    /// Minimum time between two messages that recovery publishes for one job.
    pub resend_after: Duration,
    /// Maximum jobs.
    pub jobs: i64,
}

impl Ledger {
    /// Returns at most `limit` pending jobs that are due, oldest first. It claims nothing.
    pub async fn ready(&self, limit: i64) -> Result<Vec<ReadyJob>, Error> {
        let rows = sqlx::query!(
            r#"
            SELECT j.id, j.signup_id, j.sync_phase AS "sync_phase: SyncPhase", j.run,
                j.attempt_count, j.traceparent, j.tracestate
            FROM open_jobs o
            JOIN signup_customerio_sync_jobs j ON j.id = o.id
            WHERE o.state = 'pending' AND o.due_at <= now()
            ORDER BY o.created_at
            LIMIT $1
            "#,
            limit
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding jobs that are ready"))?;
        let jobs = rows.into_iter().map(|row| ReadyJob {
            message: JobMessage {
                job_id: row.id,
                signup_id: row.signup_id,
                phase: row.sync_phase,
                run: Some(row.run),
                attempt: row.attempt_count,
            },
            trace: TraceContext::new(row.traceparent.as_deref(), row.tracestate.as_deref()),
        });
        Ok(jobs.collect())
    }

    /// Takes pending jobs that are overdue, oldest first. The caller publishes a message for each.
    pub async fn take_overdue(&self, limits: RecoveryLimits) -> Result<Vec<Job>, Error> {
        sqlx::query_as!(
            Job,
            r#"
            UPDATE signup_customerio_sync_jobs
            SET resent_at = now()
            WHERE id IN (
                SELECT j.id
                FROM open_jobs o
                JOIN signup_customerio_sync_jobs j ON j.id = o.id
                WHERE o.state = 'pending' AND o.due_at < now() - make_interval(secs => $1)
                    AND j.status = 'pending'
                    AND (j.resent_at IS NULL OR j.resent_at < now() - make_interval(secs => $2))
                ORDER BY o.created_at
                LIMIT $3
                FOR UPDATE OF j SKIP LOCKED
            )
            RETURNING id, signup_id, sync_phase AS "phase: _", run, attempt_count AS attempt,
                max_attempts, manual_retry, occurred_at, created_at, first_failed_at, traceparent,
                tracestate
            "#,
            limits.overdue_after.as_secs_f64(),
            limits.resend_after.as_secs_f64(),
            limits.jobs,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding overdue jobs"))
    }

    /// Takes jobs that failed a while ago and have no open failure in the mirror. The caller parks
    /// each.
    pub async fn take_unmirrored(&self, limits: RecoveryLimits) -> Result<Vec<Unmirrored>, Error> {
        let rows = sqlx::query!(
            r#"
            UPDATE signup_customerio_sync_jobs
            SET resent_at = now()
            WHERE id IN (
                SELECT j.id
                FROM open_jobs o
                JOIN signup_customerio_sync_jobs j ON j.id = o.id
                WHERE o.state = 'failed' AND o.ended_at < now() - make_interval(secs => $1)
                    AND j.status = 'failed' AND j.dismissed_at IS NULL
                    AND (j.resent_at IS NULL OR j.resent_at < now() - make_interval(secs => $2))
                    AND NOT EXISTS (
                        SELECT
                        FROM sync_failures f
                        WHERE f.job_id = j.id AND f.resolved_at IS NULL
                    )
                LIMIT $3
                FOR UPDATE OF j SKIP LOCKED
            )
            RETURNING id, signup_id, sync_phase AS "phase: SyncPhase", run, attempt_count,
                max_attempts, manual_retry, occurred_at, created_at, first_failed_at, traceparent,
                tracestate, error_type AS "error_type!: ErrorType",
                error_message AS "error_message!", failed_reason, failed_at AS "failed_at!"
            "#,
            limits.overdue_after.as_secs_f64(),
            limits.resend_after.as_secs_f64(),
            limits.jobs,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding failed jobs that are not mirrored"))?;
        let unmirrored = rows.into_iter().map(|row| Unmirrored {
            job: Job {
                id: row.id,
                signup_id: row.signup_id,
                phase: row.phase,
                run: row.run,
                attempt: row.attempt_count,
                max_attempts: row.max_attempts,
                manual_retry: row.manual_retry,
                occurred_at: row.occurred_at,
                created_at: row.created_at,
                first_failed_at: row.first_failed_at,
                traceparent: row.traceparent,
                tracestate: row.tracestate,
            },
            reason: known(row.failed_reason.as_deref()).unwrap_or(Reason::Exhausted),
            failure: Failure {
                error_type: row.error_type,
                cause: None,
                message: row.error_message,
            },
            at: row.failed_at,
        });
        Ok(unmirrored.collect())
    }

    /// Resets jobs that have been processing for more than five minutes to pending, and returns
    /// their number. Their owner can no longer settle them.
    pub async fn cleanup(&self, actor: &str) -> Result<i64, Error> {
        let reset = self.reset_abandoned(actor).await?;
        sqlx::query!(
            r#"
            DELETE FROM claims c
            WHERE claimed_at < now() - interval '5 minutes'
                AND NOT EXISTS (
                    SELECT
                    FROM UNNEST(c.jobs) AS listed (id)
                    CROSS JOIN LATERAL (
                        SELECT
                        FROM signup_customerio_sync_jobs
                        WHERE id = listed.id AND claim = c.claim
                        OFFSET 0 -- by the primary key
                    ) AS owned
                )
            "#
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("removing the claims of processes that are gone"))?;
        Ok(reset)
    }

    async fn reset_abandoned(&self, actor: &str) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"
            WITH reset AS (
                UPDATE signup_customerio_sync_jobs
                SET status = 'pending', claim = NULL, claimed_at = NULL, updated_at = now()
                WHERE id IN (
                    SELECT id
                    FROM signup_customerio_sync_jobs
                    WHERE id IN (SELECT id FROM claimed_jobs) AND status = 'processing'
                        AND COALESCE(claimed_at, last_attempt_at, updated_at)
                            < now() - interval '5 minutes'
                    ORDER BY signup_id
                    FOR UPDATE
                )
                RETURNING id, signup_id, sync_phase
            ), audited AS (
                INSERT INTO audit_logs (action, signup_id, actor, details)
                SELECT $2, signup_id, $1, jsonb_build_object('jobId', id, 'syncPhase', sync_phase)
                FROM reset
            )
            SELECT count(*) AS "count!" FROM reset
            "#,
            actor,
            AuditAction::Cleanup.as_str(),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("resetting abandoned jobs"))
    }
}
