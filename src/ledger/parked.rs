//! The failures that the failure queue should contain: those that are open in the mirror.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{Error, Ledger};
use crate::job::Reason;

/// A mirrored failure, with everything that is needed to park its message again.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedFailure {
    /// Its id in the mirror.
    pub id: Uuid,
    /// The `message_id` of its message.
    pub message_id: String,
    /// Why it is in the failure queue.
    pub reason: Reason,
    /// The error message.
    pub error_message: String,
    /// The headers of its message.
    pub headers: Value,
    /// The content type of its message.
    pub content_type: Option<String>,
    /// The body of its message.
    pub body: Vec<u8>,
    /// The exchange that the failed message came from.
    pub exchange: String,
    /// The routing key of the failed message.
    pub routing_key: String,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

/// Numbers of open failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFailures {
    /// All of them.
    pub open: i64,
    /// Those that were mirrored within the last two seconds. About as many are on their way between
    /// queue and mirror.
    pub recent: i64,
}

impl Ledger {
    /// The number of open failures in the mirror.
    pub async fn count_open_failures(&self) -> Result<OpenFailures, Error> {
        sqlx::query_as!(
            OpenFailures,
            r#"
            SELECT COALESCE(sum(failures), 0)::int8 AS "open!",
                COALESCE(
                    sum(failures) FILTER (
                        WHERE failures > 0 AND written_at > now() - interval '2 seconds'
                    ),
                    0
                )::int8 AS "recent!"
            FROM failure_counts
            WHERE is_open
            "#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("counting open failures"))
    }

    /// Whether the failures of these messages are open. A message without a failure has not been
    /// mirrored.
    pub async fn are_open(&self, message_ids: &[String]) -> Result<HashMap<String, bool>, Error> {
        let rows = sqlx::query!(
            r#"
            SELECT message_id, resolved_at IS NULL AS "is_open!"
            FROM sync_failures
            WHERE message_id = ANY($1)
            "#,
            message_ids
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("reading parked failures"))?;
        Ok(rows.into_iter().map(|row| (row.message_id, row.is_open)).collect())
    }

    /// The next `limit` failures by id, after `after`, that are open and were mirrored before
    /// `before`.
    pub async fn open_failures_after(
        &self,
        after: Uuid,
        before: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<ParkedFailure>, Error> {
        sqlx::query_as!(
            ParkedFailure,
            r#"
            SELECT id, message_id,
                CASE WHEN expired THEN 'expired' ELSE reason END AS "reason!: _",
                error_message, headers, content_type, body, original_exchange AS exchange,
                original_routing_key AS routing_key, failed_at
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
        .map_err(Error::doing("reading open failures"))
    }

    /// The time by the database's clock.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        sqlx::query_scalar!(r#"SELECT now() AS "now!""#)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("reading the database's clock"))
    }
}
