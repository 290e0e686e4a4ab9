//! Lost messages, abandoned jobs, and a failure queue that somebody has changed: recovery and the
//! sweep repair them.

use crate::support::{Received, World, arrival, metric_value, submitted, wait_for};
use customerio_sync::{
    app::App,
    ledger::{LeaderTask, Ledger, RecoveryLimits},
    runtime::replica::Replica,
};
use lapin::options::QueuePurgeOptions;
use serde_json::{Value, json};
use sqlx::Executor;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

const FAILURE_QUEUE: &str = "customerio-sync.failed";

/// A world whose recovery and mirror check often.
async fn world_with_short_intervals() -> World {
    World::new()
        .await
        .with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__RECOVERY__OVERDUE_AFTER", "500ms")
        .with("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "100ms")
}

async fn purge(world: &World, queue: &str) {
    let channel = world.channel().await;
    channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.expect("purged");
}

/// Creates a job that waits for its first retry, and purges its message from the tier. Returns the
/// signup.
async fn lose_a_retry(world: &World) -> Uuid {
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    world.submit(&submitted(signup)).await;
    world.wait_for_retry(signup, "initial").await;
    world.wait_for_depth("customerio-sync.retry.2s", 1).await;
    purge(world, "customerio-sync.retry.2s").await;
    signup
}

#[tokio::test]
async fn a_job_whose_message_was_purged_is_resent() {
    let world = world_with_short_intervals().await.with("RETRY_DELAYS", "2s");
    let app = world.start().await;
    let signup = lose_a_retry(&world).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["attempt_count"], 1);
    assert_ne!(job["resent_at"], Value::Null);
    assert_eq!(world.calls().await.len(), 2);
    let (_, metrics) = world.get(&app, "/metrics").await;
    assert!(
        metrics.contains(r#"customerio_sync_recovered_jobs_total{what="resent"} 1"#),
        "{metrics}"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_job_whose_message_was_purged_is_resent_while_events_wait() {
    let world = world_with_short_intervals()
        .await
        .with("RETRY_DELAYS", "2s")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "2")
        .with("CUSTOMERIO_SYNC__BROKER__PREFETCH", "1");
    let app = world.start().await;
    let signup = lose_a_retry(&world).await;
    for _ in 0..60 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_ne!(job["resent_at"], Value::Null);
    assert!(world.depth("customerio-sync.signup-submitted").await > 0, "no events wait");
    app.stop().await;
}

#[tokio::test]
async fn a_job_with_an_expired_claim_is_completed() {
    let world = world_with_short_intervals().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let sql = "
        WITH s AS (
            INSERT INTO signups (id, operator_id, email) VALUES ($1, 'op', 'x@example.com')
            RETURNING id
        )
        INSERT INTO signup_customerio_sync_jobs
            (id, signup_id, sync_phase, status, claim, claimed_at, claimed_by, updated_at)
        SELECT gen_random_uuid(), id, 'initial', 'processing', gen_random_uuid(),
            now() - interval '6 minutes', 'event:x', now() - interval '6 minutes'
        FROM s";
    sqlx::query(sql).bind(signup).execute(&world.pool).await.expect("a job");
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.audit("customerio_cleanup").await[0]["actor"], "customerio-sync");
    app.stop().await;
}

#[tokio::test]
async fn a_resent_message_is_not_resent_again_too_soon() {
    let world = World::new().await;
    let ledger = Ledger::new(&world.config().database, &world.config().tls, 5).expect("a URL");
    ledger.migrate().await.expect("migrated");
    let event = submitted(Uuid::new_v4());
    let batch = ledger.claim(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("claimed");
    ledger.release(batch.claim).await.expect("released");
    let (now, later) = (Duration::ZERO, Duration::from_secs(600));
    let take = async |overdue_after, resend_after| {
        let limits = RecoveryLimits { overdue_after, resend_after, jobs: 10 };
        ledger.take_overdue(limits).await.expect("taken").len()
    };
    assert_eq!(take(later, later).await, 0, "the job is not overdue yet");
    assert_eq!(take(now, later).await, 1);
    assert_eq!(take(now, later).await, 0);
    assert_eq!(take(now, now).await, 1, "the time to resend has come");
}

#[tokio::test]
async fn one_replica_leads_and_another_takes_over() {
    let world = World::new().await;
    let ledger = Ledger::new(&world.config().database, &world.config().tls, 5).expect("a URL");
    let replica = || ledger.clone().of_replica(&Replica::start());
    let (one, other) = (replica(), replica());
    let mut first = one.leader_lock(LeaderTask::Recovery, Arc::default());
    let mut second = other.leader_lock(LeaderTask::Recovery, Arc::default());
    let mut of_another_task = other.leader_lock(LeaderTask::FailureQueue, Arc::default());
    assert!(first.try_acquire().await.expect("an answer"));
    assert!(!second.try_acquire().await.expect("an answer"));
    assert!(first.try_acquire().await.expect("an answer"), "the leader stays the same");
    assert!(of_another_task.try_acquire().await.expect("an answer"));
    let end_sessions = "
        SELECT pg_terminate_backend(pid) FROM pg_locks
        WHERE locktype = 'advisory' AND pid <> pg_backend_pid()
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    world.pool.execute(end_sessions).await.expect("the sessions of the leaders end");
    let locks = "
        SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory'
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    wait_for("the locks to be free", || async { (world.count(locks).await == 0).then_some(()) })
        .await;
    assert!(second.try_acquire().await.expect("an answer"));
    assert!(!first.try_acquire().await.expect("an answer"));
}

/// Creates two refused signups, which are returned, and an unprocessable message.
async fn three_failures(world: &World, app: &App) -> (Uuid, Uuid) {
    let (first, second) = (world.failed_signup().await, world.failed_signup().await);
    let properties = lapin::BasicProperties::default().with_message_id("m-1".into());
    world.publish("signup.events", "signup.submitted", b"not json", properties).await;
    world.wait_for_failures(3).await;
    world.wait_for_depth(FAILURE_QUEUE, 3).await;
    assert_eq!(world.read(app, "/stats").await["openFailures"], 2);
    (first, second)
}

/// The next message of the failure queue with this reason. A sweep that is under way moves them, so
/// others may come first; they are parked again.
async fn next_of_reason(world: &World, reason: &str) -> Received {
    loop {
        let message = world.next(FAILURE_QUEUE).await;
        if message.header("x-reason").as_deref() == Some(reason) {
            return message;
        }
    }
}

#[tokio::test]
async fn resolved_failures_leave_the_failure_queue_and_open_ones_stay() {
    let world = world_with_short_intervals().await;
    let app = world.start().await;
    let (retried, _) = three_failures(&world, &app).await;
    world.act(&app, &format!("/{retried}/retry"), None).await;
    world.wait_for_depth(FAILURE_QUEUE, 2).await;
    let unprocessable = next_of_reason(&world, "unprocessable").await;
    assert_eq!(unprocessable.body, b"not json");
    assert_eq!(unprocessable.header("x-original-message-id").as_deref(), Some("m-1"));
    assert_eq!(unprocessable.header("x-original-routing-key").as_deref(), Some("signup.submitted"));
    let refused = next_of_reason(&world, "permanent").await;
    assert_eq!(
        (refused.header("x-reason").as_deref(), refused.header("x-attempt").as_deref()),
        (Some("permanent"), Some("0"))
    );
    assert!(
        refused.header("x-failed-at").is_some() && refused.message_id().ends_with(":0:0:failed")
    );

    // Consuming the messages does not resolve the failures: the messages are parked again.
    world.wait_for_depth(FAILURE_QUEUE, 2).await;
    world.act(&app, "/sync-failures/dismiss", Some(&json!({ "reason": "x" }))).await;
    world.wait_for_depth(FAILURE_QUEUE, 1).await;
    app.stop().await;
}

#[tokio::test]
async fn a_purged_or_duplicated_failure_queue_is_repaired() {
    let world = world_with_short_intervals().await;
    let app = world.start().await;
    three_failures(&world, &app).await;
    purge(&world, FAILURE_QUEUE).await;
    world.wait_for_depth(FAILURE_QUEUE, 3).await;
    let duplicated = world.next(FAILURE_QUEUE).await;
    for _ in 0..3 {
        world.publish("", FAILURE_QUEUE, &duplicated.body, duplicated.properties.clone()).await;
    }
    world.wait_for_depth(FAILURE_QUEUE, 3).await;

    // A failure that the mirror lost is mirrored again.
    world
        .pool
        .execute("DELETE FROM sync_failures WHERE reason = 'unprocessable'")
        .await
        .expect("deleted");
    world.wait_for_failures(3).await;
    world.wait_for_depth(FAILURE_QUEUE, 3).await;
    app.stop().await;
}

#[tokio::test]
async fn a_failure_lost_on_its_way_to_the_mirror_is_parked_again() {
    let world = world_with_short_intervals().await;
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world.wait_for_failures(1).await;
    world.take(FAILURE_QUEUE).await.expect("the parked message");
    world.rows("DELETE FROM sync_failures").await;
    let failures = world.wait_for_failures(1).await;
    assert_eq!(failures[0]["job_id"], world.job(signup, "initial").await.expect("a job")["id"]);
    assert_eq!(
        (&failures[0]["reason"], &failures[0]["resolved_at"]),
        (&json!("permanent"), &Value::Null)
    );
    let parked = world.next(FAILURE_QUEUE).await;
    assert_eq!(parked.header("x-error-type").as_deref(), Some("other"));
    app.stop().await;
}

#[tokio::test]
async fn a_sweep_publishes_only_what_is_missing() {
    const FAILURES: i64 = 100;
    let world = world_with_short_intervals().await;
    let app = world.start().await;
    for number in 0..FAILURES {
        let body = format!("not json {number}");
        let properties = lapin::BasicProperties::default();
        world.publish("signup.events", "signup.submitted", body.as_bytes(), properties).await;
    }
    world.wait_for_failures(FAILURES as usize).await;
    world.wait_for_depth(FAILURE_QUEUE, FAILURES as u32).await;
    let published = async || {
        let (_, metrics) = world.get(&app, "/metrics").await;
        let series = "publishes_total{destination=\"failed\",result=\"confirmed\"}";
        metric_value(&metrics, series).expect("the series")
    };
    let before = published().await;
    let resolve = "UPDATE sync_failures SET resolved_at = now(), resolution = 'dismissed'
        WHERE id IN (SELECT id FROM sync_failures ORDER BY id LIMIT 10)";
    world.execute(resolve).await;
    world.wait_for_depth(FAILURE_QUEUE, 90).await;
    // A person takes two of them away.
    for _ in 0..2 {
        world.take(FAILURE_QUEUE).await.expect("a parked message");
    }
    world.wait_for_depth(FAILURE_QUEUE, 90).await;
    assert_eq!(published().await - before, 2.0);
    app.stop().await;
}
