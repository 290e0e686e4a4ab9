//! The mirror of the failure queue.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{AuditAction, SERVICE},
    flags::{self, ChangedSignup},
    locks,
    pool::Session,
};
use crate::{
    diagnosis::signature,
    job::{AttemptId, Claimant, ErrorType, MessageKind, Reason},
    runtime::text_enum::text_enum,
};

text_enum! {
    /// How a mirrored failure was resolved.
    FailureResolution {
        /// An operator restarted its job.
        Retried = "retried",
        /// A new event restarted its job, or its run had ended before it was mirrored.
        Superseded = "superseded",
        /// An operator dismissed it.
        Dismissed = "dismissed",
        /// An operator published the unprocessable message again.
        Replayed = "replayed",
    }
}

/// A message of the failure queue.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedMessage {
    /// What makes the mirror idempotent: the `message_id` of a message that this service published,
    /// or else an id of its own, which depends on everything that tells two messages apart.
    pub message_id: String,
    /// The job, if the message was for one.
    pub job_id: Option<Uuid>,
    /// The attempt of the job that failed.
    pub attempt_id: Option<AttemptId>,
    /// Id of the event that RabbitMQ dead-lettered at its delivery limit. It may have claimed its
    /// job and never settled it.
    pub given_up_event: Option<String>,
    /// Why it is in the failure queue.
    pub reason: Reason,
    /// The kind of error, if an attempt failed.
    pub error_type: Option<ErrorType>,
    /// The error message.
    pub error_message: String,
    /// Where in an unprocessable message the error is: a JSON path.
    pub error_path: Option<String>,
    /// The message's headers.
    pub headers: Value,
    /// The message's content type.
    pub content_type: Option<String>,
    /// The message's body, byte for byte.
    pub body: Vec<u8>,
    /// The exchange that the failed message came from.
    pub original_exchange: String,
    /// The routing key of the failed message.
    pub original_routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

impl FailedMessage {
    /// The claimant that may still own the job, if RabbitMQ dead-lettered its event.
    fn given_up_claimant(&self) -> Option<String> {
        self.given_up_event.as_ref().map(|id| Claimant::Event(id.clone()).to_string())
    }
}

impl Ledger {
    /// Mirrors a batch of the failure queue. A message that was mirrored before changes nothing,
    /// unless its failure was resolved and it has failed again since.
    pub async fn mirror(&self, messages: &[FailedMessage]) -> Result<(), Error> {
        // One statement can't write the same row twice. The last message of an id wins.
        let messages: Vec<_> = messages
            .iter()
            .map(|one| (one.message_id.as_str(), one))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect();
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to mirror failures"))?;
        let given_up: Vec<_> = messages
            .iter()
            .filter(|one| one.reason == Reason::DeliveryLimit && one.job_id.is_some())
            .copied()
            .collect();
        if !given_up.is_empty() {
            fail_given_up(&mut transaction, &given_up, self.replica).await?;
        }
        insert_failures(&mut transaction, &messages).await?;
        transaction.commit().await.map_err(Error::doing("committing mirrored failures"))
    }
}

/// Fails the jobs whose message RabbitMQ dead-lettered at its delivery limit: no message would ever
/// advance them.
async fn fail_given_up(
    connection: &mut Session,
    messages: &[&FailedMessage],
    replica: Uuid,
) -> Result<(), Error> {
    let jobs: Vec<_> = messages.iter().filter_map(|one| one.job_id).collect();
    locks::signups_of_jobs(connection, &jobs).await?;
    let signups = sqlx::query_scalar!(
        r#"
        WITH failed AS (
            UPDATE signup_customerio_sync_jobs j
            SET status = 'failed', error_type = 'other', error_message = m.error_message,
                first_failed_at = COALESCE(j.first_failed_at, m.failed_at), failed_at = m.failed_at,
                failed_reason = $8, error_signature = m.error_signature, next_retry_at = NULL,
                claim = NULL, claimed_at = NULL, updated_at = now()
            FROM UNNEST(
                $1::uuid[], $2::int4[], $3::int4[], $4::text[], $5::text[], $6::timestamptz[],
                $7::text[]
            ) AS m (job_id, run, attempt, claimant, error_message, failed_at, error_signature)
            WHERE j.id = m.job_id AND j.status IN ('pending', 'processing') AND (
                (j.run = m.run AND j.attempt_count = m.attempt)
                OR (j.claimed_by = m.claimant AND (j.status = 'processing' OR j.attempt_count = 0))
            )
            RETURNING j.id, j.signup_id, j.sync_phase, j.error_message, j.contact_id,
                j.manual_retry, j.run, j.attempt_count, j.failed_at
        ), audited AS (
            INSERT INTO audit_logs (action, created_at, signup_id, actor, details)
            -- The time of the outcome.
            SELECT $9, failed_at, signup_id, $10, jsonb_build_object(
                'jobId', id, 'syncPhase', sync_phase, 'contactId', contact_id, 'run', run,
                'attemptCount', attempt_count, 'manualRetry', manual_retry,
                'reason', $8::text, 'exhaustedRetries', false,
                'errorType', 'other', 'errorMessage', error_message
            )
            FROM failed
        ), owed AS (
            -- The failure is in the mirror already. Its outcome is due at once.
            INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at)
            SELECT $12, array_agg(id), array_agg(run), array_agg(attempt_count), $11, now()
            FROM failed
            HAVING count(*) > 0
        )
        SELECT DISTINCT signup_id AS "signup_id!" FROM failed
        "#,
        &column!(messages, one => one.job_id) as _,
        &column!(messages, one => one.attempt_id.map(|attempt_id| attempt_id.run)) as _,
        &column!(messages, one => one.attempt_id.map(|attempt_id| attempt_id.attempt)) as _,
        &column!(messages, one => one.given_up_claimant()) as _,
        &column!(messages, one => one.error_message.as_str()) as _,
        &column!(messages, one => one.failed_at) as _,
        &column!(messages, one => signature(&one.error_message)) as _,
        Reason::DeliveryLimit.as_str(),
        AuditAction::SyncFailed.as_str(),
        SERVICE,
        replica,
        MessageKind::Outcomes.as_str(),
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::doing("failing jobs with a dead-lettered message"))?;
    let changed: Vec<_> = signups.into_iter().map(ChangedSignup::new).collect();
    flags::update(connection, &changed).await
}

/// The reason as the release before can read it. The column `expired` has the rest.
fn stored_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => Reason::Unprocessable.as_str(),
        other => other.as_str(),
    }
}

async fn insert_failures(
    connection: &mut Session,
    messages: &[&FailedMessage],
) -> Result<(), Error> {
    sqlx::query_file!(
        "src/ledger/insert_failures.sql",
        &column!(messages, one => one.message_id.as_str()) as _,
        &column!(messages, one => one.job_id) as _,
        &column!(messages, one => one.attempt_id.map(|attempt_id| attempt_id.run)) as _,
        &column!(messages, one => stored_reason(one.reason)) as _,
        &column!(messages, one => one.error_type.map(ErrorType::as_str)) as _,
        &column!(messages, one => one.error_message.as_str()) as _,
        &column!(messages, one => one.headers.clone()) as _,
        &column!(messages, one => one.content_type.as_deref()) as _,
        &column!(messages, one => one.body.as_slice()) as _,
        &column!(messages, one => one.original_exchange.as_str()) as _,
        &column!(messages, one => one.original_routing_key.as_str()) as _,
        &column!(messages, one => one.failed_at) as _,
        &column!(messages, one => one.error_path.as_deref()) as _,
        &column!(messages, one => one.reason == Reason::Expired) as _,
        &column!(messages, one => one.given_up_event.as_deref()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing mirrored failures"))?;
    Ok(())
}
