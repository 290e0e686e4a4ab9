//! The schema: applying the migrations, and checking its version.
//!
//! Each migration works with the release before it. So a program runs on a newer schema, after
//! another release has been rolled back, and not on an older one.

use std::time::Duration;

use sqlx::{migrate::MigrateError, postgres::PgPoolOptions};

use super::{Error, Ledger};
use crate::runtime::backoff::retry_for;

/// SQLSTATEs of a transaction that PostgreSQL rolled back because of the locks of others: to end a
/// deadlock, and after `lock_timeout`
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const LOCK_CODES: [&str; 2] = ["40P01", "55P03"];
/// While a migration waits for a table, everybody else who needs the table waits behind it. It is
/// longer than PostgreSQL's default `deadlock_timeout`.
const LOCK_LIMIT: &str = "SET lock_timeout = '3s'";
/// Maximum time for which a migration is repeated.
const MIGRATE_TIME: Duration = Duration::from_mins(30);

/// The schema in the database, compared with the one that this version needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// There is none.
    Absent {
        /// The version that is needed.
        needed: i64,
    },
    /// A migration of this version is missing.
    Older {
        /// The version that was found.
        found: i64,
        /// The version that is needed.
        needed: i64,
    },
    /// It is the one that this version needs, or newer.
    Sufficient {
        /// The version that was found.
        found: i64,
        /// The version that is needed.
        needed: i64,
    },
}

impl Schema {
    /// Makes a schema sufficient.
    pub const FIX: &str = "run `customerio-sync migrate`";

    /// What is missing. `None` if the schema is sufficient.
    pub fn problem(self) -> Option<String> {
        match self {
            Self::Absent { needed } => {
                Some(format!("there is no schema yet; this program needs version {needed}"))
            }
            Self::Older { found, needed } => {
                Some(format!("the schema is at version {found}; this program needs {needed}"))
            }
            Self::Sufficient { .. } => None,
        }
    }
}

impl Ledger {
    /// Applies the missing migrations. Replicas that start together take turns. Migrations of a
    /// newer release are accepted.
    ///
    /// A migration can deadlock with replicas that lock its tables in another order, and it waits
    /// for open transactions and for its turn. It is rolled back then, and repeated.
    pub async fn migrate(&self) -> Result<(), Error> {
        let migrated =
            retry_for(MIGRATE_TIME, "migrating", waits_for_locks, || self.try_to_migrate());
        Ok(migrated.await?)
    }

    async fn try_to_migrate(&self) -> Result<(), MigrateError> {
        let mut migrator = sqlx::migrate!();
        migrator.set_ignore_missing(true);
        // A session of its own: after an error, the migrator leaves its advisory lock to it, and in
        // the pool that would keep everybody else from migrating.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    sqlx::raw_sql(LOCK_LIMIT).execute(connection).await?;
                    Ok(())
                })
            })
            .acquire_timeout(self.acquire_timeout)
            .connect_lazy_with((*self.pool.connector().options()).clone());
        let migrated = migrator.run(&pool).await;
        pool.close().await;
        migrated
    }

    /// Compares the schema with the one that this version needs.
    pub async fn schema(&self) -> Result<Schema, Error> {
        let needed = Self::schema_version_wanted();
        let exists = sqlx::query_scalar!(
            r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("finding the schema"))?;
        if !exists {
            return Ok(Schema::Absent { needed });
        }
        // The migrator creates this table; no migration does.
        let applied: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.pool)
                .await
                .map_err(Error::doing("reading the version of the schema"))?;
        let Some(found) = applied.iter().max().copied() else {
            return Ok(Schema::Absent { needed });
        };
        let migrator = sqlx::migrate!();
        let mut versions = migrator.iter().map(|migration| migration.version);
        Ok(if versions.all(|version| applied.contains(&version)) {
            Schema::Sufficient { found, needed }
        } else {
            Schema::Older { found, needed }
        })
    }

    /// The version of the schema in the database. `None` if no migration was applied.
    pub async fn schema_version(&self) -> Result<Option<i64>, Error> {
        // The migrator creates this table; no migration does.
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("reading the version of the schema"))
    }

    /// The version of the schema that this program needs.
    pub fn schema_version_wanted() -> i64 {
        sqlx::migrate!().iter().map(|migration| migration.version).max().unwrap_or_default()
    }
}

fn waits_for_locks(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| LOCK_CODES.contains(&code.as_ref()))
}
