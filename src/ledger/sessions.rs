//! Sessions of browsers: the salt of their signatures, and those that ended before they expired.

use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Error, Ledger};

/// The salt of the signatures of all sessions: 256 random bits that all replicas share.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionSalt(Vec<u8>);

impl SessionSalt {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for SessionSalt {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for SessionSalt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSalt")
    }
}

/// A session that was ended before it expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedSession {
    /// Its id.
    pub id: Uuid,
    /// When it would have expired.
    pub expires_at: DateTime<Utc>,
    /// When it was ended.
    pub ended_at: DateTime<Utc>,
}

impl Ledger {
    /// The salt of the sessions. The first replica that needs it creates it.
    pub async fn session_salt(&self) -> Result<SessionSalt, Error> {
        if let Some(salt) = self.stored_salt().await? {
            return Ok(salt);
        }
        // Three random UUIDs have 366 random bits, of which the digest keeps 256.
        sqlx::query!(
            r#"
            INSERT INTO session_salt (salt)
            VALUES (sha256(
                uuid_send(gen_random_uuid())
                || uuid_send(gen_random_uuid())
                || uuid_send(gen_random_uuid())
            ))
            ON CONFLICT (is_only) DO NOTHING
            "#
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("creating the salt of sessions"))?;
        self.stored_salt().await?.ok_or(Error::Statement {
            doing: "reading the salt of sessions",
            source: sqlx::Error::RowNotFound,
        })
    }

    async fn stored_salt(&self) -> Result<Option<SessionSalt>, Error> {
        let salt = sqlx::query_scalar!("SELECT salt FROM session_salt")
            .fetch_optional(&self.pool)
            .await
            .map_err(Error::doing("reading the salt of sessions"))?;
        Ok(salt.map(SessionSalt))
    }

    /// Records that a session was ended, until it would have expired.
    pub async fn end_session(&self, id: Uuid, expires_at: DateTime<Utc>) -> Result<(), Error> {
        // Each logout also deletes expired rows, so the table contains the logouts of one lifetime.
        // Logouts that run at the same time skip each other's rows.
        sqlx::query!(
            r#"
            WITH expired AS (
                DELETE FROM ended_sessions
                WHERE id IN (
                    SELECT id
                    FROM ended_sessions
                    WHERE expires_at <= now()
                    ORDER BY expires_at
                    LIMIT 1000
                    FOR UPDATE SKIP LOCKED
                )
            )
            INSERT INTO ended_sessions (id, expires_at)
            VALUES ($1, $2)
            ON CONFLICT (id) DO NOTHING
            "#,
            id,
            expires_at,
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("ending a session"))?;
        Ok(())
    }

    /// At most `limit` sessions that have not expired and were ended after `ended_at`, or then with
    /// an id after `id`, in the order in which they were ended.
    pub async fn sessions_ended_after(
        &self,
        ended_at: DateTime<Utc>,
        id: Uuid,
        limit: i64,
    ) -> Result<Vec<EndedSession>, Error> {
        sqlx::query_as!(
            EndedSession,
            r#"
            SELECT id, expires_at, ended_at
            FROM ended_sessions
            WHERE (ended_at, id) > ($1::timestamptz, $2::uuid) AND expires_at > now()
            ORDER BY ended_at, id
            LIMIT $3
            "#,
            ended_at,
            id,
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("reading which sessions were ended"))
    }
}
