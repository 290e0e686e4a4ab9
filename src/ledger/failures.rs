//! The mirror of the failure queue.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Error, Ledger};
use crate::{
    diagnosis::signature,
    job::{ErrorType, Reason, Ticket},
};

/// A message of the failure queue.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedMessage {
    /// Its AMQP `message_id`, which makes the mirror idempotent.
    pub message_id: String,
    /// The job, if the message was for one.
    pub job_id: Option<Uuid>,
    /// Which try of the job failed.
    pub ticket: Option<Ticket>,
    /// The event that the broker gave up, which may have claimed its job and never settled it.
    pub given_up_event: Option<String>,
    /// Why it is there.
    pub reason: Reason,
    /// The kind of trouble, if it was a call's.
    pub error_type: Option<ErrorType>,
    /// What went wrong.
    pub error_message: String,
    /// The message's headers.
    pub headers: Value,
    /// The message's content type.
    pub content_type: Option<String>,
    /// The message's body, byte for byte.
    pub body: Vec<u8>,
    /// The exchange that the failed message came from.
    pub original_exchange: String,
    /// The routing key it came with.
    pub original_routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

impl FailedMessage {
    /// The message that may still hold the job, where the broker gave it up.
    fn given_up_claimant(&self) -> Option<String> {
        self.given_up_event.as_ref().map(|id| format!("event:{id}"))
    }
}

impl Ledger {
    /// Mirrors a batch of the failure queue. A message that was mirrored before changes nothing,
    /// unless its failure was resolved and it has failed again since.
    pub async fn mirror(&self, messages: &[FailedMessage]) -> Result<(), Error> {
        // The last one wins; one statement can't write the same row twice.
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
            fail_given_up(&mut transaction, &given_up).await?;
        }
        insert_failures(&mut transaction, &messages).await?;
        transaction.commit().await.map_err(Error::doing("committing mirrored failures"))
    }
}

/// Fails the jobs whose message the broker gave up: nothing would ever take them further.
async fn fail_given_up(
    connection: &mut PgConnection,
    messages: &[&FailedMessage],
) -> Result<(), Error> {
    sqlx::query!(
        r#"
        WITH failed AS (
            UPDATE signup_customerio_sync_jobs j
            SET status = 'failed', error_type = 'other', error_message = m.error_message,
                first_failed_at = COALESCE(j.first_failed_at, m.failed_at), failed_at = m.failed_at,
                failed_reason = 'delivery-limit', error_signature = m.error_signature,
                next_retry_at = NULL, claim = NULL, claimed_at = NULL,
                updated_at = now()
            FROM UNNEST($1::uuid[], $2::int4[], $3::int4[], $4::text[], $5::text[],
            $6::timestamptz[], $7::text[])
                AS m (job_id, run, attempt, claimant, error_message, failed_at, error_signature)
            WHERE j.id = m.job_id AND j.status IN ('pending', 'processing') AND (
                (j.run = m.run AND j.attempt_count = m.attempt)
                OR (j.claimed_by = m.claimant AND (j.status = 'processing' OR j.attempt_count = 0))
            )
            RETURNING j.id, j.signup_id, j.sync_phase, j.error_message, j.contact_id, j.manual_retry
        ), flagged AS (
            UPDATE signups s
            SET customerio_sync_failed = true, customerio_sync_error = f.error_message,
            updated_at = now()
            FROM failed f
            WHERE s.id = f.signup_id
        )
        INSERT INTO audit_logs (action, signup_id, actor, details)
        SELECT 'customerio_sync_failed', signup_id, 'customerio-sync', jsonb_build_object(
            'jobId', id, 'syncPhase', sync_phase, 'contactId', contact_id, 'manualRetry',
            manual_retry,
            'reason', 'delivery-limit', 'exhaustedRetries', false, 'errorType', 'other',
            'errorMessage', error_message
        )
        FROM failed
        "#,
        &column!(messages, one => one.job_id) as _,
        &column!(messages, one => one.ticket.map(|ticket| ticket.run)) as _,
        &column!(messages, one => one.ticket.map(|ticket| ticket.attempt)) as _,
        &column!(messages, one => one.given_up_claimant()) as _,
        &column!(messages, one => one.error_message.as_str()) as _,
        &column!(messages, one => one.failed_at) as _,
        &column!(messages, one => signature(&one.error_message)) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("failing jobs that the broker gave up"))?;
    Ok(())
}

async fn insert_failures(
    connection: &mut PgConnection,
    messages: &[&FailedMessage],
) -> Result<(), Error> {
    sqlx::query_file!(
        "src/ledger/insert_failures.sql",
        &column!(messages, one => one.message_id.as_str()) as _,
        &column!(messages, one => one.job_id) as _,
        &column!(messages, one => one.ticket.map(|ticket| ticket.run)) as _,
        &column!(messages, one => one.reason.as_str()) as _,
        &column!(messages, one => one.error_type.map(ErrorType::as_str)) as _,
        &column!(messages, one => one.error_message.as_str()) as _,
        &column!(messages, one => one.headers.clone()) as _,
        &column!(messages, one => one.content_type.as_deref()) as _,
        &column!(messages, one => one.body.as_slice()) as _,
        &column!(messages, one => one.original_exchange.as_str()) as _,
        &column!(messages, one => one.original_routing_key.as_str()) as _,
        &column!(messages, one => one.failed_at) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing mirrored failures"))?;
    Ok(())
}
