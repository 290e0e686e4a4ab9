//! Counts for the gauges, read in the background.

use std::time::Duration;

use super::{Error, Ledger, pool::Transaction};

/// The work that is not completed, at one moment. Ages are in seconds, and 0 if there is nothing
/// that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenWork {
    /// The moment, in Unix seconds by the clock of the database.
    pub read_at: i64,
    /// Jobs that wait for an attempt.
    pub pending: i64,
    /// Jobs that are claimed.
    pub processing: i64,
    /// Failed jobs, including dismissed ones.
    pub failed: i64,
    /// Failed jobs that are not dismissed, plus open unprocessable messages.
    pub open_failures: i64,
    /// Pending jobs whose due time has passed: the time of their retry, or else of their last
    /// change.
    pub overdue: i64,
    /// Time since the due time of the job that is overdue for longest.
    pub oldest_overdue_seconds: i64,
    /// Time since the oldest claim.
    pub oldest_processing_seconds: i64,
    /// Signups of the last 24 hours that are not in Customer.io and not dismissed.
    pub unsynced_signups: i64,
    /// Age of the oldest of them.
    pub oldest_unsynced_seconds: i64,
    /// Open jobs whose event is older than 60 hours, up to 72 hours, after which it starts no
    /// campaign at Customer.io.
    pub late_soon: i64,
    /// Open jobs whose event is older than 72 hours.
    pub late: i64,
    /// Bulk retries that are running.
    pub bulk_retries_running: i64,
    /// Outcomes that RabbitMQ has not confirmed.
    pub outcomes_waiting: i64,
    /// Age of the oldest row of the outbox.
    pub oldest_outbox_seconds: i64,
}

impl Ledger {
    /// Counts the work that is not completed. Fails if that takes longer than `limit`.
    pub async fn open_work(&self, limit: Duration) -> Result<OpenWork, Error> {
        let mut transaction =
            self.limited_transaction("BEGIN", limit, "beginning to count").await?;
        let work = sqlx::query_file_as!(OpenWork, "src/ledger/open_work.sql")
            .fetch_one(&mut *transaction)
            .await
            .map_err(Error::doing("counting the open work"))?;
        transaction.commit().await.map_err(Error::doing("counting the open work"))?;
        Ok(work)
    }

    /// The number of completed jobs. Fails if that takes longer than `limit`.
    pub async fn completed_jobs(&self, limit: Duration) -> Result<i64, Error> {
        let mut transaction =
            self.limited_transaction("BEGIN", limit, "beginning to count").await?;
        let count = sqlx::query_scalar!(
            r#"
            SELECT COALESCE(sum(jobs), 0)::int8 AS "count!"
            FROM completed_counts
            "#
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::doing("counting completed jobs"))?;
        transaction.commit().await.map_err(Error::doing("counting completed jobs"))?;
        Ok(count)
    }

    /// A transaction that begins with the statement `begin`, and whose statements the server
    /// cancels after `limit`. A statement that only its client gives up on would continue.
    pub(super) async fn limited_transaction(
        &self,
        begin: &'static str,
        limit: Duration,
        doing: &'static str,
    ) -> Result<Transaction, Error> {
        let mut transaction = self.pool.begin_with(begin).await.map_err(Error::doing(doing))?;
        let limited = transaction.limit_statements(limit).await;
        limited.map_err(Error::doing("setting the time limit of statements"))?;
        Ok(transaction)
    }
}
