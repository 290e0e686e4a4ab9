//! Bulk retries: many failures, worked off in steps by whichever replica comes first.
//!
//! A step starts some jobs afresh and counts them, in one transaction. A job that was started is no
//! open failure any more, and one that fails again fails later than the bulk retry was made:
//! nothing has to be remembered of either, and two bulk retries of the same failures start each
//! once.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Error, Ledger, audit,
    restart::{Dismissed, restart},
    selection::{Selection, open_failures},
};
use crate::{job::Job, runtime::text_enum::text_enum};

text_enum! {
    /// Where a bulk retry stands.
    BulkStatus {
        /// It is being worked off.
        Running = "running",
        /// Nothing that it matches is left.
        Completed = "completed",
        /// An operator stopped it.
        Cancelled = "cancelled",
    }
}

/// A bulk retry, as it is answered and pushed.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkRetry {
    /// Its id.
    pub id: Uuid,
    /// Who made it.
    pub actor: String,
    /// Which failures it retries.
    pub selection: Selection,
    /// Where it stands.
    pub status: BulkStatus,
    /// Failures that matched when it was made.
    pub eligible: i64,
    /// Jobs that it has started afresh.
    pub retried: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last went on.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Who stopped it.
    pub cancelled_by: Option<String>,
}

/// One row of `bulk_retries`.
struct BulkRow {
    id: Uuid,
    actor: String,
    selection: Json<Selection>,
    status: String,
    eligible: i64,
    retried: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    cancelled_by: Option<String>,
}

impl TryFrom<BulkRow> for BulkRetry {
    type Error = Error;

    fn try_from(row: BulkRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.id,
            actor: row.actor,
            selection: row.selection.0,
            status: row.status.parse()?,
            eligible: row.eligible,
            retried: row.retried,
            created_at: row.created_at,
            updated_at: row.updated_at,
            finished_at: row.finished_at,
            cancelled_by: row.cancelled_by,
        })
    }
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// These jobs were started afresh; each has to be published.
    Started(Vec<Job>),
    /// Nothing to do now.
    Idle,
}

/// What became of a cancellation.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancellation {
    /// It is stopped.
    Cancelled(Box<BulkRetry>),
    /// It had ended before.
    AlreadyEnded(Box<BulkRetry>),
    /// There is no such bulk retry.
    Unknown,
}

impl Ledger {
    /// Makes a bulk retry of the failures that are open now. Whoever takes the next step works it
    /// off.
    pub async fn create_bulk_retry(
        &self,
        selection: &Selection,
        actor: &str,
    ) -> Result<BulkRetry, Error> {
        let eligible = self.preview(selection).await?.eligible;
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning a bulk retry"))?;
        let row = sqlx::query_as!(
            BulkRow,
            r#"
            INSERT INTO bulk_retries (id, actor, selection, status, eligible)
            VALUES ($1, $2, $3, 'running', $4)
            RETURNING id, actor, selection AS "selection: _", status, eligible, retried,
            created_at, updated_at,
                finished_at, cancelled_by
            "#,
            Uuid::now_v7(),
            actor,
            Json(selection) as _,
            eligible,
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::doing("writing a bulk retry"))?;
        let details =
            json!({ "bulkRetryId": row.id, "selection": selection, "eligible": eligible });
        let entry = audit::Entry { action: "customerio_bulk_retry", signup_id: None, details };
        audit::insert(&mut transaction, actor, &[entry]).await?;
        transaction.commit().await.map_err(Error::doing("committing a bulk retry"))?;
        row.try_into()
    }

    /// Takes one step of the oldest bulk retry that is running: starts up to `most` jobs, and none
    /// before `pace` is over. No two replicas take a step at the same time.
    pub async fn bulk_step(&self, most: i64, pace: Duration) -> Result<Step, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning a step of a bulk retry"))?;
        let Some(bulk) = lock_oldest(&mut transaction).await? else { return Ok(Step::Idle) };
        let jobs =
            open_failures(&mut transaction, &bulk.selection, Some(bulk.created_at), Some(most))
                .await?;
        let started = restart(&mut transaction, &jobs, Dismissed::Not, &bulk.actor).await?;
        sqlx::query!(
            r#"
            UPDATE bulk_retries
            SET retried = retried + $2, next_step_at = now() + make_interval(secs => $3),
            updated_at = now(),
                status = CASE WHEN $4 THEN 'completed' ELSE status END,
                finished_at = CASE WHEN $4 THEN now() END
            WHERE id = $1
            "#,
            bulk.id,
            i64::try_from(started.len()).unwrap_or(i64::MAX),
            pace.as_secs_f64(),
            jobs.is_empty(),
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("writing a step of a bulk retry"))?;
        transaction.commit().await.map_err(Error::doing("committing a step of a bulk retry"))?;
        Ok(Step::Started(started))
    }

    /// Stops a bulk retry. What it has started goes on.
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
            let entry = audit::Entry {
                action: "customerio_bulk_retry_cancelled",
                signup_id: None,
                details,
            };
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
        let row = sqlx::query_as!(
            BulkRow,
            r#"
            SELECT id, actor, selection AS "selection: _", status, eligible, retried, created_at,
            updated_at,
                finished_at, cancelled_by
            FROM bulk_retries
            WHERE id = $1
            "#,
            id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading a bulk retry"))?;
        row.map(BulkRetry::try_from).transpose()
    }

    /// The bulk retries that went on after `since`, `limit` at most, the latest first.
    pub async fn bulk_retries(
        &self,
        since: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<BulkRetry>, Error> {
        let rows = sqlx::query_as!(
            BulkRow,
            r#"
            SELECT id, actor, selection AS "selection: _", status, eligible, retried, created_at,
            updated_at,
                finished_at, cancelled_by
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
        .map_err(Error::doing("listing bulk retries"))?;
        rows.into_iter().map(BulkRetry::try_from).collect()
    }
}

/// The bulk retry whose turn it is, locked for one step; none where another replica takes it, or it
/// is too early.
async fn lock_oldest(connection: &mut PgConnection) -> Result<Option<BulkRetry>, Error> {
    let row = sqlx::query_as!(
        BulkRow,
        r#"
        SELECT id, actor, selection AS "selection: _", status, eligible, retried, created_at,
        updated_at,
            finished_at, cancelled_by
        FROM bulk_retries
        WHERE id = (SELECT id FROM bulk_retries WHERE status = 'running' ORDER BY created_at,
        id LIMIT 1)
            AND status = 'running' AND next_step_at <= now()
        FOR UPDATE SKIP LOCKED
        "#
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::doing("finding the next bulk retry"))?;
    row.map(BulkRetry::try_from).transpose()
}
