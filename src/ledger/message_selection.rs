//! A selection of unprocessable messages: by reason, path and routing key.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use sqlx::{Postgres, QueryBuilder};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Error, Ledger, pool::Session, selection::bounded_text};
use crate::job::Reason;

/// Filters of unprocessable messages, all of which must match. Without a filter, every open message
/// is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MessageSelection {
    /// Only messages with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Only messages with the error at this path, as the list shows it.
    #[serde(default, deserialize_with = "message_text", skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048, pattern = r"^[^\u0000]*$")]
    pub path: Option<String>,
    /// Only messages with this routing key, as the list shows it.
    #[serde(default, deserialize_with = "message_text", skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048, pattern = r"^[^\u0000]*$")]
    pub routing_key: Option<String>,
}

/// Deserializes a path or a routing key: at most 2048 characters, none of them U+0000.
pub fn message_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    bounded_text(deserializer, 2048)
}

/// The origin of messages that can be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSource {
    /// Their exchange.
    pub exchange: &'static str,
    /// Their routing key. `None` means any.
    pub routing_key: Option<&'static str>,
}

/// The number of messages that a selection matches, by what an action would do with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessagePreview {
    /// Messages that the action applies to.
    pub eligible: i64,
    /// Messages that match, but did not come from any of the sources.
    pub from_elsewhere: i64,
    /// Some of the eligible messages, oldest first.
    pub sample: Vec<Uuid>,
}

/// The messages that a selection is applied to.
#[derive(Debug, Clone, Copy)]
pub(super) enum MessageBase<'a> {
    /// All open messages.
    Open,
    /// Open messages from any of these sources.
    From(&'a [MessageSource]),
}

/// Maximum ids in a [`MessagePreview`].
const SAMPLE_IDS_MAX: i64 = 10;

impl MessageSelection {
    /// Appends `FROM` and `WHERE`, with the messages as `f`.
    fn push(&self, query: &mut QueryBuilder<Postgres>, base: MessageBase<'_>) {
        query.push(" FROM sync_failures f WHERE f.job_id IS NULL AND f.resolved_at IS NULL");
        if let Some(reason) = self.reason {
            let full_reason = " AND CASE WHEN f.expired THEN 'expired' ELSE f.reason END = ";
            query.push(full_reason).push_bind(reason.as_str());
        }
        if let Some(path) = &self.path {
            query.push(" AND f.error_path = ").push_bind(path.clone());
        }
        if let Some(routing_key) = &self.routing_key {
            query.push(" AND f.original_routing_key = ").push_bind(routing_key.clone());
        }
        if let MessageBase::From(sources) = base {
            query
                .push(" AND EXISTS (SELECT FROM UNNEST(")
                .push_bind(column!(sources, source => source.exchange))
                .push("::text[], ")
                .push_bind(column!(sources, source => source.routing_key))
                .push(
                    "::text[]) AS s (exchange, routing_key) \
                    WHERE s.exchange = f.original_exchange \
                    AND (s.routing_key IS NULL OR s.routing_key = f.original_routing_key))",
                );
        }
    }
}

impl Ledger {
    /// Counts the messages that `selection` matches. If `sources` are given, only messages from one
    /// of them are eligible.
    pub async fn preview_messages(
        &self,
        selection: &MessageSelection,
        sources: Option<&[MessageSource]>,
    ) -> Result<MessagePreview, Error> {
        let base = sources.map_or(MessageBase::Open, MessageBase::From);
        let (matching, eligible, sample) = tokio::try_join!(
            self.count_messages(selection, MessageBase::Open),
            self.count_messages(selection, base),
            async {
                let mut connection =
                    self.pool.acquire().await.map_err(Error::doing("sampling messages"))?;
                open_messages(&mut connection, selection, base, None, SAMPLE_IDS_MAX).await
            },
        )?;
        // A message that arrived between the two counts is eligible alone.
        Ok(MessagePreview { eligible, from_elsewhere: (matching - eligible).max(0), sample })
    }

    async fn count_messages(
        &self,
        selection: &MessageSelection,
        base: MessageBase<'_>,
    ) -> Result<i64, Error> {
        let mut query = QueryBuilder::new("SELECT count(*)");
        selection.push(&mut query, base);
        query
            .build_query_scalar()
            .persistent(false)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("counting unprocessable messages"))
    }
}

/// The open messages of `selection`, oldest first, at most `limit`, and only those that were
/// mirrored before `cutoff` if one is given.
pub(super) async fn open_messages(
    connection: &mut Session,
    selection: &MessageSelection,
    base: MessageBase<'_>,
    cutoff: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<Uuid>, Error> {
    let mut query = QueryBuilder::new("SELECT f.id");
    selection.push(&mut query, base);
    if let Some(cutoff) = cutoff {
        query.push(" AND f.mirrored_at <= ").push_bind(cutoff);
    }
    // The reverse order of the index `unprocessable_open`.
    query.push(" ORDER BY f.failed_at, f.id DESC LIMIT ").push_bind(limit);
    query
        .build_query_scalar()
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(Error::doing("finding unprocessable messages"))
}
