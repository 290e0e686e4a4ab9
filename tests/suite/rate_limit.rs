//! The rate limit for calls to Customer.io, shared by replicas that start and stop.

use crate::support::{World, arrival, completion, publish_on, submitted, wait_for};
use chrono::{DateTime, TimeDelta, Utc};
use customerio_sync::ledger::{ClaimOutcome, ClaimRest, Ledger};
use serde_json::json;
use uuid::Uuid;

/// Calls per second that the replicas may make together.
const CALLS_PER_SECOND: usize = 40;
/// Number of jobs. Each needs one call.
const JOBS: i64 = 320;

/// Returns a world in which each job is a call of its own, and no replica takes more messages than
/// it can send soon.
async fn world() -> World {
    World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", &CALLS_PER_SECOND.to_string())
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2")
        .with("CUSTOMERIO_SYNC__BROKER__PREFETCH", "10")
        .with("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "5")
}

async fn wait_for_completed(world: &World, count: i64) {
    wait_for(&format!("{count} completed jobs"), || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await >= count).then_some(())
    })
    .await;
}

/// Waits until exactly `count` replicas own a lease.
async fn wait_for_leases(world: &World, count: i64) {
    wait_for(&format!("{count} replicas with a lease"), || async {
        let sql =
            "SELECT count(*) FROM call_shares WHERE calls_per_second > 0 AND expires_at > now()";
        (world.count(sql).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_that_start_and_stop_stay_under_one_rate_limit() {
    let world = world().await;
    let first = world.start().await;
    let channel = world.channel().await;
    for _ in 0..JOBS {
        let body = submitted(Uuid::new_v4()).to_string();
        publish_on(
            &channel,
            "signup.events",
            "signup.submitted",
            body.as_bytes(),
            lapin::BasicProperties::default(),
        )
        .await;
    }
    wait_for_completed(&world, 20).await;
    let second = world.start().await;
    let mut third = world.spawn();
    wait_for_leases(&world, 3).await;
    let largest = "SELECT max(calls_per_second)::int8 FROM call_shares";
    wait_for("equal leases", || async { (world.count(largest).await == 13).then_some(()) }).await;
    third.kill();
    first.stop().await;
    wait_for_leases(&world, 1).await;
    wait_for("the remaining replica to lease the whole limit", || async {
        (world.count(largest).await == 40).then_some(())
    })
    .await;
    wait_for_completed(&world, JOBS).await;

    let calls = world.call_times().await;
    let window = TimeDelta::seconds(3);
    let per_window = calls
        .iter()
        .map(|start| calls.iter().filter(|at| (*start..*start + window).contains(at)).count());
    let most = per_window.max().expect("calls were made");
    // A call that was delayed on its way may arrive together with later ones.
    assert!(
        most <= 3 * CALLS_PER_SECOND + CALLS_PER_SECOND / 4,
        "{most} calls within three seconds"
    );
    assert_eq!(world.sim("summary").await["events"], JOBS);
    second.stop().await;
    assert_eq!(
        world.count("SELECT count(*) FROM call_shares").await,
        0,
        "a replica that stops releases its lease"
    );
}

#[tokio::test]
async fn a_retry_after_sent_to_one_replica_pauses_the_calls_of_all() {
    let world = World::new().await;
    let mut replicas = vec![world.start().await, world.start().await];
    wait_for_leases(&world, 2).await;
    world.fault(json!({ "kind": "status", "status": 429, "calls": 1, "retry_after": "3" })).await;
    let limited = Uuid::new_v4();
    world.submit(&submitted(limited)).await;
    world.wait_for_retry(limited, "initial").await;
    // A replica that starts during the pause obeys it as well.
    replicas.push(world.start().await);
    for replica in &replicas {
        // The metrics show the breaker of the replica itself, and not the worst of all.
        wait_for("the replica to pause its calls", || async {
            let (_, metrics) = world.get(replica, "/metrics").await;
            metrics.lines().any(|line| line == "customerio_sync_breaker_open 1").then_some(())
        })
        .await;
    }
    for _ in 0..20 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    wait_for_completed(&world, 21).await;
    let calls = world.call_times().await;
    let pause = calls[1] - calls[0];
    assert!(pause >= TimeDelta::milliseconds(2990), "the next call came after {pause}");
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn a_job_that_completed_while_it_waited_for_the_rate_limit_is_not_sent() {
    let world = World::new().await;
    let app = world.start().await;
    wait_for_leases(&world, 1).await;
    // A consumer starts with one message, and gets more once it has acknowledged that one.
    let first = Uuid::new_v4();
    world.submit(&submitted(first)).await;
    world.wait_for_job(first, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let mut lock = world.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE call_shares").execute(&mut *lock).await.expect("locked");
    let lease_end = "SELECT max(expires_at) FROM call_shares";
    let lease_end: DateTime<Utc> =
        sqlx::query_scalar(lease_end).fetch_one(&mut *lock).await.expect("a lease");
    wait_for("the lease to end", || async { (Utc::now() > lease_end).then_some(()) }).await;

    let [completed, waiting] = [Uuid::new_v4(), Uuid::new_v4()];
    world.submit(&submitted(completed)).await;
    world.submit(&submitted(waiting)).await;
    let sql = "
        SELECT count(*) FROM signup_customerio_sync_jobs
        WHERE status = 'processing' AND claimed_at < now() - interval '1 second'";
    wait_for("both jobs to wait", || async { (world.count(sql).await == 2).then_some(()) }).await;
    // Another event of the signup restarts the job, which then completes.
    let ledger = Ledger::new(&world.config().database, &world.config().tls, 5).expect("a URL");
    let batch = ledger
        .claim(Uuid::new_v4(), &[arrival(&submitted(completed), false)])
        .await
        .expect("claimed");
    let outcome = &batch.outcomes[0];
    assert!(matches!(outcome, ClaimOutcome::Claimed(_)), "{outcome:?}");
    ledger.settle(batch.claim, &[completion(outcome)], ClaimRest::Empty).await.expect("settled");

    lock.rollback().await.expect("the lock is released");
    world.wait_for_job(waiting, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let events = world.events().await;
    let sent: Vec<_> = events.iter().map(|event| &event["attributes"]["signup_id"]).collect();
    assert_eq!(sent, [&json!(first), &json!(waiting)]);
    app.stop().await;
}
