//! Records how attempts ended: job, flags of the signup, attempt and audit rows, in one transaction
//! that is fenced by the claim.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{
    ActivityMinute, Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    flags::{self, ChangedSignup},
    locks, outbox,
    pool::{Session, Transaction},
};
use crate::{
    diagnosis::signature,
    job::{
        Attempt, Failure, Job, JobReport, MessageOrigin, OutboxRow, Reason, Status, Verdict,
        Warning,
    },
};

/// An attempt and the decision about its job, to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    /// The job as it was claimed.
    pub job: Job,
    /// The person identifier that was used.
    pub contact_id: Option<String>,
    /// Where its message came from.
    pub origin: Option<MessageOrigin>,
    /// The attempt.
    pub attempt: Attempt,
    /// The decision about the job.
    pub verdict: Verdict,
}

/// The result of a batch of settlements.
#[derive(Debug, Clone)]
pub struct SettledBatch {
    /// The jobs whose settlement is recorded. Nothing was changed for the others: their claim was
    /// lost.
    pub recorded: HashSet<Uuid>,
    /// The messages that must follow. They are on record.
    pub outbox: Vec<OutboxRow>,
}

impl Settlement {
    fn status(&self) -> Status {
        match self.verdict {
            Verdict::Complete => Status::Completed,
            Verdict::Retry { .. } => Status::Pending,
            Verdict::Fail { .. } => Status::Failed,
        }
    }

    fn failure(&self) -> Option<&Failure> {
        self.verdict.failure()
    }

    /// The attempt count after the attempt, including a scheduled retry.
    fn attempt_count(&self) -> i32 {
        self.job.attempt + i32::from(matches!(self.verdict, Verdict::Retry { .. }))
    }

    fn tier(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Retry { tier, .. } => Some(tier),
            _ => None,
        }
    }

    fn delay_seconds(&self) -> Option<f64> {
        match &self.verdict {
            Verdict::Retry { wait, .. } => Some(wait.as_secs_f64()),
            _ => None,
        }
    }

    fn failed_reason(&self) -> Option<&'static str> {
        match self.verdict {
            Verdict::Fail { reason, .. } => Some(reason.as_str()),
            _ => None,
        }
    }

    /// Whether the job is completed in mock mode.
    fn is_mock(&self) -> bool {
        self.attempt.mock && self.verdict == Verdict::Complete
    }

    /// What the job did not do, if it is completed.
    fn warning(&self) -> Option<Warning> {
        self.attempt.warning.filter(|_| self.verdict == Verdict::Complete)
    }

    fn report(&self, (first_failed_at, at): SettledTimes) -> JobReport {
        JobReport {
            job: Job { attempt: self.attempt_count(), first_failed_at, ..self.job.clone() },
            contact_id: self.contact_id.clone(),
            origin: self.origin.clone(),
            verdict: self.verdict.clone(),
            mock: self.is_mock(),
            at,
        }
    }

    /// The audit entry of an end state. A retry has none: `sync_attempts` records it.
    fn audit(&self) -> Option<AuditEntry<EndStateDetails<'_>>> {
        let (action, failed) = match &self.verdict {
            Verdict::Complete => (AuditAction::Synced, None),
            Verdict::Fail { reason, failure } => (
                AuditAction::SyncFailed,
                Some(FailureDetails {
                    reason: reason.as_str(),
                    exhausted_retries: *reason == Reason::Exhausted,
                    error_type: failure.error_type.as_str(),
                    error_message: &failure.message,
                    origin: self.origin.as_ref(),
                }),
            ),
            Verdict::Retry { .. } => return None,
        };
        let details = EndStateDetails {
            job_id: self.job.id,
            sync_phase: self.job.phase.as_str(),
            contact_id: self.contact_id.as_deref(),
            run: self.job.run,
            attempt_count: self.job.attempt,
            manual_retry: self.job.manual_retry,
            mock: self.is_mock(),
            warning: self.warning().map(Warning::as_str),
            failed,
        };
        Some(AuditEntry { action, signup_id: Some(self.job.signup_id), details })
    }
}

/// The details of an end state in the audit log.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndStateDetails<'a> {
    job_id: Uuid,
    sync_phase: &'static str,
    contact_id: Option<&'a str>,
    run: i32,
    attempt_count: i32,
    manual_retry: bool,
    mock: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
    #[serde(flatten)]
    failed: Option<FailureDetails<'a>>,
}

/// What the details of a failed job contain in addition.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FailureDetails<'a> {
    reason: &'static str,
    exhausted_retries: bool,
    error_type: &'static str,
    error_message: &'a str,
    origin: Option<&'a MessageOrigin>,
}

/// What a claim owns after a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimRest {
    /// Nothing. The claim ends.
    Empty,
    /// Further jobs, which are settled or released later.
    Jobs,
}

impl Ledger {
    /// Settles jobs that were claimed with `claim`.
    ///
    /// A commit whose confirmation is lost may have happened: if the call is repeated with the same
    /// `claim`, it finds the jobs settled and writes nothing twice. The rows of the outbox that it
    /// wrote before are not returned; they are taken over when they are due.
    pub async fn settle(
        &self,
        claim: Uuid,
        settlements: &[Settlement],
        rest: ClaimRest,
    ) -> Result<SettledBatch, Error> {
        if let Some(batch) = self.try_complete(claim, settlements, rest).await? {
            return Ok(batch);
        }
        let mut transaction = self.begin_to_settle().await?;
        let signups: Vec<_> = settlements.iter().map(|one| one.job.signup_id).collect();
        locks::signups(&mut transaction, &signups).await?;
        let settled = settle_jobs(&mut transaction, claim, settlements).await?;
        let kept: Vec<_> =
            settlements.iter().filter(|one| settled.contains_key(&one.job.id)).collect();
        if !kept.is_empty() {
            update_flags(&mut transaction, &kept).await?;
        }
        let mut recorded: HashSet<_> = settled.keys().copied().collect();
        if kept.len() < settlements.len() {
            recorded.extend(settled_before(&mut transaction, claim, settlements).await?);
        }
        let outbox = self.record(&mut transaction, &kept, &settled).await?;
        end(transaction, claim, rest).await?;
        Ok(SettledBatch { recorded, outbox })
    }

    /// Settles jobs that are all completed, with one access to each signup: the update of its flags
    /// is also its lock. Changes nothing and returns `None` if a job is not completed, has no
    /// person identifier or has another claim.
    async fn try_complete(
        &self,
        claim: Uuid,
        settlements: &[Settlement],
        rest: ClaimRest,
    ) -> Result<Option<SettledBatch>, Error> {
        let Some(completed) = completed(settlements) else { return Ok(None) };
        let mut transaction = self.begin_to_settle().await?;
        flags::set_synced(&mut transaction, &completed).await?;
        let settled = settle_jobs(&mut transaction, claim, settlements).await?;
        if settled.len() < settlements.len() {
            transaction.rollback().await.map_err(Error::doing("beginning to settle again"))?;
            return Ok(None);
        }
        let kept: Vec<_> = settlements.iter().collect();
        let outbox = self.record(&mut transaction, &kept, &settled).await?;
        end(transaction, claim, rest).await?;
        Ok(Some(SettledBatch { recorded: settled.into_keys().collect(), outbox }))
    }

    async fn begin_to_settle(&self) -> Result<Transaction, Error> {
        self.pool.begin_by_key().await.map_err(Error::doing("beginning to settle"))
    }

    /// Records the history of settled jobs, and the messages that must follow.
    async fn record(
        &self,
        connection: &mut Session,
        kept: &[&Settlement],
        settled: &HashMap<Uuid, SettledTimes>,
    ) -> Result<Vec<OutboxRow>, Error> {
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        insert_attempts(connection, kept).await?;
        insert_audit(connection, kept).await?;
        let report = |one: &&Settlement| Some(one.report(*settled.get(&one.job.id)?));
        let reports = kept.iter().filter_map(report).collect();
        outbox::insert(connection, self.replica, reports).await
    }

    /// Renews the lease of all claims with this id.
    pub async fn renew_all(&self, claim: Uuid) -> Result<(), Error> {
        sqlx::query!(
            r#"
            UPDATE signup_customerio_sync_jobs
            SET claimed_at = now()
            WHERE id IN (
                SELECT id
                FROM signup_customerio_sync_jobs
                WHERE id IN (SELECT UNNEST(jobs) FROM claims WHERE claim = $1) AND claim = $1
                ORDER BY signup_id
                FOR UPDATE
            )
            "#,
            claim
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("renewing the claims of a batch"))?;
        Ok(())
    }

    /// Renews the lease of the claims on `jobs`. Returns the jobs that `claim` still owns; the
    /// claims on the others were lost.
    pub async fn renew(&self, claim: Uuid, jobs: &[Uuid]) -> Result<HashSet<Uuid>, Error> {
        let owned = sqlx::query_scalar!(
            r#"
            UPDATE signup_customerio_sync_jobs
            SET claimed_at = now()
            WHERE claim = $2
                AND id IN (
                    SELECT id
                    FROM signup_customerio_sync_jobs
                    WHERE id = ANY($1)
                    ORDER BY signup_id
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
        Ok(owned.into_iter().collect())
    }

    /// Releases the jobs that `claim` still owns. No attempt is spent.
    pub async fn release(&self, claim: Uuid) -> Result<(), Error> {
        sqlx::query!(
            r#"
            WITH released AS (
                UPDATE signup_customerio_sync_jobs
                SET status = 'pending', claim = NULL, claimed_at = NULL, updated_at = now()
                WHERE id IN (
                    SELECT id
                    FROM signup_customerio_sync_jobs
                    WHERE id IN (SELECT UNNEST(jobs) FROM claims WHERE claim = $1) AND claim = $1
                    ORDER BY signup_id
                    FOR UPDATE
                )
            )
            DELETE FROM claims
            WHERE claim = $1
            "#,
            claim
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("releasing claims"))?;
        Ok(())
    }
}

/// The signups and person identifiers of `settlements`, if all of them are completions.
fn completed(settlements: &[Settlement]) -> Option<Vec<(Uuid, &str)>> {
    let all = settlements.iter();
    all.map(|one| match one.verdict {
        Verdict::Complete => Some((one.job.signup_id, one.contact_id.as_deref()?)),
        Verdict::Retry { .. } | Verdict::Fail { .. } => None,
    })
    .collect()
}

/// Commits settled jobs, and ends their claim if no job of it is left.
async fn end(mut transaction: Transaction, claim: Uuid, rest: ClaimRest) -> Result<(), Error> {
    if rest == ClaimRest::Empty {
        sqlx::query!("DELETE FROM claims WHERE claim = $1", claim)
            .execute(&mut *transaction)
            .await
            .map_err(Error::doing("ending a claim"))?;
    }
    transaction.commit().await.map_err(Error::doing("committing settled jobs"))
}

/// The times of the first failure of a job and of its settlement.
type SettledTimes = (Option<DateTime<Utc>>, DateTime<Utc>);

/// The jobs that an earlier execution of the same transaction settled, and that are unchanged
/// since.
async fn settled_before(
    connection: &mut Session,
    claim: Uuid,
    settlements: &[Settlement],
) -> Result<Vec<Uuid>, Error> {
    let ids: Vec<_> = settlements.iter().map(|one| one.job.id).collect();
    sqlx::query_scalar!(
        r#"
        SELECT id
        FROM signup_customerio_sync_jobs
        WHERE id = ANY($1) AND settled_by = $2
        "#,
        &ids,
        claim,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("finding jobs that were settled before"))
}

/// Settles the jobs that the claim still owns, and returns them.
async fn settle_jobs(
    connection: &mut Session,
    claim: Uuid,
    settlements: &[Settlement],
) -> Result<HashMap<Uuid, SettledTimes>, Error> {
    let rows = sqlx::query!(
        r#"
        UPDATE signup_customerio_sync_jobs j
        SET status = o.status, attempt_count = o.attempt_count, last_attempt_at = o.started_at,
            next_retry_at = now() + make_interval(secs => o.delay_seconds),
            error_type = o.error_type, error_message = o.error_message,
            error_signature = o.error_signature,
            contact_id = o.contact_id,
            first_failed_at = CASE
                WHEN o.error_type IS NOT NULL THEN COALESCE(j.first_failed_at, now())
            END,
            failed_at = CASE WHEN o.status = 'failed' THEN now() END,
            failed_reason = o.failed_reason,
            completed_at = CASE WHEN o.status = 'completed' THEN now() END, mock = o.mock,
            warning = o.warning,
            claim = NULL, claimed_at = NULL, settled_by = $1, updated_at = now()
        FROM (
            SELECT UNNEST($2::uuid[]) AS id, UNNEST($3::text[]) AS status,
                UNNEST($4::int4[]) AS attempt_count, UNNEST($5::timestamptz[]) AS started_at,
                UNNEST($6::float8[]) AS delay_seconds, UNNEST($7::text[]) AS error_type,
                UNNEST($8::text[]) AS error_message, UNNEST($9::text[]) AS contact_id,
                UNNEST($10::text[]) AS failed_reason, UNNEST($11::text[]) AS error_signature,
                UNNEST($12::bool[]) AS mock, UNNEST($13::text[]) AS warning
        ) AS o
        WHERE j.id = o.id AND j.claim = $1 -- the fence
        RETURNING j.id, j.first_failed_at, j.updated_at
        "#,
        claim,
        &column!(settlements, one => one.job.id) as _,
        &column!(settlements, one => one.status().as_str()) as _,
        &column!(settlements, one => one.attempt_count()) as _,
        &column!(settlements, one => one.attempt.started_at) as _,
        &column!(settlements, one => one.delay_seconds()) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.error_type.as_str())) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.message.as_str())) as _,
        &column!(settlements, one => one.contact_id.as_deref()) as _,
        &column!(settlements, one => one.failed_reason()) as _,
        &column!(settlements, one => one.failure().map(|failure| signature(&failure.message))) as _,
        &column!(settlements, one => one.is_mock()) as _,
        &column!(settlements, one => one.warning().map(Warning::as_str)) as _,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("settling jobs"))?;
    Ok(rows.into_iter().map(|row| (row.id, (row.first_failed_at, row.updated_at))).collect())
}

/// Updates the flags of the signups whose jobs have ended. A retry changes none.
async fn update_flags(connection: &mut Session, settlements: &[&Settlement]) -> Result<(), Error> {
    let changed: Vec<_> = settlements
        .iter()
        .filter(|one| !matches!(one.verdict, Verdict::Retry { .. }))
        .map(|one| ChangedSignup {
            signup_id: one.job.signup_id,
            completed: one.verdict == Verdict::Complete,
            contact_id: one.contact_id.as_deref(),
        })
        .collect();
    flags::update(connection, &changed).await
}

async fn insert_attempts(
    connection: &mut Session,
    settlements: &[&Settlement],
) -> Result<(), Error> {
    let cause = |one: &Settlement| Some(one.failure()?.cause?.as_str());
    let counts = count_attempts(settlements);
    sqlx::query!(
        r#"
        WITH counted AS (
            INSERT INTO attempt_counts (minute, completed, retried, failed)
            SELECT *
            FROM UNNEST($11::timestamptz[], $12::int8[], $13::int8[], $14::int8[])
        )
        INSERT INTO sync_attempts
            (job_id, run, attempt, started_at, duration_ms, http_status, error_type, error_message,
            tier, error_cause)
        SELECT UNNEST($1::uuid[]), UNNEST($2::int4[]), UNNEST($3::int4[]),
            UNNEST($4::timestamptz[]), UNNEST($5::float8[]), UNNEST($6::int4[]), UNNEST($7::text[]),
            UNNEST($8::text[]), UNNEST($9::text[]), UNNEST($10::text[])
        "#,
        &column!(settlements, one => one.job.id) as _,
        &column!(settlements, one => one.job.run) as _,
        &column!(settlements, one => one.job.attempt) as _,
        &column!(settlements, one => one.attempt.started_at) as _,
        &column!(settlements, one => one.attempt.duration.as_secs_f64() * 1000.0) as _,
        &column!(settlements, one => one.attempt.http_status.map(i32::from)) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.error_type.as_str())) as _,
        &column!(settlements, one => one.failure().map(|failure| failure.message.as_str())) as _,
        &column!(settlements, one => one.tier()) as _,
        &column!(settlements, one => cause(one)) as _,
        &column!(counts, one => one.at) as _,
        &column!(counts, one => one.completed) as _,
        &column!(counts, one => one.retried) as _,
        &column!(counts, one => one.failed) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing attempts"))?;
    Ok(())
}

/// Counts the attempts by the minute in which they started.
fn count_attempts(settlements: &[&Settlement]) -> Vec<ActivityMinute> {
    let mut minutes = BTreeMap::new();
    for one in settlements {
        let started_at = one.attempt.started_at;
        let at = started_at.duration_trunc(TimeDelta::minutes(1)).unwrap_or(started_at);
        let minute = minutes.entry(at).or_insert_with(|| ActivityMinute::empty(at));
        match one.verdict {
            Verdict::Complete => minute.completed += 1,
            Verdict::Retry { .. } => minute.retried += 1,
            Verdict::Fail { .. } => minute.failed += 1,
        }
    }
    minutes.into_values().collect()
}

async fn insert_audit(connection: &mut Session, settlements: &[&Settlement]) -> Result<(), Error> {
    let entries: Vec<_> = settlements.iter().filter_map(|one| one.audit()).collect();
    audit::insert(connection, audit::SERVICE, &entries).await
}
