//! Checks of the database, and the fix of an error of it.
//!
//! The checks have a connection of their own, since a pool retries a refused connection until its
//! time limit and reports only that. Their statements are neither prepared nor checked at compile
//! time: behind a pooler in transaction mode, a prepared statement fails, and the checks are there
//! to find that out.

#![expect(clippy::disallowed_methods, reason = "an edge: two clocks are compared")]

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{
    Connection, PgConnection, Row,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgRow},
};

use super::{Error, Ledger};
use crate::runtime::{certificate::tls_fix, check::CheckResult};

/// Maximum time for the checks of the server, and again for that of a pooler.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest major version that is supported.
const MAJOR_VERSION_MIN: i32 = 14;
/// Difference between two clocks from which the check warns. A due time would be off by as much.
const CLOCK_DIFFERENCE_MAX: TimeDelta = TimeDelta::seconds(60);
/// What to do about a migration with another content.
const OTHER_CONTENT_FIX: &str =
    "run the build of customerio-sync that set this database up, or use another database";
/// What a pooler in transaction mode leads to.
pub const POOLER_PROBLEM: &str = "the connections go through a pooler in transaction mode, where \
    prepared statements and advisory locks do not work";
/// What to do about a pooler in transaction mode.
pub const POOLER_FIX: &str = "use the pooler in session mode (pool_mode = session in PgBouncer), \
    or set DATABASE_URL to the address of PostgreSQL itself";
/// The settings with the client's certificate.
const CLIENT_SETTINGS: &str = "database.client_certificate and database.client_key";
/// The settings that add a certificate authority.
const CA_SETTINGS: &str = "tls.ca_file, or sslrootcert in DATABASE_URL,";

/// The operation of [`Error::Statement`] if no connection could be opened.
pub(super) const CONNECTING: &str = "connecting to PostgreSQL";

/// What the server is like.
const SERVER: &str = "
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer / 10000 AS major,
    pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only')::boolean AS is_read_only,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
    current_setting('max_connections')::bigint AS connections_max,
    (SELECT COALESCE(sum(numbackends), 0)::bigint FROM pg_stat_database) AS connections,
    current_database()::text AS database,
    COALESCE(current_schema()::text, '') AS schema,
    COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false) AS can_create,
    EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') AS has_trigrams";

/// The rights that the service uses, and this user lacks. Tables that do not exist are left out.
const MISSING_RIGHTS: &str = "
SELECT name, string_agg(privilege, ', ' ORDER BY privilege) AS privileges
FROM (
    VALUES
    ('_sqlx_migrations', 'SELECT'),
    ('signups', 'SELECT INSERT UPDATE'),
    ('signup_customerio_sync_jobs', 'SELECT INSERT UPDATE'),
    ('sync_attempts', 'SELECT INSERT'),
    ('sync_failures', 'SELECT INSERT UPDATE'),
    ('audit_logs', 'SELECT INSERT'),
    ('bulk_retries', 'SELECT INSERT UPDATE'),
    ('call_shares', 'SELECT INSERT UPDATE DELETE'),
    ('call_hold', 'SELECT INSERT UPDATE'),
    ('taken_in', 'SELECT INSERT DELETE'),
    ('open_jobs', 'SELECT INSERT UPDATE DELETE'),
    ('claims', 'SELECT INSERT UPDATE DELETE'),
    ('claimed_jobs', 'SELECT'),
    ('completed_counts', 'SELECT INSERT DELETE'),
    ('open_counts', 'SELECT INSERT DELETE'),
    ('failure_counts', 'SELECT INSERT DELETE'),
    ('signup_counts', 'SELECT INSERT DELETE'),
    ('attempt_counts', 'SELECT INSERT DELETE'),
    ('outbox', 'SELECT INSERT UPDATE DELETE'),
    ('bulk_actions', 'SELECT INSERT UPDATE'),
    ('session_salt', 'SELECT INSERT'),
    ('ended_sessions', 'SELECT INSERT UPDATE DELETE')
) AS needed (name, privileges), unnest(string_to_array(needed.privileges, ' ')) AS privilege
-- Both functions return null for a table that does not exist.
WHERE NOT has_table_privilege(to_regclass(name)::oid, privilege)
GROUP BY name
UNION ALL
SELECT 'FUNCTION ' || split_part(function, '(', 1), 'EXECUTE'
FROM (
    VALUES
    ('add_history_partitions()'), ('expire_history(text, timestamptz, integer)')
) AS needed (function)
WHERE NOT has_function_privilege(to_regprocedure(function)::oid, 'EXECUTE')
ORDER BY name";

const HAS_MIGRATIONS: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS found";

const APPLIED_MIGRATIONS: &str = "
SELECT version, success, encode(checksum, 'hex') AS checksum
FROM _sqlx_migrations
ORDER BY version";

/// What the checks read of the server.
struct ServerFacts {
    version: String,
    major: i32,
    is_standby: bool,
    is_read_only: bool,
    now: DateTime<Utc>,
    connections: i64,
    connections_max: i64,
    database: String,
    schema: String,
    can_create: bool,
    has_trigrams: bool,
}

/// A migration that was applied.
struct AppliedMigration {
    version: i64,
    success: bool,
    checksum: String,
}

impl Ledger {
    /// Checks the server, the schema and the rights of this user. `migrates` says whether the
    /// service applies the migrations. Changes nothing.
    pub async fn check(&self, migrates: bool) -> Vec<CheckResult> {
        let mut results = match tokio::time::timeout(CHECK_TIMEOUT, self.inspect(migrates)).await {
            Err(_) => return vec![self.no_answer("database")],
            Ok(Err(error)) => return vec![self.failed("database", &error)],
            Ok(Ok(results)) => results,
        };
        let pooled = tokio::time::timeout(CHECK_TIMEOUT, self.has_transaction_pooler()).await;
        results.push(match pooled {
            Err(_) => self.no_answer("pooler"),
            Ok(Err(error)) => self.failed("pooler", &error),
            Ok(Ok(false)) => CheckResult::passed("pooler", "none in transaction mode"),
            Ok(Ok(true)) => CheckResult::failed("pooler", POOLER_PROBLEM, POOLER_FIX),
        });
        results
    }

    /// The checks that one connection is enough for.
    async fn inspect(&self, migrates: bool) -> Result<Vec<CheckResult>, Error> {
        let options = self.pool.connector().options();
        let connected = PgConnection::connect_with(&options).await;
        let mut connection = connected.map_err(Error::doing(CONNECTING))?;
        let server = server_facts(&mut connection).await?;
        let mut results = check_server(&server);
        results.push(match applied_migrations(&mut connection).await {
            Ok(applied) => check_schema(&server, migrates, applied, options.get_username()),
            Err(error) => self.failed("schema", &error),
        });
        results.push(match missing_rights(&mut connection).await {
            Ok(missing) => check_rights(&missing, options.get_username()),
            Err(error) => self.failed("rights", &error),
        });
        results.push(check_clock(server.now, Utc::now()));
        // The server ends the session in any case.
        let _ = connection.close().await;
        Ok(results)
    }

    fn failed(&self, name: &'static str, error: &Error) -> CheckResult {
        CheckResult::failed(name, error.detail(), self.fix(error))
    }

    /// What to do if the server does not answer.
    pub fn fix_of_silence(&self) -> String {
        reach(&server_of(&self.pool.connector().options()))
    }

    fn no_answer(&self, name: &'static str) -> CheckResult {
        let detail = format!("no answer within {CHECK_TIMEOUT:?}");
        CheckResult::failed(name, detail, self.fix_of_silence())
    }

    /// Returns what to do about an error, by its SQLSTATE
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>) or the error of the
    /// connection.
    pub fn fix(&self, error: &Error) -> String {
        if let Error::Migrate(error) = error
            && let Some(fix) = fix_of_migration(error)
        {
            return fix.to_owned();
        }
        let options = self.pool.connector().options();
        let server = server_of(&options);
        match error.source_of_driver() {
            Some(sqlx::Error::Database(refusal)) => {
                let code = refusal.code().unwrap_or_default();
                if code == "28000" && refusal.message().contains("certificate") {
                    return format!(
                        "set {CLIENT_SETTINGS} to a certificate for the user {}, and its key",
                        options.get_username()
                    );
                }
                let is_connected =
                    !matches!(error, Error::Statement { doing, .. } if *doing == CONNECTING);
                fix_of_code(&code, is_connected, &options)
            }
            Some(error @ (sqlx::Error::Io(_) | sqlx::Error::Tls(_))) => {
                let fix = tls_fix(&error.to_string(), &server, CA_SETTINGS, Some(CLIENT_SETTINGS));
                fix.unwrap_or_else(|| reach(&server))
            }
            _ => reach(&server),
        }
    }
}

fn fix_of_migration(error: &MigrateError) -> Option<&'static str> {
    match error {
        MigrateError::VersionMismatch(_) => Some(OTHER_CONTENT_FIX),
        MigrateError::Dirty(_) => Some("run `customerio-sync doctor`, which says how to undo it"),
        MigrateError::Execute(sqlx::Error::Database(refusal))
        | MigrateError::ExecuteMigration(sqlx::Error::Database(refusal), _)
            if refusal.code().as_deref() == Some("42501") =>
        {
            Some(
                "run `customerio-sync migrate` as the owner of the tables, and set \
                    database.migrate = false for the service",
            )
        }
        _ => None,
    }
}

fn server_of(options: &PgConnectOptions) -> String {
    format!("PostgreSQL at {}:{}", options.get_host(), options.get_port())
}

fn reach(server: &str) -> String {
    format!("start {server}, or set DATABASE_URL to the address of a running server")
}

impl Error {
    /// The error in words. Never contains the URL.
    fn detail(&self) -> String {
        match self.source_of_driver() {
            Some(sqlx::Error::Database(error)) => {
                format!("{} (SQLSTATE {})", error.message(), error.code().unwrap_or_default())
            }
            _ => self.to_string(),
        }
    }

    fn source_of_driver(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Statement { source, .. } => Some(source),
            Self::Migrate(MigrateError::Execute(source)) => Some(source),
            Self::Migrate(MigrateError::ExecuteMigration(source, _)) => Some(source),
            _ => None,
        }
    }
}

/// Quotes an identifier (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>).
fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn fix_of_code(code: &str, is_connected: bool, options: &PgConnectOptions) -> String {
    let server = server_of(options);
    let (user, database) = (options.get_username(), options.get_database());
    let role = quoted(user);
    let database = quoted(database.unwrap_or(user));
    match code {
        "28P01" => format!(
            "correct the password of the user {user} in DATABASE_URL, or set it in PostgreSQL: \
             ALTER ROLE {role} PASSWORD '…'"
        ),
        // Also the answer of pg_hba.conf, which may require TLS or a client certificate.
        "28000" => format!(
            "correct the user in DATABASE_URL, create it (CREATE ROLE {role} LOGIN PASSWORD \
             '…'), or let pg_hba.conf of {server} accept this connection; if it requires TLS, add \
             ?sslmode=require to DATABASE_URL"
        ),
        "3D000" => format!(
            "create it (CREATE DATABASE {database}), or correct the name at the end of DATABASE_URL"
        ),
        "42501" if !is_connected => format!("GRANT CONNECT ON DATABASE {database} TO {role}"),
        "42501" => format!(
            "as the owner of the tables: GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT, \
             INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        ),
        "53300" => format!(
            "raise max_connections of {server}, or lower database.max_connections or the number \
             of replicas"
        ),
        "25006" | "57P03" => {
            format!("set DATABASE_URL to the primary, or wait until {server} accepts writes")
        }
        "26000" | "42P05" => POOLER_FIX.to_owned(),
        "42P01" => "run `customerio-sync migrate`".to_owned(),
        _ => format!("read the log of {server}"),
    }
}

async fn row(connection: &mut PgConnection, sql: &'static str) -> Result<PgRow, sqlx::Error> {
    sqlx::raw_sql(sql).fetch_one(connection).await
}

async fn rows(connection: &mut PgConnection, sql: &'static str) -> Result<Vec<PgRow>, sqlx::Error> {
    sqlx::raw_sql(sql).fetch_all(connection).await
}

async fn server_facts(connection: &mut PgConnection) -> Result<ServerFacts, Error> {
    let found = row(connection, SERVER).await;
    found.and_then(|row| ServerFacts::read(&row)).map_err(Error::doing("inspecting the server"))
}

impl ServerFacts {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            version: row.try_get("version")?,
            major: row.try_get("major")?,
            is_standby: row.try_get("is_standby")?,
            is_read_only: row.try_get("is_read_only")?,
            now: DateTime::from_timestamp_millis(row.try_get("now_ms")?).unwrap_or_default(),
            connections: row.try_get("connections")?,
            connections_max: row.try_get("connections_max")?,
            database: row.try_get("database")?,
            schema: row.try_get("schema")?,
            can_create: row.try_get("can_create")?,
            has_trigrams: row.try_get("has_trigrams")?,
        })
    }
}

/// The tables on which this user lacks rights, and which.
async fn missing_rights(connection: &mut PgConnection) -> Result<Vec<(String, String)>, Error> {
    let read = |row: &PgRow| -> Result<(String, String), sqlx::Error> {
        Ok((row.try_get("name")?, row.try_get("privileges")?))
    };
    let found = rows(connection, MISSING_RIGHTS).await;
    let missing = found.and_then(|rows| rows.iter().map(read).collect());
    missing.map_err(Error::doing("reading the rights"))
}

/// The applied migrations. `None` if there is no schema.
async fn applied_migrations(
    connection: &mut PgConnection,
) -> Result<Option<Vec<AppliedMigration>>, Error> {
    let found = row(connection, HAS_MIGRATIONS).await;
    let found = found.and_then(|row| row.try_get::<bool, _>("found"));
    if !found.map_err(Error::doing("finding the schema"))? {
        return Ok(None);
    }
    let read = |row: &PgRow| -> Result<AppliedMigration, sqlx::Error> {
        Ok(AppliedMigration {
            version: row.try_get("version")?,
            success: row.try_get("success")?,
            checksum: row.try_get("checksum")?,
        })
    };
    let found = rows(connection, APPLIED_MIGRATIONS).await;
    let applied = found.and_then(|rows| rows.iter().map(read).collect());
    applied.map(Some).map_err(Error::doing("reading the applied migrations"))
}

fn check_server(server: &ServerFacts) -> Vec<CheckResult> {
    let ServerFacts { version, connections, connections_max, .. } = server;
    let mut results = Vec::new();
    if server.major < MAJOR_VERSION_MIN {
        results.push(CheckResult::failed(
            "database",
            format!("PostgreSQL {version} is too old"),
            format!("upgrade the server to PostgreSQL {MAJOR_VERSION_MIN} or newer"),
        ));
    }
    if server.is_standby {
        results.push(CheckResult::failed(
            "database",
            "the server is a standby, which accepts no writes",
            "set DATABASE_URL to the primary, or promote the standby",
        ));
    } else if server.is_read_only {
        results.push(CheckResult::failed(
            "database",
            "transactions are read-only",
            format!(
                "remove default_transaction_read_only where it is set, for the server, the user or \
                 the database: SET default_transaction_read_only = off; ALTER DATABASE {} RESET \
                 default_transaction_read_only",
                quoted(&server.database)
            ),
        ));
    }
    if results.is_empty() {
        results.push(CheckResult::passed(
            "database",
            format!("PostgreSQL {version}, {connections} of {connections_max} connections in use"),
        ));
    }
    results
}

/// Compares the applied migrations with those of this program. A newer schema is fine, because
/// every migration works with the release before it.
fn check_schema(
    server: &ServerFacts,
    migrates: bool,
    applied: Option<Vec<AppliedMigration>>,
    user: &str,
) -> CheckResult {
    let migrator = sqlx::migrate!();
    let needed = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
    let is_complete = applied.as_ref().is_some_and(|applied| {
        let is_applied = |version| applied.iter().any(|one| one.version == version && one.success);
        migrator.iter().all(|migration| is_applied(migration.version))
    });
    // The migrator creates its table unless it exists, and needs this right even if it does.
    if !server.can_create && (migrates || !is_complete) {
        return create_refused(&server.schema, user);
    }
    let Some(applied) = applied else { return missing_schema(server, needed) };
    if let Some(problem) = applied.iter().find_map(|one| check_migration(one, &migrator)) {
        return problem;
    }
    let found = applied.iter().map(|one| one.version).max().unwrap_or_default();
    if !is_complete {
        let detail = format!("the schema is at version {found}; this program needs {needed}");
        return CheckResult::failed("schema", detail, "run `customerio-sync migrate`");
    }
    let newer = format!("version {found}, newer than this program ({needed}), which is fine");
    let detail = if found > needed { newer } else { format!("version {found}") };
    CheckResult::passed("schema", detail)
}

/// Reports a migration that did not finish, or that has another content in this program.
fn check_migration(applied: &AppliedMigration, ours: &Migrator) -> Option<CheckResult> {
    let AppliedMigration { version, success, checksum } = applied;
    if !success {
        return Some(CheckResult::failed(
            "schema",
            format!("migration {version} did not finish"),
            format!(
                "undo what it did, run DELETE FROM _sqlx_migrations WHERE version = {version}, \
                 then `customerio-sync migrate`"
            ),
        ));
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let same = ours.iter().find(|one| one.version == *version);
    let is_changed = same.is_some_and(|one| hex(&one.checksum[..]) != *checksum);
    is_changed.then(|| {
        CheckResult::failed(
            "schema",
            format!("migration {version} was applied with another content"),
            OTHER_CONTENT_FIX,
        )
    })
}

fn create_refused(schema: &str, user: &str) -> CheckResult {
    let (schema, role) = (quoted(schema), quoted(user));
    CheckResult::failed(
        "schema",
        format!("the user {user} may not create tables in the schema {schema}"),
        format!(
            "run `customerio-sync migrate` as the owner of the tables and set database.migrate = \
             false for the service, or GRANT CREATE ON SCHEMA {schema} TO {role}"
        ),
    )
}

fn missing_schema(server: &ServerFacts, needed: i64) -> CheckResult {
    let detail = format!("there is no schema yet; this program needs version {needed}");
    let fix = if server.has_trigrams {
        "run `customerio-sync migrate`"
    } else {
        "install the contrib modules of PostgreSQL on its server (package postgresql-contrib), \
            which contain pg_trgm, then run `customerio-sync migrate`"
    };
    CheckResult::failed("schema", detail, fix)
}

fn check_rights(missing: &[(String, String)], user: &str) -> CheckResult {
    if missing.is_empty() {
        return CheckResult::passed("rights", format!("the user {user} has all rights"));
    }
    let tables: Vec<_> =
        missing.iter().map(|(table, privileges)| format!("{privileges} on {table}")).collect();
    let role = quoted(user);
    let grants: Vec<_> = missing
        .iter()
        .map(|(table, privileges)| format!("GRANT {privileges} ON {table} TO {role}"))
        .collect();
    CheckResult::failed(
        "rights",
        format!("the user {user} lacks {}", tables.join(", ")),
        format!("as the owner of the tables: {}", grants.join("; ")),
    )
}

fn check_clock(server: DateTime<Utc>, local: DateTime<Utc>) -> CheckResult {
    let difference = (server - local).abs();
    let seconds = difference.num_seconds();
    if difference <= CLOCK_DIFFERENCE_MAX {
        return CheckResult::passed("clock", format!("{seconds}s from the clock of PostgreSQL"));
    }
    CheckResult::warning(
        "clock",
        format!("{seconds}s from the clock of PostgreSQL"),
        "synchronize the clocks of this machine and of PostgreSQL's (NTP)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    #[test]
    fn clocks_that_differ_by_more_than_a_minute_are_reported() {
        let now = time("2025-01-01T00:00:00Z");
        for (server, label) in [
            ("2025-01-01T00:01:00Z", "ok "),
            ("2025-01-01T00:01:01Z", "warn "),
            ("2024-12-31T23:58:59Z", "warn "),
        ] {
            let line = check_clock(time(server), now).to_string();
            assert!(line.starts_with(label), "{line}");
        }
    }

    #[test]
    fn a_fix_quotes_the_names_of_user_and_database() {
        let options = PgConnectOptions::new_without_pgpass();
        let options = options.host("h").port(1).username("a-b").database("c\"d");
        let fix = |code| fix_of_code(code, true, &options);
        assert!(fix("28P01").contains("ALTER ROLE \"a-b\" PASSWORD"), "{}", fix("28P01"));
        assert!(fix("3D000").contains("CREATE DATABASE \"c\"\"d\""), "{}", fix("3D000"));
        assert!(fix("42P05").contains("session mode"), "{}", fix("42P05"));
        assert!(fix("XX000").contains("the log of PostgreSQL at h:1"), "{}", fix("XX000"));
    }
}
