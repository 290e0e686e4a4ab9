//! The mirror of the failure queue.

use std::collections::{BTreeMap, HashMap};

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
    job::{AttemptId, Claimant, ErrorType, MessageKind, Reason, SyncPhase},
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

/// The job that a failed message was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageJob {
    /// The job that the message names.
    Named(Uuid),
    /// The job of an event that RabbitMQ dead-lettered at its delivery limit. The event may have
    /// claimed the job and never settled it.
    OfEvent {
        /// The signup that the event is for.
        signup_id: Uuid,
        /// The phase that the event is for.
        phase: SyncPhase,
        /// The id of the event.
        event_id: String,
    },
}

/// The ids of jobs, by signup and phase.
type JobIds = HashMap<(Uuid, SyncPhase), Uuid>;

/// A message of the failure queue.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedMessage {
    /// What makes the mirror idempotent: the `message_id` of a message that this service published,
    /// or else an id of its own, which depends on everything that tells two messages apart.
    pub message_id: String,
    /// The job, if the message was for one.
    pub job: Option<MessageJob>,
    /// The attempt of the job that failed.
    pub attempt_id: Option<AttemptId>,
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
    /// The id of its job, if there is one. `of_events` has the jobs of dead-lettered events.
    fn job_id(&self, of_events: &JobIds) -> Option<Uuid> {
        match self.job.as_ref()? {
            MessageJob::Named(id) => Some(*id),
            MessageJob::OfEvent { signup_id, phase, .. } => {
                of_events.get(&(*signup_id, *phase)).copied()
            }
        }
    }

    /// The id of the event that RabbitMQ dead-lettered.
    fn given_up_event(&self) -> Option<&str> {
        match self.job.as_ref()? {
            MessageJob::Named(_) => None,
            MessageJob::OfEvent { event_id, .. } => Some(event_id),
        }
    }

    /// The claimant that may still own the job, if RabbitMQ dead-lettered its event.
    fn given_up_claimant(&self) -> Option<String> {
        self.given_up_event().map(|id| Claimant::Event(id.to_owned()).to_string())
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
        let of_events = jobs_of_events(&mut transaction, &messages).await?;
        let given_up: Vec<_> = messages
            .iter()
            .filter(|one| one.reason == Reason::DeliveryLimit && one.job_id(&of_events).is_some())
            .copied()
            .collect();
        if !given_up.is_empty() {
            fail_given_up(&mut transaction, &given_up, &of_events, self.replica).await?;
        }
        insert_failures(&mut transaction, &messages, &of_events).await?;
        transaction.commit().await.map_err(Error::doing("committing mirrored failures"))
    }
}

/// The jobs of the events that RabbitMQ dead-lettered. An event that no consumer took in has none.
async fn jobs_of_events(
    connection: &mut Session,
    messages: &[&FailedMessage],
) -> Result<JobIds, Error> {
    let of_event = |one: &&FailedMessage| match one.job.as_ref()? {
        MessageJob::Named(_) => None,
        MessageJob::OfEvent { signup_id, phase, .. } => Some((*signup_id, phase.as_str())),
    };
    let wanted: Vec<_> = messages.iter().filter_map(of_event).collect();
    if wanted.is_empty() {
        return Ok(JobIds::new());
    }
    let rows = sqlx::query!(
        r#"
        SELECT j.id, j.signup_id, j.sync_phase AS "sync_phase: SyncPhase"
        FROM UNNEST($1::uuid[], $2::text[]) AS e (signup_id, sync_phase)
        JOIN signup_customerio_sync_jobs j USING (signup_id, sync_phase)
        "#,
        &column!(wanted, one => one.0) as _,
        &column!(wanted, one => one.1) as _,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("finding the jobs of dead-lettered events"))?;
    Ok(rows.into_iter().map(|row| ((row.signup_id, row.sync_phase), row.id)).collect())
}

/// Fails the jobs whose message RabbitMQ dead-lettered at its delivery limit: no message would ever
/// advance them.
async fn fail_given_up(
    connection: &mut Session,
    messages: &[&FailedMessage],
    of_events: &JobIds,
    replica: Uuid,
) -> Result<(), Error> {
    let jobs: Vec<_> = messages.iter().filter_map(|one| one.job_id(of_events)).collect();
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
        &column!(messages, one => one.job_id(of_events)) as _,
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
    of_events: &JobIds,
) -> Result<(), Error> {
    sqlx::query_file!(
        "src/ledger/insert_failures.sql",
        &column!(messages, one => one.message_id.as_str()) as _,
        &column!(messages, one => one.job_id(of_events)) as _,
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
        &column!(messages, one => one.given_up_event()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing mirrored failures"))?;
    Ok(())
}
