//! Resolves failures without a retry.

use super::{
    Error, Ledger,
    audit::AuditAction,
    failures::FailureResolution,
    selection::{Selection, open_failures},
};

impl Ledger {
    /// Dismisses the open failures of `selection` for `reason`. Returns their number.
    pub async fn dismiss(
        &self,
        selection: &Selection,
        reason: &str,
        actor: &str,
    ) -> Result<i64, Error> {
        self.add_missing_signatures().await?;
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to dismiss failures"))?;
        let jobs = open_failures(&mut transaction, selection, None, None).await?;
        let count = sqlx::query_scalar!(
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
                    jsonb_build_object('jobId', id, 'syncPhase', sync_phase, 'reason', $2::text)
                FROM dismissed
            )
            SELECT count(*) AS "count!" FROM dismissed
            "#,
            &jobs,
            reason,
            actor,
            FailureResolution::Dismissed.as_str(),
            AuditAction::Dismiss.as_str(),
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::doing("dismissing failures"))?;
        transaction.commit().await.map_err(Error::doing("committing dismissed failures"))?;
        Ok(count)
    }
}
