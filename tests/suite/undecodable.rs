//! Messages whose properties no client library can decode harm nobody: they are processed like any
//! other, and so are their neighbours.

use crate::support::{RawProperties, RawPublisher, World, submitted, wait_for};
use serde_json::{Value, json};
use uuid::Uuid;

/// Publishes messages with raw properties, on a thread that may block.
fn publish_raw(world: &World, messages: &[(&str, &[u8], RawProperties, String)]) {
    tokio::task::block_in_place(|| {
        let mut publisher = RawPublisher::connect(&world.amqp_url);
        for (exchange, routing_key, properties, body) in messages {
            publisher.publish(exchange, routing_key, properties, body.as_bytes());
        }
    });
}

/// What a publisher can do to properties, with valid events.
fn defects() -> Vec<RawProperties> {
    let table = |entries: &[u8]| RawProperties {
        flags: 1 << 13 | 1 << 12,
        bytes: [&u32::try_from(entries.len()).expect("small").to_be_bytes(), entries, &[2]]
            .concat(),
    };
    let text = |bit: u16, value: &[u8]| RawProperties {
        flags: 1 << bit | 1 << 12,
        bytes: if bit > 12 {
            [&[u8::try_from(value.len()).expect("short")], value, &[2]].concat()
        } else {
            [&[2, u8::try_from(value.len()).expect("short")], value].concat()
        },
    };
    vec![
        RawProperties::with_latin_1(),
        RawProperties::with_nested_header(26_000),
        text(15, b"application/json\xff"),
        text(10, b"\xff\xfe"),
        text(9, b"\xc3\x28"),
        text(7, b"\xa0"),
        text(5, b"caf\xe9"),
        table(b"\x03k\xe9yt\x01"),
    ]
}

async fn wait_until_all_are_completed(world: &World, count: i64) {
    wait_for(&format!("{count} completed jobs"), || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await == count).then_some(())
    })
    .await;
}

async fn metric(world: &World, app: &customerio_sync::app::App, series: &str) -> Option<f64> {
    let (_, text) = world.get(app, "/metrics").await;
    let start = format!("customerio_sync_{series} ");
    text.lines().find_map(|line| line.strip_prefix(&start))?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_undecodable_properties_are_processed_with_their_neighbours() {
    let world = World::new().await;
    world.start().await.stop().await;
    let event = || ("signup.events", submitted(Uuid::new_v4()).to_string());
    let defects = defects();
    let messages = defects.iter().flat_map(|defect| {
        [defect.clone(), RawProperties::default()].map(|properties| {
            let (exchange, body) = event();
            (exchange, &b"signup.submitted"[..], properties, body)
        })
    });
    let messages: Vec<_> = messages.collect();
    publish_raw(&world, &messages);
    let app = world.start().await;
    wait_until_all_are_completed(&world, i64::try_from(messages.len()).expect("small")).await;
    let repaired = r#"repaired_messages_total{queue="customerio-sync.signup-submitted"}"#;
    assert_eq!(metric(&world, &app, repaired).await, Some(defects.len() as f64));
    let reconnects = r#"reconnects_total{connection="consume"}"#;
    assert_eq!(metric(&world, &app, reconnects).await, Some(0.0), "no connection was lost");
    assert_eq!(world.failures().await, [Value::Null; 0]);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deeply_nested_header_ends_no_process() {
    let world = World::new().await;
    world.start().await.stop().await;
    let deep = RawProperties::with_nested_header(26_000);
    let body = submitted(Uuid::new_v4()).to_string();
    publish_raw(&world, &[("signup.events", b"signup.submitted", deep, body)]);
    let mut service = world.serve();
    service.wait_until_ready().await;
    wait_until_all_are_completed(&world, 1).await;
    assert!(service.process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_messages_of_the_failure_exchange_are_mirrored_and_swept() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__MIRROR__SWEEP_INTERVAL", "1s");
    let app = world.start().await;
    let message = |key: &'static [u8], properties: RawProperties, body: &str| {
        ("customerio-sync.failed", key, properties, body.to_owned())
    };
    publish_raw(
        &world,
        &[
            message(b"", RawProperties::with_latin_1(), "1"),
            message(b"caf\xe9", RawProperties::default(), "2"),
            message(b"", RawProperties::with_nested_header(20_000), "3"),
        ],
    );
    let failures = world.wait_for_failures(3).await;
    let repairs = failures.iter().filter_map(|failure| failure["headers"]["x-repaired"].as_str());
    let mut repairs: Vec<_> = repairs.collect();
    repairs.sort_unstable();
    assert_eq!(repairs, ["app_id", "headers.k", "routing_key"]);
    // The sweep consumes the failure queue as well. Dismissed messages are removed.
    let dismissed = world
        .act(&app, "/unprocessable/dismiss", Some(&json!({ "dismissReason": "a test" })))
        .await;
    assert_eq!(dismissed["done"], 3, "{dismissed}");
    world.wait_for_depth("customerio-sync.failed", 0).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_messages_among_the_outcomes_do_not_end_the_live_feed() {
    use futures_util::StreamExt;
    let world = World::new().await;
    let app = world.start().await;
    let url = format!("ws://{}/api/v1/signups/customerio/ws", app.http_addr());
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("connected");
    let foreign = RawProperties::with_latin_1();
    publish_raw(&world, &[("signup.updates", b"sign_up.customerio_synced", foreign, "{}".into())]);
    world.submit(&submitted(Uuid::new_v4())).await;
    let outcome = async {
        loop {
            let message = socket.next().await.expect("open").expect("a message");
            if message.to_text().is_ok_and(|text| text.contains("sign_up.customerio_synced")) {
                return;
            }
        }
    };
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, outcome).await.expect("the outcome arrives");
    let metrics = world.get(&app, "/metrics").await.1;
    let mut reconnects = metrics.lines().filter(|line| line.contains("reconnects_total{"));
    assert!(reconnects.all(|line| line.ends_with(" 0")), "{metrics}");
    app.stop().await;
}
