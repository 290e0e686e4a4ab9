//! Finding failures: the list, and the groups of those with one cause.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{
    Error, Ledger,
    selection::{Among, Selection},
};
use crate::{
    diagnosis::Case,
    job::{ErrorType, Status, SyncPhase},
};

/// An open failure, with its customer.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct FailedJob {
    /// The job.
    pub job_id: Uuid,
    /// Its signup.
    pub signup_id: Uuid,
    /// Its phase.
    #[sqlx(try_from = "String")]
    pub sync_phase: SyncPhase,
    /// Its status.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Retries that were scheduled.
    pub attempt_count: i32,
    /// Retries allowed.
    pub max_attempts: i32,
    /// The kind of trouble.
    #[sqlx(try_from = "String")]
    pub error_type: ErrorType,
    /// What was said.
    pub error_message: String,
    /// The message without what differs.
    pub error_signature: Option<String>,
    /// The status of the last answer, if one came.
    pub http_status: Option<i32>,
    /// Why no further try is made.
    pub failed_reason: Option<String>,
    /// When the last call was begun.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// When it failed.
    pub failed_at: Option<DateTime<Utc>>,
    /// When the job was made.
    pub created_at: DateTime<Utc>,
    /// When its event happened.
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
    /// The failure, as a verdict looks at it.
    pub fn case(&self) -> Case<'_> {
        Case {
            reason: self.failed_reason.as_deref().and_then(|reason| reason.parse().ok()),
            error_type: Some(self.error_type),
            http_status: self.http_status.and_then(|status| status.try_into().ok()),
            message: &self.error_message,
            occurred_at: Some(self.occurred_at),
        }
    }
}

/// Open failures with one signature and kind of trouble.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What their messages have in common.
    pub signature: String,
    /// The kind of trouble.
    pub error_type: ErrorType,
    /// How many.
    pub count: i64,
    /// When the first of them failed.
    pub first_seen: Option<DateTime<Utc>>,
    /// When the last of them failed.
    pub last_seen: Option<DateTime<Utc>>,
    /// The one that failed last.
    pub sample: FailedJob,
}

/// The columns of a [`FailedJob`] for the ids of a `page`.
const COLUMNS: &str = "
    SELECT j.id AS job_id, j.signup_id, j.sync_phase, j.status, j.attempt_count, j.max_attempts, \
    j.error_type,
        j.error_message, j.error_signature, j.failed_reason, j.last_attempt_at, j.failed_at, \
    j.created_at,
        j.occurred_at, s.customer_id, s.email, s.first_name, s.last_name, (
            SELECT a.http_status FROM sync_attempts a WHERE a.job_id = j.id ORDER BY a.id DESC \
    LIMIT 1
        ) AS http_status
    FROM page
    JOIN signup_customerio_sync_jobs j ON j.id = page.id
    JOIN signups s ON s.id = j.signup_id";

/// The order of the list, as the indexes `failures_in_order…` have it.
const ORDER: &str = " ORDER BY j.attempt_count DESC, j.last_attempt_at DESC NULLS LAST, j.id";

/// Groups in one answer at most; more causes than that are no help to anybody.
const MOST_GROUPS: i64 = 200;

impl Ledger {
    /// A page of the open failures of `selection`, most attempts and latest attempt first, and how
    /// many there are.
    pub async fn failures(
        &self,
        selection: &Selection,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<FailedJob>, i64), Error> {
        let mut count = QueryBuilder::new("SELECT count(*)");
        selection.push(&mut count, Among::OpenFailures);
        let total = count.build_query_scalar().persistent(false).fetch_one(&self.pool);
        let total = async { total.await.map_err(Error::doing("counting failures")) };
        tokio::try_join!(self.page(selection, limit, offset), total)
    }

    async fn page(
        &self,
        selection: &Selection,
        limit: i64,
        offset: i64,
    ) -> Result<Vec<FailedJob>, Error> {
        // The page is found in the index alone; then its few rows are read.
        let mut page = QueryBuilder::new("WITH page AS (SELECT j.id");
        selection.push(&mut page, Among::OpenFailures);
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

    /// The open failures grouped by signature and kind of trouble, the largest group first.
    pub async fn groups(&self) -> Result<Vec<Group>, Error> {
        self.sign_failures().await?;
        let rows = sqlx::query!(
            r#"
            SELECT g.error_signature AS "signature!", g.error_type AS "error_type!",
            g.count AS "count!",
                g.first_seen, g.last_seen, sample.id AS "sample!"
            FROM (
                SELECT error_signature, error_type, count(*) AS count, min(failed_at) AS first_seen,
                    max(failed_at) AS last_seen
                FROM signup_customerio_sync_jobs
                WHERE status = 'failed' AND dismissed_at IS NULL AND error_signature IS NOT NULL
                GROUP BY error_signature, error_type
                ORDER BY count(*) DESC, max(failed_at) DESC
                LIMIT $1
            ) AS g
            CROSS JOIN LATERAL (
                SELECT j.id
                FROM signup_customerio_sync_jobs j
                WHERE j.status = 'failed' AND j.dismissed_at IS NULL
                AND j.error_signature = g.error_signature
                    AND j.error_type = g.error_type
                ORDER BY j.failed_at DESC
                LIMIT 1
            ) AS sample
            ORDER BY g.count DESC, g.last_seen DESC
            "#,
            MOST_GROUPS
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("grouping failures"))?;
        let ids = column!(rows, row => row.sample);
        let selection = Selection { job_ids: Some(ids), ..Selection::default() };
        let samples = self.page(&selection, MOST_GROUPS, 0).await?;
        let group = rows.into_iter().filter_map(|row| {
            // A sample that was retried meanwhile takes its group with it until the next look.
            let sample = samples.iter().find(|sample| sample.job_id == row.sample)?.clone();
            Some(row.error_type.parse().map_err(Error::from).map(|error_type| Group {
                signature: row.signature,
                error_type,
                count: row.count,
                first_seen: row.first_seen,
                last_seen: row.last_seen,
                sample,
            }))
        });
        group.collect()
    }
}
