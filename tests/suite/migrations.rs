//! Migrations: each one applies to sample data of the previous one, and the schema rejects the
//! contradictions that the code assumes never to see.

use crate::support::{World, root, wait_for};
use customerio_sync::{
    job::FailureCause,
    ledger::{self, Ledger},
};
use sqlx::{AssertSqlSafe, Executor, Row};
use std::{path::PathBuf, time::Duration};
use tokio::{task::JoinHandle, time::timeout};

/// Contradictory updates of a job, without `UPDATE signup_customerio_sync_jobs SET`, and a part of
/// the error that each causes.
const REJECTED_JOB_UPDATES: [(&str, &str); 8] = [
    ("error_type = NULL, error_message = NULL WHERE status = 'failed'", "jobs_failed_has_error"),
    ("next_retry_at = now() WHERE status = 'completed'", "jobs_only_pending_waits"),
    ("attempt_count = 6", "jobs_attempts_in_range"),
    ("status = 'done'", "violates check constraint"),
    ("error_type = 'weather', error_message = 'rain' WHERE status = 'failed'", "error_type_check"),
    (
        "claim = gen_random_uuid(), claimed_at = now(), claimed_by = 'x'
        WHERE status = 'completed'",
        "jobs_claim_means_processing",
    ),
    ("failed_at = now() WHERE status = 'completed'", "jobs_only_failed_has_failed"),
    ("mock = true WHERE status = 'failed'", "jobs_only_completed_is_mock"),
];

/// Contradictory statements about other tables and about two jobs of a phase, and a part of the
/// error that each causes.
const REJECTED_STATEMENTS: [(&str, &str); 9] = [
    ("UPDATE signups SET customerio_synced = NOT customerio_synced", "signups_synced_has_time"),
    (
        "UPDATE signups SET customerio_sync_failed = NOT customerio_sync_failed",
        "signups_failed_has_error",
    ),
    ("UPDATE signups SET bet_amount = -1", "bet_amount_check"),
    ("UPDATE sync_failures SET resolved_at = now()", "failures_resolved_is_told"),
    ("UPDATE bulk_retries SET mock = true", "bulk_retries_mock_has_its_own_due_time"),
    ("UPDATE audit_logs SET actor = 'eve'", "append-only"),
    ("DELETE FROM audit_logs", "append-only"),
    ("TRUNCATE audit_logs", "append-only"),
    (
        "INSERT INTO signup_customerio_sync_jobs (id, signup_id, sync_phase, status)
        SELECT gen_random_uuid(), signup_id, sync_phase, 'pending'
        FROM signup_customerio_sync_jobs",
        "jobs_one_a_phase",
    ),
];

fn sql_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root().join(folder))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    files
}

async fn execute(world: &World, sql: String) -> Result<(), sqlx::Error> {
    world.pool.execute(AssertSqlSafe(sql)).await.map(drop)
}

/// Applies each migration, and then its sample data.
async fn apply(world: &World, migrations: &[PathBuf], samples: &[PathBuf]) {
    for file in migrations.iter().zip(samples).flat_map(|(migration, sample)| [migration, sample]) {
        let sql = std::fs::read_to_string(file).expect("the file can be read");
        execute(world, sql).await.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

#[tokio::test]
async fn each_migration_applies_to_sample_data_of_the_previous_one() {
    let world = World::new().await;
    let migrations = sql_files("migrations");
    let samples = sql_files("tests/migrations");
    let names = |files: &[PathBuf]| {
        files.iter().map(|file| file.file_name().map(ToOwned::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(names(&migrations), names(&samples), "every migration has its sample data");
    apply(&world, &migrations, &samples).await;
    assert!(world.count("SELECT count(*) FROM signup_customerio_sync_jobs").await > 0);
    let attempts =
        "SELECT count(*) FROM sync_attempts WHERE started_at >= now() - interval '1 hour'";
    let counted = "SELECT sum(completed + retried + failed)::int8 FROM attempt_counts";
    assert_eq!(world.count(counted).await, world.count(attempts).await);
}

#[tokio::test]
async fn earlier_failures_receive_the_cause_and_the_path_in_their_message() {
    let world = World::new().await;
    apply(&world, &sql_files("migrations"), &sql_files("tests/migrations")).await;
    let rows = world
        .rows(
            "SELECT error_cause FROM sync_attempts
            WHERE job_id = '00000000-0000-4000-9000-000000000004' ORDER BY id",
        )
        .await;
    let causes: Vec<Option<String>> = rows.iter().map(|row| row.get(0)).collect();
    let causes: Vec<_> = causes.iter().map(Option::as_deref).collect();
    let expected = [
        Some("signup_unknown"),
        Some("identifier_missing"),
        Some("limit_exceeded"),
        Some("item_refused"),
        Some("response_unclear"),
        // The HTTP status and the kind of error imply these.
        None,
        None,
        Some("credentials_refused"),
    ];
    assert_eq!(causes, expected);
    let sql = "SELECT count(*) FROM sync_failures WHERE error_path = 'customer.email'";
    assert_eq!(world.count(sql).await, 1, "the path of an open message is taken from its error");
    for cause in causes.into_iter().flatten() {
        assert!(cause.parse::<FailureCause>().is_ok(), "{cause}");
    }
}

#[tokio::test]
async fn the_schema_rejects_contradictions() {
    let world = World::new().await;
    apply(&world, &sql_files("migrations"), &sql_files("tests/migrations")).await;
    let updates = REJECTED_JOB_UPDATES.iter().map(|(update, expected)| {
        (format!("UPDATE signup_customerio_sync_jobs SET {update}"), *expected)
    });
    let statements =
        REJECTED_STATEMENTS.iter().map(|(sql, expected)| ((*sql).to_owned(), *expected));
    for (sql, expected) in updates.chain(statements) {
        let error = execute(&world, sql.clone()).await.expect_err(&sql).to_string();
        assert!(error.contains(expected), "{sql}: {error}");
    }
}

/// A database with the schema before migration 33, and a ledger for it.
async fn world_before_kept_counts() -> (World, Ledger) {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    for migration in &sql_files("migrations")[..32] {
        let name = migration.file_name().expect("a name");
        std::fs::copy(migration, folder.path().join(name)).expect("copied");
    }
    let earlier = sqlx::migrate::Migrator::new(folder.path()).await.expect("migrations");
    earlier.run(&world.pool).await.expect("migrated");
    let config = world.config();
    let ledger = Ledger::new(&config.database, &config.tls, 5).expect("a URL");
    (world, ledger)
}

fn migrate(ledger: &Ledger) -> JoinHandle<Result<(), ledger::Error>> {
    let ledger = ledger.clone();
    tokio::spawn(async move { ledger.migrate().await })
}

/// Waits until a session waits for a lock on the table.
async fn wait_for_lock_request(world: &World, table: &str) {
    wait_for("a session to wait for the table", || async {
        let sql = "SELECT count(*) FROM pg_locks WHERE relation = $1::regclass AND NOT granted";
        let waiting = sqlx::query_scalar::<_, i64>(sql).bind(table).fetch_one(&world.pool).await;
        (waiting.expect("a count") > 0).then_some(())
    })
    .await;
}

/// Migration 33 locks signups before open jobs, and writers lock them in the other order.
#[tokio::test]
async fn a_migration_that_deadlocks_with_a_writer_is_repeated() {
    let (world, ledger) = world_before_kept_counts().await;
    // The session that has waited for as long as this is rolled back. It has to be the migration's.
    let database = world.database_url.rsplit('/').next().expect("a name").to_owned();
    let set = format!("ALTER DATABASE {database} SET deadlock_timeout = '2s'");
    execute(&world, set).await.expect("set");
    let mut writing = world.pool.begin().await.expect("begun");
    writing.execute("SET LOCAL deadlock_timeout = '30s'").await.expect("set");
    writing.execute("LOCK TABLE open_jobs IN ROW EXCLUSIVE MODE").await.expect("locked");

    let migrating = migrate(&ledger);
    wait_for_lock_request(&world, "open_jobs").await;
    writing.execute("LOCK TABLE signups IN ROW EXCLUSIVE MODE").await.expect("the lock");
    writing.commit().await.expect("committed");
    migrating.await.expect("the task ends").expect("migrated");
    assert_eq!(ledger.schema().await.expect("a schema").problem(), None);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    wait_for("the deadlock", || async { (world.count(deadlocks).await == 1).then_some(()) }).await;
}

/// A transaction may be open for hours. Nobody else waits for as long behind a migration that has
/// to wait for it.
#[tokio::test]
async fn a_migration_that_waits_for_a_transaction_lets_others_pass() {
    let (world, ledger) = world_before_kept_counts().await;
    let mut open = world.pool.begin().await.expect("begun");
    open.execute("LOCK TABLE signups IN ROW EXCLUSIVE MODE").await.expect("locked");
    let migrating = migrate(&ledger);
    wait_for_lock_request(&world, "signups").await;
    let write = world.pool.execute("DELETE FROM signups");
    timeout(Duration::from_secs(30), write)
        .await
        .expect("the migration gives way")
        .expect("deleted");
    assert!(!migrating.is_finished());
    open.commit().await.expect("committed");
    migrating.await.expect("the task ends").expect("migrated");
    assert_eq!(ledger.schema().await.expect("a schema").problem(), None);
}
