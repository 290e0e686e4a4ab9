//! What is older than its retention is deleted, and nothing else.

use crate::support::{World, submitted, wait_for};
use serde_json::json;
use uuid::Uuid;

/// Makes everything that the database has by now `age` older.
async fn age_everything(world: &World, age: &str) {
    for sql in [
        "UPDATE sync_attempts SET started_at = started_at - interval 'AGE'",
        // Without triggers.
        "SET session_replication_role = replica;
         UPDATE audit_logs SET created_at = created_at - interval 'AGE';
         RESET session_replication_role",
        "UPDATE sync_failures SET resolved_at = resolved_at - interval 'AGE'",
        "UPDATE signups SET created_at = created_at - interval 'AGE'",
        "UPDATE signup_customerio_sync_jobs
         SET completed_at = completed_at - interval 'AGE',
            dismissed_at = dismissed_at - interval 'AGE'",
    ] {
        world.execute(&sql.replace("AGE", age)).await;
    }
}

const ATTEMPTS: &str = "SELECT count(*) FROM sync_attempts";
const AUDIT: &str = "SELECT count(*) FROM audit_logs";
const FAILURES: &str = "SELECT count(*) FROM sync_failures";
const JOBS: &str = "SELECT count(*) FROM signup_customerio_sync_jobs";
const SIGNUPS: &str = "SELECT count(*) FROM signups";

async fn counts(world: &World) -> [i64; 5] {
    let mut counts = [0; 5];
    for (count, sql) in counts.iter_mut().zip([ATTEMPTS, AUDIT, FAILURES, JOBS, SIGNUPS]) {
        *count = world.count(sql).await;
    }
    counts
}

/// A signup that is synced, one that failed, and one whose failure was dismissed.
async fn populate(world: &World) -> (Uuid, Uuid) {
    let app = world.start().await;
    let before = world.read(&app, "/unprocessable").await["total"].as_i64().unwrap_or_default();
    let synced = Uuid::new_v4();
    world.submit(&submitted(synced)).await;
    world.wait_for_job(synced, "initial", "completed").await;
    let failed = world.failed_signup().await;
    let dismissed = world.failed_signup().await;
    wait_for("the failures to be mirrored", || async {
        let open =
            "SELECT count(*) FROM sync_failures WHERE job_id IS NOT NULL AND resolved_at IS NULL";
        let failed = "SELECT count(*) FROM open_jobs WHERE state = 'failed'";
        (world.count(open).await == world.count(failed).await).then_some(())
    })
    .await;
    let selection = json!({ "search": format!("{dismissed}@"), "reason": "a test" });
    let answer = world.act(&app, "/sync-failures/dismiss", Some(&selection)).await;
    assert_eq!(answer["dismissed"], 1, "{answer}");
    let malformed = dismissed.as_bytes();
    world.publish("signup.events", "signup.submitted", malformed, Default::default()).await;
    wait_for("the malformed message", || async {
        let open = world.read(&app, "/unprocessable").await["total"].as_i64();
        (open >= Some(before + 1)).then_some(())
    })
    .await;
    app.stop().await;
    (synced, failed)
}

#[tokio::test]
async fn what_is_older_than_its_retention_is_deleted() {
    let world = World::new().await;
    let (_, failed) = populate(&world).await;
    age_everything(&world, "85 days").await;
    populate(&world).await;
    age_everything(&world, "10 days").await;
    let before = counts(&world).await;
    assert_eq!(before, [6, 10, 6, 6, 6]);

    // Open failures, and signups with one, stay.
    let world = world
        .with("CUSTOMERIO_SYNC__RETENTION__AUDIT", "90d")
        .with("CUSTOMERIO_SYNC__RETENTION__JOBS", "90d");
    let app = world.start().await;
    let after = wait_for("the old rows to be deleted", || async {
        Some(counts(&world).await).filter(|counts| *counts == [3, 5, 5, 4, 4])
    });
    after.await;
    let job = world.job(failed, "initial").await.expect("the job with an open failure");
    assert_eq!(job["status"], "failed");
    let report = wait_for("the check to hold", || async {
        Some(world.read(&app, "/integrity").await).filter(|report| report["holds"] == true)
    });
    report.await;
    app.stop().await;
}

#[tokio::test]
async fn nothing_is_deleted_without_a_retention() {
    let world = World::new().await;
    let world = ["ATTEMPTS", "AUDIT", "FAILURES", "JOBS"].iter().fold(world, |world, name| {
        world.with(&format!("CUSTOMERIO_SYNC__RETENTION__{name}"), "0s")
    });
    populate(&world).await;
    age_everything(&world, "1000 days").await;
    let before = counts(&world).await;
    let app = world.start().await;
    wait_for("the first pass", || async {
        let (_, metrics) = world.get(&app, "/metrics").await;
        metrics.contains("task=\"retention\"} 1").then_some(())
    })
    .await;
    app.stop().await;
    assert_eq!(counts(&world).await, before);
}

#[tokio::test]
async fn old_partitions_are_dropped_and_work_goes_on() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__RETENTION__AUDIT", "90d");
    let (synced, _) = populate(&world).await;
    age_everything(&world, "100 days").await;
    for table in ["sync_attempts", "audit_logs"] {
        let sql = format!(
            "SET session_replication_role = replica;
            CREATE TABLE {table}_old (LIKE {table} INCLUDING CONSTRAINTS INCLUDING DEFAULTS);
            WITH moved AS (DELETE FROM {table}_default RETURNING *)
            INSERT INTO {table}_old SELECT * FROM moved;
            RESET session_replication_role;
            DO $$
            BEGIN
                EXECUTE format(
                    'ALTER TABLE {table} ATTACH PARTITION {table}_old
                        FOR VALUES FROM (MINVALUE) TO (%L)',
                    now() - interval '95 days'
                );
            END $$"
        );
        world.execute(&sql).await;
    }
    let app = world.start().await;
    wait_for("the partitions to be dropped", || async {
        let sql = "
            SELECT count(*)
            FROM pg_class
            WHERE relname IN ('sync_attempts_old', 'audit_logs_old')";
        (world.count(sql).await == 0).then_some(())
    })
    .await;
    let job = world.job(synced, "initial").await.expect("the job");
    let detail = world.read(&app, &format!("/jobs/{}", job["id"].as_str().expect("an id"))).await;
    assert_eq!(detail["attempts"], json!([]), "{detail}");
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.count(ATTEMPTS).await, 1);
    app.stop().await;
}

/// The outcomes that the outbox still has to publish are read from the audit log.
#[tokio::test]
async fn the_history_of_a_waiting_outcome_is_kept() {
    let world = World::new().await;
    let (synced, _) = populate(&world).await;
    world
        .execute(
            "INSERT INTO outbox (kind, job_ids, runs, attempts, writer, created_at, due_at)
            SELECT 'outcomes', ARRAY[id], ARRAY[run], ARRAY[attempt_count], gen_random_uuid(),
                now() - interval '100 days', now() - interval '100 days'
            FROM signup_customerio_sync_jobs
            WHERE status = 'completed'",
        )
        .await;
    age_everything(&world, "100 days").await;
    let world = ["AUDIT", "JOBS"].iter().fold(world, |world, name| {
        world.with(&format!("CUSTOMERIO_SYNC__RETENTION__{name}"), "90d")
    });
    let world = world.with("CUSTOMERIO_SYNC__OUTCOMES__MAX_AGE", "200d");
    let mut outcomes = world.listen("signup.updates", "#").await;
    let app = world.start().await;
    let outcome = outcomes.next().await.json();
    assert_eq!(outcome["signupId"], synced.to_string());
    wait_for("the history to be deleted afterwards", || async {
        let left = world.count("SELECT count(*) FROM outbox").await;
        (left == 0).then_some(())
    })
    .await;
    app.stop().await;
}

/// A row that no month takes in is kept, and belongs to its month later.
#[tokio::test]
async fn missing_partitions_are_added_with_their_rows() {
    let world = World::new().await;
    world.start().await.stop().await;
    world
        .execute(
            "DO $$
            DECLARE last text := (
                SELECT partition::text
                FROM history_partitions('sync_attempts')
                ORDER BY upper_bound DESC NULLS LAST
                LIMIT 1
            );
            BEGIN
                EXECUTE 'DROP TABLE ' || last;
            END $$",
        )
        .await;
    world
        .execute(
            "INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms)
            SELECT gen_random_uuid(), 0, 0,
                date_trunc('month', now(), 'UTC') + interval '2 months 12 days', 1",
        )
        .await;
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts_default").await, 1);
    let app = world.start().await;
    wait_for("the partition", || async {
        (world.count("SELECT count(*) FROM sync_attempts_default").await == 0).then_some(())
    })
    .await;
    assert_eq!(world.count(ATTEMPTS).await, 1);
    app.stop().await;
}

#[tokio::test]
async fn failed_passes_of_retention_are_counted() {
    let world = World::new().await;
    world.start().await.stop().await;
    world.execute("ALTER FUNCTION expire_history RENAME TO renamed").await;
    let app = world.start().await;
    let line = "customerio_sync_retention_failed_passes_total 1\n";
    wait_for(line, || async { world.get(&app, "/metrics").await.1.contains(line).then_some(()) })
        .await;
    app.stop().await;
}
