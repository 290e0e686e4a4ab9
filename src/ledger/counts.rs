//! Sums the counts that writers keep.
//!
//! Each transaction adds its changes as rows, so that writers do not wait for each other. A count
//! is the sum of all rows, so summing them changes no count.

use super::{Error, Ledger};

impl Ledger {
    /// Replaces the oldest rows of each count by their sum: at most a million per call and count.
    pub async fn sum_counts(&self) -> Result<(), Error> {
        for sql in [TAKEN_IN, COMPLETED, OPEN, FAILURES, SIGNUPS, ATTEMPTS] {
            sqlx::query(sql).execute(&self.pool).await.map_err(Error::doing("summing counts"))?;
        }
        Ok(())
    }
}

const TAKEN_IN: &str = "
WITH counted AS (
    DELETE FROM taken_in
    WHERE id IN (SELECT id FROM taken_in ORDER BY id LIMIT 1000000)
    RETURNING jobs, unprocessable
)
INSERT INTO taken_in (jobs, unprocessable)
SELECT sum(jobs), sum(unprocessable)
FROM counted
HAVING count(*) > 0";

const COMPLETED: &str = "
WITH counted AS (
    DELETE FROM completed_counts
    WHERE id IN (SELECT id FROM completed_counts ORDER BY id LIMIT 1000000)
    RETURNING sync_phase, jobs
)
INSERT INTO completed_counts (sync_phase, jobs)
SELECT sync_phase, sum(jobs)
FROM counted
GROUP BY sync_phase";

const OPEN: &str = "
WITH counted AS (
    DELETE FROM open_counts
    WHERE id IN (SELECT id FROM open_counts ORDER BY id LIMIT 1000000)
    RETURNING state, sync_phase, error_type, error_signature, jobs
)
INSERT INTO open_counts (state, sync_phase, error_type, error_signature, jobs)
SELECT state, sync_phase, error_type, error_signature, sum(jobs)
FROM counted
GROUP BY state, sync_phase, error_type, error_signature
HAVING sum(jobs) <> 0";

/// The sweep tells new failures from the others by the time of their row.
const FAILURES: &str = "
WITH counted AS (
    DELETE FROM failure_counts
    WHERE id IN (
        SELECT id
        FROM failure_counts
        WHERE written_at < now() - interval '10 seconds'
        ORDER BY id
        LIMIT 1000000
    )
    RETURNING has_job, is_open, failures
)
INSERT INTO failure_counts (has_job, is_open, failures, written_at)
SELECT has_job, is_open, sum(failures), 'epoch'
FROM counted
GROUP BY has_job, is_open
HAVING sum(failures) <> 0";

const SIGNUPS: &str = "
WITH counted AS (
    DELETE FROM signup_counts
    WHERE id IN (SELECT id FROM signup_counts ORDER BY id LIMIT 1000000)
    RETURNING minute, signups, synced
)
INSERT INTO signup_counts (minute, signups, synced)
SELECT minute, sum(signups), sum(synced)
FROM counted
WHERE minute >= now() - interval '25 hours'
GROUP BY minute
HAVING sum(signups) <> 0 OR sum(synced) <> 0";

const ATTEMPTS: &str = "
WITH counted AS (
    DELETE FROM attempt_counts
    WHERE id IN (SELECT id FROM attempt_counts ORDER BY id LIMIT 1000000)
    RETURNING minute, completed, retried, failed
)
INSERT INTO attempt_counts (minute, completed, retried, failed)
SELECT minute, sum(completed), sum(retried), sum(failed)
FROM counted
WHERE minute >= now() - interval '2 hours'
GROUP BY minute";
