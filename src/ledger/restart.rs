//! Restarts failed jobs: a new run from attempt 0, the failure resolved, the flags of the signup
//! updated.

use serde_json::json;
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    failures::FailureResolution,
    flags::{self, ChangedSignup},
    locks,
    pool::Session,
};
use crate::job::{Job, SyncPhase};

impl Ledger {
    /// Restarts the failed jobs of a signup, including dismissed ones. The caller publishes a
    /// message for each returned job. The list is empty if no job of the signup has failed.
    pub async fn retry_signup(
        &self,
        signup_id: Uuid,
        phase: Option<SyncPhase>,
        actor: &str,
    ) -> Result<Vec<Job>, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to retry"))?;
        let jobs = sqlx::query_scalar!(
            r#"
            SELECT id
            FROM signup_customerio_sync_jobs
            WHERE signup_id = $1 AND status = 'failed' AND ($2::text IS NULL OR sync_phase = $2)
            "#,
            signup_id,
            phase.map(SyncPhase::as_str),
        )
        .fetch_all(&mut *transaction)
        .await
        .map_err(Error::doing("finding failed jobs"))?;
        let by = Restarter { actor, max_attempts: self.max_attempts };
        let restarted = restart(&mut transaction, &jobs, DismissedFailures::Include, by).await?;
        transaction.commit().await.map_err(Error::doing("committing a retry"))?;
        Ok(restarted)
    }
}

/// Whether dismissed failures are restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DismissedFailures {
    Include,
    Exclude,
}

/// Who starts a new run, and the retries of it: the ladder may have changed since the last one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restarter<'a> {
    pub(super) actor: &'a str,
    pub(super) max_attempts: i32,
}

/// Restarts those of `jobs` that are still failed.
pub(super) async fn restart(
    connection: &mut Session,
    jobs: &[Uuid],
    dismissed: DismissedFailures,
    by: Restarter<'_>,
) -> Result<Vec<Job>, Error> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    locks::signups_of_jobs(connection, jobs).await?;
    let restarted = sqlx::query_as!(
        Job,
        r#"
        UPDATE signup_customerio_sync_jobs
        SET status = 'pending', run = run + 1, attempt_count = 0, max_attempts = $3,
            manual_retry = true, next_retry_at = NULL, error_type = NULL, error_message = NULL,
            error_signature = NULL,
            first_failed_at = NULL, failed_at = NULL, failed_reason = NULL, dismissed_at = NULL,
            dismissed_reason = NULL,
            -- Customer.io has refused the person under this identifier.
            contact_id = CASE
                WHEN failed_reason IS DISTINCT FROM 'permanent' THEN contact_id
            END,
            -- The message that claimed the last run has no part in this one.
            claimed_by = NULL, updated_at = now()
        WHERE id = ANY($1) AND status = 'failed' AND (dismissed_at IS NULL OR $2)
        RETURNING id, signup_id, sync_phase AS "phase: _", run, attempt_count AS attempt,
            max_attempts, manual_retry, occurred_at, created_at, first_failed_at, traceparent,
            tracestate
        "#,
        jobs,
        dismissed == DismissedFailures::Include,
        by.max_attempts,
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::doing("restarting jobs"))?;
    let resolved: Vec<_> = restarted.iter().map(|job| (job.id, job.signup_id)).collect();
    resolve_failures(connection, &resolved, FailureResolution::Retried).await?;
    let entry = |job: &Job| AuditEntry {
        action: AuditAction::ManualRetry,
        signup_id: Some(job.signup_id),
        details: json!({
            "jobId": job.id,
            "syncPhase": job.phase,
            "manualRetry": true,
            "run": job.run,
        }),
    };
    audit::insert(connection, by.actor, &restarted.iter().map(entry).collect::<Vec<_>>()).await?;
    Ok(restarted)
}

/// Resolves the failures of restarted jobs, given with their signups, and updates the flags of the
/// signups.
pub(super) async fn resolve_failures(
    connection: &mut Session,
    jobs: &[(Uuid, Uuid)],
    resolution: FailureResolution,
) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE sync_failures
        SET resolved_at = now(), resolution = $2
        WHERE job_id = ANY($1) AND resolved_at IS NULL
        "#,
        &column!(jobs, job => job.0) as _,
        resolution.as_str(),
    )
    .execute(&mut *connection)
    .await
    .map_err(Error::doing("resolving failures"))?;
    let mut signups: Vec<_> = jobs.iter().map(|(_, signup_id)| *signup_id).collect();
    signups.sort_unstable();
    signups.dedup();
    let changed: Vec<_> = signups.into_iter().map(ChangedSignup::new).collect();
    flags::update(connection, &changed).await
}
