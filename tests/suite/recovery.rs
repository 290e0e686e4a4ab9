//! Jobs that nobody works on any more, and a failure queue that people have touched: both are
//! mended by themselves.

use crate::support::{World, arrival, submitted, wait_for};
use customerio_sync::{
    app::App,
    ledger::{Ledger, Suspects},
};
use lapin::options::QueuePurgeOptions;
use serde_json::{Value, json};
use sqlx::Executor;
use std::time::Duration;
use uuid::Uuid;

const FAILED: &str = "customerio-sync.failed";

/// A world in which everything is looked at often.
async fn impatient() -> World {
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

/// A signup whose job waits for its first retry, and whose message was purged from its tier.
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
async fn a_job_whose_message_was_purged_is_sent_again() {
    let world = impatient().await.with("RETRY_DELAYS", "2s");
    let app = world.start().await;
    let signup = lose_a_retry(&world).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["attempt_count"], 1);
    assert_ne!(job["resent_at"], Value::Null);
    assert_eq!(world.calls().await.len(), 2);
    let (_, metrics) = world.get(&app, "/metrics").await;
    assert!(
        metrics.contains(r#"customerio_sync_recovered_jobs_total{what="sent_again"} 1"#),
        "{metrics}"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_job_whose_message_was_purged_is_sent_again_although_events_wait() {
    let world = impatient()
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
    assert!(world.depth("customerio-sync.signup-submitted").await > 0, "events wait still");
    app.stop().await;
}

#[tokio::test]
async fn a_job_whose_holder_is_gone_goes_on() {
    let world = impatient().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let sql = "
        WITH s AS (INSERT INTO signups (id, operator_id, email) VALUES ($1, 'op', \
        'x@example.com') RETURNING id)
        INSERT INTO signup_customerio_sync_jobs
            (id, signup_id, sync_phase, status, claim, claimed_at, claimed_by, updated_at)
        SELECT gen_random_uuid(), id, 'initial', 'processing', gen_random_uuid(), now() - \
        interval '6 minutes', 'event:x',
            now() - interval '6 minutes'
        FROM s";
    sqlx::query(sql).bind(signup).execute(&world.pool).await.expect("a job");
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.audit("customerio_cleanup").await[0]["actor"], "customerio-sync");
    app.stop().await;
}

#[tokio::test]
async fn what_was_sent_again_is_not_sent_again_soon() {
    let world = World::new().await;
    let ledger = Ledger::new(&world.config().database, 5).expect("a URL");
    ledger.migrate().await.expect("migrated");
    let event = submitted(Uuid::new_v4());
    let opened = ledger.open(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("opened");
    ledger.release(opened.claim).await.expect("given back");
    let (now, later) = (Duration::ZERO, Duration::from_secs(600));
    assert!(
        ledger.take_overdue(Suspects::All, later, later, 10).await.expect("taken").is_empty(),
        "it is not overdue yet"
    );
    let of_jobs = ledger.take_overdue(Suspects::JobMessages, now, later, 10).await.expect("taken");
    assert!(of_jobs.is_empty(), "its message is an event");
    assert_eq!(ledger.take_overdue(Suspects::All, now, later, 10).await.expect("taken").len(), 1);
    assert!(ledger.take_overdue(Suspects::All, now, later, 10).await.expect("taken").is_empty());
    assert_eq!(
        ledger.take_overdue(Suspects::All, now, now, 10).await.expect("taken").len(),
        1,
        "after its time it is"
    );
}

#[tokio::test]
async fn one_replica_leads_and_another_takes_over() {
    let world = World::new().await;
    let ledger = Ledger::new(&world.config().database, 5).expect("a URL");
    let mut one = ledger.stand_by(customerio_sync::ledger::Duty::Recovery);
    let mut other = ledger.stand_by(customerio_sync::ledger::Duty::Recovery);
    let mut another_duty = ledger.stand_by(customerio_sync::ledger::Duty::FailureQueue);
    assert!(one.is_ours().await.expect("asked"));
    assert!(!other.is_ours().await.expect("asked"));
    assert!(one.is_ours().await.expect("asked"), "it stays");
    assert!(another_duty.is_ours().await.expect("asked"));
    let kill = "
        SELECT pg_terminate_backend(pid) FROM pg_locks
        WHERE locktype = 'advisory' AND pid <> pg_backend_pid()
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    world.pool.execute(kill).await.expect("its connection is cut");
    let locks = "
        SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = \
        current_database())";
    wait_for("the locks to be free", || async { (world.count(locks).await == 0).then_some(()) })
        .await;
    assert!(other.is_ours().await.expect("asked"));
    assert!(!one.is_ours().await.expect("asked"));
}

/// Three failures: of a retryable kind, refused, and not understood.
async fn three_failures(world: &World, app: &App) -> (Uuid, Uuid) {
    let (one, two) = (world.failed_signup().await, world.failed_signup().await);
    let properties = lapin::BasicProperties::default().with_message_id("m-1".into());
    world.publish("signup.events", "signup.submitted", b"not json", properties).await;
    world.wait_for_failures(3).await;
    world.wait_for_depth(FAILED, 3).await;
    assert_eq!(world.read(app, "/stats").await["openFailures"], 2);
    (one, two)
}

#[tokio::test]
async fn what_is_resolved_leaves_the_failure_queue_and_what_is_open_stays() {
    let world = impatient().await;
    let app = world.start().await;
    let (one, _) = three_failures(&world, &app).await;
    world.act(&app, &format!("/{one}/retry"), None).await;
    world.wait_for_depth(FAILED, 2).await;
    let messages = [world.next(FAILED).await, world.next(FAILED).await];
    let unprocessable = messages
        .iter()
        .find(|message| message.header("x-reason").as_deref() == Some("unprocessable"));
    let unprocessable = unprocessable.expect("it is there");
    assert_eq!(unprocessable.body, b"not json");
    assert_eq!(unprocessable.header("x-original-message-id").as_deref(), Some("m-1"));
    assert_eq!(unprocessable.header("x-original-routing-key").as_deref(), Some("signup.submitted"));
    let refused =
        messages.iter().find(|message| message.header("x-job-id").is_some()).expect("it is there");
    assert_eq!(
        (refused.header("x-reason").as_deref(), refused.header("x-attempt").as_deref()),
        (Some("permanent"), Some("0"))
    );
    assert!(
        refused.header("x-failed-at").is_some() && refused.message_id().ends_with(":0:0:failed")
    );

    // Taking them away is no resolution: they come back.
    world.wait_for_depth(FAILED, 2).await;
    world.act(&app, "/sync-failures/dismiss", Some(&json!({ "reason": "x" }))).await;
    world.wait_for_depth(FAILED, 1).await;
    app.stop().await;
}

#[tokio::test]
async fn a_purged_or_doubled_failure_queue_is_made_right_again() {
    let world = impatient().await;
    let app = world.start().await;
    three_failures(&world, &app).await;
    purge(&world, FAILED).await;
    world.wait_for_depth(FAILED, 3).await;
    let doubled = world.next(FAILED).await;
    for _ in 0..3 {
        world.publish("", FAILED, &doubled.body, doubled.properties.clone()).await;
    }
    world.wait_for_depth(FAILED, 3).await;

    // A failure that the mirror lost is mirrored again.
    world
        .pool
        .execute("DELETE FROM sync_failures WHERE reason = 'unprocessable'")
        .await
        .expect("gone");
    world.wait_for_failures(3).await;
    world.wait_for_depth(FAILED, 3).await;
    app.stop().await;
}

#[tokio::test]
async fn a_failure_that_was_lost_on_its_way_is_parked_again() {
    let world = impatient().await;
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world.wait_for_failures(1).await;
    world.take("customerio-sync.failed").await.expect("it was parked");
    world.rows("DELETE FROM sync_failures").await;
    let failures = world.wait_for_failures(1).await;
    assert_eq!(failures[0]["job_id"], world.job(signup, "initial").await.expect("a job")["id"]);
    assert_eq!(
        (&failures[0]["reason"], &failures[0]["resolved_at"]),
        (&json!("permanent"), &Value::Null)
    );
    let parked = world.next("customerio-sync.failed").await;
    assert_eq!(parked.header("x-error-type").as_deref(), Some("other"));
    app.stop().await;
}
