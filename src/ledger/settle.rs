//! Writes down how tries ended: job, signup flags, attempt and audit rows, in one transaction,
//! fenced by the claim.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Error, Ledger, audit};
use crate::{
    diagnosis::signature,
    job::{Attempt, Ending, Failure, Job, Reason, Report},
    retry::Verdict,
};

/// How one try ended, to be written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    /// The job as it was claimed.
    pub job: Job,
    /// The person identifier that was used.
    pub contact_id: Option<String>,
    /// The try.
    pub attempt: Attempt,
    /// What follows from it.
    pub verdict: Verdict,
}

/// What became of a settlement.
#[derive(Debug, Clone, PartialEq)]
pub enum Settled {
    /// It is written down.
    Written(Box<Report>),
    /// The claim was lost to another message meanwhile, and nothing was changed.
    ClaimLost,
}

impl Settlement {
    fn status(&self) -> &'static str {
        match self.verdict {
            Verdict::Complete => "completed",
            Verdict::Retry { .. } => "pending",
            Verdict::Fail { .. } => "failed",
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match &self.verdict {
            Verdict::Complete => None,
            Verdict::Retry { failure, .. } | Verdict::Fail { failure, .. } => Some(failure),
        }
    }

    /// The attempt count after the try: a retry that is scheduled counts.
    fn attempt_count(&self) -> i32 {
        self.job.attempt + i32::from(matches!(self.verdict, Verdict::Retry { .. }))
    }

    fn delay_seconds(&self) -> Option<f64> {
        match &self.verdict {
            Verdict::Retry { tier, .. } => Some(tier.delay.as_secs_f64()),
            _ => None,
        }
    }

    fn failed_reason(&self) -> Option<&'static str> {
        match self.verdict {
            Verdict::Fail { reason, .. } => Some(reason.as_str()),
            _ => None,
        }
    }

    fn report(self, first_failed_at: Option<DateTime<Utc>>, at: DateTime<Utc>) -> Report {
        let job = Job { attempt: self.attempt_count(), first_failed_at, ..self.job };
        let ending = match self.verdict {
            Verdict::Complete => Ending::Completed { at },
            Verdict::Retry { tier, failure } => Ending::Retrying { failure, wait: tier.delay },
            Verdict::Fail { reason, failure } => Ending::Failed { reason, failure, at },
        };
        Report { job, contact_id: self.contact_id, ending }
    }

    /// The audit entry of an end state; a retry has none, `sync_attempts` tells of it.
    fn audit(&self) -> Option<(&'static str, Value)> {
        let action = match self.verdict {
            Verdict::Complete => "customerio_synced",
            Verdict::Fail { .. } => "customerio_sync_failed",
            Verdict::Retry { .. } => return None,
        };
        let mut details = json!({
            "jobId": self.job.id,
            "syncPhase": self.job.phase.as_str(),
            "contactId": self.contact_id,
            "attemptCount": self.job.attempt,
            "manualRetry": self.job.manual_retry,
        });
        if let Verdict::Fail { reason, failure } = &self.verdict {
            details["reason"] = reason.as_str().into();
            details["exhaustedRetries"] = (*reason == Reason::Exhausted).into();
            details["errorType"] = failure.error_type.as_str().into();
            details["errorMessage"] = failure.message.as_str().into();
        }
        Some((action, details))
    }
}

impl Ledger {
    /// Settles jobs that were claimed with `claim`. The answers come in the order of the
    /// settlements. A commit whose answer is lost may have happened: settled again, the jobs are
    /// found written, and nothing is written twice.
    pub async fn settle(
        &self,
        claim: Uuid,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Settled>, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to settle"))?;
        lock_signups(&mut transaction, &settlements).await?;
        let mut written = settle_jobs(&mut transaction, claim, &settlements).await?;
        let kept: Vec<_> =
            settlements.iter().filter(|one| written.contains_key(&one.job.id)).collect();
        let is_whole = kept.len() == settlements.len();
        if !kept.is_empty() {
            settle_signups(&mut transaction, &kept).await?;
            insert_attempts(&mut transaction, &kept).await?;
            insert_audit(&mut transaction, &kept).await?;
        }
        if !is_whole {
            written.extend(settled_before(&mut transaction, claim, &settlements).await?);
        }
        transaction.commit().await.map_err(Error::doing("committing settled jobs"))?;
        let answer = |settlement: Settlement| match written.get(&settlement.job.id) {
            Some(&(first_failed_at, at)) => {
                Settled::Written(Box::new(settlement.report(first_failed_at, at)))
            }
            None => Settled::ClaimLost,
        };
        Ok(settlements.into_iter().map(answer).collect())
    }

    /// Renews the lease of the claims on `jobs`. Answers which of them are claimed with `claim`
    /// still; the others were lost.
    pub async fn renew(&self, claim: Uuid, jobs: &[Uuid]) -> Result<HashSet<Uuid>, Error> {
        let held = sqlx::query_scalar!(
            r#"
            UPDATE signup_customerio_sync_jobs
            SET claimed_at = now()
            WHERE claim = $2
                AND id IN (
                    SELECT id
                    FROM signup_customerio_sync_jobs
                    WHERE id = ANY($1)
                    ORDER BY signup_id -- as everybody locks them
                    FOR UPDATE
                )
            RETURNING id
            "#,
            jobs,
            claim,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("renewing claims"))?;
        Ok(held.into_iter().collect())
    }

    /// Gives claims back that nothing was done with: no attempt is spent.
    pub async fn release(&self, claim: Uuid) -> Result<(), Error> {
        sqlx::query!(
            r#"
            UPDATE signup_customerio_sync_jobs
            SET status = 'pending', claim = NULL, claimed_at = NULL, updated_at = now()
            WHERE status = 'processing' AND claim = $1
            "#,
            claim
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("giving claims back"))?;
        Ok(())
    }
}

/// Takes the locks in the order in which `open` takes them: signups first, by id.
async fn lock_signups(
    connection: &mut PgConnection,
    settlements: &[Settlement],
) -> Result<(), Error> {
    let ids: Vec<_> = settlements.iter().map(|one| one.job.signup_id).collect();
    sqlx::query!("SELECT id FROM signups WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE", &ids)
        .fetch_all(connection)
        .await
        .map_err(Error::doing("locking signups"))?;
    Ok(())
}

/// Jobs that are settled, with when they first failed and when they were settled.
type Written = HashMap<Uuid, (Option<DateTime<Utc>>, DateTime<Utc>)>;

/// The jobs that were settled under this claim before, and that nobody has settled since.
async fn settled_before(
    connection: &mut PgConnection,
    claim: Uuid,
    settlements: &[Settlement],
) -> Result<Written, Error> {
    let ids: Vec<_> = settlements.iter().map(|one| one.job.id).collect();
    let rows = sqlx::query!(
        r#"
        SELECT id, first_failed_at, COALESCE(completed_at, failed_at, updated_at) AS "at!"
        FROM signup_customerio_sync_jobs
        WHERE id = ANY($1) AND settled_by = $2
        "#,
        &ids,
        claim,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("looking for jobs that were settled before"))?;
    Ok(rows.into_iter().map(|row| (row.id, (row.first_failed_at, row.at))).collect())
}

/// The jobs whose claim still held.
async fn settle_jobs(
    connection: &mut PgConnection,
    claim: Uuid,
    settlements: &[Settlement],
) -> Result<Written, Error> {
    let rows = sqlx::query!(
        r#"
        UPDATE signup_customerio_sync_jobs j
        SET status = o.status, attempt_count = o.attempt_count, last_attempt_at = o.started_at,
            next_retry_at = now() + make_interval(secs => o.delay_seconds),
            error_type = o.error_type, error_message = o.error_message,
            error_signature = o.error_signature,
            contact_id = o.contact_id,
            first_failed_at = CASE WHEN o.error_type IS NOT NULL THEN COALESCE(j.first_failed_at,
            now()) END,
            failed_at = CASE WHEN o.status = 'failed' THEN now() END,
            failed_reason = o.failed_reason,
            completed_at = CASE WHEN o.status = 'completed' THEN now() END,
            claim = NULL, claimed_at = NULL, settled_by = $1, updated_at = now()
        FROM UNNEST(
            $2::uuid[], $3::text[], $4::int4[], $5::timestamptz[], $6::float8[], $7::text[],
            $8::text[], $9::text[],
            $10::text[], $11::text[]
        ) AS o (
            id, status, attempt_count, started_at, delay_seconds, error_type, error_message,
            contact_id, failed_reason,
            error_signature
        )
        WHERE j.id = o.id AND j.claim = $1 -- the fence
        RETURNING j.id, j.first_failed_at, j.updated_at
        "#,
        claim,
        &column!(settlements, one => one.job.id) as _,
        &column!(settlements, one => one.status()) as _,
        &column!(settlements, one => one.attempt_count()) as _,
        &column!(settlements, one => one.attempt.started_at) as _,
        &column!(settlements, one => one.delay_seconds()) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.error_type.as_str())) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.message.as_str())) as _,
        &column!(settlements, one => one.contact_id.as_deref()) as _,
        &column!(settlements, one => one.failed_reason()) as _,
        &column!(settlements, one => one.failure().map(|failure| signature(&failure.message))) as _,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("settling jobs"))?;
    Ok(rows.into_iter().map(|row| (row.id, (row.first_failed_at, row.updated_at))).collect())
}

/// Brings the flags of the signups in line with their jobs. A retry changes none.
async fn settle_signups(
    connection: &mut PgConnection,
    settlements: &[&Settlement],
) -> Result<(), Error> {
    let ended: Vec<_> = settlements
        .iter()
        .filter(|one| !matches!(one.verdict, Verdict::Retry { .. }))
        .copied()
        .collect();
    if ended.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signups s
        SET customerio_synced = s.customerio_synced OR e.completed,
            customerio_synced_at = CASE WHEN e.completed THEN now() ELSE s.customerio_synced_at END,
            customerio_contact_id = CASE WHEN e.completed
            THEN e.contact_id ELSE s.customerio_contact_id END,
            customerio_sync_failed = failed.message IS NOT NULL,
            customerio_sync_error = failed.message,
            updated_at = now()
        FROM UNNEST($1::uuid[], $2::bool[], $3::text[]) AS e (signup_id, completed, contact_id)
        LEFT JOIN LATERAL (
            SELECT error_message AS message
            FROM signup_customerio_sync_jobs j
            WHERE j.signup_id = e.signup_id AND j.status = 'failed'
            ORDER BY j.updated_at DESC
            LIMIT 1
        ) AS failed ON true
        WHERE s.id = e.signup_id
        "#,
        &column!(ended, one => one.job.signup_id) as _,
        &column!(ended, one => one.verdict == Verdict::Complete) as _,
        &column!(ended, one => one.contact_id.as_deref()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("settling signups"))?;
    Ok(())
}

async fn insert_attempts(
    connection: &mut PgConnection,
    settlements: &[&Settlement],
) -> Result<(), Error> {
    let tier = |one: &Settlement| match &one.verdict {
        Verdict::Retry { tier, .. } => Some(tier.name.clone()),
        _ => None,
    };
    sqlx::query!(
        r#"
        INSERT INTO sync_attempts
            (job_id, run, attempt, started_at, duration_ms, http_status, error_type, error_message,
            tier)
        SELECT *
        FROM UNNEST(
            $1::uuid[], $2::int4[], $3::int4[], $4::timestamptz[], $5::float8[], $6::int4[],
            $7::text[], $8::text[],
            $9::text[]
        )
        "#,
        &column!(settlements, one => one.job.id) as _,
        &column!(settlements, one => one.job.run) as _,
        &column!(settlements, one => one.job.attempt) as _,
        &column!(settlements, one => one.attempt.started_at) as _,
        &column!(settlements, one => one.attempt.duration.as_secs_f64() * 1000.0) as _,
        &column!(settlements, one => one.attempt.http_status.map(i32::from)) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.error_type.as_str())) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.message.as_str())) as _,
        &column!(settlements, one => tier(one)) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing attempts"))?;
    Ok(())
}

async fn insert_audit(
    connection: &mut PgConnection,
    settlements: &[&Settlement],
) -> Result<(), Error> {
    let entry = |one: &&Settlement| {
        let (action, details) = one.audit()?;
        Some(audit::Entry { action, signup_id: Some(one.job.signup_id), details })
    };
    let entries: Vec<_> = settlements.iter().filter_map(entry).collect();
    audit::insert(connection, audit::SERVICE, &entries).await
}
