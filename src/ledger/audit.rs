//! The audit log: who did what to which signup. Append-only.

use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Error, pool::Session};
use crate::runtime::text_enum::text_enum;

/// The actor of changes that no operator made.
pub const SERVICE: &str = "customerio-sync";

text_enum! {
    /// An action in the audit log.
    AuditAction {
        /// A job was completed.
        Synced = "customerio_synced",
        /// A job failed.
        SyncFailed = "customerio_sync_failed",
        /// A new event restarted a job.
        SyncRestarted = "customerio_sync_restarted",
        /// An operator restarted a failed job, or one that was completed in mock mode.
        ManualRetry = "customerio_manual_retry",
        /// An operator created a bulk retry.
        BulkRetry = "customerio_bulk_retry",
        /// An operator cancelled a bulk retry.
        BulkRetryCancelled = "customerio_bulk_retry_cancelled",
        /// An operator dismissed all failures or messages of a selection.
        BulkDismiss = "customerio_bulk_dismiss",
        /// An operator replayed all messages of a selection.
        BulkReplay = "customerio_bulk_replay",
        /// An operator cancelled a bulk dismissal or a bulk replay.
        BulkActionCancelled = "customerio_bulk_action_cancelled",
        /// An abandoned job was reset to `pending`.
        Cleanup = "customerio_cleanup",
        /// An operator closed the circuit breakers.
        BreakerClosed = "customerio_breaker_closed",
        /// A failure or an unprocessable message was resolved without a retry.
        Dismiss = "customerio_dismiss",
        /// An unprocessable message was published again.
        Replay = "customerio_replay",
        /// An operator revealed a customer.
        Reveal = "customerio_reveal",
    }
}

/// One entry of the audit log.
#[derive(Debug)]
pub(super) struct AuditEntry<D = Value> {
    pub(super) action: AuditAction,
    pub(super) signup_id: Option<Uuid>,
    /// A JSON object.
    pub(super) details: D,
}

/// Writes `entries`, all of them by `actor`.
pub(super) async fn insert<D: Serialize>(
    connection: &mut Session,
    actor: &str,
    entries: &[AuditEntry<D>],
) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        INSERT INTO audit_logs (action, signup_id, actor, details)
        SELECT UNNEST($1::text[]), UNNEST($2::uuid[]), $4, UNNEST($3::jsonb[])
        "#,
        &column!(entries, entry => entry.action.as_str()) as _,
        &column!(entries, entry => entry.signup_id) as _,
        &column!(entries, entry => Json(&entry.details)) as _,
        actor,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing the audit log"))?;
    Ok(())
}
