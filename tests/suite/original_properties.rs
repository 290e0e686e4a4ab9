//! An unprocessable message, and one that is replayed, keep the properties and headers that their
//! publisher set.

use crate::support::{World, submitted, wait_for};
use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicGetOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use uuid::Uuid;

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table(headers: Vec<(String, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    table
}

/// Publishes a message that cannot be parsed, and returns the properties with which it is parked.
async fn park(world: &World, properties: BasicProperties) -> BasicProperties {
    world.publish("signup.events", "signup.submitted", b"not json", properties).await;
    world.wait_for_failures(1).await;
    let channel = world.channel().await;
    let parked = wait_for("the parked message", || async {
        let get = channel.basic_get("customerio-sync.failed".into(), BasicGetOptions::default());
        get.await.expect("answered")
    })
    .await;
    parked.ack(BasicAckOptions::default()).await.expect("acknowledged");
    assert_eq!(parked.data, b"not json");
    parked.properties.clone()
}

#[tokio::test]
async fn an_unprocessable_message_keeps_what_its_publisher_set() {
    let world = World::new().await;
    let app = world.start().await;
    let copies = AMQPValue::FieldArray(vec![text("signup.submitted")].into());
    let headers = table(vec![
        ("x-team".into(), text("payments")),
        ("retries".into(), AMQPValue::LongInt(3)),
        ("CC".into(), copies.clone()),
        ("x-reason".into(), text("exhausted")),
        ("x-job-id".into(), text(&Uuid::new_v4().to_string())),
    ]);
    let properties = BasicProperties::default()
        .with_content_type("text/x-slip".into())
        .with_correlation_id("c-1".into())
        .with_type("slip".into())
        .with_app_id("billing".into())
        .with_priority(3)
        .with_timestamp(1_739_880_000)
        .with_reply_to("answers".into())
        .with_expiration("3600000".into())
        .with_headers(headers);
    let parked = park(&world, properties.clone()).await;
    assert_eq!(parked.content_type(), properties.content_type());
    assert_eq!(parked.correlation_id(), properties.correlation_id());
    assert_eq!(parked.kind(), properties.kind());
    assert_eq!(parked.app_id(), properties.app_id());
    assert_eq!(parked.priority(), properties.priority());
    assert_eq!(parked.timestamp(), properties.timestamp());
    assert_eq!((parked.reply_to(), parked.expiration()), (&None, &None), "RabbitMQ acts upon them");
    let headers = parked.headers().as_ref().expect("headers").inner();
    assert_eq!(headers["x-team"], text("payments"));
    assert_eq!(headers["retries"], AMQPValue::LongInt(3));
    assert_eq!(headers["x-original-reply-to"], text("answers"));
    assert_eq!(headers["x-original-expiration"], text("3600000"));
    assert_eq!(headers["x-original-cc"], copies);
    assert_eq!(headers["x-reason"], text("unprocessable"), "ours win");
    for name in ["CC", "x-job-id"] {
        assert!(!headers.contains_key(name), "{name} would be acted upon");
    }
    assert_eq!(world.failures().await[0]["job_id"], Value::Null);
    app.stop().await;
}

#[tokio::test]
async fn headers_that_do_not_fit_are_left_out_and_named() {
    let world = World::new().await;
    let app = world.start().await;
    // Together, they fill a frame of 128 KiB, so ours do not fit.
    let headers = (0..64).map(|n| (format!("x-{n:02}"), text(&"y".repeat(2030)))).collect();
    let parked = park(&world, BasicProperties::default().with_headers(table(headers))).await;
    let headers = parked.headers().as_ref().expect("headers").inner();
    assert_eq!(headers["x-reason"], text("unprocessable"));
    assert!(headers.contains_key("x-00") && !headers.contains_key("x-63"));
    let Some(AMQPValue::LongString(left_out)) = headers.get("x-repaired") else {
        panic!("a text that names what is missing")
    };
    assert!(left_out.to_string().ends_with("headers.x-63"), "{left_out}");
    app.stop().await;
}

#[tokio::test]
async fn a_replay_keeps_id_and_time_and_reaches_one_queue() {
    let world = World::new().await;
    world.start().await.stop().await;
    let signup = Uuid::new_v4();
    let mut event = submitted(signup);
    event["occurred_at"] = Value::Null;
    let attributes = [("specversion", "1.0"), ("id", "ce-1"), ("type", "signup.submitted")];
    let attributes = attributes.map(|(name, value)| (format!("cloudEvents:{name}"), text(value)));
    // Published to the default exchange with this header, the message would reach that queue.
    let copies = "copies";
    let channel = world.channel().await;
    let declared = channel.queue_declare(copies.into(), Default::default(), Default::default());
    declared.await.expect("declared");
    let to_copies = ("CC".to_owned(), AMQPValue::FieldArray(vec![text(copies)].into()));
    let properties = BasicProperties::default()
        .with_timestamp(1_739_880_000)
        .with_expiration("1".into())
        .with_headers(table(attributes.into_iter().chain([to_copies]).collect()));
    let body = event.to_string();
    world.publish("signup.events", "signup.submitted", body.as_bytes(), properties).await;
    world.wait_for_depth("customerio-sync.failed", 1).await;

    let app = world.start().await;
    world.wait_for_failures(1).await;
    let items = world.read(&app, "/unprocessable").await["items"].clone();
    let path = format!("/unprocessable/{}/replay", items[0]["id"].as_str().expect("an id"));
    world.act(&app, &path, None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["event_id"], "ce-1");
    assert_eq!(job["occurred_at"], json!("2025-02-18T12:00:00+00:00"));
    assert_eq!(world.depth(copies).await, 0, "a replay reaches one queue");
    app.stop().await;
}
