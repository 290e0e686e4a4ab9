//! The calls a second that Customer.io allows, shared by replicas that come and go.

use crate::support::{World, arrival, completion, publish_on, submitted, wait_for};
use chrono::{DateTime, TimeDelta, Utc};
use customerio_sync::ledger::{Ledger, Opened};
use serde_json::json;
use uuid::Uuid;

/// Calls a second, and how many jobs need one each.
const LIMIT: usize = 40;
const JOBS: i64 = 320;

/// Each job is a call of its own, and no replica takes more messages than it can soon call for.
async fn world() -> World {
    World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", &LIMIT.to_string())
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

async fn wait_for_replicas(world: &World, count: i64) {
    wait_for(&format!("{count} replicas with a share"), || async {
        let sql =
            "SELECT count(*) FROM call_shares WHERE calls_per_second > 0 AND expires_at > now()";
        (world.count(sql).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_that_come_and_go_stay_under_one_limit_together() {
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
    wait_for_replicas(&world, 3).await;
    let share = "SELECT max(calls_per_second)::int8 FROM call_shares";
    wait_for("even shares", || async { (world.count(share).await == 13).then_some(()) }).await;
    third.kill();
    first.stop().await;
    wait_for_replicas(&world, 1).await;
    wait_for("the one that is left to have all", || async {
        (world.count(share).await == 40).then_some(())
    })
    .await;
    wait_for_completed(&world, JOBS).await;

    let calls = world.call_times().await;
    let window = TimeDelta::seconds(3);
    let most = calls
        .iter()
        .map(|start| calls.iter().filter(|at| (*start..*start + window).contains(at)).count());
    let most = most.max().expect("calls were made");
    // A call that was on its way for a while may arrive with the next ones.
    assert!(most <= 3 * LIMIT + LIMIT / 4, "{most} calls in three seconds");
    assert_eq!(world.sim("summary").await["events"], JOBS);
    second.stop().await;
    assert_eq!(world.count("SELECT count(*) FROM call_shares").await, 0, "it was given up");
}

#[tokio::test]
async fn what_customer_io_asks_of_one_replica_all_of_them_heed() {
    let world = World::new().await;
    let mut replicas = vec![world.start().await, world.start().await];
    wait_for_replicas(&world, 2).await;
    world.fault(json!({ "kind": "status", "status": 429, "calls": 1, "retry_after": "3" })).await;
    let asked = Uuid::new_v4();
    world.submit(&submitted(asked)).await;
    world.wait_for_retry(asked, "initial").await;
    // One that starts meanwhile heeds it, too.
    replicas.push(world.start().await);
    for replica in &replicas {
        wait_for("the replica to hold its calls", || async {
            (world.read(replica, "/stats").await["gate"]["reason"] == "asked").then_some(())
        })
        .await;
    }
    for _ in 0..20 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    wait_for_completed(&world, 21).await;
    let calls = world.call_times().await;
    let held = calls[1] - calls[0];
    assert!(held >= TimeDelta::milliseconds(2990), "the next call came after {held}");
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn a_job_that_ended_while_its_call_waited_is_not_called_for() {
    let world = World::new().await;
    let app = world.start().await;
    wait_for_replicas(&world, 1).await;
    let mut shares = world.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE call_shares").execute(&mut *shares).await.expect("locked");
    let last = "SELECT max(expires_at) FROM call_shares";
    let last: DateTime<Utc> =
        sqlx::query_scalar(last).fetch_one(&mut *shares).await.expect("a share");
    wait_for("the share to end", || async { (Utc::now() > last).then_some(()) }).await;

    let [ended, held] = [Uuid::new_v4(), Uuid::new_v4()];
    world.submit(&submitted(ended)).await;
    world.submit(&submitted(held)).await;
    let waiting = "SELECT count(*) FROM signup_customerio_sync_jobs
                   WHERE status = 'processing' AND claimed_at < now() - interval '1 second'";
    wait_for("both jobs to wait", || async { (world.count(waiting).await == 2).then_some(()) })
        .await;
    // Another event of the signup starts its job afresh, and it ends.
    let ledger = Ledger::new(&world.config().database, 5).expect("a URL");
    let other =
        ledger.open(Uuid::new_v4(), &[arrival(&submitted(ended), false)]).await.expect("opened");
    assert!(matches!(other.opened[0], Opened::Claimed(_)), "{:?}", other.opened[0]);
    ledger.settle(other.claim, vec![completion(&other.opened[0])]).await.expect("settled");

    shares.rollback().await.expect("the shares are free");
    world.wait_for_job(held, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let events = world.events().await;
    let of: Vec<_> = events.iter().map(|event| &event["attributes"]["signup_id"]).collect();
    assert_eq!(of, [&json!(held)]);
    app.stop().await;
}
