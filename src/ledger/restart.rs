//! Starts failed jobs afresh: a new run from attempt 0, the failure resolved, the signup's flags
//! brought in line.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Error, Ledger, audit, row::JobColumns};
use crate::job::{Job, SyncPhase};

impl Ledger {
    /// Starts the failed jobs of a signup afresh, those that were dismissed, too. Each of the jobs
    /// that are answered has to be published. None: no job of it has failed.
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
        let restarted = restart(&mut transaction, &jobs, Dismissed::Too, actor).await?;
        transaction.commit().await.map_err(Error::doing("committing a retry"))?;
        Ok(restarted)
    }
}

/// Whether failures that were dismissed are started, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dismissed {
    Too,
    Not,
}

/// Starts those of `jobs` afresh that are failed still.
pub(super) async fn restart(
    connection: &mut PgConnection,
    jobs: &[Uuid],
    dismissed: Dismissed,
    actor: &str,
) -> Result<Vec<Job>, Error> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    lock_signups(connection, jobs).await?;
    let rows = sqlx::query_as!(
        JobColumns,
        r#"
        UPDATE signup_customerio_sync_jobs
        SET status = 'pending', run = run + 1, attempt_count = 0, manual_retry = true,
        next_retry_at = NULL,
            error_type = NULL, error_message = NULL, error_signature = NULL, first_failed_at = NULL,
            failed_at = NULL, failed_reason = NULL, dismissed_at = NULL, dismissed_reason = NULL,
            -- Whatever message claimed the last run has no part in this one.
            claimed_by = NULL, updated_at = now()
        WHERE id = ANY($1) AND status = 'failed' AND (dismissed_at IS NULL OR $2)
        RETURNING id, signup_id, sync_phase, run, attempt_count, max_attempts, manual_retry,
        occurred_at, created_at,
            first_failed_at, traceparent
        "#,
        jobs,
        dismissed == Dismissed::Too,
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::doing("starting jobs afresh"))?;
    let restarted: Vec<Job> = rows.into_iter().map(Job::try_from).collect::<Result<_, _>>()?;
    let ids: Vec<_> = restarted.iter().map(|job| job.id).collect();
    resolve_failures(connection, &ids, "retried").await?;
    let entry = |job: &Job| audit::Entry {
        action: "customerio_manual_retry",
        signup_id: Some(job.signup_id),
        details: json!({ "jobId": job.id, "syncPhase": job.phase, "manualRetry": true,
        "run": job.run }),
    };
    audit::insert(connection, actor, &restarted.iter().map(entry).collect::<Vec<_>>()).await?;
    Ok(restarted)
}

/// Takes the locks in the order in which `open` and `settle` take them: signups first, by id.
async fn lock_signups(connection: &mut PgConnection, jobs: &[Uuid]) -> Result<(), Error> {
    sqlx::query!(
        r#"
        SELECT id
        FROM signups
        WHERE id IN (SELECT signup_id FROM signup_customerio_sync_jobs WHERE id = ANY($1))
        ORDER BY id
        FOR NO KEY UPDATE
        "#,
        jobs
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("locking signups"))?;
    Ok(())
}

/// Resolves the failures of jobs that were started afresh, and brings the flags of their signups in
/// line.
pub(super) async fn resolve_failures(
    connection: &mut PgConnection,
    jobs: &[Uuid],
    resolution: &str,
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
        jobs,
        resolution,
    )
    .execute(&mut *connection)
    .await
    .map_err(Error::doing("resolving failures"))?;
    sqlx::query!(
        r#"
        UPDATE signups s
        SET customerio_sync_failed = failed.message IS NOT NULL,
        customerio_sync_error = failed.message,
            updated_at = now()
        FROM (SELECT DISTINCT signup_id FROM signup_customerio_sync_jobs
        WHERE id = ANY($1)) AS restarted
        LEFT JOIN LATERAL (
            SELECT error_message AS message
            FROM signup_customerio_sync_jobs other
            WHERE other.signup_id = restarted.signup_id AND other.status = 'failed'
            ORDER BY other.updated_at DESC
            LIMIT 1
        ) AS failed ON true
        WHERE s.id = restarted.signup_id
        "#,
        jobs
    )
    .execute(connection)
    .await
    .map_err(Error::doing("clearing the failure flags of signups"))?;
    Ok(())
}
