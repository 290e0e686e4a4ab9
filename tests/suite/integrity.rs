//! The integrity check: everything received is accounted for, and each discrepancy is reported.

use crate::support::{World, submitted, wait_for};
use customerio_sync::app::App;
use lapin::{BasicProperties, options::QueuePurgeOptions};
use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

async fn integrity(world: &World, app: &App) -> Value {
    world.read(app, "/integrity").await
}

/// Waits until no message is in transit and the check passes.
async fn wait_until_consistent(world: &World, app: &App) -> Value {
    wait_for("ledger, mirror and queues to agree", || async {
        Some(integrity(world, app).await).filter(|report| report["holds"] == true)
    })
    .await
}

/// The kind and count of each drift in a report.
fn drift(report: &Value) -> Vec<(&str, i64)> {
    let drift = report["drift"].as_array().expect("a list");
    drift
        .iter()
        .map(|one| (one["kind"].as_str().expect("a kind"), one["count"].as_i64().expect("a count")))
        .collect()
}

/// Checks that the drift of one kind is reported, with one job, and nothing else.
async fn assert_one_job_drifts(world: &World, app: &App, kind: &str) {
    let report = integrity(world, app).await;
    let jobs = report["drift"][0]["jobIds"].as_array().map(Vec::len);
    assert_eq!((drift(&report), jobs), (vec![(kind, 1)], Some(1)), "{report}");
}

async fn execute(world: &World, sql: &'static str) {
    world.pool.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Starts a world with a completed, a failed, a dismissed and a pending job, and an unprocessable
/// message.
async fn mixed_world() -> (World, App) {
    let world = World::new().await.with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    let completed = Uuid::new_v4();
    world.submit(&submitted(completed)).await;
    world.wait_for_job(completed, "initial", "completed").await;
    world.failed_signup().await;
    let dismissed = world.failed_signup().await;
    let dismissal = json!({
        "jobIds": [world.job(dismissed, "initial").await.expect("a job")["id"]],
        "reason": "a test",
    });
    world.wait_for_failures(2).await;
    world.act(&app, "/sync-failures/dismiss", Some(&dismissal)).await;
    remove_parked(&world, dismissed).await;
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    world.wait_for_failures(3).await;
    let pending = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 500, "calls": 1 })).await;
    world.submit(&submitted(pending)).await;
    world.wait_for_retry(pending, "initial").await;
    (world, app)
}

/// Removes the message of a dismissed failure from the failure queue, as the sweep would at a time
/// that a test does not know.
async fn remove_parked(world: &World, signup: Uuid) {
    world.wait_for_depth("customerio-sync.failed", 2).await;
    for _ in 0..2 {
        let parked = world.next("customerio-sync.failed").await;
        if parked.header("x-signup-id") != Some(signup.to_string()) {
            world.publish("", "customerio-sync.failed", &parked.body, parked.properties).await;
        }
    }
}

#[tokio::test]
async fn everything_published_is_accounted_for() {
    let (world, app) = mixed_world().await;
    let report = wait_until_consistent(&world, &app).await;
    assert_eq!(report["published"], json!({ "jobs": 4, "unprocessable": 1, "total": 5 }));
    assert_eq!(
        report["accountedFor"],
        json!({
            "completed": 1,
            "failedOpen": 1,
            "dismissed": 1,
            "pending": 1,
            "processing": 0,
            "unprocessable": 1,
            "total": 5,
        })
    );
    assert_eq!(
        report["queues"],
        json!({ "work": 0, "tiers": 1, "failed": 2, "mirror": 0, "openFailures": 2 })
    );
    app.stop().await;
}

#[tokio::test]
async fn each_kind_of_drift_is_reported() {
    let (world, app) = mixed_world().await;
    wait_until_consistent(&world, &app).await;
    check_drift_of_jobs(&world, &app).await;
    assert_eq!(drift(&integrity(&world, &app).await), []);
    check_drift_of_flags(&world, &app).await;
    assert_eq!(drift(&integrity(&world, &app).await), []);
    world.take("customerio-sync.failed").await.expect("a message");
    assert_eq!(drift(&integrity(&world, &app).await), [("failure_queue", 1)]);
    app.stop().await;
}

/// Takes the pending job through three kinds of drift, and completes it at the end.
async fn check_drift_of_jobs(world: &World, app: &App) {
    world
        .channel()
        .await
        .queue_purge("customerio-sync.retry.1h".into(), QueuePurgeOptions::default())
        .await
        .expect("purged");
    let age = "UPDATE signup_customerio_sync_jobs SET updated_at = now() - interval '10 minutes'";
    execute(world, age).await;
    assert_one_job_drifts(world, app, "waiting").await;

    let make_overdue = "
        UPDATE signup_customerio_sync_jobs SET next_retry_at = now() - interval '10 minutes'
        WHERE status = 'pending'";
    execute(world, make_overdue).await;
    assert_one_job_drifts(world, app, "overdue").await;

    let make_stuck = "
        UPDATE signup_customerio_sync_jobs SET status = 'processing', next_retry_at = NULL
        WHERE status = 'pending'";
    execute(world, make_stuck).await;
    assert_one_job_drifts(world, app, "stuck").await;

    let complete = "
        UPDATE signup_customerio_sync_jobs
        SET status = 'completed', completed_at = now(), error_type = NULL, error_message = NULL,
            error_signature = NULL, first_failed_at = NULL
        WHERE status = 'processing'";
    execute(world, complete).await;
}

/// Changes the flags of all signups, and corrects them at the end.
async fn check_drift_of_flags(world: &World, app: &App) {
    let clear = "UPDATE signups SET customerio_sync_failed = false, customerio_sync_error = NULL";
    execute(world, clear).await;
    assert_eq!(
        drift(&integrity(world, app).await),
        [("flags", 2)],
        "of the open and of the dismissed failure"
    );
    let set = "UPDATE signups SET customerio_sync_failed = true, customerio_sync_error = 'x'";
    execute(world, set).await;
    assert_eq!(drift(&integrity(world, app).await), [("flags", 2)], "of the completed jobs");
    let correct = "
        UPDATE signups s
        SET customerio_sync_failed = j.failed,
            customerio_sync_error = CASE WHEN j.failed THEN 'x' END
        FROM (
            SELECT signup_id, status = 'failed' AS failed FROM signup_customerio_sync_jobs
        ) AS j
        WHERE j.signup_id = s.id";
    execute(world, correct).await;
}

#[tokio::test]
async fn an_overdue_retry_is_reported_while_events_wait() {
    let world = World::new()
        .await
        .with("RETRY_DELAYS", "1h")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "2")
        .with("CUSTOMERIO_SYNC__BROKER__PREFETCH", "1");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_retry(signup, "initial").await;
    execute(
        &world,
        "UPDATE signup_customerio_sync_jobs SET next_retry_at = now() - interval '10 minutes'",
    )
    .await;
    for _ in 0..60 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    let report = integrity(&world, &app).await;
    assert!(report["queues"]["work"].as_i64() > Some(0), "no events wait: {report}");
    let overdue =
        report["drift"].as_array().expect("a list").iter().find(|one| one["kind"] == "overdue");
    assert_eq!(overdue.map(|one| one["jobIds"].clone()), Some(json!([job["id"]])), "{report}");
    app.stop().await;
}

#[tokio::test]
async fn the_mirror_is_compared_with_the_jobs() {
    let (world, app) = mixed_world().await;
    wait_until_consistent(&world, &app).await;
    execute(
        &world,
        "UPDATE sync_failures
        SET mirrored_at = now() - interval '10 minutes', resolved_at = NULL, resolution = NULL",
    )
    .await;
    let report = integrity(&world, &app).await;
    assert_eq!(drift(&report), [("not_failed", 1), ("failure_queue", 1)], "{report}");
    execute(
        &world,
        "UPDATE signup_customerio_sync_jobs SET failed_at = now() - interval '10 minutes'
        WHERE status = 'failed'",
    )
    .await;
    execute(&world, "DELETE FROM sync_failures").await;
    let report = integrity(&world, &app).await;
    assert_eq!(
        drift(&report),
        [("not_mirrored", 1), ("balance", 1), ("failure_queue", 2)],
        "{report}"
    );
    assert_eq!(report["holds"], false);
    assert!(
        report["drift"][0]["meaning"].as_str().is_some_and(|text| text.contains("parked again")),
        "{report}"
    );
    app.stop().await;
}

#[tokio::test]
async fn only_the_leader_exports_the_drift_metric() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "100ms");
    let apps = [world.start().await, world.start().await];
    execute(&world, "INSERT INTO taken_in (jobs) VALUES (3), (4)").await;
    let exported = async || {
        let mut exported = Vec::new();
        for app in &apps {
            let (_, metrics) = world.get(app, "/metrics").await;
            let lines =
                metrics.lines().filter(|line| line.starts_with("customerio_sync_integrity_drift{"));
            exported.extend(lines.map(str::to_owned));
        }
        exported
    };
    let expected = r#"customerio_sync_integrity_drift{kind="balance"} 7"#;
    wait_for("the drift metric", || async {
        exported().await.iter().any(|line| line == expected).then_some(())
    })
    .await;
    assert_eq!(
        exported().await.iter().filter(|line| line.contains("balance")).count(),
        1,
        "only one replica exports it"
    );
    let rows = "SELECT count(*) FROM taken_in";
    wait_for("the rows to be added up", || async { (world.count(rows).await == 1).then_some(()) })
        .await;
    for app in apps {
        app.stop().await;
    }
}
