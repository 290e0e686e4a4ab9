//! What is believed about every signup and job: PostgreSQL, one file a verb.
//!
//! The ledger answers with named cases and never guesses: `Err` means that it could not find out,
//! or could not write down. No transaction spans a network call; a job is claimed, called for, and
//! settled under its claim.

/// One column of a batch, as an array parameter of a statement.
macro_rules! column {
    ($items:ident, $item:ident => $value:expr) => {
        $items.iter().map(|$item| $value).collect::<Vec<_>>()
    };
}

mod arrival;
mod audit;
mod bulk;
mod call_rate;
mod claim;
mod detail;
mod dismiss;
mod failures;
mod integrity;
mod leader;
mod parked;
mod recover;
mod restart;
mod row;
mod search;
mod selection;
mod settle;
mod stats;
mod unprocessable;

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sqlx::{PgPool, postgres::PgPoolOptions};

pub use arrival::{Arrival, Source};
pub use audit::SERVICE;
pub use bulk::{BulkRetry, BulkStatus, Cancellation, Step};
pub use call_rate::CallShare;
pub use claim::{Batch, Opened};
pub use detail::{AttemptRow, AuditRow, JobDetail, JobRow, SignupFlags};
pub use failures::FailedMessage;
pub use integrity::{Balance, Drift, Drifted};
pub use leader::{Duty, Lead};
pub use parked::ParkedFailure;
pub use recover::{Suspects, Unmirrored};
pub use search::{FailedJob, Group};
pub use selection::{Preview, Selection, search_text, signature_text};
pub use settle::{Settled, Settlement};
pub use stats::{Minute, Stats};
pub use unprocessable::{Resolution, Unprocessable};

/// Settings of the database.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `postgres://…`; PostgreSQL 14 or newer.
    pub url: SecretString,
    /// Connections at most.
    pub max_connections: u32,
    /// How long to wait for a connection of the pool before it counts as a failure.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// Whether `serve` applies the migrations.
    pub migrate: bool,
    /// How old a claim may grow before another message may take it over.
    #[serde(with = "humantime_serde")]
    pub claim_lease: Duration,
}

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed.
    #[error("{doing}: {source}")]
    Statement {
        /// What was being attempted.
        doing: &'static str,
        /// The database's answer.
        source: sqlx::Error,
    },
    /// The migrations could not be applied.
    #[error("applying the migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A stored text names nothing that we know.
    #[error("reading a job: {0}")]
    Unreadable(#[from] crate::runtime::text_enum::UnknownText),
}

impl Error {
    fn doing(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Statement { doing, source }
    }

    /// Whether the same statement may succeed later: everything but data that the database refuses
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>, classes 22, 23 and 54).
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Statement { source: sqlx::Error::Database(error), .. } => !error
                .code()
                .is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class))),
            Self::Statement { .. } => true,
            Self::Migrate(error) => {
                matches!(error, sqlx::migrate::MigrateError::Execute(sqlx::Error::Io(_)))
            }
            Self::Unreadable(_) => false,
        }
    }
}

/// The ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: PgPool,
    claim_lease: Duration,
    max_attempts: i32,
}

impl Ledger {
    /// Makes the pool; a connection is opened when one is needed. New jobs get `max_attempts`
    /// retries. Fails if the URL can't be read.
    pub fn new(config: &Config, max_attempts: i32) -> Result<Self, Error> {
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(config.acquire_timeout)
            .connect_lazy(config.url.expose_secret())
            .map_err(Error::doing("reading the database URL"))?;
        Ok(Self { pool, claim_lease: config.claim_lease, max_attempts })
    }

    /// Applies the migrations that are missing. Replicas that start together wait for each other.
    pub async fn migrate(&self) -> Result<(), Error> {
        Ok(sqlx::migrate!().run(&self.pool).await?)
    }

    /// How the schema differs from the one of this version, if it does.
    pub async fn check_schema(&self) -> Result<Option<String>, Error> {
        let migrator = sqlx::migrate!();
        let wanted = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
        let exists = sqlx::query_scalar!(
            r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("looking for the schema"))?;
        if !exists {
            return Ok(Some("there is no schema yet".to_owned()));
        }
        // The table is the migrator's own; no migration of ours makes it.
        let found: Option<i64> =
            sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
                .fetch_one(&self.pool)
                .await
                .map_err(Error::doing("reading the version of the schema"))?;
        let found = found.unwrap_or_default();
        Ok((found != wanted)
            .then(|| format!("the schema is at version {found}, this program needs {wanted}")))
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query_scalar!("SELECT 1 AS one")
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("asking for a sign of life"))?;
        Ok(())
    }

    /// Closes the pool, after the statements under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
