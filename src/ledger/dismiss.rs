//! Resolves failures and unprocessable messages without a retry or a replay.

use serde_json::json;

use super::{
    Error, Ledger,
    audit::AuditAction,
    bulk_action::{BulkAction, BulkKind, DismissalStep, DueAction, NewAction},
    failures::FailureResolution,
    locks,
    message_selection::{MessageBase, MessageSelection, open_messages},
    pool::Session,
    selection::{Selection, open_failures},
};

/// Maximum failures or messages per step of a dismissal.
const DISMISSALS_PER_STEP: i64 = 1000;

impl Ledger {
    /// Dismisses the failures of `selection` that are open now, for `reason`. A selection that one
    /// step can dismiss is dismissed when this returns; the steps of any replica dismiss the rest.
    pub async fn dismiss(
        &self,
        selection: &Selection,
        reason: &str,
        actor: &str,
    ) -> Result<BulkAction, Error> {
        let eligible = self.preview(selection).await?.eligible;
        let new = NewAction {
            kind: BulkKind::DismissFailures,
            selection: json!(selection),
            reason: Some(reason),
            eligible,
        };
        self.begin_dismissal(new, actor).await
    }

    /// Dismisses the messages of `selection` that are open now, like [`Ledger::dismiss`].
    pub async fn dismiss_messages(
        &self,
        selection: &MessageSelection,
        reason: Option<&str>,
        actor: &str,
    ) -> Result<BulkAction, Error> {
        let eligible = self.preview_messages(selection, None).await?.eligible;
        let new = NewAction {
            kind: BulkKind::DismissMessages,
            selection: json!(selection),
            reason,
            eligible,
        };
        self.begin_dismissal(new, actor).await
    }
}

/// Dismisses the next failures of an action.
pub(super) async fn dismiss_failures(
    connection: &mut Session,
    action: &DueAction,
) -> Result<DismissalStep, Error> {
    let selection: Selection = action.selection()?;
    let (cutoff, limit) = (Some(action.created_at), Some(DISMISSALS_PER_STEP));
    let jobs = open_failures(&mut *connection, &selection, cutoff, limit).await?;
    locks::signups_of_jobs(connection, &jobs).await?;
    let dismissed = sqlx::query_scalar!(
        r#"
        WITH dismissed AS (
            UPDATE signup_customerio_sync_jobs
            SET dismissed_at = now(), dismissed_reason = $2, updated_at = now()
            WHERE id = ANY($1) AND status = 'failed' AND dismissed_at IS NULL
            RETURNING id, signup_id, sync_phase
        ), resolved AS (
            UPDATE sync_failures f
            SET resolved_at = now(), resolution = $4
            FROM dismissed d
            WHERE f.job_id = d.id AND f.resolved_at IS NULL
        ), audited AS (
            INSERT INTO audit_logs (action, signup_id, actor, details)
            SELECT $5, signup_id, $3,
                jsonb_build_object(
                    'jobId', id, 'syncPhase', sync_phase, 'reason', $2::text,
                    'bulkActionId', $6::uuid
                )
            FROM dismissed
        )
        SELECT count(*) AS "count!" FROM dismissed
        "#,
        &jobs,
        action.reason.as_deref().unwrap_or_default(),
        action.actor.as_str(),
        FailureResolution::Dismissed.as_str(),
        AuditAction::Dismiss.as_str(),
        action.id,
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(Error::doing("dismissing failures"))?;
    // Fewer than the limit were all that matched.
    Ok(DismissalStep { dismissed, is_last: (jobs.len() as i64) < DISMISSALS_PER_STEP })
}

/// Dismisses the next messages of an action.
pub(super) async fn dismiss_messages(
    connection: &mut Session,
    action: &DueAction,
) -> Result<DismissalStep, Error> {
    let selection: MessageSelection = action.selection()?;
    let (cutoff, limit) = (Some(action.created_at), DISMISSALS_PER_STEP);
    let messages =
        open_messages(&mut *connection, &selection, MessageBase::Open, cutoff, limit).await?;
    let dismissed = sqlx::query_scalar!(
        r#"
        WITH locked AS (
            -- In the order of every step, so that one waits for the other.
            SELECT id
            FROM sync_failures
            WHERE id = ANY($1) AND job_id IS NULL AND resolved_at IS NULL
            ORDER BY id
            FOR UPDATE
        ), dismissed AS (
            UPDATE sync_failures f
            SET resolved_at = now(), resolution = $2
            FROM locked l
            WHERE f.id = l.id
            RETURNING f.id
        ), audited AS (
            INSERT INTO audit_logs (action, actor, details)
            SELECT $3, $4,
                jsonb_build_object(
                    'failureId', id, 'reason', $5::text, 'bulkActionId', $6::uuid
                )
            FROM dismissed
        )
        SELECT count(*) AS "count!" FROM dismissed
        "#,
        &messages,
        FailureResolution::Dismissed.as_str(),
        AuditAction::Dismiss.as_str(),
        action.actor.as_str(),
        action.reason.as_deref(),
        action.id,
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(Error::doing("dismissing unprocessable messages"))?;
    Ok(DismissalStep { dismissed, is_last: (messages.len() as i64) < DISMISSALS_PER_STEP })
}
