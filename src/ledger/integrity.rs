//! Received messages compared with jobs, and jobs in a state that they should not be in.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Ledger, LostMessageScope};
use crate::{job::Claimant, runtime::text_enum::text_enum};

/// Everything that was received, and where it is now, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// Jobs that events created.
    pub jobs_received: i64,
    /// Unprocessable messages, including resolved ones.
    pub unprocessable_received: i64,
    /// Completed jobs.
    pub completed: i64,
    /// Failed jobs that are not dismissed.
    pub failed_open: i64,
    /// Failed jobs that are dismissed.
    pub dismissed: i64,
    /// Jobs that wait for an attempt.
    pub pending: i64,
    /// Jobs that are claimed.
    pub processing: i64,
    /// Messages in the mirror without a job, including resolved ones.
    pub unprocessable: i64,
    /// Open failures in the mirror: the number of messages that the failure queue should contain.
    pub open_failures: i64,
}

impl Balance {
    /// Everything that was received.
    pub fn received(&self) -> i64 {
        self.jobs_received + self.unprocessable_received
    }

    /// Everything whose state is known: as much as was received, unless something was lost or
    /// duplicated.
    pub fn accounted_for(&self) -> i64 {
        let jobs =
            self.completed + self.failed_open + self.dismissed + self.pending + self.processing;
        jobs + self.unprocessable
    }
}

text_enum! {
    /// A kind of discrepancy.
    Drift {
        /// There are more or fewer jobs and messages than were received.
        Balance = "balance",
        /// More jobs wait for a retry than the delay tiers contain messages.
        Waiting = "waiting",
        /// Jobs are overdue, and no message for them is in a queue.
        Overdue = "overdue",
        /// Jobs have been processing for longer than any attempt takes.
        Stuck = "stuck",
        /// Failed jobs have no open failure in the mirror.
        NotMirrored = "not_mirrored",
        /// Open failures in the mirror belong to jobs that have not failed, or are duplicates.
        NotFailed = "not_failed",
        /// Signups are flagged as failed and have no failed job, or the reverse.
        Flags = "flags",
        /// The failure queue does not contain one message per open failure.
        FailureQueue = "failure_queue",
    }
}

/// The jobs of one kind of discrepancy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftEntry {
    /// The kind.
    pub drift: Drift,
    /// Number of jobs or messages.
    pub count: i64,
    /// Some of the jobs, if they are known.
    pub jobs: Vec<Uuid>,
}

impl Ledger {
    /// Everything that was received, and where it is now.
    pub async fn balance(&self) -> Result<Balance, Error> {
        // One statement, so that all counts are of one moment.
        sqlx::query_as!(
            Balance,
            r#"
            SELECT taken_in.jobs AS "jobs_received!",
                taken_in.unprocessable AS "unprocessable_received!",
                completed.count AS "completed!", open.failed_open AS "failed_open!",
                open.dismissed AS "dismissed!", open.pending AS "pending!",
                claimed.count AS "processing!", failures.unprocessable AS "unprocessable!",
                failures.open AS "open_failures!"
            FROM (
                SELECT COALESCE(sum(jobs), 0)::int8 AS jobs,
                    COALESCE(sum(unprocessable), 0)::int8 AS unprocessable
                FROM taken_in
            ) AS taken_in,
            (
                SELECT COALESCE(sum(jobs), 0)::int8 AS count
                FROM completed_counts
            ) AS completed,
            (
                SELECT COALESCE(sum(jobs) FILTER (WHERE state = 'failed'), 0)::int8 AS failed_open,
                    COALESCE(sum(jobs) FILTER (WHERE state = 'dismissed'), 0)::int8 AS dismissed,
                    COALESCE(sum(jobs) FILTER (WHERE state = 'pending'), 0)::int8 AS pending
                FROM open_counts
            ) AS open,
            (
                SELECT count(*)
                FROM claimed_jobs
            ) AS claimed,
            (
                SELECT COALESCE(sum(failures) FILTER (WHERE NOT has_job), 0)::int8 AS unprocessable,
                    COALESCE(sum(failures) FILTER (WHERE is_open), 0)::int8 AS open
                FROM failure_counts
            ) AS failures
            "#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting received messages and jobs"))
    }

    /// The discrepancies that the tables show, with at most `sample` jobs per kind. A state younger
    /// than `grace` is not reported, since it may be about to change. Overdue jobs are reported
    /// within `scope`.
    pub async fn drifted(
        &self,
        scope: Option<LostMessageScope>,
        grace: Duration,
        sample: i32,
    ) -> Result<Vec<DriftEntry>, Error> {
        let rows = sqlx::query_file!(
            "src/ledger/drifted.sql",
            grace.as_secs_f64(),
            sample,
            scope.is_some(),
            scope == Some(LostMessageScope::All),
            Claimant::EVENT_PREFIX,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("finding discrepancies"))?;
        let entry = |drift, count, jobs| DriftEntry { drift, count, jobs };
        Ok(rows.into_iter().map(|row| entry(row.drift, row.count, row.jobs)).collect())
    }

    /// The number of jobs that wait in a delay tier, and at most `sample` of them. Jobs that were
    /// scheduled less than `grace` ago, or are due within `grace`, may be between queues and are
    /// not counted.
    pub async fn waiting(&self, grace: Duration, sample: i32) -> Result<(i64, Vec<Uuid>), Error> {
        let row = sqlx::query!(
            r#"
            SELECT count(*) AS "count!",
                COALESCE((array_agg(j.id ORDER BY o.due_at))[:$2], '{}') AS "jobs!: Vec<Uuid>"
            FROM open_jobs o
            JOIN signup_customerio_sync_jobs j ON j.id = o.id
            WHERE o.state = 'pending' AND o.due_at > now() + make_interval(secs => $1)
                AND j.updated_at < now() - make_interval(secs => $1)
            "#,
            grace.as_secs_f64(),
            sample,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting waiting jobs"))?;
        Ok((row.count, row.jobs))
    }
}
