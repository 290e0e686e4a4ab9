//! Migrations: each applies to sample data of the one before, and the schema refuses what the code
//! relies on never happening.

use crate::support::{World, root};
use sqlx::{AssertSqlSafe, Executor};
use std::path::PathBuf;

fn sql_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root().join(folder))
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    files
}

async fn execute(world: &World, sql: String) -> Result<(), sqlx::Error> {
    world.pool.execute(AssertSqlSafe(sql)).await.map(drop)
}

#[tokio::test]
async fn each_migration_applies_to_sample_data_of_the_one_before() {
    let world = World::new().await;
    let migrations = sql_files("migrations");
    let samples = sql_files("tests/migrations");
    let names = |files: &[PathBuf]| {
        files.iter().map(|file| file.file_name().map(ToOwned::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(names(&migrations), names(&samples), "every migration has its sample data");
    for (migration, sample) in migrations.iter().zip(&samples) {
        for file in [migration, sample] {
            let sql = std::fs::read_to_string(file).expect("the file can be read");
            execute(&world, sql)
                .await
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
    assert!(world.count("SELECT count(*) FROM signup_customerio_sync_jobs").await > 0);
}

#[tokio::test]
async fn the_schema_refuses_contradictions() {
    let world = World::new().await;
    for file in [root().join("migrations"), root().join("tests/migrations")] {
        for sql in sql_files(file.to_str().expect("a path")) {
            execute(&world, std::fs::read_to_string(sql).expect("a file")).await.expect("applied");
        }
    }
    let jobs = "UPDATE signup_customerio_sync_jobs SET";
    let refused = [
        (
            format!(
                "{jobs} error_type = NULL, error_message = NULL WHERE status = \
            'failed'"
            ),
            "jobs_failed_has_error",
        ),
        (
            format!(
                "{jobs} next_retry_at = now() WHERE status = \
            'completed'"
            ),
            "jobs_only_pending_waits",
        ),
        (format!("{jobs} attempt_count = 6"), "jobs_attempts_in_range"),
        (format!("{jobs} status = 'done'"), "violates check constraint"),
        (
            format!(
                "{jobs} error_type = 'weather', error_message = 'rain' WHERE status = \
            'failed'"
            ),
            "error_type_check",
        ),
        (
            format!(
                "{jobs} claim = gen_random_uuid(), claimed_at = now(), claimed_by = 'x' WHERE \
                    status = 'completed'"
            ),
            "jobs_claim_means_processing",
        ),
        (
            format!(
                "{jobs} failed_at = now() WHERE status = \
            'completed'"
            ),
            "jobs_only_failed_has_failed",
        ),
        (
            "UPDATE signups SET customerio_synced = NOT \
            customerio_synced"
                .to_owned(),
            "signups_synced_has_time",
        ),
        (
            "UPDATE signups SET customerio_sync_failed = NOT customerio_sync_failed".to_owned(),
            "signups_failed_has_error",
        ),
        ("UPDATE signups SET bet_amount = -1".to_owned(), "bet_amount_check"),
        ("UPDATE sync_failures SET resolved_at = now()".to_owned(), "failures_resolved_is_told"),
        ("UPDATE audit_logs SET actor = 'eve'".to_owned(), "append-only"),
        ("DELETE FROM audit_logs".to_owned(), "append-only"),
        ("TRUNCATE audit_logs".to_owned(), "append-only"),
        (
            "INSERT INTO signup_customerio_sync_jobs (id, signup_id, sync_phase, status)
             SELECT gen_random_uuid(), signup_id, sync_phase, 'pending' FROM \
                signup_customerio_sync_jobs"
                .to_owned(),
            "jobs_one_a_phase",
        ),
    ];
    for (sql, expected) in refused {
        let error = execute(&world, sql.clone()).await.expect_err(&sql).to_string();
        assert!(error.contains(expected), "{sql}: {error}");
    }
}
