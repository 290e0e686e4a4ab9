//! What was taken in against what became of it, and jobs that are where they should not be.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Ledger, Suspects};
use crate::runtime::text_enum::text_enum;

/// All that was taken in, and where it is now. One moment's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// Jobs that events have made.
    pub jobs_taken_in: i64,
    /// Messages that could not be understood, the resolved ones, too.
    pub unprocessable_taken_in: i64,
    /// Jobs that Customer.io has.
    pub completed: i64,
    /// Failed jobs that nobody has dismissed.
    pub failed_open: i64,
    /// Failed jobs that somebody has dismissed.
    pub dismissed: i64,
    /// Jobs that wait for a try.
    pub pending: i64,
    /// Jobs that are being worked on.
    pub processing: i64,
    /// Messages in the mirror that name no job, the resolved ones, too.
    pub unprocessable: i64,
    /// Failures in the mirror that nobody has resolved: what the failure queue should hold.
    pub open_failures: i64,
}

impl Balance {
    /// All that was taken in.
    pub fn taken_in(&self) -> i64 {
        self.jobs_taken_in + self.unprocessable_taken_in
    }

    /// All that is somewhere now; as much as was taken in, unless something was lost or doubled.
    pub fn accounted_for(&self) -> i64 {
        let jobs =
            self.completed + self.failed_open + self.dismissed + self.pending + self.processing;
        jobs + self.unprocessable
    }
}

text_enum! {
    /// What is not as it should be.
    Drift {
        /// More or fewer jobs and messages are there than were taken in.
        Balance = "balance",
        /// Jobs wait for a retry, and the delay tiers hold fewer messages.
        Waiting = "waiting",
        /// Jobs are long due, and nobody works on them.
        Overdue = "overdue",
        /// Jobs are being processed for longer than any try takes.
        Stuck = "stuck",
        /// Failed jobs have no open failure in the mirror.
        NotMirrored = "not_mirrored",
        /// Open failures in the mirror are of jobs that have not failed, or are there twice.
        NotFailed = "not_failed",
        /// Signups are flagged as failed and have no failed job, or the other way round.
        Flags = "flags",
        /// The failure queue does not hold as many messages as failures are open.
        FailureQueue = "failure_queue",
    }
}

/// Jobs that are not as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drifted {
    /// In which way.
    pub drift: Drift,
    /// How many.
    pub count: i64,
    /// Some of them, where they are known.
    pub jobs: Vec<Uuid>,
}

impl Ledger {
    /// What was taken in, and where it is now.
    pub async fn balance(&self) -> Result<Balance, Error> {
        // One statement, so that all counts are of one moment.
        sqlx::query_as!(
            Balance,
            r#"
            SELECT taken_in.jobs AS "jobs_taken_in!",
            taken_in.unprocessable AS "unprocessable_taken_in!",
                completed.count AS "completed!", open_jobs.failed_open AS "failed_open!",
                open_jobs.dismissed AS "dismissed!", open_jobs.pending AS "pending!",
                open_jobs.processing AS "processing!", unprocessable.count AS "unprocessable!",
                open_failures.count AS "open_failures!"
            FROM (
                SELECT COALESCE(sum(jobs), 0)::int8 AS jobs, COALESCE(sum(unprocessable),
                0)::int8 AS unprocessable
                FROM taken_in
            ) AS taken_in,
            (SELECT count(*) FROM signup_customerio_sync_jobs
            WHERE status = 'completed') AS completed,
            (
                SELECT count(*) FILTER (WHERE status = 'failed'
                AND dismissed_at IS NULL) AS failed_open,
                    count(*) FILTER (WHERE dismissed_at IS NOT NULL) AS dismissed,
                    count(*) FILTER (WHERE status = 'pending') AS pending,
                    count(*) FILTER (WHERE status = 'processing') AS processing
                FROM signup_customerio_sync_jobs
                WHERE status <> 'completed'
            ) AS open_jobs,
            (SELECT count(*) FROM sync_failures WHERE job_id IS NULL) AS unprocessable,
            (SELECT count(*) FROM sync_failures WHERE resolved_at IS NULL) AS open_failures
            "#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting what was taken in"))
    }

    /// Jobs that are not as they should be, as far as the tables alone tell, with `sample` of each
    /// kind. What has been so for less than `grace` may be on its way. Overdue are those whose
    /// message is among the `suspects`.
    pub async fn drifted(
        &self,
        suspects: Option<Suspects>,
        grace: Duration,
        sample: i32,
    ) -> Result<Vec<Drifted>, Error> {
        let rows = sqlx::query_file!(
            "src/ledger/drifted.sql",
            grace.as_secs_f64(),
            sample,
            suspects.is_some(),
            suspects == Some(Suspects::All),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("looking for jobs that are not as they should be"))?;
        let drifted =
            |drift: String, count, jobs| Ok(Drifted { drift: drift.parse()?, count, jobs });
        rows.into_iter().map(|row| drifted(row.drift, row.count, row.jobs)).collect()
    }

    /// Jobs that wait in a delay tier: how many, and `sample` of them. Those that were scheduled,
    /// or are due, within `grace` may be on their way.
    pub async fn waiting(&self, grace: Duration, sample: i32) -> Result<(i64, Vec<Uuid>), Error> {
        let row = sqlx::query!(
            r#"
            SELECT count(*) AS "count!", COALESCE((array_agg(id ORDER BY next_retry_at))[:$2],
            '{}') AS "jobs!: Vec<Uuid>"
            FROM signup_customerio_sync_jobs
            WHERE status = 'pending' AND updated_at < now() - make_interval(secs => $1)
                AND next_retry_at > now() + make_interval(secs => $1)
            "#,
            grace.as_secs_f64(),
            sample,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting jobs that wait"))?;
        Ok((row.count, row.jobs))
    }

    /// Adds up what was counted a transaction at a time.
    pub async fn add_up(&self) -> Result<(), Error> {
        sqlx::query!(
            r#"
            WITH counted AS (
                DELETE FROM taken_in
                WHERE (SELECT count(*) FROM taken_in) > 1
                RETURNING jobs, unprocessable
            )
            INSERT INTO taken_in (jobs, unprocessable)
            SELECT sum(jobs), sum(unprocessable)
            FROM counted
            HAVING count(*) > 0
            "#
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("adding up what was taken in"))?;
        Ok(())
    }
}
