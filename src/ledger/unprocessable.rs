//! Messages that could not be understood.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Error, Ledger, audit};

/// A message that could not be understood, or that the broker gave up and that names no job.
#[derive(Debug, Clone, PartialEq)]
pub struct Unprocessable {
    /// Its id in the mirror.
    pub id: Uuid,
    /// Why it is there.
    pub reason: String,
    /// What is wrong: the JSON path and what was expected.
    pub error_message: String,
    /// Its headers.
    pub headers: Value,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its body, byte for byte.
    pub body: Vec<u8>,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

/// How a message that could not be understood is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution<'a> {
    /// It was published again.
    Replayed,
    /// Nobody needs it, for this reason.
    Dismissed(&'a str),
}

impl Ledger {
    /// A page of the messages that are open, the latest first, and how many there are.
    pub async fn unprocessable(
        &self,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<Unprocessable>, i64), Error> {
        let items = sqlx::query_as!(
            Unprocessable,
            r#"
            SELECT id, reason, error_message, headers, content_type, body,
            original_exchange AS exchange,
                original_routing_key AS routing_key, failed_at
            FROM sync_failures
            WHERE job_id IS NULL AND resolved_at IS NULL
            ORDER BY failed_at DESC, id
            LIMIT $1 OFFSET $2
            "#,
            limit,
            offset,
        )
        .fetch_all(&self.pool);
        let total = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM sync_failures WHERE job_id IS NULL
            AND resolved_at IS NULL"#
        )
        .fetch_one(&self.pool);
        tokio::try_join!(items, total).map_err(Error::doing("listing unprocessable messages"))
    }

    /// One message that is open.
    pub async fn unprocessable_message(&self, id: Uuid) -> Result<Option<Unprocessable>, Error> {
        sqlx::query_as!(
            Unprocessable,
            r#"
            SELECT id, reason, error_message, headers, content_type, body,
            original_exchange AS exchange,
                original_routing_key AS routing_key, failed_at
            FROM sync_failures
            WHERE id = $1 AND job_id IS NULL AND resolved_at IS NULL
            "#,
            id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading an unprocessable message"))
    }

    /// Resolves a message, and says whether it was open.
    pub async fn resolve_unprocessable(
        &self,
        id: Uuid,
        resolution: Resolution<'_>,
        actor: &str,
    ) -> Result<bool, Error> {
        let (action, word, details) = match resolution {
            Resolution::Replayed => ("customerio_replay", "replayed", json!({ "failureId": id })),
            Resolution::Dismissed(reason) => {
                ("customerio_dismiss", "dismissed", json!({ "failureId": id, "reason": reason }))
            }
        };
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to resolve a message"))?;
        let resolved = sqlx::query!(
            r#"
            UPDATE sync_failures
            SET resolved_at = now(), resolution = $2
            WHERE id = $1 AND job_id IS NULL AND resolved_at IS NULL
            "#,
            id,
            word,
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("resolving a message"))?
        .rows_affected();
        if resolved > 0 {
            audit::insert(
                &mut transaction,
                actor,
                &[audit::Entry { action, signup_id: None, details }],
            )
            .await?;
        }
        transaction.commit().await.map_err(Error::doing("committing a resolved message"))?;
        Ok(resolved > 0)
    }
}
