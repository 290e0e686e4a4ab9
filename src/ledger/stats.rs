//! Counts for gauges and summaries.

use super::{Error, Ledger};
use crate::job::Status;

/// What the ledger holds at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Jobs by status; every status is there.
    pub jobs: Vec<(Status, i64)>,
    /// Failures that nobody has resolved.
    pub open_failures: i64,
    /// Age of the oldest pending job in whole seconds; 0 without one.
    pub oldest_pending_seconds: i64,
}

impl Ledger {
    /// Counts jobs and failures.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let counted =
            sqlx::query!(r#"SELECT status, count(*) AS "count!" FROM signup_customerio_sync_jobs GROUP BY status"#)
                .fetch_all(&self.pool)
                .await
                .map_err(Error::doing("counting jobs"))?;
        let count =
            |status: Status| counted.iter().find(|row| row.status == status.as_str()).map_or(0, |row| row.count);
        let rest = sqlx::query!(
            r#"
            SELECT
                (SELECT count(*) FROM sync_failures WHERE resolved_at IS NULL) AS "open_failures!",
                (
                    SELECT COALESCE(EXTRACT(EPOCH FROM now() - min(created_at))::int8, 0)
                    FROM signup_customerio_sync_jobs
                    WHERE status = 'pending'
                ) AS "oldest_pending!"
            "#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting failures"))?;
        Ok(Stats {
            jobs: Status::ALL.iter().map(|&status| (status, count(status))).collect(),
            open_failures: rest.open_failures,
            oldest_pending_seconds: rest.oldest_pending,
        })
    }
}
