//! Unprocessable messages: each is parked with a reason and its bytes, and does not block its
//! queue.

use crate::support::{World, confirmed, submitted, wait_for};
use lapin::BasicProperties;
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

/// Returns the stored body of the failure whose message contains `error`.
async fn stored_body(world: &World, error: &str) -> Vec<u8> {
    let sql = "SELECT body FROM sync_failures WHERE error_message LIKE '%' || $1 || '%'";
    let row = sqlx::query(sql).bind(error).fetch_one(&world.pool).await;
    row.unwrap_or_else(|problem| panic!("a failure whose message contains {error:?}: {problem}"))
        .get("body")
}

/// Messages with an error each: routing key, body, and part of the expected error message.
fn unprocessable_messages(signup: Uuid) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut wrong_type = submitted(signup);
    wrong_type["customer"]["email"] = json!(5);
    let mut no_email = submitted(signup);
    no_email["customer"] = json!({ "id": "x" });
    let mut reserved = submitted(signup);
    reserved["attributes"] = json!({ "cio_subscription_preferences": "x" });
    let mut nul = submitted(signup);
    nul["customer"]["first_name"] = json!("A\u{0}B");
    let mut huge = confirmed(signup);
    huge["bet_slip"]["bet_amount"] = json!(1);
    let huge = huge.to_string().replace("\"bet_amount\":1", "\"bet_amount\":1e999");
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(300 * 1024));
    let nested = format!("{{\"attributes\":{}", "[".repeat(100_000));
    vec![
        ("signup.submitted", b"not json".to_vec(), "$: "),
        ("signup.submitted", Vec::new(), "EOF"),
        ("signup.submitted", b"\xff\xfe{}".to_vec(), "UTF-8"),
        ("signup.submitted", wrong_type.to_string().into(), "customer.email: invalid type"),
        ("signup.submitted", no_email.to_string().into(), "customer.email: missing field"),
        ("signup.submitted", reserved.to_string().into(), "reserved by Customer.io"),
        ("signup.submitted", nul.to_string().into(), "U+0000"),
        ("signup.submitted", large.into_bytes(), "expected at most 262144"),
        ("signup.submitted", nested.into_bytes(), "flat map"),
        ("signup.extraction_confirmed", huge.into_bytes(), "out of range"),
    ]
}

#[tokio::test]
async fn an_unprocessable_message_is_parked_and_does_not_block_its_queue() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let messages = unprocessable_messages(signup);
    for (routing_key, body, _) in &messages {
        world.publish("signup.events", routing_key, body, BasicProperties::default()).await;
    }
    world.wait_for_failures(messages.len()).await;
    for (routing_key, body, error) in &messages {
        assert!(
            stored_body(&world, error).await == *body,
            "the bytes of {routing_key} {error} are kept"
        );
    }
    for failure in world.failures().await {
        assert_eq!(
            (&failure["reason"], &failure["job_id"]),
            (&json!("unprocessable"), &Value::Null)
        );
        assert_eq!(failure["original_exchange"], "signup.events");
    }
    let parked = world.next("customerio-sync.failed").await;
    assert_eq!(parked.header("x-reason").as_deref(), Some("unprocessable"));
    assert_eq!(parked.header("x-original-exchange").as_deref(), Some("signup.events"));
    assert_eq!(parked.header("x-original-routing-key").as_deref(), Some("signup.submitted"));

    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn an_event_with_an_unknown_routing_key_is_parked() {
    let world = World::new().await;
    let app = world.start().await;
    let channel = world.channel().await;
    channel
        .queue_bind(
            "customerio-sync.signup-submitted".into(),
            "signup.events".into(),
            "signup.deleted".into(),
            lapin::options::QueueBindOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await
        .expect("bound");
    world.publish_event("signup.deleted", &submitted(Uuid::new_v4())).await;
    let failures = world.wait_for_failures(1).await;
    let message = failures[0]["error_message"].as_str().expect("a text");
    assert!(message.contains("unknown event \"signup.deleted\""), "{message}");
    app.stop().await;
}

#[tokio::test]
async fn a_job_message_that_names_no_existing_job_is_parked() {
    let world = World::new().await;
    let app = world.start().await;
    let unknown_job = json!({
        "job_id": Uuid::new_v4(),
        "signup_id": Uuid::new_v4(),
        "sync_phase": "initial",
        "attempt": 1,
    });
    for body in [unknown_job.to_string().as_str(), "{}", r#"{"job_id":1}"#] {
        world
            .publish("customerio-sync.jobs", "", body.as_bytes(), BasicProperties::default())
            .await;
    }
    let failures = world.wait_for_failures(3).await;
    assert!(
        failures.iter().any(|failure| failure["error_message"].to_string().contains("no such job"))
    );
    app.stop().await;
}

#[tokio::test]
async fn a_repeated_bad_message_is_one_failure_until_it_is_resolved() {
    let world = World::new().await;
    let app = world.start().await;
    let publish = |routing_key: &'static str| {
        world.publish("signup.events", routing_key, b"not json", BasicProperties::default())
    };
    publish("signup.submitted").await;
    world.wait_for_failures(1).await;
    publish("signup.submitted").await;
    publish("signup.submitted").await;
    wait_for("three mirrored messages", || async {
        let (_, metrics) = world.get(&app, "/metrics").await;
        let mirrored = r#"customerio_sync_mirrored_total{reason="unprocessable"} 3"#;
        metrics.lines().any(|line| line == mirrored).then_some(())
    })
    .await;
    assert_eq!(world.failures().await.len(), 1);

    publish("signup.extraction_confirmed").await;
    let failures = world.wait_for_failures(2).await;
    let keys: Vec<_> =
        failures.iter().map(|failure| failure["original_routing_key"].clone()).collect();
    assert_eq!(
        keys,
        ["signup.submitted", "signup.extraction_confirmed"],
        "the same bytes with another routing key are another failure"
    );

    world
        .rows("UPDATE sync_failures SET resolved_at = now(), resolution = 'dismissed' RETURNING id")
        .await;
    publish("signup.submitted").await;
    wait_for("the failure to be open again", || async {
        (world.failures().await[0]["resolved_at"] == Value::Null).then_some(())
    })
    .await;
    assert_eq!(world.failures().await.len(), 2);
    app.stop().await;
}

/// Requeues the message in `queue` until RabbitMQ has counted three deliveries of it.
async fn exceed_delivery_limit(channel: &lapin::Channel, queue: &str) {
    for _ in 0..3 {
        wait_for("a delivery", || async {
            let message = channel
                .basic_get(queue.into(), Default::default())
                .await
                .expect("the queue exists")?;
            let options = lapin::options::BasicNackOptions { requeue: true, ..Default::default() };
            message.delivery.acker.nack(options).await.expect("requeued");
            Some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_message_over_its_delivery_limit_is_mirrored_and_fails_its_job() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2")
        .with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_retry(signup, "initial").await;
    app.stop().await;

    // A consumer that requeues every delivery gets the job's message, and an event without a job,
    // whose publisher chose the same id for it.
    let waiting = world.next("customerio-sync.retry.1h").await;
    world.publish("customerio-sync.jobs", "", &waiting.body, waiting.properties.clone()).await;
    let event = submitted(Uuid::new_v4()).to_string();
    let properties = BasicProperties::default().with_message_id(waiting.message_id().into());
    world.publish("signup.events", "signup.submitted", event.as_bytes(), properties).await;
    let channel = world.channel().await;
    for queue in ["customerio-sync.jobs", "customerio-sync.signup-submitted"] {
        exceed_delivery_limit(&channel, queue).await;
    }
    let mut outcomes = world.listen("signup.updates", "#").await;
    let app = world.start().await;
    let failures = world.wait_for_failures(2).await;
    assert!(failures.iter().all(|failure| failure["reason"] == "delivery-limit"), "{failures:?}");
    let outcome = outcomes.next().await.json();
    assert_eq!(
        (&outcome["jobId"], &outcome["type"], &outcome["exhaustedRetries"]),
        (&job["id"], &json!("sign_up.customerio_sync_failed"), &json!(false))
    );
    let of_job: Vec<_> = failures.iter().filter(|failure| failure["job_id"] == job["id"]).collect();
    assert_eq!((of_job.len(), &of_job[0]["resolved_at"]), (1, &Value::Null));
    let event = failures
        .iter()
        .find(|failure| failure["job_id"] == Value::Null)
        .expect("the event has no job yet");
    assert_eq!(event["original_routing_key"], "signup.submitted");
    let job = world.wait_for_job(signup, "initial", "failed").await;
    assert_eq!(job["failed_reason"], "delivery-limit");
    assert_eq!(world.signup(signup).await["customerio_sync_failed"], true);
    app.stop().await;
}

/// A redelivered copy of a message can be dead-lettered after another consumer has ended its job.
#[tokio::test]
async fn a_copy_over_its_delivery_limit_is_no_second_failure_of_its_job() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2")
        .with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    let [refused, given_up] = [Uuid::new_v4(), Uuid::new_v4()];
    let event = submitted(given_up);
    world.fault(json!({ "kind": "status", "status": 400, "calls": 1 })).await;
    world.submit(&submitted(refused)).await;
    world.wait_for_job(refused, "initial", "failed").await;
    world.wait_for_failures(1).await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    world.submit(&event).await;
    world.wait_for_retry(given_up, "initial").await;
    app.stop().await;

    // The second job fails by its message, and has its event dead-lettered as well.
    let channel = world.channel().await;
    let waiting = world.next("customerio-sync.retry.1h").await;
    let [refused_job, given_up_job] =
        [world.job_id(refused, "initial").await, world.job_id(given_up, "initial").await];
    let copy_id = format!("{refused_job}:0:0");
    for id in [waiting.message_id(), copy_id] {
        let properties = BasicProperties::default().with_message_id(id.into());
        world.publish("customerio-sync.jobs", "", &waiting.body, properties).await;
        exceed_delivery_limit(&channel, "customerio-sync.jobs").await;
    }
    world.submit(&event).await;
    exceed_delivery_limit(&channel, "customerio-sync.signup-submitted").await;
    let app = world.start().await;
    let failures = world.wait_for_failures(4).await;
    let open = |job: Uuid| {
        let open = failures.iter().filter(|failure| failure["resolved_at"] == Value::Null);
        open.filter(|failure| failure["job_id"] == job.to_string()).count()
    };
    assert_eq!([refused_job, given_up_job].map(open), [1, 1], "{failures:?}");
    app.stop().await;
}

/// An event that no consumer took in must not disappear because its job has ended before.
#[tokio::test]
async fn a_new_event_over_its_delivery_limit_waits_for_an_operator_though_its_job_has_ended() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let event = submitted(signup);
    world.fault(json!({ "kind": "status", "status": 422, "calls": 1 })).await;
    world.submit(&event).await;
    world.wait_for_job(signup, "initial", "failed").await;
    app.stop().await;
    let mut correction = event.clone();
    correction["event_id"] = "a correction".into();
    correction["occurred_at"] = "2025-02-18T13:00:00Z".into();
    let channel = world.channel().await;
    for event in [event, correction] {
        world.submit(&event).await;
        exceed_delivery_limit(&channel, "customerio-sync.signup-submitted").await;
    }
    let app = world.start().await;
    world.wait_for_failures(3).await;
    let list = world.read(&app, "/unprocessable").await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "only the new event: {list}");
    let path = format!("/unprocessable/{}/replay", list["items"][0]["id"].as_str().expect("an id"));
    world.act(&app, &path, None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["event_id"], "a correction");
    app.stop().await;
}

#[tokio::test]
async fn a_replay_of_a_message_over_its_delivery_limit_has_the_same_id() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2");
    world.start().await.stop().await;
    let signup = Uuid::new_v4();
    let mut event = submitted(signup);
    event.as_object_mut().expect("an object").remove("event_id");
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id("m-9".into());
    world
        .publish("signup.events", "signup.submitted", event.to_string().as_bytes(), properties)
        .await;
    exceed_delivery_limit(&world.channel().await, "customerio-sync.signup-submitted").await;

    let app = world.start().await;
    world.wait_for_failures(1).await;
    let item = world.read(&app, "/unprocessable").await["items"][0].clone();
    assert_eq!(item["reason"], "delivery-limit");
    let path = format!("/unprocessable/{}/replay", item["id"].as_str().expect("an id"));
    world.act(&app, &path, None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["event_id"], "m-9");
    app.stop().await;
}

/// Publishes an event with a time to live.
async fn submit_expiring(world: &World, signup: Uuid, message_id: Option<&str>) {
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_expiration("100".into());
    if let Some(id) = message_id {
        properties = properties.with_message_id(id.into());
    }
    let body = submitted(signup).to_string();
    world.publish("signup.events", "signup.submitted", body.as_bytes(), properties).await;
}

#[tokio::test]
async fn expired_messages_are_listed_with_their_origin_and_replayed() {
    let world = World::new().await;
    world.start().await.stop().await;
    let signups = [(); 4].map(|()| Uuid::new_v4());
    // Two have the same message id, and two have none.
    let ids = [Some("m-1"), Some("m-1"), None, None];
    for (signup, id) in signups.iter().zip(ids) {
        submit_expiring(&world, *signup, id).await;
    }
    world.wait_for_depth("customerio-sync.failed.mirror", 4).await;
    let app = world.start().await;
    world.wait_for_failures(4).await;
    let list = world.read(&app, "/unprocessable").await;
    let items = list["items"].as_array().expect("items").clone();
    assert_eq!(items.len(), 4, "{list}");
    for item in items {
        assert_eq!(item["reason"], "expired");
        assert_eq!(item["exchange"], "signup.events");
        assert_eq!(item["routingKey"], "signup.submitted");
        let message = item["errorMessage"].as_str().expect("a message");
        assert!(message.contains("customerio-sync.signup-submitted"), "{message}");
        let path = format!("/unprocessable/{}/replay", item["id"].as_str().expect("an id"));
        world.act(&app, &path, None).await;
    }
    for signup in signups {
        world.wait_for_job(signup, "initial", "completed").await;
    }
    world.wait_for_depth("customerio-sync.failed", 0).await;
    app.stop().await;
}

#[tokio::test]
async fn given_up_messages_with_one_message_id_are_both_kept() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2");
    world.start().await.stop().await;
    let properties = || BasicProperties::default().with_message_id("same".into());
    let queue = "customerio-sync.signup-submitted";
    for _ in 0..2 {
        let body = submitted(Uuid::new_v4()).to_string();
        world.publish("signup.events", "signup.submitted", body.as_bytes(), properties()).await;
        exceed_delivery_limit(&world.channel().await, queue).await;
    }
    let app = world.start().await;
    let failures = world.wait_for_failures(2).await;
    assert!(failures.iter().all(|failure| failure["reason"] == "delivery-limit"), "{failures:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_copy_of_a_given_up_message_is_the_same_failure() {
    let world = World::new().await;
    let app = world.start().await;
    for body in [&b"1"[..], b"1", b"2"] {
        world.publish("customerio-sync.failed", "", body, BasicProperties::default()).await;
    }
    world.wait_for_depth("customerio-sync.failed.mirror", 0).await;
    let failures = world.wait_for_failures(2).await;
    assert_eq!(failures.len(), 2, "{failures:?}");
    app.stop().await;
}

/// U+0000 can't be stored. In no property does it stop the mirror.
#[tokio::test]
async fn properties_with_u_0000_are_stored_with_a_replacement() {
    let world = World::new().await;
    let app = world.start().await;
    let properties = BasicProperties::default()
        .with_content_type("application/json\0".into())
        .with_message_id("a\0b".into());
    world.publish("signup.events", "signup.submitted", b"not json", properties.clone()).await;
    world.publish("customerio-sync.failed", "a\0", b"foreign", properties).await;
    let failures = world.wait_for_failures(2).await;
    for failure in &failures {
        assert_eq!(failure["content_type"], "application/json\u{fffd}", "{failure}");
    }
    world.failed_signup().await;
    world.wait_for_failures(3).await;
    app.stop().await;
}

/// Whatever PostgreSQL refuses, the other messages of a batch are mirrored.
#[tokio::test]
async fn a_message_that_can_t_be_stored_blocks_no_other() {
    let world = World::new().await;
    world.start().await.stop().await;
    // A constraint stands for whatever nobody has thought of.
    world
        .execute("ALTER TABLE sync_failures ADD CONSTRAINT a CHECK (content_type <> 'refused')")
        .await;
    for number in 0..20 {
        let kind = if number == 7 { "refused" } else { "text/plain" };
        let properties = BasicProperties::default().with_content_type(kind.into());
        let body = number.to_string();
        world.publish("customerio-sync.failed", "", body.as_bytes(), properties).await;
    }
    let app = world.start().await;
    let failures = world.wait_for_failures(20).await;
    let reduced: Vec<_> =
        failures.iter().filter(|failure| failure["content_type"] == Value::Null).collect();
    assert_eq!(reduced.len(), 1, "{reduced:?}");
    let message = reduced[0]["error_message"].as_str().expect("a message");
    assert!(message.starts_with("the message can't be stored whole: "), "{message}");
    app.stop().await;
}
