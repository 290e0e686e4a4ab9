//! A message that ends its consumers again and again is set aside, and harms no neighbour.

use crate::support::{World, wait_for};
use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicGetOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;

const MIRROR: &str = "customerio-sync.failed.mirror";
const QUARANTINE: &str = "customerio-sync.quarantine";

/// Receives the head of a queue and loses the channel, as a process does that crashes.
async fn crash_at_the_head(world: &World, queue: &str) {
    let channel = world.channel().await;
    wait_for("the head of the queue", || async {
        channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("answered")
    })
    .await;
    channel.close(200, "crashed".into()).await.expect("closed");
}

/// A `bytea` as PostgreSQL writes it into JSON, without the `\x`.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn park(world: &World, id: &str) {
    let mut headers = FieldTable::default();
    headers.insert("x-team".into(), AMQPValue::LongString("payments".into()));
    let properties = BasicProperties::default()
        .with_message_id(id.into())
        .with_content_type("text/plain".into())
        .with_app_id("billing".into())
        .with_expiration("3600000".into())
        .with_headers(headers);
    world.publish("customerio-sync.failed", "", id.as_bytes(), properties).await;
}

#[tokio::test]
async fn a_message_that_ends_its_consumers_is_moved_to_the_quarantine() {
    let world = World::new().await;
    world.start().await.stop().await;
    park(&world, "crashes").await;
    for _ in 0..20 {
        crash_at_the_head(&world, MIRROR).await;
    }
    park(&world, "neighbour").await;
    let app = world.start().await;
    let failures = world.wait_for_failures(1).await;
    let neighbour = format!("\\x{}", hex(b"neighbour"));
    assert_eq!(failures[0]["body"], neighbour, "{failures:?}");
    world.wait_for_depth(QUARANTINE, 1).await;
    let stats = world.read(&app, "/stats").await;
    let queues = stats["queues"].as_array().expect("queues").clone();
    let quarantine = queues.iter().find(|queue| queue["name"] == QUARANTINE).expect("listed");
    assert_eq!(quarantine["consumers"], 0, "{quarantine}");
    assert_eq!(stats["messagesWaiting"], 0, "nobody will consume it");

    let channel = world.channel().await;
    let taken = channel.basic_get(QUARANTINE.into(), BasicGetOptions::default()).await;
    let taken = taken.expect("answered").expect("a message");
    taken.ack(BasicAckOptions::default()).await.expect("acknowledged");
    assert_eq!(taken.data, b"crashes");
    let properties = &taken.properties;
    assert_eq!(properties.message_id().as_ref().expect("kept").as_str(), "crashes");
    assert_eq!(properties.app_id().as_ref().expect("kept").as_str(), "billing");
    assert_eq!(*properties.expiration(), None, "it would expire there");
    let headers = properties.headers().as_ref().expect("headers").inner();
    let header = |name: &str| match headers.get(name) {
        Some(AMQPValue::LongString(text)) => Value::from(text.to_string()),
        _ => Value::Null,
    };
    assert_eq!(header("x-original-queue"), MIRROR);
    assert_eq!(header("x-team"), "payments");
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_was_delivered_less_often_is_mirrored() {
    let world = World::new().await;
    world.start().await.stop().await;
    park(&world, "patient").await;
    for _ in 0..19 {
        crash_at_the_head(&world, MIRROR).await;
    }
    let app = world.start().await;
    world.wait_for_failures(1).await;
    assert_eq!(world.depth(QUARANTINE).await, 0);
    app.stop().await;
}
