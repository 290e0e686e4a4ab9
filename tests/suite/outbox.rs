//! What must follow a settled job is published, whatever ended the job and whatever happens to its
//! replica, and delays no other job.

use crate::support::{Servers, TempServer, World, submitted, wait_for};
use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use test_servers::RabbitMq;
use uuid::Uuid;

const SUBSCRIBER: &str = "subscriber";

/// A subscriber whose queue refuses messages beyond `length`.
async fn subscribe(world: &World, length: Option<i32>) {
    let channel = world.channel().await;
    let mut arguments = FieldTable::default();
    if let Some(length) = length {
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(length));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    }
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(SUBSCRIBER.into(), options, arguments).await.expect("declared");
    channel
        .queue_bind(
            SUBSCRIBER.into(),
            "signup.updates".into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("bound");
}

async fn waiting_outcomes(world: &World) -> i64 {
    let sql = "
        SELECT COALESCE(sum(cardinality(job_ids)), 0)::int8 FROM outbox WHERE kind = 'outcomes'";
    world.count(sql).await
}

#[tokio::test]
async fn a_subscriber_that_refuses_outcomes_delays_no_job_and_gets_them_later() {
    let world = World::new().await;
    let app = world.start().await;
    subscribe(&world, Some(1)).await;
    let signups: Vec<_> = (0..50).map(|_| Uuid::new_v4()).collect();
    for signup in &signups {
        world.submit(&submitted(*signup)).await;
    }
    for signup in &signups {
        world.wait_for_job(*signup, "initial", "completed").await;
    }
    world.wait_for_depth("customerio-sync.signup-submitted", 0).await;
    wait_for("outcomes to wait", || async { (waiting_outcomes(&world).await > 0).then_some(()) })
        .await;

    let channel = world.channel().await;
    let options = QueueDeleteOptions::default();
    let first = world.next(SUBSCRIBER).await;
    channel.queue_delete(SUBSCRIBER.into(), options).await.expect("deleted");
    subscribe(&world, None).await;
    let mut jobs = BTreeSet::from([first.json()["jobId"].to_string()]);
    while jobs.len() < signups.len() {
        let outcome = world.next(SUBSCRIBER).await;
        assert_eq!(outcome.json()["type"], "sign_up.customerio_synced");
        jobs.insert(outcome.json()["jobId"].to_string());
    }
    wait_for("no outcome to wait", || async {
        (waiting_outcomes(&world).await == 0).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn only_the_outcomes_of_a_batch_that_were_refused_are_published_again() {
    let world = World::new().await;
    world.start().await.stop().await;
    subscribe(&world, Some(3)).await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    for _ in 0..6 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    let app = world.start().await;
    let mut published = BTreeMap::<String, u32>::new();
    while published.values().filter(|count| **count == 3).count() < 3 {
        *published.entry(outcomes.next().await.message_id()).or_default() += 1;
    }
    let mut counts: Vec<_> = published.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts[..3], [1; 3], "RabbitMQ has confirmed these: {counts:?}");
    assert_eq!(counts.len(), 6, "{counts:?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_of_a_replica_that_was_killed_is_published_by_another() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = World::on(Servers::with_rabbitmq(&rabbitmq)).await;
    let mut service = world.serve();
    service.wait_until_ready().await;
    subscribe(&world, None).await;
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "latency", "ms": 3000 })).await;
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "processing").await;
    // The alarm blocks publishers.
    rabbitmq.set_memory_alarm(true).expect("the alarm changes");
    world.wait_for_job(signup, "initial", "completed").await;
    service.process.kill();
    assert_eq!(waiting_outcomes(&world).await, 1, "the outcome is on record");
    rabbitmq.set_memory_alarm(false).expect("the alarm changes");

    let app = world.start().await;
    let outcome = world.next(SUBSCRIBER).await;
    let job = world.job(signup, "initial").await.expect("a job");
    let body = outcome.json();
    assert_eq!((&body["jobId"], &body["contactId"]), (&job["id"], &job["contact_id"]));
    let id = job["id"].as_str().expect("an id");
    assert_eq!(outcome.message_id(), format!("{id}:0:0:synced"));
    assert_eq!(world.calls().await.len(), 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_from_the_history_equals_the_original() {
    let world = World::new().await.with("RETRY_DELAYS", "100ms");
    let app = world.start().await;
    subscribe(&world, None).await;
    world.fault(json!({ "kind": "status", "status": 503, "body": "down" })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "failed").await;
    let original = world.next(SUBSCRIBER).await;
    let parked = world.next("customerio-sync.failed").await;
    wait_for("the outbox to be empty", || async {
        (world.count("SELECT count(*) FROM outbox").await == 0).then_some(())
    })
    .await;

    let rows = "
        INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at)
        SELECT kind, ARRAY[id], ARRAY[run], ARRAY[attempt_count], gen_random_uuid(), now()
        FROM signup_customerio_sync_jobs, UNNEST(ARRAY['failures', 'outcomes']) AS k (kind)";
    sqlx::query(rows).execute(&world.pool).await.expect("written");
    let again = world.next(SUBSCRIBER).await;
    assert_eq!((again.json(), again.message_id()), (original.json(), original.message_id()));
    let again = world.next("customerio-sync.failed").await;
    assert_eq!(again.message_id(), parked.message_id());
    assert_eq!(again.body, parked.body);
    assert_eq!(again.properties.headers(), parked.properties.headers());
    app.stop().await;
}

#[tokio::test]
async fn a_retry_of_a_replica_that_is_gone_waits_for_the_rest_of_its_time() {
    let world = World::new().await.with("RETRY_DELAYS", "1h,2h");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_retry(signup, "initial").await;
    let original = world.next("customerio-sync.retry.1h").await;

    let row = "
        INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at, created_at)
        SELECT 'retries', ARRAY[id], ARRAY[run], ARRAY[attempt_count], gen_random_uuid(),
            now() + interval '1 day', now() - interval '1 minute'
        FROM signup_customerio_sync_jobs";
    sqlx::query(row).execute(&world.pool).await.expect("written");
    let again = world.next("customerio-sync.retry.1h").await;
    assert_eq!((&again.body, again.message_id()), (&original.body, original.message_id()));
    assert_eq!(again.properties.headers(), original.properties.headers());
    app.stop().await;
}

#[tokio::test]
async fn outcomes_that_nobody_accepts_are_dropped_after_their_maximum_age() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__OUTCOMES__MAX_AGE", "1h");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
    let old = "
        INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at, created_at)
        SELECT 'outcomes', ARRAY[id], ARRAY[run], ARRAY[attempt_count], gen_random_uuid(),
            now() + interval '1 day', now() - interval '61 minutes'
        FROM signup_customerio_sync_jobs";
    // A live replica owns the row, so that it is not taken over first.
    sqlx::query(old).execute(&world.pool).await.expect("written");
    let lease = "SELECT renew_call_share(writer, 1, 1, interval '1 hour') FROM outbox";
    sqlx::query(lease).execute(&world.pool).await.expect("written");
    let app = world.start().await;
    wait_for("the outcome to be dropped", || async {
        (waiting_outcomes(&world).await == 0).then_some(())
    })
    .await;
    let line = "customerio_sync_outcomes_dropped_total 1\n";
    wait_for(line, || async { world.get(&app, "/metrics").await.1.contains(line).then_some(()) })
        .await;
    app.stop().await;
}
