//! Unprocessable messages: those that could not be parsed or validated.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    failures::FailureResolution,
};

/// A message without a job: it could not be parsed or validated, or RabbitMQ dead-lettered it at
/// its delivery limit.
#[derive(Debug, Clone, PartialEq)]
pub struct UnprocessableMessage {
    /// Its id in the mirror.
    pub id: Uuid,
    /// Why it is in the failure queue. A text, since a newer release may have written it.
    pub reason: String,
    /// The JSON path of the error, what was found and what was expected.
    pub error_message: String,
    /// The JSON path alone. `None` for a message that RabbitMQ dead-lettered.
    pub error_path: Option<String>,
    /// Its headers.
    pub headers: Value,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its body, byte for byte.
    pub body: Vec<u8>,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

/// How an unprocessable message is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageResolution<'a> {
    /// It was published again.
    Replayed,
    /// It is not needed, for this reason.
    Dismissed(&'a str),
}

/// The result of resolving a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// It was open and is resolved.
    Done,
    /// There is no open message with this id.
    NotOpen,
}

impl Ledger {
    /// A page of the open messages, latest first, and their total number.
    pub async fn unprocessable(
        &self,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<UnprocessableMessage>, i64), Error> {
        let items = sqlx::query_as!(
            UnprocessableMessage,
            r#"
            SELECT id, reason, error_message, error_path, headers, content_type,
                body, original_exchange AS exchange, original_routing_key AS routing_key, failed_at
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
            r#"
            SELECT count(*) AS "count!"
            FROM sync_failures
            WHERE job_id IS NULL AND resolved_at IS NULL
            "#
        )
        .fetch_one(&self.pool);
        tokio::try_join!(items, total).map_err(Error::doing("listing unprocessable messages"))
    }

    /// One open message.
    pub async fn unprocessable_message(
        &self,
        id: Uuid,
    ) -> Result<Option<UnprocessableMessage>, Error> {
        sqlx::query_as!(
            UnprocessableMessage,
            r#"
            SELECT id, reason, error_message, error_path, headers, content_type,
                body, original_exchange AS exchange, original_routing_key AS routing_key, failed_at
            FROM sync_failures
            WHERE id = $1 AND job_id IS NULL AND resolved_at IS NULL
            "#,
            id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading an unprocessable message"))
    }

    /// Resolves a message.
    pub async fn resolve_unprocessable(
        &self,
        id: Uuid,
        resolution: MessageResolution<'_>,
        actor: &str,
    ) -> Result<Resolved, Error> {
        let (action, resolution, details) = match resolution {
            MessageResolution::Replayed => {
                (AuditAction::Replay, FailureResolution::Replayed, json!({ "failureId": id }))
            }
            MessageResolution::Dismissed(reason) => (
                AuditAction::Dismiss,
                FailureResolution::Dismissed,
                json!({ "failureId": id, "reason": reason }),
            ),
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
            resolution.as_str(),
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("resolving a message"))?
        .rows_affected();
        if resolved > 0 {
            audit::insert(
                &mut transaction,
                actor,
                &[AuditEntry { action, signup_id: None, details }],
            )
            .await?;
        }
        transaction.commit().await.map_err(Error::doing("committing a resolved message"))?;
        Ok(if resolved > 0 { Resolved::Done } else { Resolved::NotOpen })
    }
}
