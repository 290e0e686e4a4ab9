//! Jobs that were completed in mock mode, sent for real later: a new run from attempt 0, as for a
//! failed job.
//!
//! Such a job has no failure in the mirror and no message in the failure queue, so there is nothing
//! to resolve.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{
    Error,
    audit::{self, AuditAction, AuditEntry},
    flags, locks,
    pool::Session,
    restart::Restarter,
    selection::{Selection, SelectionBase},
};
use crate::job::{Job, Status};

/// The jobs of `selection` that were completed in mock mode before `cutoff`, at most `limit`. One
/// that is completed in mock mode again is completed after the cutoff.
pub(super) async fn completed_jobs(
    connection: &mut Session,
    selection: &Selection,
    cutoff: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Uuid>, Error> {
    let mut query = QueryBuilder::new("SELECT j.id");
    selection.push(&mut query, SelectionBase::MockCompleted);
    query.push(" AND j.ended_at <= ").push_bind(cutoff).push(" LIMIT ").push_bind(limit);
    query
        .build_query_scalar()
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(Error::doing("finding jobs that were completed in mock mode"))
}

/// Restarts those of `jobs` that are still completed in mock mode. The caller publishes a message
/// for each returned job.
pub(super) async fn restart(
    connection: &mut Session,
    jobs: &[Uuid],
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
        SET status = 'pending', run = run + 1, attempt_count = 0, max_attempts = $2,
            manual_retry = true, mock = false, completed_at = NULL,
            -- The message that claimed the last run has no part in this one.
            claimed_by = NULL, updated_at = now()
        WHERE id = ANY($1) AND status = 'completed' AND mock
        RETURNING id, signup_id, sync_phase AS "phase: _", run, attempt_count AS attempt,
            max_attempts, manual_retry, occurred_at, created_at, first_failed_at,
            traceparent, tracestate
        "#,
        jobs,
        by.max_attempts,
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::doing("restarting jobs that were completed in mock mode"))?;
    let signups: Vec<_> = restarted.iter().map(|job| job.signup_id).collect();
    flags::clear_synced(connection, &signups).await?;
    let entry = |job: &Job| AuditEntry {
        action: AuditAction::ManualRetry,
        signup_id: Some(job.signup_id),
        details: json!({
            "jobId": job.id,
            "syncPhase": job.phase,
            "manualRetry": true,
            "run": job.run,
            "statusBefore": Status::Completed,
        }),
    };
    audit::insert(connection, by.actor, &restarted.iter().map(entry).collect::<Vec<_>>()).await?;
    Ok(restarted)
}
