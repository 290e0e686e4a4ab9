//! Counts for gauges and summaries.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Error, Ledger,
    call_rate::{ReplicaBreaker, live_breakers},
    pool::Session,
};
use crate::job::{Status, SyncPhase};

/// The counts of the ledger at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Jobs by status and phase. An absent combination counts as 0.
    pub jobs: Vec<(Status, SyncPhase, i64)>,
    /// Failed jobs that are not dismissed.
    pub open_failures: i64,
    /// Open unprocessable messages.
    pub unprocessable: i64,
    /// Outcomes in the outbox.
    pub outcomes_waiting: i64,
    /// Jobs that were completed in mock mode and not sent since.
    pub mock_completed: i64,
    /// Age of the oldest pending job in seconds; 0 if no job is pending.
    pub oldest_pending_seconds: i64,
}

/// The signups and the unprocessable messages of the last 24 hours, as the API returns them and the
/// WebSocket sends them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecentSignups {
    /// Signups whose first event was received in the last 24 hours.
    pub signups: i64,
    /// Those of them that Customer.io has not accepted.
    pub not_synced: i64,
    /// When the oldest of those was received.
    pub oldest_not_synced_at: Option<DateTime<Utc>>,
    /// Unprocessable messages that were parked in the last 24 hours and are open.
    pub unprocessable: i64,
}

/// Counts of open work and of the last 24 hours, as the WebSocket sends them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveCounts {
    /// Pending jobs.
    pub pending: i64,
    /// Jobs with an attempt in flight.
    pub processing: i64,
    /// Failed jobs that are not dismissed.
    pub open_failures: i64,
    /// Open unprocessable messages.
    pub unprocessable: i64,
    /// The last 24 hours.
    #[serde(rename = "last24Hours")]
    pub last_24_hours: RecentSignups,
}

/// Everything that the overview shows of the ledger, read at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// Counts of jobs and failures.
    pub stats: Stats,
    /// The last 24 hours.
    pub last_24_hours: RecentSignups,
    /// The attempts of the last hour, one row per minute that had any, oldest first.
    pub last_hour: Vec<ActivityMinute>,
    /// The circuit breakers of the replicas that run.
    pub breakers: Vec<ReplicaBreaker>,
}

/// Attempts that started in one minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivityMinute {
    /// Start of the minute.
    pub at: DateTime<Utc>,
    /// Accepted by Customer.io.
    pub completed: i64,
    /// Followed by a retry.
    pub retried: i64,
    /// Failed without a further retry.
    pub failed: i64,
}

impl ActivityMinute {
    /// A minute without attempts.
    pub(super) fn empty(at: DateTime<Utc>) -> Self {
        Self { at, completed: 0, retried: 0, failed: 0 }
    }
}

impl Stats {
    /// Number of jobs with `status`.
    pub fn of_status(&self, status: Status) -> i64 {
        self.jobs.iter().filter(|(one, ..)| *one == status).map(|(.., count)| count).sum()
    }

    /// Number of jobs with `status` and `phase`.
    pub fn of(&self, status: Status, phase: SyncPhase) -> i64 {
        self.jobs
            .iter()
            .find(|(s, p, _)| (*s, *p) == (status, phase))
            .map_or(0, |(.., count)| *count)
    }
}

/// Begins a transaction whose statements see one state of the database.
const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl Ledger {
    /// Counts jobs and failures.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let mut connection = self.pool.acquire().await.map_err(Error::doing("counting jobs"))?;
        count_jobs(&mut connection).await
    }

    /// Reads the overview. PostgreSQL ends a statement that takes longer than `statement_limit`.
    pub async fn overview(&self, statement_limit: Duration) -> Result<Overview, Error> {
        // One transaction, so that its counts are of one moment, and so that an overview uses one
        // connection.
        let doing = "beginning to read the overview";
        let mut transaction =
            self.limited_transaction(BEGIN_SNAPSHOT, statement_limit, doing).await?;
        let overview = Overview {
            stats: count_jobs(&mut transaction).await?,
            last_24_hours: recent_signups(&mut transaction).await?,
            last_hour: activity(&mut transaction).await?,
            breakers: live_breakers(&mut transaction).await?,
        };
        transaction.commit().await.map_err(Error::doing("ending to read the overview"))?;
        Ok(overview)
    }

    /// Counts open work and the last 24 hours. PostgreSQL ends a statement that takes longer than
    /// `statement_limit`.
    pub async fn live_counts(&self, statement_limit: Duration) -> Result<LiveCounts, Error> {
        let doing = "beginning to count open work";
        let mut transaction =
            self.limited_transaction(BEGIN_SNAPSHOT, statement_limit, doing).await?;
        // Each count is the sum of what the writers added.
        let open = sqlx::query!(
            r#"
            SELECT open.pending AS "pending!", open.failed AS "open_failures!",
                (SELECT count(*) FROM claimed_jobs) AS "processing!",
                (
                    SELECT COALESCE(sum(failures), 0)::int8
                    FROM failure_counts
                    WHERE is_open AND NOT has_job
                ) AS "unprocessable!"
            FROM (
                SELECT COALESCE(sum(jobs) FILTER (WHERE state = 'pending'), 0)::int8 AS pending,
                    COALESCE(sum(jobs) FILTER (WHERE state = 'failed'), 0)::int8 AS failed
                FROM open_counts
            ) AS open
            "#
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::doing("counting open work"))?;
        let last_24_hours = recent_signups(&mut transaction).await?;
        transaction.commit().await.map_err(Error::doing("ending to count open work"))?;
        Ok(LiveCounts {
            pending: open.pending,
            processing: open.processing,
            open_failures: open.open_failures,
            unprocessable: open.unprocessable,
            last_24_hours,
        })
    }
}

async fn count_jobs(connection: &mut Session) -> Result<Stats, Error> {
    // All but the claimed jobs are counted when they are written.
    let counted = sqlx::query!(
        r#"
        SELECT 'completed' AS "status!: Status", sync_phase AS "sync_phase!: SyncPhase",
            sum(jobs)::int8 AS "count!"
        FROM completed_counts
        GROUP BY sync_phase
        UNION ALL
        SELECT CASE state WHEN 'dismissed' THEN 'failed' ELSE state END AS status, sync_phase,
            sum(jobs)::int8
        FROM open_counts
        WHERE state IN ('pending', 'failed', 'dismissed')
        GROUP BY 1, 2
        UNION ALL
        SELECT 'processing', sync_phase, count(*)
        FROM claimed_jobs
        GROUP BY sync_phase
        "#
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::doing("counting jobs"))?;
    let rest = sqlx::query!(
        r#"
        SELECT open.failed AS "open_failures!", open.mock AS "mock_completed!",
            (
                SELECT COALESCE(sum(failures), 0)::int8
                FROM failure_counts
                WHERE is_open AND NOT has_job
            ) AS "unprocessable!",
            (
                SELECT COALESCE(sum(cardinality(job_ids)), 0)::int8
                FROM outbox
                WHERE kind = 'outcomes'
            ) AS "outcomes_waiting!",
            (
                SELECT COALESCE(EXTRACT(EPOCH FROM now() - min(created_at))::int8, 0)
                FROM open_jobs
                WHERE state = 'pending'
            ) AS "oldest_pending!"
        FROM (
            SELECT COALESCE(sum(jobs) FILTER (WHERE state = 'failed'), 0)::int8 AS failed,
                COALESCE(sum(jobs) FILTER (WHERE state = 'mock'), 0)::int8 AS mock
            FROM open_counts
        ) AS open
        "#
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(Error::doing("counting open failures"))?;
    let jobs = counted.into_iter().map(|row| (row.status, row.sync_phase, row.count));
    Ok(Stats {
        jobs: jobs.collect(),
        open_failures: rest.open_failures,
        unprocessable: rest.unprocessable,
        outcomes_waiting: rest.outcomes_waiting,
        mock_completed: rest.mock_completed,
        oldest_pending_seconds: rest.oldest_pending,
    })
}

async fn recent_signups(connection: &mut Session) -> Result<RecentSignups, Error> {
    // Signups are counted per minute when they are written. The oldest that is not synced is in the
    // first minute that has one.
    sqlx::query_as!(
        RecentSignups,
        r#"
        WITH recent AS (
            SELECT minute, sum(signups)::int8 AS signups, sum(signups - synced)::int8 AS not_synced
            FROM signup_counts
            WHERE minute >= now() - interval '24 hours'
            GROUP BY minute
        ), oldest AS (
            SELECT min(minute) AS minute
            FROM recent
            WHERE not_synced > 0
        )
        SELECT COALESCE(sum(signups), 0)::int8 AS "signups!",
            COALESCE(sum(not_synced), 0)::int8 AS "not_synced!",
            (
                SELECT created_at
                FROM signups
                -- Not a join: that may read all signups in the order of their creation.
                WHERE created_at >= (SELECT minute FROM oldest)
                    AND created_at < (SELECT minute + interval '1 minute' FROM oldest)
                    AND NOT customerio_synced
                ORDER BY created_at
                LIMIT 1
            ) AS oldest_not_synced_at,
            (
                SELECT count(*)
                FROM sync_failures
                WHERE job_id IS NULL AND resolved_at IS NULL
                    AND failed_at >= now() - interval '24 hours'
            ) AS "unprocessable!"
        FROM recent
        "#
    )
    .fetch_one(connection)
    .await
    .map_err(Error::doing("counting the signups of the last 24 hours"))
}

async fn activity(connection: &mut Session) -> Result<Vec<ActivityMinute>, Error> {
    // Each batch adds its attempts when it writes them.
    sqlx::query_as!(
        ActivityMinute,
        r#"
        SELECT minute AS "at!", sum(completed)::int8 AS "completed!",
            sum(retried)::int8 AS "retried!", sum(failed)::int8 AS "failed!"
        FROM attempt_counts
        WHERE minute >= date_trunc('minute', now()) - interval '59 minutes'
        GROUP BY minute
        ORDER BY minute
        "#
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("counting the attempts of the last hour"))
}
