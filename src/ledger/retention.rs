//! Deletes what is older than its retention, in bounded steps.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Error, Ledger, pool::Session};

/// A table that is partitioned by month and whose rows are written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// The attempts of jobs.
    Attempts,
    /// The audit log.
    Audit,
}

impl History {
    fn table(self) -> &'static str {
        match self {
            Self::Attempts => "sync_attempts",
            Self::Audit => "audit_logs",
        }
    }
}

/// The last signup that a step of [`Ledger::expire_jobs`] looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignupCursor {
    created_at: DateTime<Utc>,
    id: Uuid,
}

impl Ledger {
    /// Creates the missing partitions of this month and the next two. Returns their number.
    pub async fn add_history_partitions(&self) -> Result<i32, Error> {
        sqlx::query_scalar!(r#"SELECT add_history_partitions() AS "added!""#)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("adding partitions"))
    }

    /// Drops one partition of `history` whose rows are all older than `retention`, or deletes at
    /// most `rows_max` such rows of the partitions that are no month. What the outbox refers to is
    /// kept. Returns the number of partitions and of rows; if both are 0, nothing is left to
    /// delete.
    pub async fn expire_history(
        &self,
        history: History,
        retention: Duration,
        rows_max: i32,
    ) -> Result<(i32, i32), Error> {
        let expired = sqlx::query!(
            r#"
            SELECT e.partitions AS "partitions!", e.rows_deleted AS "rows_deleted!"
            FROM expire_history(
                $1,
                LEAST(
                    now() - make_interval(secs => $2),
                    -- An attempt starts before its row of the outbox is written.
                    (SELECT min(created_at) - interval '1 hour' FROM outbox)
                ),
                $3
            ) AS e
            "#,
            history.table(),
            retention.as_secs_f64(),
            rows_max,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("deleting old history"))?;
        Ok((expired.partitions, expired.rows_deleted))
    }

    /// Deletes at most `rows_max` failures that were resolved longer ago than `retention`. Returns
    /// their number.
    pub async fn expire_failures(&self, retention: Duration, rows_max: i64) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"
            WITH deleted AS (
                DELETE FROM sync_failures
                WHERE id IN (
                    SELECT id
                    FROM sync_failures
                    WHERE resolved_at < now() - make_interval(secs => $1)
                    ORDER BY resolved_at
                    LIMIT $2
                    FOR UPDATE SKIP LOCKED
                )
                RETURNING job_id
            ), taken_off AS (
                INSERT INTO taken_in (unprocessable)
                SELECT -count(*)
                FROM deleted
                WHERE job_id IS NULL
                HAVING count(*) > 0
            )
            SELECT count(*) AS "count!"
            FROM deleted
            "#,
            retention.as_secs_f64(),
            rows_max,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("deleting resolved failures"))
    }

    /// Looks at the next `signups_max` signups after `cursor`, oldest first. Deletes those whose
    /// jobs were all completed or dismissed longer ago than `retention`, with their jobs. What the
    /// outbox refers to is kept. Returns the number of deleted jobs, and the cursor for the next
    /// step; `None` at the end.
    ///
    /// An event that is delivered again after its job was deleted creates the job again.
    pub async fn expire_jobs(
        &self,
        retention: Duration,
        cursor: Option<SignupCursor>,
        signups_max: i64,
    ) -> Result<(i64, Option<SignupCursor>), Error> {
        let doing = Error::doing("beginning to delete old jobs");
        let mut transaction = self.pool.begin().await.map_err(doing)?;
        let signups = sqlx::query!(
            r#"
            SELECT id, created_at
            FROM signups
            WHERE created_at < now() - make_interval(secs => $1)
                AND ($2::timestamptz IS NULL OR (created_at, id) > ($2, $3))
            ORDER BY created_at, id
            LIMIT $4
            "#,
            retention.as_secs_f64(),
            cursor.map(|cursor| cursor.created_at),
            cursor.map(|cursor| cursor.id),
            signups_max,
        )
        .fetch_all(&mut *transaction)
        .await
        .map_err(Error::doing("finding old signups"))?;
        let next = signups
            .last()
            .filter(|_| i64::try_from(signups.len()) == Ok(signups_max))
            .map(|last| SignupCursor { created_at: last.created_at, id: last.id });
        let ids: Vec<_> = signups.iter().map(|signup| signup.id).collect();
        sqlx::query("SET LOCAL lock_timeout = '200ms'")
            .execute(&mut *transaction)
            .await
            .map_err(Error::doing("setting the time limit of locks"))?;
        let locked = lock_over(&mut transaction, retention, &ids).await?;
        let deleted = sqlx::query_file_scalar!(
            "src/ledger/expire_jobs.sql",
            retention.as_secs_f64(),
            &locked
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::doing("deleting old jobs"))?;
        transaction.commit().await.map_err(Error::doing("committing the deletion of old jobs"))?;
        Ok((deleted, next))
    }
}

/// Locks those of the signups that have no job but those that ended longer ago than `retention`, in
/// the lock order of the service. A signup in use is left for the next time. The jobs are read
/// again by the statement that deletes them, which sees what was committed before the locks.
async fn lock_over(
    connection: &mut Session,
    retention: Duration,
    signups: &[Uuid],
) -> Result<Vec<Uuid>, Error> {
    sqlx::query_scalar!(
        r#"
        SELECT id
        FROM signups s
        WHERE id = ANY($1) AND NOT EXISTS (
            SELECT
            FROM signup_customerio_sync_jobs j
            WHERE j.signup_id = s.id AND (
                j.mock OR COALESCE(j.completed_at, j.dismissed_at) IS NULL
                OR COALESCE(j.completed_at, j.dismissed_at) >= now() - make_interval(secs => $2)
            )
        )
        ORDER BY id
        FOR UPDATE SKIP LOCKED
        "#,
        signups,
        retention.as_secs_f64(),
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("locking old signups"))
}
