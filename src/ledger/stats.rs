//! Counts for gauges and summaries.

use chrono::{DateTime, Utc};

use super::{Error, Ledger};
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
    /// Jobs that were completed in mock mode and not sent since.
    pub mock_completed: i64,
    /// Age of the oldest pending job in seconds; 0 if no job is pending.
    pub oldest_pending_seconds: i64,
    /// Signups of today (UTC) that are not in Customer.io.
    pub unsynced_today: i64,
    /// When the oldest of them was received.
    pub oldest_unsynced_today: Option<DateTime<Utc>>,
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

impl Ledger {
    /// Counts jobs and failures.
    pub async fn stats(&self) -> Result<Stats, Error> {
        // Two indexes cover the counts: one the completed jobs, the other all others.
        let counted = sqlx::query!(
            r#"
            SELECT 'completed' AS "status!: Status", sync_phase AS "sync_phase!: SyncPhase",
                count(*) AS "count!"
            FROM signup_customerio_sync_jobs
            WHERE status = 'completed'
            GROUP BY sync_phase
            UNION ALL
            SELECT status, sync_phase, count(*)
            FROM signup_customerio_sync_jobs
            WHERE status <> 'completed'
            GROUP BY status, sync_phase
            "#
        )
        .fetch_all(&self.pool);
        let rest = sqlx::query!(
            r#"
            SELECT
                (
                    SELECT count(*)
                    FROM signup_customerio_sync_jobs
                    WHERE status = 'failed' AND dismissed_at IS NULL
                ) AS "open_failures!",
                (
                    SELECT count(*)
                    FROM sync_failures
                    WHERE job_id IS NULL AND resolved_at IS NULL
                ) AS "unprocessable!",
                -- The index mock_jobs contains only these.
                (SELECT count(*) FROM signup_customerio_sync_jobs WHERE mock) AS "mock_completed!",
                (
                    SELECT COALESCE(EXTRACT(EPOCH FROM now() - min(created_at))::int8, 0)
                    FROM signup_customerio_sync_jobs
                    WHERE status = 'pending'
                ) AS "oldest_pending!",
                today.unsynced AS "unsynced_today!", today.oldest AS oldest_unsynced_today
            FROM (
                SELECT count(DISTINCT s.id) AS unsynced, min(s.created_at) AS oldest
                FROM signup_customerio_sync_jobs j
                JOIN signups s ON s.id = j.signup_id
                WHERE j.status IN ('pending', 'processing', 'failed')
                    AND j.created_at >= date_trunc('day', now(), 'UTC') AND NOT s.customerio_synced
            ) AS today
            "#
        )
        .fetch_one(&self.pool);
        let (counted, rest) =
            tokio::try_join!(counted, rest).map_err(Error::doing("counting jobs"))?;
        let jobs = counted.into_iter().map(|row| (row.status, row.sync_phase, row.count));
        Ok(Stats {
            jobs: jobs.collect(),
            open_failures: rest.open_failures,
            unprocessable: rest.unprocessable,
            mock_completed: rest.mock_completed,
            oldest_pending_seconds: rest.oldest_pending,
            unsynced_today: rest.unsynced_today,
            oldest_unsynced_today: rest.oldest_unsynced_today,
        })
    }

    /// The attempts of the last hour, one row per minute that had any, oldest first.
    pub async fn activity(&self) -> Result<Vec<ActivityMinute>, Error> {
        sqlx::query_as!(
            ActivityMinute,
            r#"
            SELECT date_trunc('minute', started_at) AS "at!",
                count(*) FILTER (WHERE error_type IS NULL) AS "completed!",
                count(*) FILTER (WHERE tier IS NOT NULL) AS "retried!",
                count(*) FILTER (WHERE error_type IS NOT NULL AND tier IS NULL) AS "failed!"
            FROM sync_attempts
            WHERE started_at >= date_trunc('minute', now()) - interval '59 minutes'
            GROUP BY 1
            ORDER BY 1
            "#
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("counting the attempts of the last hour"))
    }
}
