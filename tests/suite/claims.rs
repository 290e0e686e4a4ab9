//! Claims that are lost, kept and taken over, and deliveries that can't be acknowledged.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use customerio_sync::{
    broker::{self, Address, Connection, Topology, WindowLimit},
    runtime::shutdown::Shutdown,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::support::{World, metric_value, submitted, wait_for};

async fn submit_new(world: &World) -> Uuid {
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    signup
}

async fn wait_for_claim(world: &World, signup: Uuid) -> Value {
    wait_for("the job to be claimed", || async {
        world.job(signup, "initial").await.filter(|job| job["status"] == "processing")
    })
    .await
}

#[tokio::test]
async fn a_job_whose_claim_was_reset_during_its_call_is_not_lost() {
    // Recovery does not help.
    let world = World::new().await.with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "1h");
    let app = world.start().await;
    world.fault(json!({ "kind": "latency", "ms": 2000, "calls": 1 })).await;
    let signup = submit_new(&world).await;
    wait_for_claim(&world, signup).await;
    world
        .execute("UPDATE signup_customerio_sync_jobs SET claimed_at = now() - interval '6 min'")
        .await;
    let reset = world.act(&app, "/cleanup", None).await;
    assert_eq!(reset["resetCount"], 1);
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let attempts = "SELECT count(*) FROM sync_attempts";
    assert_eq!(world.count(attempts).await, 1, "the attempt without a claim is not recorded");
    assert_eq!(world.sim("summary").await["events"], 1);
    app.stop().await;
}

#[tokio::test]
async fn an_event_whose_claim_the_server_lost_is_claimed_again() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "1h");
    let app = world.start().await;
    world.fault(json!({ "kind": "latency", "ms": 2000, "calls": 1 })).await;
    let signup = submit_new(&world).await;
    wait_for_claim(&world, signup).await;
    let written =
        "DELETE FROM claims; DELETE FROM signup_customerio_sync_jobs; DELETE FROM signups";
    world.execute(written).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let attempts = "SELECT count(*) FROM sync_attempts";
    assert_eq!(world.count(attempts).await, 1, "the attempt without a claim is not recorded");
    let events = world.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["repeats"], 1, "the attempt without a claim was sent with the same id");
    app.stop().await;
}

#[tokio::test]
async fn a_batch_renews_its_claims_while_its_calls_are_in_flight() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__DATABASE__CLAIM_LEASE", "5s")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__TIMEOUT", "4s")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__CONNECT_TIMEOUT", "1s");
    let app = world.start().await;
    world.fault(json!({ "kind": "latency", "ms": 3000, "calls": 1 })).await;
    let signup = submit_new(&world).await;
    let time = |job: &Value| {
        let time = job["claimed_at"].as_str().expect("a time");
        time.parse::<DateTime<Utc>>().expect("RFC 3339")
    };
    let claimed = wait_for_claim(&world, signup).await;
    wait_for("the claim to be renewed", || async {
        let job = world.job(signup, "initial").await?;
        (job["status"] == "processing" && time(&job) > time(&claimed)).then_some(())
    })
    .await;
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.calls().await.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_slow_call_of_a_batch_does_not_delay_the_others() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2")
        .with("CUSTOMERIO_SYNC__SYNC__BATCHES_IN_FLIGHT", "1");
    let app = world.start().await;
    // The first calls of a process carry few jobs.
    for _ in 0..3 {
        let signup = submit_new(&world).await;
        world.wait_for_job(signup, "initial", "completed").await;
    }
    // The next events arrive during one call and become one batch, whose first call is slow.
    for ms in [1000, 8000] {
        world.fault(json!({ "kind": "latency", "ms": ms, "calls": 1 })).await;
    }
    let during = submit_new(&world).await;
    wait_for_claim(&world, during).await;
    let mut batch = Vec::new();
    for _ in 0..5 {
        batch.push(submit_new(&world).await);
    }
    let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = ";
    let processing = format!("{sql}'processing'");
    wait_for("four of the five jobs to complete before the slow call", || async {
        let count = sqlx::AssertSqlSafe(format!("{sql}'completed'"));
        let completed: i64 = sqlx::query_scalar(count).fetch_one(&world.pool).await.ok()?;
        (completed == 8).then_some(())
    })
    .await;
    let slow = sqlx::AssertSqlSafe(processing);
    let slow: i64 = sqlx::query_scalar(slow).fetch_one(&world.pool).await.expect("a count");
    assert_eq!(slow, 1, "the slow call is in flight");
    for signup in batch {
        world.wait_for_job(signup, "initial", "completed").await;
    }
    app.stop().await;
}

#[tokio::test]
async fn deliveries_of_a_lost_channel_are_dropped_before_they_are_claimed() {
    let (world, forwarder) = World::behind_forwarder("AMQP_URL").await;
    let world = world
        .with("CUSTOMERIO_SYNC__SYNC__BATCHES_IN_FLIGHT", "1")
        .with("CUSTOMERIO_SYNC__SYNC__BATCHES_IN_FLIGHT_MAX", "1")
        .with("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "5");
    let app = world.start().await;
    let first = submit_new(&world).await;
    world.wait_for_job(first, "initial", "completed").await;
    world.fault(json!({ "kind": "latency", "ms": 3000, "calls": 1 })).await;
    let signups = [(); 60].map(|()| Uuid::new_v4());
    for signup in signups {
        world.submit(&submitted(signup)).await;
    }
    wait_for_claim(&world, signups[0]).await;
    forwarder.cut();
    for signup in signups {
        world.wait_for_job(signup, "initial", "completed").await;
    }
    world.wait_until_all_queues_are_empty().await;
    let (_, metrics) = world.get(&app, "/metrics").await;
    let skipped = |why: &str| {
        let series = format!("skipped_deliveries_total{{why=\"{why}\"}}");
        metric_value(&metrics, &series).expect("the series")
    };
    let late = ["settled", "already_completed", "superseded", "in_flight"].map(skipped);
    assert!(late.iter().sum::<f64>() <= 5.0, "only a batch was in flight: {late:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_delivery_that_is_dropped_is_requeued() {
    let world = World::new().await;
    let config = world.config();
    let address = Address::new(&config.broker, &config.tls).expect("a URL");
    let topology = Arc::new(Topology::new(&config.retry.delays, &config.topology));
    let connection = Connection::open("consume", address, topology, &Default::default()).await;
    let (sender, mut deliveries) = mpsc::channel(8);
    let shutdown = Shutdown::default();
    let queue = "customerio-sync.signup-submitted";
    let connection = connection.expect("connected");
    let consuming = broker::consume(
        connection,
        queue,
        WindowLimit::new(1),
        shutdown.clone(),
        sender,
        |delivery| delivery,
    );
    let consuming = tokio::spawn(consuming);
    submit_new(&world).await;
    let delivery = deliveries.recv().await.expect("a delivery");
    assert!(!delivery.redelivered);
    // As if a task panicked.
    drop(delivery);
    let delivery = deliveries.recv().await.expect("the message is delivered again");
    assert!(delivery.redelivered);
    delivery.acker.ack().await;
    shutdown.end();
    consuming.await.expect("no panic");
}
