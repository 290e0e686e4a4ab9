//! Bulk retries: many failures, retried in steps by any replica.
//!
//! A step restarts some jobs and counts them, in one transaction. A restarted job is no longer an
//! open failure, and a job that fails again fails after the bulk retry was created. So no list of
//! jobs is stored, and two bulk retries of the same failures restart each job once. The same is
//! true of jobs that were completed in mock mode.
//!
//! The previous release runs beside this one and must not work off a bulk retry of such jobs: it
//! would restart failures instead, or complete it without a restart. So `next_step_at`, the only
//! due time that it reads, is never reached, and `mock_step_at` is the due time. The column
//! `selection`, in which it refuses unknown keys, is without the key `mock`; `full_selection` has
//! it. It lists such a bulk retry as running, and can cancel it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    mock,
    pool::Session,
    restart::{DismissedFailures, Restarter, restart},
    selection::{Selection, open_failures},
};
use crate::{job::Job, runtime::text_enum::text_enum};

text_enum! {
    /// The state of a bulk retry.
    BulkStatus {
        /// It restarts jobs.
        Running = "running",
        /// No matching job is left.
        Completed = "completed",
        /// An operator cancelled it.
        Cancelled = "cancelled",
    }
}

/// A bulk retry, as the API returns it and the WebSocket sends it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkRetry {
    /// Its id.
    pub id: Uuid,
    /// The actor that created it.
    pub actor: String,
    /// The jobs that it retries.
    pub selection: Selection,
    /// Its state.
    pub status: BulkStatus,
    /// Jobs that matched when it was created.
    pub eligible: i64,
    /// Jobs that it has restarted.
    pub retried: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// The actor that cancelled it.
    pub cancelled_by: Option<String>,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq)]
pub enum BulkStep {
    /// These jobs were restarted. The caller publishes a message for each.
    Restarted(Vec<Job>),
    /// There is nothing to do now.
    Idle,
}

/// The result of a cancellation.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancellation {
    /// It is cancelled.
    Cancelled(Box<BulkRetry>),
    /// It had ended already.
    AlreadyEnded(Box<BulkRetry>),
    /// There is no such bulk retry.
    Unknown,
}

impl Ledger {
    /// Creates a bulk retry of the failures that are open now, or of the jobs that were completed
    /// in mock mode until now. The next step of any replica starts it.
    pub async fn create_bulk_retry(
        &self,
        selection: &Selection,
        actor: &str,
    ) -> Result<BulkRetry, Error> {
        let eligible = self.preview(selection).await?.eligible;
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning a bulk retry"))?;
        let bulk = sqlx::query_as!(
            BulkRetry,
            r#"
            INSERT INTO bulk_retries (
                id, actor, selection, status, eligible, mock, next_step_at, mock_step_at
            )
            VALUES (
                $1, $2, $3::jsonb - 'mock'::text, 'running', $4, $5,
                CASE WHEN $5 THEN 'infinity' ELSE now() END, CASE WHEN $5 THEN now() END
            )
            RETURNING id, actor, full_selection AS "selection!: _", status AS "status: _", eligible,
                retried, created_at, updated_at, finished_at, cancelled_by
            "#,
            Uuid::now_v7(),
            actor,
            Json(selection) as _,
            eligible,
            selection.mock,
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::doing("writing a bulk retry"))?;
        let details =
            json!({ "bulkRetryId": bulk.id, "selection": selection, "eligible": eligible });
        let entry = AuditEntry { action: AuditAction::BulkRetry, signup_id: None, details };
        audit::insert(&mut transaction, actor, &[entry]).await?;
        transaction.commit().await.map_err(Error::doing("committing a bulk retry"))?;
        Ok(bulk)
    }

    /// Takes one step of the oldest running bulk retry: restarts at most `limit` jobs. The next
    /// step is due after `pace`. No two replicas take a step at the same time.
    pub async fn bulk_step(&self, limit: i64, pace: Duration) -> Result<BulkStep, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning a step of a bulk retry"))?;
        let Some(bulk) = lock_oldest(&mut transaction).await? else {
            transaction.commit().await.map_err(Error::doing("ending a step of a bulk retry"))?;
            return Ok(BulkStep::Idle);
        };
        let (found, restarted) =
            restart_some(&mut transaction, &bulk, limit, self.max_attempts).await?;
        sqlx::query!(
            r#"
            UPDATE bulk_retries
            SET retried = retried + $2,
                next_step_at = CASE
                    WHEN mock THEN next_step_at
                    ELSE now() + make_interval(secs => $3)
                END,
                mock_step_at = CASE WHEN mock THEN now() + make_interval(secs => $3) END,
                updated_at = now(),
                status = CASE WHEN $4 THEN 'completed' ELSE status END,
                finished_at = CASE WHEN $4 THEN now() END
            WHERE id = $1
            "#,
            bulk.id,
            i64::try_from(restarted.len()).unwrap_or(i64::MAX),
            pace.as_secs_f64(),
            found == 0,
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("writing a step of a bulk retry"))?;
        transaction.commit().await.map_err(Error::doing("committing a step of a bulk retry"))?;
        Ok(BulkStep::Restarted(restarted))
    }

    /// Cancels a bulk retry. The jobs that it has restarted continue.
    pub async fn cancel_bulk_retry(&self, id: Uuid, actor: &str) -> Result<Cancellation, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to cancel a bulk retry"))?;
        let cancelled = sqlx::query!(
            r#"
            UPDATE bulk_retries
            SET status = 'cancelled', finished_at = now(), updated_at = now(), cancelled_by = $2
            WHERE id = $1 AND status = 'running'
            "#,
            id,
            actor,
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("cancelling a bulk retry"))?
        .rows_affected();
        if cancelled > 0 {
            let details = json!({ "bulkRetryId": id });
            let entry =
                AuditEntry { action: AuditAction::BulkRetryCancelled, signup_id: None, details };
            audit::insert(&mut transaction, actor, &[entry]).await?;
        }
        transaction.commit().await.map_err(Error::doing("committing a cancelled bulk retry"))?;
        Ok(match self.bulk_retry(id).await? {
            None => Cancellation::Unknown,
            Some(bulk) if cancelled > 0 => Cancellation::Cancelled(Box::new(bulk)),
            Some(bulk) => Cancellation::AlreadyEnded(Box::new(bulk)),
        })
    }

    /// One bulk retry.
    pub async fn bulk_retry(&self, id: Uuid) -> Result<Option<BulkRetry>, Error> {
        sqlx::query_as!(
            BulkRetry,
            r#"
            SELECT id, actor, full_selection AS "selection!: _", status AS "status: _", eligible,
                retried, created_at, updated_at, finished_at, cancelled_by
            FROM bulk_retries
            WHERE id = $1
            "#,
            id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading a bulk retry"))
    }

    /// The bulk retries that changed after `since`, latest first, at most `limit`.
    pub async fn bulk_retries(
        &self,
        since: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<BulkRetry>, Error> {
        sqlx::query_as!(
            BulkRetry,
            r#"
            SELECT id, actor, full_selection AS "selection!: _", status AS "status: _", eligible,
                retried, created_at, updated_at, finished_at, cancelled_by
            FROM bulk_retries
            WHERE updated_at > $1
            ORDER BY updated_at DESC
            LIMIT $2
            "#,
            since,
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("listing bulk retries"))
    }
}

/// Restarts at most `limit` of the jobs of a bulk retry. Returns the number of jobs that it found,
/// and those of them that it restarted: another transaction may have been faster.
async fn restart_some(
    connection: &mut Session,
    bulk: &BulkRetry,
    limit: i64,
    max_attempts: i32,
) -> Result<(usize, Vec<Job>), Error> {
    let by = Restarter { actor: &bulk.actor, max_attempts };
    if bulk.selection.mock {
        let jobs =
            mock::completed_jobs(connection, &bulk.selection, bulk.created_at, limit).await?;
        let restarted = mock::restart(connection, &jobs, by).await?;
        return Ok((jobs.len(), restarted));
    }
    let jobs =
        open_failures(connection, &bulk.selection, Some(bulk.created_at), Some(limit)).await?;
    let restarted = restart(connection, &jobs, DismissedFailures::Exclude, by).await?;
    Ok((jobs.len(), restarted))
}

/// Locks the oldest running bulk retry for one step. `None` if there is none, another replica takes
/// its step, or its next step is not due.
async fn lock_oldest(connection: &mut Session) -> Result<Option<BulkRetry>, Error> {
    sqlx::query_as!(
        BulkRetry,
        r#"
        SELECT id, actor, full_selection AS "selection!: _", status AS "status: _", eligible,
            retried, created_at, updated_at, finished_at, cancelled_by
        FROM bulk_retries
        WHERE id = (
                SELECT id
                FROM bulk_retries
                WHERE status = 'running'
                ORDER BY created_at, id
                LIMIT 1
            )
            AND status = 'running' AND COALESCE(mock_step_at, next_step_at) <= now()
        FOR UPDATE SKIP LOCKED
        "#
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::doing("finding the next bulk retry"))
}
