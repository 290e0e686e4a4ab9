//! Conservation: what was taken in is accounted for, and whatever is out of place is named.

use crate::support::{World, submitted, wait_for};
use customerio_sync::app::App;
use lapin::{BasicProperties, options::QueuePurgeOptions};
use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

async fn integrity(world: &World, app: &App) -> Value {
    world.read(app, "/integrity").await
}

/// Waits until nothing is on its way any more.
async fn wait_until_it_holds(world: &World, app: &App) -> Value {
    wait_for("ledger, mirror and queues to agree", || async {
        Some(integrity(world, app).await).filter(|found| found["holds"] == true)
    })
    .await
}

fn kinds(found: &Value) -> Vec<(&str, i64)> {
    let drift = found["drift"].as_array().expect("a list");
    drift
        .iter()
        .map(|one| (one["kind"].as_str().expect("a kind"), one["count"].as_i64().expect("a count")))
        .collect()
}

async fn change(world: &World, sql: &'static str) {
    world.pool.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// One job of each status that stays, and a message that can't be understood.
async fn mixed() -> (World, App) {
    let world = World::new().await.with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    let completed = Uuid::new_v4();
    world.submit(&submitted(completed)).await;
    world.wait_for_job(completed, "initial", "completed").await;
    world.failed_signup().await;
    let dismissed = world.failed_signup().await;
    let only = json!({ "jobIds": [world.job(dismissed, "initial").await.expect("a job")["id"]],
    "reason": "a test" });
    world.wait_for_failures(2).await;
    world.act(&app, "/sync-failures/dismiss", Some(&only)).await;
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    world.wait_for_failures(3).await;
    let waiting = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 500, "calls": 1 })).await;
    world.submit(&submitted(waiting)).await;
    world.wait_for_retry(waiting, "initial").await;
    (world, app)
}

#[tokio::test]
async fn what_was_published_is_accounted_for() {
    let (world, app) = mixed().await;
    let found = wait_until_it_holds(&world, &app).await;
    assert_eq!(found["published"], json!({ "jobs": 4, "unprocessable": 1, "total": 5 }));
    assert_eq!(
        found["accountedFor"],
        json!({ "completed": 1, "failedOpen": 1, "dismissed": 1, "pending": 1, "processing": 0,
        "unprocessable": 1, "total": 5 })
    );
    assert_eq!(
        found["queues"],
        json!({ "work": 0, "tiers": 1, "failed": 2, "mirror": 0, "openFailures": 2 })
    );
    app.stop().await;
}

#[tokio::test]
async fn what_is_out_of_place_is_named() {
    let (world, app) = mixed().await;
    wait_until_it_holds(&world, &app).await;
    let only_job = |found: &Value| found["drift"][0]["jobIds"].as_array().map(Vec::len);

    world
        .channel()
        .await
        .queue_purge("customerio-sync.retry.1h".into(), QueuePurgeOptions::default())
        .await
        .expect("purged");
    let age = "UPDATE signup_customerio_sync_jobs SET updated_at = now() - interval '10 minutes'";
    change(&world, age).await;
    let found = integrity(&world, &app).await;
    assert_eq!((kinds(&found), only_job(&found)), (vec![("waiting", 1)], Some(1)), "{found}");

    change(
        &world,
        "UPDATE signup_customerio_sync_jobs SET next_retry_at = now() - interval '10 minutes' \
            WHERE status = 'pending'",
    )
    .await;
    let found = integrity(&world, &app).await;
    assert_eq!((kinds(&found), only_job(&found)), (vec![("overdue", 1)], Some(1)), "{found}");

    change(
        &world,
        "UPDATE signup_customerio_sync_jobs SET status = 'processing', next_retry_at = NULL WHERE \
            status = 'pending'",
    )
    .await;
    let found = integrity(&world, &app).await;
    assert_eq!((kinds(&found), only_job(&found)), (vec![("stuck", 1)], Some(1)), "{found}");
    let done = "UPDATE signup_customerio_sync_jobs
        SET status = 'completed', completed_at = now(), error_type = NULL, error_message = NULL, \
        error_signature = NULL,
            first_failed_at = NULL
        WHERE status = 'processing'";
    change(&world, done).await;
    assert_eq!(kinds(&integrity(&world, &app).await), []);

    change(
        &world,
        "UPDATE signups SET customerio_sync_failed = false, customerio_sync_error = NULL",
    )
    .await;
    assert_eq!(
        kinds(&integrity(&world, &app).await),
        [("flags", 2)],
        "of the open and of the dismissed failure"
    );
    change(&world, "UPDATE signups SET customerio_sync_failed = true, customerio_sync_error = 'x'")
        .await;
    assert_eq!(kinds(&integrity(&world, &app).await), [("flags", 2)], "of the completed jobs");
    let flags = "UPDATE signups s SET customerio_sync_failed = f.failed, customerio_sync_error = \
        CASE WHEN f.failed THEN 'x' END
        FROM (SELECT signup_id, status = 'failed' AS failed FROM signup_customerio_sync_jobs) AS \
        f WHERE f.signup_id = s.id";
    change(&world, flags).await;
    assert_eq!(kinds(&integrity(&world, &app).await), []);

    world.take("customerio-sync.failed").await.expect("a message");
    assert_eq!(kinds(&integrity(&world, &app).await), [("failure_queue", 1)]);
    app.stop().await;
}

#[tokio::test]
async fn an_overdue_retry_is_named_although_events_wait() {
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
    change(
        &world,
        "UPDATE signup_customerio_sync_jobs SET next_retry_at = now() - interval '10 minutes'",
    )
    .await;
    for _ in 0..60 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    let found = integrity(&world, &app).await;
    assert!(found["queues"]["work"].as_i64() > Some(0), "events wait: {found}");
    let overdue =
        found["drift"].as_array().expect("a list").iter().find(|one| one["kind"] == "overdue");
    assert_eq!(overdue.map(|one| one["jobIds"].clone()), Some(json!([job["id"]])), "{found}");
    app.stop().await;
}

#[tokio::test]
async fn the_mirror_is_held_against_the_jobs() {
    let (world, app) = mixed().await;
    wait_until_it_holds(&world, &app).await;
    change(
        &world,
        "UPDATE sync_failures SET mirrored_at = now() - interval '10 minutes', resolved_at = \
            NULL, resolution = NULL",
    )
    .await;
    let found = integrity(&world, &app).await;
    assert_eq!(kinds(&found), [("not_failed", 1), ("failure_queue", 1)], "{found}");
    change(
        &world,
        "UPDATE signup_customerio_sync_jobs SET failed_at = now() - interval '10 minutes' WHERE \
            status = 'failed'",
    )
    .await;
    change(&world, "DELETE FROM sync_failures").await;
    let found = integrity(&world, &app).await;
    assert_eq!(
        kinds(&found),
        [("not_mirrored", 1), ("balance", 1), ("failure_queue", 2)],
        "{found}"
    );
    assert_eq!(found["holds"], false);
    assert!(
        found["drift"][0]["meaning"].as_str().is_some_and(|text| text.contains("parked again")),
        "{found}"
    );
    app.stop().await;
}

#[tokio::test]
async fn one_replica_tells_the_drift_as_a_metric() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "100ms");
    let apps = [world.start().await, world.start().await];
    change(&world, "INSERT INTO taken_in (jobs) VALUES (3), (4)").await;
    let told = async || {
        let mut told = Vec::new();
        for app in &apps {
            let (_, metrics) = world.get(app, "/metrics").await;
            let lines =
                metrics.lines().filter(|line| line.starts_with("customerio_sync_integrity_drift{"));
            told.extend(lines.map(str::to_owned));
        }
        told
    };
    let line = r#"customerio_sync_integrity_drift{kind="balance"} 7"#;
    wait_for("the drift to be told", || async {
        told().await.iter().any(|one| one == line).then_some(())
    })
    .await;
    assert_eq!(
        told().await.iter().filter(|one| one.contains("balance")).count(),
        1,
        "by one replica alone"
    );
    let rows = "SELECT count(*) FROM taken_in";
    wait_for("it to be added up", || async { (world.count(rows).await == 1).then_some(()) }).await;
    for app in apps {
        app.stop().await;
    }
}
