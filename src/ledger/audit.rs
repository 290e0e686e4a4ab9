//! The audit log: who did what to which signup. Append-only.

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Error;

/// The actor of what happens without an operator.
pub const SERVICE: &str = "customerio-sync";

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) action: &'static str,
    pub(super) signup_id: Option<Uuid>,
    /// An object.
    pub(super) details: Value,
}

/// Writes `entries`, all of them by `actor`.
pub(super) async fn insert(
    connection: &mut PgConnection,
    actor: &str,
    entries: &[Entry],
) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        INSERT INTO audit_logs (action, signup_id, actor, details)
        SELECT action, signup_id, $4, details
        FROM UNNEST($1::text[], $2::uuid[], $3::jsonb[]) AS e (action, signup_id, details)
        "#,
        &column!(entries, entry => entry.action) as _,
        &column!(entries, entry => entry.signup_id) as _,
        &column!(entries, entry => entry.details.clone()) as _,
        actor,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing the audit log"))?;
    Ok(())
}
