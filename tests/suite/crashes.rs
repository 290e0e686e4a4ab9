//! Crashes: processes are killed and servers are restarted, under load and at chosen points.

use crate::support::{Process, Servers, TempServer, World, free_addr, submitted, wait_for};
use serde_json::json;
use sqlx::Executor;
use test_servers::{Postgres, RabbitMq};
use uuid::Uuid;

/// Number of events in the tests under load.
const EVENTS: i64 = 5000;
const SUBMITTED_QUEUE: &str = "customerio-sync.signup-submitted";

async fn start_service(world: &World) -> Process {
    let service = world.spawn();
    service.wait_for_line("the service is running").await;
    service
}

/// Starts a process that publishes the events.
fn publish(world: &World) -> Process {
    let settings = [("AMQP_URL".to_owned(), world.amqp_url.clone())];
    Process::spawn(&["publish", "--sample", &EVENTS.to_string()], &settings)
}

async fn wait_for_completed(world: &World, at_least: i64) {
    wait_for(&format!("{at_least} completed jobs"), || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        let completed: Option<i64> = sqlx::query_scalar(sql).fetch_one(&world.pool).await.ok();
        completed.filter(|count| *count >= at_least)
    })
    .await;
}

/// Waits until every event has completed and all queues are empty. Checks that no job has failed,
/// and that each event is tracked once and recorded in the audit log once.
async fn check_that_nothing_is_lost_or_duplicated(world: &World) {
    wait_for_completed(world, EVENTS).await;
    world.wait_until_all_queues_are_empty().await;
    assert_eq!(world.count("SELECT count(*) FROM signup_customerio_sync_jobs").await, EVENTS);
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    assert_eq!(
        world.count("SELECT count(*) FROM audit_logs WHERE action = 'customerio_synced'").await,
        EVENTS
    );
    let summary = world.sim("summary").await;
    assert_eq!(summary["events"], EVENTS, "{summary}");
    assert_eq!(summary["people"], EVENTS / 2, "{summary}");
}

#[tokio::test]
async fn killing_the_service_loses_and_duplicates_nothing() {
    let world = World::new().await;
    let mut service = start_service(&world).await;
    let publisher = publish(&world);
    for completed in [300, 1500, 3000] {
        wait_for_completed(&world, completed).await;
        service.kill();
        service = world.spawn();
    }
    publisher.wait_for_line("5000 events published").await;
    check_that_nothing_is_lost_or_duplicated(&world).await;
    assert!(service.terminate().await.success());
}

/// Starts a service and checks that it completes the job of a signup whose event was requeued: the
/// event is acknowledged and tracked once, and its outcome is published.
async fn check_that_another_service_completes_it(world: &World, signup: Uuid) {
    let mut outcomes = world.listen("signup.updates", "#").await;
    let mut service = start_service(world).await;
    assert_eq!(outcomes.next().await.json()["signupId"], json!(signup));
    world.wait_for_depth(SUBMITTED_QUEUE, 0).await;
    assert!(service.terminate().await.success());
    assert_eq!(world.depth(SUBMITTED_QUEUE).await, 0, "the event is acknowledged");
    assert_eq!(world.job(signup, "initial").await.expect("the job")["status"], "completed");
    assert_eq!(world.events().await.len(), 1);
    assert_eq!(world.audit("customerio_synced").await.len(), 1);
}

#[tokio::test]
async fn a_kill_before_the_job_is_committed_requeues_the_event() {
    let world = World::new().await;
    let (mut service, signup) = (start_service(&world).await, Uuid::new_v4());
    let mut transaction = world.pool.begin().await.expect("begun");
    transaction
        .execute("LOCK TABLE signup_customerio_sync_jobs IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locked");
    world.submit(&submitted(signup)).await;
    world.wait_for_depth(SUBMITTED_QUEUE, 0).await;
    service.kill();
    world.wait_for_depth(SUBMITTED_QUEUE, 1).await;
    transaction.rollback().await.expect("rolled back");
    assert!(world.job(signup, "initial").await.is_none());
    check_that_another_service_completes_it(&world, signup).await;
    assert_eq!(world.calls().await.len(), 1);
}

#[tokio::test]
async fn a_kill_during_a_call_requeues_the_event_and_repeats_its_call() {
    let world = World::new().await;
    let (mut service, signup) = (start_service(&world).await, Uuid::new_v4());
    world.fault(json!({ "kind": "endless", "taken": true })).await;
    world.submit(&submitted(signup)).await;
    wait_for("a call", || async { (!world.calls().await.is_empty()).then_some(()) }).await;
    service.kill();
    world.wait_for_depth(SUBMITTED_QUEUE, 1).await;
    world.clear_faults().await;
    check_that_another_service_completes_it(&world, signup).await;
    let calls = world.calls().await;
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0]["events"], calls[1]["events"], "both calls send the same event id");
}

#[tokio::test]
async fn killing_one_of_two_replicas_loses_and_duplicates_nothing() {
    let world = World::new().await;
    let mut first = world.spawn();
    let mut second = world.spawn();
    first.wait_for_line("the service is running").await;
    second.wait_for_line("the service is running").await;
    let publisher = publish(&world);
    wait_for_completed(&world, 500).await;
    first.kill();
    publisher.wait_for_line("5000 events published").await;
    check_that_nothing_is_lost_or_duplicated(&world).await;
    assert!(second.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_rabbitmq_under_load_loses_and_duplicates_nothing() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = World::on(Servers::with_rabbitmq(&rabbitmq)).await;
    world.fault(json!({ "kind": "latency", "ms": 50 })).await;
    let mut service = start_service(&world).await;
    let publisher = publish(&world);
    wait_for_completed(&world, 300).await;
    rabbitmq.restart();
    publisher.wait_for_line("5000 events published").await;
    check_that_nothing_is_lost_or_duplicated(&world).await;
    assert!(service.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_while_rabbitmq_is_down_is_published_when_it_is_back() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = World::on(Servers::with_rabbitmq(&rabbitmq)).await;
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world.wait_for_failures(1).await;
    world
        .publish(
            "signup.events",
            "signup.submitted",
            b"not json",
            lapin::BasicProperties::default(),
        )
        .await;
    world.wait_for_failures(2).await;
    let message = world.read(&app, "/unprocessable").await["items"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();

    rabbitmq.stop();
    let response = world.act(&app, &format!("/{signup}/retry"), None).await;
    assert_eq!(response["count"], 1);
    assert!(
        response["notice"].as_str().expect("a notice").contains("as soon as the broker is back"),
        "{response}"
    );
    assert_eq!(world.job(signup, "initial").await.expect("the job")["status"], "pending");
    let (status, problem) =
        world.api(&app, "POST", &format!("/unprocessable/{message}/replay"), None).await;
    assert!(
        status == 503 && problem["detail"].to_string().contains("stays in the list"),
        "{problem}"
    );
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 1);

    rabbitmq.start();
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_postgresql_under_load_loses_and_duplicates_nothing() {
    let postgres = TempServer::<Postgres>::started();
    let world = World::on(Servers { database_url: postgres.url(), ..Servers::shared() }).await;
    world.fault(json!({ "kind": "latency", "ms": 50 })).await;
    let mut service = start_service(&world).await;
    let publisher = publish(&world);
    for completed in [300, 2500] {
        wait_for_completed(&world, completed).await;
        postgres.restart();
    }
    publisher.wait_for_line("5000 events published").await;
    check_that_nothing_is_lost_or_duplicated(&world).await;
    assert!(service.terminate().await.success());
}

#[tokio::test]
async fn a_service_that_starts_before_rabbitmq_waits_for_it() {
    let world = World::new().await;
    let broken = format!("amqp://guest:guest@{}/x", free_addr());
    let world = world.with("AMQP_URL", &broken);
    let mut service = world.spawn();
    service.wait_for_line("waiting to start: connecting to RabbitMQ").await;
    assert!(service.terminate().await.success(), "a signal ends the wait");
}
