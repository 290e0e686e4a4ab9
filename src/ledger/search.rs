//! Finds failures: the list, and the groups by signature.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{
    Error, Ledger,
    selection::{SearchMatch, Selection, SelectionBase, push_count_of_found},
};
use crate::{
    diagnosis::FailureFacts,
    job::{ErrorType, Status, SyncPhase},
    runtime::text_enum::known,
};

/// An open failure, with its customer.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct FailedJob {
    /// The job.
    pub job_id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    pub sync_phase: SyncPhase,
    /// Its status.
    pub status: Status,
    /// Retries scheduled.
    pub attempt_count: i32,
    /// Maximum retries.
    pub max_attempts: i32,
    /// The kind of error.
    pub error_type: ErrorType,
    /// The error message.
    pub error_message: String,
    /// The error signature.
    pub error_signature: Option<String>,
    /// HTTP status of the last attempt, if there was a response.
    pub http_status: Option<i32>,
    /// Cause of the last attempt's failure. A text, since a newer release may have written it.
    pub error_cause: Option<String>,
    /// Why no further attempt is made. A text, since a newer release may have written it.
    pub failed_reason: Option<String>,
    /// When the last call started.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// When it failed.
    pub failed_at: Option<DateTime<Utc>>,
    /// When the job was created.
    pub created_at: DateTime<Utc>,
    /// Time of its event.
    pub occurred_at: DateTime<Utc>,
    /// The customer's id.
    pub customer_id: Option<String>,
    /// The customer's e-mail address.
    pub email: Option<String>,
    /// The customer's first name.
    pub first_name: Option<String>,
    /// The customer's last name.
    pub last_name: Option<String>,
}

impl FailedJob {
    /// The facts that a diagnosis is made from.
    pub fn facts(&self) -> FailureFacts {
        FailureFacts {
            reason: known(self.failed_reason.as_deref()),
            cause: known(self.error_cause.as_deref()),
            error_type: Some(self.error_type),
            http_status: self.http_status.and_then(|status| status.try_into().ok()),
            occurred_at: Some(self.occurred_at),
        }
    }
}

/// A page of open failures.
#[derive(Debug, Clone, PartialEq)]
pub struct FailurePage {
    /// The failures on the page.
    pub items: Vec<FailedJob>,
    /// Number of failures on all pages; at most 10,000.
    pub total: i64,
    /// Whether there are no more than `total`.
    pub total_is_exact: bool,
}

/// Open failures with the same signature and kind of error.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureGroup {
    /// Their error signature.
    pub signature: String,
    /// The kind of error.
    pub error_type: ErrorType,
    /// Number of failures.
    pub count: i64,
    /// When the first of them failed.
    pub first_seen: Option<DateTime<Utc>>,
    /// When the last of them failed.
    pub last_seen: Option<DateTime<Utc>>,
    /// The latest failure.
    pub sample: FailedJob,
}

/// The columns of a [`FailedJob`] for the ids of a `page`. A name may be as large as an event, so
/// only its start is read.
const COLUMNS: &str = "
    SELECT j.id AS job_id, j.signup_id, j.sync_phase, j.status, j.attempt_count, j.max_attempts,
        j.error_type, j.error_message, j.error_signature, j.failed_reason, j.last_attempt_at,
        j.failed_at, j.created_at, j.occurred_at, left(s.customer_id, 1000) AS customer_id,
        left(s.email, 1000) AS email, left(s.first_name, 1000) AS first_name,
        left(s.last_name, 1000) AS last_name, last.http_status, last.error_cause
    FROM page
    JOIN signup_customerio_sync_jobs j ON j.id = page.id
    JOIN signups s ON s.id = j.signup_id
    LEFT JOIN LATERAL (
        SELECT a.http_status, a.error_cause
        FROM sync_attempts a
        WHERE a.job_id = j.id
        ORDER BY a.id DESC
        LIMIT 1
    ) AS last ON true";

/// The order of the list, which is that of the indexes `open_failures_in_order…`.
const ORDER: &str = " ORDER BY j.attempt_count DESC, j.last_attempt_at DESC NULLS LAST, j.id";

/// Maximum number of failures that is counted exactly.
const EXACT_TOTAL_MAX: i64 = 10_000;
/// Maximum signups that a search without filters finds before their failures are counted. If too
/// many of these are dismissed, all signups are found.
const FOUND_SIGNUPS_MAX: i64 = 20_000;
/// Maximum groups in one response.
const GROUPS_MAX: i64 = 200;

impl Ledger {
    /// A page of the open failures of `selection`, most attempts and latest attempt first, and
    /// their total number.
    pub async fn failures(
        &self,
        selection: &Selection,
        search_match: SearchMatch,
        limit: i64,
        offset: i64,
    ) -> Result<FailurePage, Error> {
        let counted = self.count_failures(selection, search_match);
        let (items, counted) =
            tokio::try_join!(self.page(selection, search_match, limit, offset), counted)?;
        let total_is_exact = counted <= EXACT_TOTAL_MAX;
        Ok(FailurePage { items, total: counted.min(EXACT_TOTAL_MAX), total_is_exact })
    }

    /// The number of open failures of `selection`. Counting stops after one more than the maximum:
    /// a page costs the same however many failures are open.
    async fn count_failures(
        &self,
        selection: &Selection,
        search_match: SearchMatch,
    ) -> Result<i64, Error> {
        let failures_max = EXACT_TOTAL_MAX + 1;
        if let Some(search) = selection.only_search(search_match) {
            let mut count = QueryBuilder::new("");
            let limits = (failures_max, FOUND_SIGNUPS_MAX);
            push_count_of_found(&mut count, search, search_match, limits);
            let counted = count.build_query_as().persistent(false).fetch_one(&self.pool).await;
            let (failures, signups): (i64, i64) =
                counted.map_err(Error::doing("counting failures"))?;
            if failures == failures_max || signups < FOUND_SIGNUPS_MAX {
                return Ok(failures);
            }
        }
        let mut count = QueryBuilder::new("SELECT count(*) FROM (SELECT 1");
        selection.push_with(&mut count, SelectionBase::OpenFailures, search_match);
        count.push(" LIMIT ").push_bind(failures_max).push(") AS counted");
        let counted = count.build_query_scalar().persistent(false).fetch_one(&self.pool).await;
        counted.map_err(Error::doing("counting failures"))
    }

    async fn page(
        &self,
        selection: &Selection,
        search_match: SearchMatch,
        limit: i64,
        offset: i64,
    ) -> Result<Vec<FailedJob>, Error> {
        // An index alone finds the page; only then are its few rows read.
        let mut page = QueryBuilder::new("WITH page AS (SELECT j.id");
        selection.push_with(&mut page, SelectionBase::OpenFailures, search_match);
        page.push(ORDER)
            .push(" LIMIT ")
            .push_bind(limit)
            .push(" OFFSET ")
            .push_bind(offset)
            .push(")")
            .push(COLUMNS);
        page.push(ORDER);
        let items = page.build_query_as().persistent(false).fetch_all(&self.pool).await;
        items.map_err(Error::doing("listing failures"))
    }

    /// The open failures grouped by signature and kind of error, largest group first.
    pub async fn groups(&self) -> Result<Vec<FailureGroup>, Error> {
        self.add_missing_signatures().await?;
        let rows = sqlx::query!(
            r#"
            SELECT g.error_signature AS "signature!", g.error_type AS "error_type!: ErrorType",
                g.count AS "count!", first.ended_at AS first_seen, last.ended_at AS last_seen,
                last.id AS "sample!"
            FROM (
                SELECT error_signature, error_type, sum(jobs)::int8 AS count
                FROM open_counts
                WHERE state = 'failed' AND error_signature IS NOT NULL
                GROUP BY error_signature, error_type
                HAVING sum(jobs) > 0
                ORDER BY sum(jobs) DESC, error_signature, error_type
                LIMIT $1
            ) AS g
            CROSS JOIN LATERAL (
                SELECT j.ended_at
                FROM open_jobs j
                WHERE j.state = 'failed' AND j.error_signature = g.error_signature
                    AND j.error_type = g.error_type
                ORDER BY j.ended_at
                LIMIT 1
            ) AS first
            CROSS JOIN LATERAL (
                SELECT j.id, j.ended_at
                FROM open_jobs j
                WHERE j.state = 'failed' AND j.error_signature = g.error_signature
                    AND j.error_type = g.error_type
                ORDER BY j.ended_at DESC
                LIMIT 1
            ) AS last
            ORDER BY g.count DESC, last.ended_at DESC
            "#,
            GROUPS_MAX
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("grouping failures"))?;
        let ids = column!(rows, row => row.sample);
        let selection = Selection { job_ids: Some(ids), ..Selection::default() };
        let samples = self.page(&selection, SearchMatch::Part, GROUPS_MAX, 0).await?;
        let groups = rows.into_iter().filter_map(|row| {
            // If the sample was retried meanwhile, its group is left out of this response.
            let sample = samples.iter().find(|sample| sample.job_id == row.sample)?.clone();
            Some(FailureGroup {
                signature: row.signature,
                error_type: row.error_type,
                count: row.count,
                first_seen: row.first_seen,
                last_seen: row.last_seen,
                sample,
            })
        });
        Ok(groups.collect())
    }
}
