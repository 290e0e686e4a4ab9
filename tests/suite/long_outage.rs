//! Outages of hours, in compressed time: no process restarts, and no message is counted more than
//! once towards its delivery limit.

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};
use test_servers::Postgres;
use uuid::Uuid;

use crate::support::{
    Servers, Service, TempServer, World, metric_value, submitted, wait_for, wait_up_to,
};

const QUEUE: &str = "customerio-sync.signup-submitted";
const COMPLETED: &str =
    "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
const EVENTS: u32 = 20;
/// The service gives up a claim after a minute.
const INTAKE_STOPS_WITHIN: Duration = Duration::from_secs(120);

async fn submit_events(world: &World) {
    for _ in 0..EVENTS {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
}

/// Waits until the log has `count` lines that contain `text`.
async fn wait_for_lines(service: &Service, text: &str, count: usize) {
    wait_for(&format!("{count} lines with {text:?}"), || async {
        (service.process.log().matches(text).count() >= count).then_some(())
    })
    .await;
}

/// Waits until every event is in the queue and nobody consumes, which is after a minute, and until
/// the service has tried several times to write.
async fn wait_until_consumption_has_stopped(world: &World, service: &Service) {
    service.wait_for_reason(&["database: "]).await;
    wait_up_to(INTAKE_STOPS_WITHIN, "the consumer to stop", || async {
        let queue = world.queue(QUEUE).await;
        (queue.consumer_count() == 0 && queue.message_count() == EVENTS).then_some(())
    })
    .await;
    wait_for_lines(service, "writing to the database failed, retrying", 5).await;
    assert_eq!(world.queue(QUEUE).await.consumer_count(), 0, "it has not consumed since");
}

/// Checks how often the messages of the queue were delivered before.
async fn check_delivery_counts(world: &World) {
    let channel = world.channel().await;
    let mut deliveries = Vec::new();
    for _ in 0..EVENTS {
        let message = channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await;
        let delivery = message.expect("the queue exists").expect("a message").delivery;
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        let count = headers.inner().get("x-delivery-count");
        let count = count.and_then(|count| count.as_long_long_int()).unwrap_or(0);
        assert!(count <= 1, "delivered {count} times");
        deliveries.push(delivery);
    }
    for delivery in deliveries {
        let requeue = BasicNackOptions { requeue: true, ..Default::default() };
        delivery.acker.nack(requeue).await.expect("requeued");
    }
}

/// Completes jobs, so that the consumer receives many messages at a time afterwards.
async fn widen_the_window(world: &World) {
    submit_events(world).await;
    wait_for("the first jobs to complete", || async {
        (world.count(COMPLETED).await == i64::from(EVENTS)).then_some(())
    })
    .await;
}

async fn check_that_all_complete(world: &World, service: &Service, jobs: u32) {
    wait_for("every job to complete", || async {
        (world.count(COMPLETED).await == i64::from(jobs)).then_some(())
    })
    .await;
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    service.wait_until_ready().await;
    assert_eq!(service.process.log().matches("the service is running").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_of_the_database_counts_no_delivery_twice() {
    let database = TempServer::<Postgres>::started();
    let servers = Servers { database_url: database.url(), ..Servers::shared() };
    let world = World::on(servers).await;
    let service = world.serve();
    service.wait_until_ready().await;
    widen_the_window(&world).await;
    database.stop();
    submit_events(&world).await;
    wait_until_consumption_has_stopped(&world, &service).await;
    check_delivery_counts(&world).await;
    database.start();
    check_that_all_complete(&world, &service, 2 * EVENTS).await;
}

/// The database answers, and refuses to write.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_refusal_to_write_counts_no_delivery_twice() {
    let world = World::new().await;
    let service = world.serve();
    service.wait_until_ready().await;
    widen_the_window(&world).await;
    let alter = async |change: &str| {
        // The sessions of the test may be read-only as well.
        let mut connection = world.pool.acquire().await.expect("a connection");
        let alter = format!("ALTER DATABASE {} {change}", world.vhost);
        for sql in ["SET default_transaction_read_only = off", &alter] {
            let executed = connection.execute(AssertSqlSafe(sql.to_owned())).await;
            executed.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    };
    alter("SET default_transaction_read_only = on").await;
    world.end_sessions().await;
    submit_events(&world).await;
    wait_until_consumption_has_stopped(&world, &service).await;
    check_delivery_counts(&world).await;
    alter("RESET default_transaction_read_only").await;
    check_that_all_complete(&world, &service, 2 * EVENTS).await;
}

/// Messages are deferred many times. Each time, another message takes their place.
#[tokio::test]
async fn a_long_outage_of_customer_io_counts_no_delivery_twice() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2")
        .with("CUSTOMERIO_SYNC__SYNC__HOLD", "300ms")
        .with("CUSTOMERIO_SYNC__BREAKER__FAILURES_IN_A_ROW", "2")
        .with("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "100ms")
        .with("RETRY_DELAYS", "500ms,500ms,500ms");
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    let service = world.serve();
    service.wait_until_ready().await;
    submit_events(&world).await;
    wait_for("every message to be deferred ten times", || async {
        let metrics = world.http().get(service.url("/metrics")).send().await.ok()?;
        let metrics = metrics.text().await.ok()?;
        let deferred = metric_value(&metrics, r#"skipped_deliveries_total{why="deferred"}"#)?;
        (deferred >= f64::from(10 * EVENTS)).then_some(())
    })
    .await;
    world.clear_faults().await;
    check_that_all_complete(&world, &service, EVENTS).await;
}
