//! Unprocessable messages: those that could not be parsed or validated.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    bulk_action::{BulkAction, BulkKind, NewAction, count_replay},
    failures::FailureResolution,
    message_selection::{MessageSelection, MessageSource},
};

/// A message without a job: it could not be parsed or validated, or RabbitMQ dead-lettered it at
/// its delivery limit. Only the start of a large body is read.
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
    /// Its headers. `None` if they are larger than the limit.
    pub headers: Option<Value>,
    /// Its content type.
    pub content_type: Option<String>,
    /// The start of its body.
    pub body: Vec<u8>,
    /// Size of its whole body in bytes.
    pub body_bytes: i32,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

/// An open message with everything that a replay of it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenMessage {
    /// Its id in the mirror.
    pub id: Uuid,
    /// The headers of its message in the failure queue, a JSON object.
    pub headers: Value,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its body, byte for byte.
    pub body: Vec<u8>,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
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

/// Maximum bytes that are read of each message.
#[derive(Debug, Clone, Copy)]
pub struct MessageReadLimits {
    /// Maximum bytes of the body. Of a larger body, the start is read.
    pub body_bytes: i32,
    /// Maximum bytes of the headers as JSON. Larger headers are not read.
    pub header_bytes: i32,
}

impl Ledger {
    /// A page of the open messages, latest first, and their total number.
    pub async fn unprocessable(
        &self,
        limit: i64,
        offset: i64,
        read: MessageReadLimits,
    ) -> Result<(Vec<UnprocessableMessage>, i64), Error> {
        let items = sqlx::query_as!(
            UnprocessableMessage,
            r#"
            -- An index alone finds the page; only then are its few rows read.
            WITH page AS (
                SELECT id
                FROM sync_failures
                WHERE job_id IS NULL AND resolved_at IS NULL
                ORDER BY failed_at DESC, id
                LIMIT $1 OFFSET $2
            )
            SELECT f.id, CASE WHEN expired THEN 'expired' ELSE reason END AS "reason!",
                error_message, error_path, content_type, failed_at,
                CASE WHEN octet_length(headers::text) <= $4 THEN headers END AS headers,
                substring(body FROM 1 FOR $3) AS "body!", octet_length(body) AS "body_bytes!",
                original_exchange AS exchange, original_routing_key AS routing_key
            FROM page
            JOIN sync_failures f ON f.id = page.id
            ORDER BY failed_at DESC, f.id
            "#,
            limit,
            offset,
            read.body_bytes,
            read.header_bytes,
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
        read: MessageReadLimits,
    ) -> Result<Option<UnprocessableMessage>, Error> {
        sqlx::query_as!(
            UnprocessableMessage,
            r#"
            SELECT id, CASE WHEN expired THEN 'expired' ELSE reason END AS "reason!",
                error_message, error_path, content_type, failed_at,
                CASE WHEN octet_length(headers::text) <= $3 THEN headers END AS headers,
                substring(body FROM 1 FOR $2) AS "body!", octet_length(body) AS "body_bytes!",
                original_exchange AS exchange, original_routing_key AS routing_key
            FROM sync_failures
            WHERE id = $1 AND job_id IS NULL AND resolved_at IS NULL
            "#,
            id,
            read.body_bytes,
            read.header_bytes,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading an unprocessable message"))
    }

    /// One open message, with its whole body.
    pub async fn open_message(&self, id: Uuid) -> Result<Option<OpenMessage>, Error> {
        sqlx::query_as!(
            OpenMessage,
            r#"
            SELECT id, headers, content_type, body, original_exchange AS exchange,
                original_routing_key AS routing_key
            FROM sync_failures
            WHERE id = $1 AND job_id IS NULL AND resolved_at IS NULL
            "#,
            id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading a message to replay"))
    }

    /// Returns one open message, and records in the audit log that `actor` revealed it.
    pub async fn reveal_unprocessable(
        &self,
        id: Uuid,
        actor: &str,
        limits: MessageReadLimits,
    ) -> Result<Option<UnprocessableMessage>, Error> {
        let Some(message) = self.unprocessable_message(id, limits).await? else { return Ok(None) };
        let mut connection =
            self.pool.acquire().await.map_err(Error::doing("recording a reveal"))?;
        let details = json!({ "failureId": id });
        let entry = AuditEntry { action: AuditAction::Reveal, signup_id: None, details };
        audit::insert(&mut connection, actor, &[entry]).await?;
        Ok(Some(message))
    }

    /// Records a bulk replay of the messages of `selection` that are open now and came from one of
    /// `sources`. The next step of any replica starts it.
    pub async fn replay_messages(
        &self,
        selection: &MessageSelection,
        sources: &[MessageSource],
        actor: &str,
    ) -> Result<BulkAction, Error> {
        let eligible = self.preview_messages(selection, Some(sources)).await?.eligible;
        let new = NewAction {
            kind: BulkKind::ReplayMessages,
            selection: json!(selection),
            reason: None,
            eligible,
        };
        let id = self.create_bulk_action(new, actor).await?;
        self.recorded_action(id).await
    }

    /// Resolves a message that an operator replayed or dismissed by itself.
    pub async fn resolve_unprocessable(
        &self,
        id: Uuid,
        resolution: MessageResolution<'_>,
        actor: &str,
    ) -> Result<Resolved, Error> {
        self.resolve_message(id, resolution, actor, None).await
    }

    /// Resolves a message that the bulk action `action` of `actor` replayed, and counts it.
    pub async fn record_replay(
        &self,
        id: Uuid,
        action: Uuid,
        actor: &str,
    ) -> Result<Resolved, Error> {
        self.resolve_message(id, MessageResolution::Replayed, actor, Some(action)).await
    }

    async fn resolve_message(
        &self,
        id: Uuid,
        resolution: MessageResolution<'_>,
        actor: &str,
        bulk_action: Option<Uuid>,
    ) -> Result<Resolved, Error> {
        let (action, resolution, mut details) = match resolution {
            MessageResolution::Replayed => {
                (AuditAction::Replay, FailureResolution::Replayed, json!({ "failureId": id }))
            }
            MessageResolution::Dismissed(reason) => (
                AuditAction::Dismiss,
                FailureResolution::Dismissed,
                json!({ "failureId": id, "reason": reason }),
            ),
        };
        if let Some(bulk_action) = bulk_action {
            details["bulkActionId"] = json!(bulk_action);
        }
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
            if let Some(bulk_action) = bulk_action {
                count_replay(&mut transaction, bulk_action).await?;
            }
        }
        transaction.commit().await.map_err(Error::doing("committing a resolved message"))?;
        Ok(if resolved > 0 { Resolved::Done } else { Resolved::NotOpen })
    }
}
