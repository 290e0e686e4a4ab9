//! A selection of failures: by the filters of the list, by the signature of a group, or by job.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use sqlx::{Postgres, QueryBuilder};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Error, Ledger, pool::Session};
use crate::{
    diagnosis::signature,
    job::{ErrorType, Status, SyncPhase},
};

/// Filters, all of which must match. Without a filter, every open failure is selected; with `mock`,
/// the jobs that were completed in mock mode instead.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    /// Only this phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_phase: Option<SyncPhase>,
    /// Only this kind of error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_type: Option<ErrorType>,
    /// A part of the customer's e-mail address or name, case-insensitive.
    #[serde(default, deserialize_with = "search_text", skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$")]
    pub search: Option<String>,
    /// Only this error signature, as the groups show it.
    #[serde(default, deserialize_with = "signature_text", skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 240, pattern = r"^[^\u0000]*$")]
    pub signature: Option<String>,
    /// Only these jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_ids: Option<Vec<Uuid>>,
    /// Instead of open failures, the jobs that were completed in mock mode and not sent since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mock: bool,
}

/// Deserializes a search text: at most 200 characters, none of them U+0000, which PostgreSQL can't
/// store in a `text`.
pub fn search_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    bounded_text(deserializer, 200)
}

/// Deserializes a signature: at most 240 characters, none of them U+0000.
pub fn signature_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    bounded_text(deserializer, 240)
}

pub(super) fn bounded_text<'de, D: Deserializer<'de>>(
    deserializer: D,
    chars_max: usize,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    match &text {
        Some(found) if found.contains('\0') || found.chars().count() > chars_max => {
            Err(D::Error::custom(format!(
                "expected at most {chars_max} characters, none of them U+0000"
            )))
        }
        _ => Ok(text),
    }
}

/// The jobs that a selection is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SelectionBase {
    /// Failed and not dismissed.
    OpenFailures,
    /// Pending or failed, with an error.
    WithError,
    /// In flight, with an error of an earlier attempt.
    InFlight,
    /// Completed in mock mode, and not sent since.
    MockCompleted,
}

/// The comparison of a search text with the e-mail address and the name of a customer. Either way,
/// case does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchMatch {
    /// It is a part of one of them.
    Part,
    /// It is the whole address, or the whole name.
    Whole,
}

/// The searched text: the expression of the index `failed_signups_by_text`.
const SEARCHED: &str = concat!(
    r"(COALESCE(s.email, '') || E'\n' || COALESCE(s.first_name, '') || ' ' ",
    r"|| COALESCE(s.last_name, ''))",
);

/// The first and the last name, as far as they are known.
const FULL_NAME: &str = "concat_ws(' ', s.first_name, s.last_name)";

impl Selection {
    /// Appends `FROM` and `WHERE`, with the jobs as `j`.
    ///
    /// The statement contains only the filters that are given, so that PostgreSQL can plan for
    /// them.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>, base: SelectionBase) {
        self.push_with(query, base, SearchMatch::Part);
    }

    /// As [`Selection::push`], with another comparison for the search text.
    pub(super) fn push_with(
        &self,
        query: &mut QueryBuilder<Postgres>,
        base: SelectionBase,
        search_match: SearchMatch,
    ) {
        query.push(match base {
            SelectionBase::OpenFailures => " FROM open_jobs j WHERE j.state = 'failed'",
            SelectionBase::WithError => {
                " FROM open_jobs j WHERE j.state IN ('pending', 'failed', 'dismissed')
                    AND j.error_type IS NOT NULL"
            }
            SelectionBase::InFlight => " FROM claimed_jobs j WHERE j.error_type IS NOT NULL",
            SelectionBase::MockCompleted => " FROM open_jobs j WHERE j.state = 'mock'",
        });
        if let Some(phase) = self.sync_phase {
            query.push(" AND j.sync_phase = ").push_bind(phase.as_str());
        }
        if let Some(error_type) = self.error_type {
            query.push(" AND j.error_type = ").push_bind(error_type.as_str());
        }
        if let Some(signature) = &self.signature {
            query.push(" AND j.error_signature = ").push_bind(signature.clone());
        }
        if let Some(ids) = &self.job_ids {
            query.push(" AND j.id = ANY(").push_bind(ids.clone()).push(")");
        }
        if let Some(search) = self.search_text(search_match) {
            query.push(" AND j.signup_id IN (");
            push_found_signups(query, base, search, search_match);
            query.push(")");
        }
    }

    /// The search text, if there is one.
    fn search_text(&self, search_match: SearchMatch) -> Option<&str> {
        let text = self.search.as_deref()?;
        let text = match search_match {
            SearchMatch::Part => text,
            SearchMatch::Whole => text.trim(),
        };
        (!text.is_empty()).then_some(text)
    }

    /// The search text, if there is one and no filter.
    pub(super) fn only_search(&self, search_match: SearchMatch) -> Option<&str> {
        let Self { sync_phase, error_type, signature, job_ids, search: _, mock: _ } = self;
        let has_filter = sync_phase.is_some()
            || error_type.is_some()
            || signature.is_some()
            || job_ids.is_some();
        self.search_text(search_match).filter(|_| !has_filter)
    }
}

/// Appends a query for the number of open failures of the signups that a search finds, and for the
/// number of these signups, each up to a maximum.
///
/// The signups are found first. Otherwise, PostgreSQL prefers to read all that are found, if these
/// are many.
pub(super) fn push_count_of_found(
    query: &mut QueryBuilder<Postgres>,
    search: &str,
    search_match: SearchMatch,
    (failures_max, signups_max): (i64, i64),
) {
    query.push("WITH found AS MATERIALIZED (");
    push_found_signups(query, SelectionBase::OpenFailures, search, search_match);
    query.push(" LIMIT ").push_bind(signups_max);
    query.push(
        ") SELECT (SELECT count(*) FROM (SELECT 1 FROM open_jobs WHERE state = 'failed'
            AND signup_id IN (SELECT id FROM found) LIMIT ",
    );
    query.push_bind(failures_max);
    query.push(") AS counted), (SELECT count(*) FROM found)");
}

/// Appends a query for the ids of the signups that a search finds.
fn push_found_signups(
    query: &mut QueryBuilder<Postgres>,
    base: SelectionBase,
    search: &str,
    search_match: SearchMatch,
) {
    query.push("SELECT s.id FROM signups s WHERE ");
    if base == SelectionBase::OpenFailures {
        query.push("s.customerio_sync_failed AND ");
    }
    query.push(SEARCHED).push(" ILIKE ").push_bind(containing(search));
    if search_match == SearchMatch::Whole {
        // The index finds the candidates by the condition above.
        query
            .push(" AND lower(")
            .push_bind(search.to_owned())
            .push(") IN (lower(s.email), lower(")
            .push(FULL_NAME)
            .push("))");
    }
}

/// An `ILIKE` pattern for every text that contains `text`.
fn containing(text: &str) -> String {
    let escaped = text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
    format!("%{escaped}%")
}

/// The number of jobs that a selection matches, by what a retry would do with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Open failures, or jobs that were completed in mock mode: those that would be retried.
    pub eligible: i64,
    /// Those of them whose event is older than 72 hours.
    pub late: i64,
    /// Dismissed failures.
    pub dismissed: i64,
    /// Jobs that wait for a scheduled retry.
    pub waiting: i64,
    /// Jobs with an attempt in flight.
    pub in_flight: i64,
}

impl Ledger {
    /// Counts the jobs that `selection` matches, by what a retry would do with them.
    pub async fn preview(&self, selection: &Selection) -> Result<Preview, Error> {
        self.add_missing_signatures().await?;
        if selection.mock {
            let counted = self.count(selection, SelectionBase::MockCompleted, "'mock'").await?;
            return Ok(preview_of(&counted));
        }
        let mut counted = self.count(selection, SelectionBase::WithError, "j.state").await?;
        let in_flight = format!("'{}'", Status::Processing.as_str());
        counted.extend(self.count(selection, SelectionBase::InFlight, &in_flight).await?);
        Ok(preview_of(&counted))
    }

    /// Counts jobs by `state`, an expression, and those of them whose event is older than 72 hours.
    async fn count(
        &self,
        selection: &Selection,
        base: SelectionBase,
        state: &str,
    ) -> Result<Vec<(String, i64, i64)>, Error> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(state).push(
            ", count(*), count(*) FILTER (WHERE j.occurred_at < now() - interval '72 hours')",
        );
        selection.push(&mut query, base);
        query
            .push(" GROUP BY 1")
            .build_query_as()
            .persistent(false)
            .fetch_all(&self.pool)
            .await
            .map_err(Error::doing("counting a selection"))
    }

    /// Adds a signature to failures that a release without signatures recorded.
    pub(super) async fn add_missing_signatures(&self) -> Result<(), Error> {
        loop {
            let unsigned = sqlx::query!(
                r#"
                SELECT j.id, j.error_message AS "error_message!"
                FROM open_jobs o
                JOIN signup_customerio_sync_jobs j ON j.id = o.id
                WHERE o.state = 'failed' AND o.error_signature IS NULL
                LIMIT 1000
                "#
            )
            .fetch_all(&self.pool)
            .await
            .map_err(Error::doing("finding failures without a signature"))?;
            if unsigned.is_empty() {
                return Ok(());
            }
            sqlx::query!(
                r#"
                UPDATE signup_customerio_sync_jobs j
                SET error_signature = u.signature
                FROM UNNEST($1::uuid[], $2::text[], $3::text[]) AS u (id, message, signature)
                WHERE j.id = u.id AND j.error_message = u.message
                "#,
                &column!(unsigned, one => one.id) as _,
                &column!(unsigned, one => one.error_message.as_str()) as _,
                &column!(unsigned, one => signature(&one.error_message)) as _,
            )
            .execute(&self.pool)
            .await
            .map_err(Error::doing("adding signatures to failures"))?;
        }
    }
}

/// The preview of jobs that were counted by state.
fn preview_of(counted: &[(String, i64, i64)]) -> Preview {
    let mut preview = Preview::default();
    for (state, count, late) in counted {
        match state.parse() {
            Ok(Status::Processing) => preview.in_flight = *count,
            Ok(Status::Pending) => preview.waiting = *count,
            _ if state == "dismissed" => preview.dismissed = *count,
            _ => (preview.eligible, preview.late) = (*count, *late),
        }
    }
    preview
}

/// The open failures of `selection`, at most `limit`, and only those that failed before `cutoff` if
/// one is given.
pub(super) async fn open_failures(
    connection: &mut Session,
    selection: &Selection,
    cutoff: Option<chrono::DateTime<chrono::Utc>>,
    limit: Option<i64>,
) -> Result<Vec<Uuid>, Error> {
    let mut query = QueryBuilder::new("SELECT j.id");
    selection.push(&mut query, SelectionBase::OpenFailures);
    if let Some(cutoff) = cutoff {
        query
            .push(" AND COALESCE(j.ended_at, j.last_attempt_at, j.created_at) <= ")
            .push_bind(cutoff);
    }
    if let Some(limit) = limit {
        query.push(" LIMIT ").push_bind(limit);
    }
    query
        .build_query_scalar()
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(Error::doing("finding the failures of a selection"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_matches_its_text_literally() {
        assert_eq!(containing(r"50%_\x"), r"%50\%\_\\x%");
    }
}
