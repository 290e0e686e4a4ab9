//! The flags of a signup that say whether Customer.io has the person. This is their one writer.

use uuid::Uuid;

use super::{Error, pool::Session};

/// A signup whose jobs have changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChangedSignup<'a> {
    pub(super) signup_id: Uuid,
    /// Whether a job of it was completed.
    pub(super) completed: bool,
    /// The person identifier that was used, if a job was completed.
    pub(super) contact_id: Option<&'a str>,
}

impl ChangedSignup<'_> {
    /// A signup of which no job was completed.
    pub(super) fn new(signup_id: Uuid) -> Self {
        Self { signup_id, completed: false, contact_id: None }
    }
}

/// Records that a job of each signup is completed: signups by id, each with the person identifier
/// that was used. Locks the signups in the lock order (locks.rs), so it may be the first statement
/// of its transaction. A completion changes nothing about the failed jobs of its signup.
pub(super) async fn set_synced(
    connection: &mut Session,
    completed: &[(Uuid, &str)],
) -> Result<(), Error> {
    sqlx::query!(
        r#"
        UPDATE signups s
        SET customerio_synced = true, customerio_synced_at = now(),
            customerio_contact_id = e.contact_id, updated_at = now()
        FROM (
            SELECT id, contact_id
            FROM (SELECT UNNEST($1::uuid[]) AS id, UNNEST($2::text[]) AS contact_id) AS e
            ORDER BY id
        ) AS e
        WHERE s.id = e.id
        "#,
        &column!(completed, one => one.0) as _,
        &column!(completed, one => one.1) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("updating the flags of completed signups"))?;
    Ok(())
}

/// Sets the flags of the signups to what their jobs say. The caller owns the locks on the signups.
pub(super) async fn update(
    connection: &mut Session,
    changed: &[ChangedSignup<'_>],
) -> Result<(), Error> {
    if changed.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signups s
        SET customerio_synced = s.customerio_synced OR e.completed,
            customerio_synced_at = CASE WHEN e.completed THEN now() ELSE s.customerio_synced_at END,
            customerio_contact_id = CASE
                WHEN e.completed THEN e.contact_id
                ELSE s.customerio_contact_id
            END,
            customerio_sync_failed = failed.message IS NOT NULL,
            customerio_sync_error = failed.message,
            updated_at = now()
        FROM (
            SELECT UNNEST($1::uuid[]) AS signup_id, UNNEST($2::bool[]) AS completed,
                UNNEST($3::text[]) AS contact_id
        ) AS e
        LEFT JOIN LATERAL (
            SELECT error_message AS message
            FROM signup_customerio_sync_jobs j
            WHERE j.signup_id = e.signup_id AND j.status = 'failed'
            ORDER BY j.updated_at DESC
            LIMIT 1
        ) AS failed ON true
        WHERE s.id = e.signup_id
        "#,
        &column!(changed, one => one.signup_id) as _,
        &column!(changed, one => one.completed) as _,
        &column!(changed, one => one.contact_id) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("updating the flags of signups"))?;
    Ok(())
}

/// Clears the flags that say that Customer.io has the person, for those of the signups that have no
/// completed job. The caller owns the locks on the signups, and has restarted jobs of theirs that
/// were completed in mock mode.
pub(super) async fn clear_synced(connection: &mut Session, signups: &[Uuid]) -> Result<(), Error> {
    if signups.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signups s
        SET customerio_synced = false, customerio_synced_at = NULL, customerio_contact_id = NULL,
            updated_at = now()
        WHERE s.id = ANY($1) AND s.customerio_synced
            AND NOT EXISTS (
                SELECT
                FROM signup_customerio_sync_jobs j
                WHERE j.signup_id = s.id AND j.status = 'completed'
            )
        "#,
        signups
    )
    .execute(connection)
    .await
    .map_err(Error::doing("clearing the flags of signups"))?;
    Ok(())
}
