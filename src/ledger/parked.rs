//! Which failures the failure queue should hold: those of the mirror that are open.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{Error, Ledger};
use crate::job::Reason;

/// A failure as the mirror has it, with what is needed to park its message again.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedFailure {
    /// Its row.
    pub id: Uuid,
    /// The `message_id` of its message.
    pub message_id: String,
    /// Whether nobody has resolved it.
    pub is_open: bool,
    /// Why it is there.
    pub reason: Reason,
    /// What went wrong.
    pub error_message: String,
    /// The headers that its message had.
    pub headers: Value,
    /// The content type of its message.
    pub content_type: Option<String>,
    /// The body of its message.
    pub body: Vec<u8>,
    /// The exchange that the failed message came from.
    pub exchange: String,
    /// The routing key it came with.
    pub routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

struct ParkedRow {
    id: Uuid,
    message_id: String,
    is_open: bool,
    reason: String,
    error_message: String,
    headers: Value,
    content_type: Option<String>,
    body: Vec<u8>,
    exchange: String,
    routing_key: String,
    failed_at: DateTime<Utc>,
}

impl TryFrom<ParkedRow> for ParkedFailure {
    type Error = Error;

    fn try_from(row: ParkedRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.id,
            message_id: row.message_id,
            is_open: row.is_open,
            reason: row.reason.parse()?,
            error_message: row.error_message,
            headers: row.headers,
            content_type: row.content_type,
            body: row.body,
            exchange: row.exchange,
            routing_key: row.routing_key,
            failed_at: row.failed_at,
        })
    }
}

impl Ledger {
    /// How many failures of the mirror are open.
    pub async fn count_open_failures(&self) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM sync_failures WHERE resolved_at IS NULL"#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting open failures"))
    }

    /// The failures of these messages, in no order; a message without one has not been mirrored.
    pub async fn failures_of(&self, message_ids: &[String]) -> Result<Vec<ParkedFailure>, Error> {
        let rows = sqlx::query_as!(
            ParkedRow,
            r#"
            SELECT id, message_id, resolved_at IS NULL AS "is_open!", reason, error_message,
            headers, content_type, body,
                original_exchange AS exchange, original_routing_key AS routing_key, failed_at
            FROM sync_failures
            WHERE message_id = ANY($1)
            "#,
            message_ids
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("reading parked failures"))?;
        rows.into_iter().map(ParkedFailure::try_from).collect()
    }

    /// The next failures, by their ids after `after`, that are open and were mirrored before
    /// `before`.
    pub async fn open_failures_after(
        &self,
        after: Uuid,
        before: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<ParkedFailure>, Error> {
        let rows = sqlx::query_as!(
            ParkedRow,
            r#"
            SELECT id, message_id, resolved_at IS NULL AS "is_open!", reason, error_message,
            headers, content_type, body,
                original_exchange AS exchange, original_routing_key AS routing_key, failed_at
            FROM sync_failures
            WHERE resolved_at IS NULL AND id > $1 AND mirrored_at < $2
            ORDER BY id
            LIMIT $3
            "#,
            after,
            before,
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("reading open failures"))?;
        rows.into_iter().map(ParkedFailure::try_from).collect()
    }

    /// The database's time.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        sqlx::query_scalar!(r#"SELECT now() AS "now!""#)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("asking for the time"))
    }
}
