//! The outbox: messages that must follow a committed change, until RabbitMQ has confirmed them.
//!
//! The transaction that ends or reschedules jobs also writes a row per kind of message. The row
//! names the messages by job, run and attempt. Their contents are in `sync_attempts` and
//! `audit_logs`, which never change, so a repeat has the contents and the message id of the
//! original. The replica that wrote a row publishes its messages from memory and deletes it; a row
//! whose replica is gone, or that is due, is taken over and read.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{Error, Ledger, audit::AuditAction, pool::Session};
use crate::{
    job::{
        AttemptId, ErrorType, Failure, Job, JobReport, MessageKind, OutboxRow, Reason, SyncPhase,
        Verdict,
    },
    runtime::text_enum::known,
};

/// Time that a replica has to publish the messages of a row, before the row is taken over.
const DUE_AFTER: Duration = Duration::from_secs(30);

/// The reports of a transaction, by the kinds of messages that must follow.
fn by_kind(reports: Vec<JobReport>) -> HashMap<MessageKind, Vec<JobReport>> {
    let mut by_kind: HashMap<_, Vec<_>> = HashMap::new();
    for report in reports {
        let kind = match report.verdict {
            Verdict::Complete => MessageKind::Outcomes,
            Verdict::Retry { .. } => MessageKind::Retries,
            Verdict::Fail { .. } => {
                by_kind.entry(MessageKind::Failures).or_default().push(report.clone());
                MessageKind::Outcomes
            }
        };
        by_kind.entry(kind).or_default().push(report);
    }
    by_kind
}

/// Writes the rows for the messages that must follow `reports`, and returns them.
pub(super) async fn insert(
    connection: &mut Session,
    writer: Uuid,
    reports: Vec<JobReport>,
) -> Result<Vec<OutboxRow>, Error> {
    let mut by_kind = by_kind(reports);
    if by_kind.is_empty() {
        return Ok(Vec::new());
    }
    let messages: Vec<_> = by_kind
        .iter()
        .flat_map(|(kind, reports)| reports.iter().map(|report| (*kind, report.job.attempt_id())))
        .collect();
    let rows = sqlx::query!(
        r#"
        INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at)
        SELECT kind, array_agg(job_id), array_agg(run), array_agg(attempt), $5,
            now() + make_interval(secs => $6)
        FROM (
            SELECT UNNEST($1::text[]) AS kind, UNNEST($2::uuid[]) AS job_id,
                UNNEST($3::int4[]) AS run, UNNEST($4::int4[]) AS attempt
        ) AS m
        GROUP BY kind
        RETURNING id, kind AS "kind: MessageKind"
        "#,
        &column!(messages, one => one.0.as_str()) as _,
        &column!(messages, one => one.1.job_id) as _,
        &column!(messages, one => one.1.run) as _,
        &column!(messages, one => one.1.attempt) as _,
        writer,
        DUE_AFTER.as_secs_f64(),
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("writing the outbox"))?;
    let rows = rows.into_iter().map(|row| OutboxRow {
        id: row.id,
        kind: row.kind,
        reports: by_kind.remove(&row.kind).unwrap_or_default(),
        spans: HashMap::new(),
    });
    Ok(rows.collect())
}

impl Ledger {
    /// Writes the rows for the messages that must follow `report`, which may have been published
    /// before.
    pub async fn owe(&self, report: JobReport) -> Result<Vec<OutboxRow>, Error> {
        let mut connection =
            self.pool.acquire().await.map_err(Error::doing("writing the outbox"))?;
        insert(&mut connection, self.replica, vec![report]).await
    }

    /// Takes over at most `limit` rows of a kind: those that are due, and those whose replica is
    /// gone. They are due again after half a minute.
    pub async fn take_outbox(
        &self,
        kind: MessageKind,
        limit: i64,
    ) -> Result<Vec<OutboxRow>, Error> {
        let ids = sqlx::query_scalar!(
            r#"
            UPDATE outbox
            SET writer = $3, due_at = now() + make_interval(secs => $4)
            WHERE id IN (
                SELECT id
                FROM outbox o
                WHERE kind = $1
                    AND (
                        due_at <= now()
                        -- The replica is gone. A lease that is renewed late is no proof, so the row
                        -- has to be a few seconds old as well.
                        OR (
                            writer <> $3 AND created_at < now() - interval '5 seconds'
                            AND NOT EXISTS (
                                SELECT
                                FROM call_shares
                                WHERE replica = o.writer AND expires_at > now()
                            )
                        )
                    )
                ORDER BY due_at
                LIMIT $2
                FOR UPDATE SKIP LOCKED
            )
            RETURNING id
            "#,
            kind.as_str(),
            limit,
            self.replica,
            DUE_AFTER.as_secs_f64(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("taking over the outbox"))?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let reports = match kind {
            MessageKind::Retries => self.scheduled_retries(&ids).await?,
            MessageKind::Failures | MessageKind::Outcomes => self.end_states(&ids).await?,
        };
        let mut by_row: HashMap<_, Vec<_>> = HashMap::new();
        for (id, report) in reports {
            by_row.entry(id).or_default().push(report);
        }
        let row = |id| {
            let reports = by_row.remove(&id).unwrap_or_default();
            OutboxRow { id, kind, reports, spans: HashMap::new() }
        };
        Ok(ids.into_iter().map(row).collect())
    }

    /// Deletes a row whose messages are confirmed.
    pub async fn finish_outbox(&self, id: i64) -> Result<(), Error> {
        sqlx::query!("DELETE FROM outbox WHERE id = $1", id)
            .execute(&self.pool)
            .await
            .map_err(Error::doing("deleting from the outbox"))?;
        Ok(())
    }

    /// Leaves in a row only the messages that are not confirmed. It is due after as long as it has
    /// waited already, at most after `repeat_max`.
    pub async fn keep_in_outbox(
        &self,
        id: i64,
        left: &[AttemptId],
        repeat_max: Duration,
    ) -> Result<(), Error> {
        sqlx::query!(
            r#"
            UPDATE outbox
            SET job_ids = $2, runs = $3, attempts = $4,
                due_at = now() + LEAST(
                    GREATEST(now() - created_at, interval '1 second'), make_interval(secs => $5)
                )
            WHERE id = $1
            "#,
            id,
            &column!(left, one => one.job_id) as _,
            &column!(left, one => one.run) as _,
            &column!(left, one => one.attempt) as _,
            repeat_max.as_secs_f64(),
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("updating the outbox"))?;
        Ok(())
    }

    /// Drops outcomes that have waited longer than `age`, at most a thousand rows, and returns
    /// their number.
    pub async fn drop_old_outcomes(&self, age: Duration) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"
            WITH dropped AS (
                DELETE FROM outbox
                WHERE id IN (
                    SELECT id
                    FROM outbox
                    WHERE kind = 'outcomes' AND created_at < now() - make_interval(secs => $1)
                    ORDER BY created_at
                    LIMIT 1000
                    FOR UPDATE SKIP LOCKED
                )
                RETURNING job_ids
            )
            SELECT COALESCE(sum(cardinality(job_ids)), 0)::int8 AS "count!"
            FROM dropped
            "#,
            age.as_secs_f64(),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("dropping old outcomes"))
    }

    /// The reports of end states, each with the id of its row.
    async fn end_states(&self, rows: &[i64]) -> Result<Vec<(i64, JobReport)>, Error> {
        let rows = sqlx::query_file_as!(
            EndStateRow,
            "src/ledger/outbox_end_states.sql",
            rows,
            AuditAction::Synced.as_str(),
            AuditAction::SyncFailed.as_str(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("reading the end states in the outbox"))?;
        Ok(rows.into_iter().map(|row| (row.row, row.report())).collect())
    }

    /// The reports of scheduled retries, each with the id of its row.
    async fn scheduled_retries(&self, rows: &[i64]) -> Result<Vec<(i64, JobReport)>, Error> {
        let rows = sqlx::query_file_as!(RetryRow, "src/ledger/outbox_retries.sql", rows)
            .fetch_all(&self.pool)
            .await
            .map_err(Error::doing("reading the retries in the outbox"))?;
        Ok(rows.into_iter().map(|row| (row.row, row.report())).collect())
    }
}

/// An end state in the audit log.
struct EndStateRow {
    row: i64,
    id: Uuid,
    signup_id: Uuid,
    sync_phase: SyncPhase,
    run: i32,
    attempt: i32,
    max_attempts: i32,
    occurred_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
    first_failed_at: Option<DateTime<Utc>>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    is_completed: bool,
    details: Value,
    at: DateTime<Utc>,
}

impl EndStateRow {
    fn report(self) -> JobReport {
        let text = |key: &str| self.details[key].as_str().map(str::to_owned);
        let is_set = |key: &str| self.details[key] == true;
        let verdict = if self.is_completed {
            Verdict::Complete
        } else {
            let failure = Failure {
                error_type: known(text("errorType").as_deref()).unwrap_or(ErrorType::Other),
                cause: None,
                message: text("errorMessage").unwrap_or_default(),
            };
            let reason = known(text("reason").as_deref()).unwrap_or(Reason::Exhausted);
            Verdict::Fail { reason, failure }
        };
        let mock = is_set("mock");
        let (contact_id, manual_retry) = (text("contactId"), is_set("manualRetry"));
        let origin = serde_json::from_value(self.details["origin"].clone()).unwrap_or_default();
        let job = Job {
            id: self.id,
            signup_id: self.signup_id,
            phase: self.sync_phase,
            run: self.run,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            manual_retry,
            occurred_at: self.occurred_at,
            created_at: self.created_at,
            first_failed_at: self.first_failed_at,
            traceparent: self.traceparent,
            tracestate: self.tracestate,
        };
        JobReport { job, contact_id, origin, verdict, mock, at: self.at }
    }
}

/// A scheduled retry in the history of attempts.
struct RetryRow {
    row: i64,
    id: Uuid,
    signup_id: Uuid,
    sync_phase: SyncPhase,
    run: i32,
    attempt: i32,
    max_attempts: i32,
    manual_retry: bool,
    occurred_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
    first_failed_at: Option<DateTime<Utc>>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    tier: String,
    wait_ms: f64,
    at: DateTime<Utc>,
    error_type: Option<ErrorType>,
    error_message: Option<String>,
}

impl RetryRow {
    fn report(self) -> JobReport {
        let failure = Failure {
            error_type: self.error_type.unwrap_or(ErrorType::Other),
            cause: None,
            message: self.error_message.unwrap_or_default(),
        };
        let wait = Duration::from_secs_f64(self.wait_ms.max(0.0) / 1000.0);
        let job = Job {
            id: self.id,
            signup_id: self.signup_id,
            phase: self.sync_phase,
            run: self.run,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            manual_retry: self.manual_retry,
            occurred_at: self.occurred_at,
            created_at: self.created_at,
            first_failed_at: self.first_failed_at,
            traceparent: self.traceparent,
            tracestate: self.tracestate,
        };
        JobReport {
            job,
            contact_id: None,
            origin: None,
            verdict: Verdict::Retry { tier: self.tier, wait, failure },
            mock: false,
            at: self.at,
        }
    }
}
