//! The WebSocket feed: clients receive frames live, or the number of frames that they missed.

use crate::support::{World, contact, submitted};
use customerio_sync::app::App;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};
use uuid::Uuid;

struct FeedClient(WebSocketStream<MaybeTlsStream<TcpStream>>);

async fn connect(app: &App) -> FeedClient {
    let url = format!("ws://{}/api/v1/signups/customerio/ws", app.http_addr());
    FeedClient(connect_async(url).await.expect("a WebSocket").0)
}

impl FeedClient {
    async fn next_message(&mut self) -> Message {
        let next = tokio::time::timeout(Duration::from_secs(60), self.0.next())
            .await
            .expect("a frame in time");
        next.expect("the connection stays open").expect("a message")
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.next_message().await {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
    }
}

#[tokio::test]
async fn every_replica_pushes_the_outcomes_of_all_replicas() {
    let world = World::new().await;
    // One of them may consume every message, so that the other only relays outcomes.
    let (first, second) = tokio::join!(world.start(), world.start());
    let (mut at_first, mut at_second) = tokio::join!(connect(&first), connect(&second));
    let mut outcomes = world.listen("signup.updates", "#").await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let published = outcomes.next().await.json();
    assert_eq!(
        (&published["type"], &published["signupId"]),
        (&json!("sign_up.customerio_synced"), &json!(signup))
    );
    assert_eq!(
        (at_first.next().await, at_second.next().await),
        (published.clone(), published.clone())
    );
    assert_eq!(
        (&published["contactId"], &published["manualRetry"]),
        (&json!(contact(signup)), &json!(false))
    );

    let failed = world.failed_signup().await;
    let frame = at_first.next().await;
    assert_eq!(
        (&frame["type"], &frame["signupId"]),
        (&json!("sign_up.customerio_sync_failed"), &json!(failed))
    );
    assert_eq!((&frame["errorType"], &frame["exhaustedRetries"]), (&json!("other"), &json!(false)));
    assert_eq!(at_second.next().await, frame);
    tokio::join!(first.stop(), second.stop());
    loop {
        match at_first.next_message().await {
            Message::Close(Some(frame)) => {
                break assert_eq!(frame.reason.as_str(), "the service is stopping");
            }
            Message::Ping(_) => {}
            other => panic!("expected a close frame, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn bulk_retry_progress_is_pushed() {
    let world = World::new().await;
    let app = world.start().await;
    world.failed_signup().await;
    let mut client = connect(&app).await;
    let bulk = world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    let mut last = Value::Null;
    while last["bulkRetry"]["status"] != "completed" {
        let frame = client.next().await;
        if frame["type"] == "bulk_retry.progress" {
            assert_eq!(frame["bulkRetry"]["id"], bulk["id"]);
            last = frame;
        }
    }
    assert_eq!(
        (&last["bulkRetry"]["retried"], &last["bulkRetry"]["eligible"]),
        (&json!(1), &json!(1))
    );
    app.stop().await;
}

#[tokio::test]
async fn a_slow_client_gets_the_missed_count_and_delays_no_other_client() {
    let world = World::new().await;
    let app = world.start().await;
    let mut slow = connect(&app).await;
    let mut fast = connect(&app).await;
    // Frames large enough to fill the buffers of a connection that nobody reads from.
    let padding = "x".repeat(20_000);
    let channel = world.channel().await;
    const FRAMES: u64 = 6000;
    let publish = async {
        for n in 0..FRAMES {
            let body = json!({ "n": n, "padding": padding }).to_string();
            crate::support::publish_on(
                &channel,
                "signup.updates",
                "test",
                body.as_bytes(),
                Default::default(),
            )
            .await;
        }
    };
    let read = async {
        let mut last = 0;
        while last < FRAMES - 1 {
            last = fast.next().await["n"].as_u64().expect("a number: the client missed no frame");
        }
    };
    tokio::join!(publish, read);
    let (mut received, mut missed) = (0, 0);
    while received + missed < FRAMES {
        let frame = slow.next().await;
        match frame["type"].as_str() {
            Some("feed.missed") => missed += frame["missed"].as_u64().expect("a count"),
            _ => received += 1,
        }
    }
    assert!(missed > 0, "the client was too fast for this test: it received {received} frames");
    assert_eq!(received + missed, FRAMES);
    app.stop().await;
}

#[tokio::test]
async fn the_client_limit_is_enforced_and_a_closed_connection_frees_a_slot() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__HTTP__WEBSOCKET_CLIENTS", "1");
    let app = world.start().await;
    let mut first = connect(&app).await;
    let handshake = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let url = format!("http://{}/api/v1/signups/customerio/ws", app.http_addr());
    let mut request = world.http().get(&url);
    for (name, value) in handshake {
        request = request.header(name, value);
    }
    let refused = request.send().await.expect("an answer");
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.text().await.expect("a problem").contains("1 clients are connected"));
    let without_upgrade = world.http().get(&url).send().await.expect("an answer");
    assert_eq!(without_upgrade.status().as_u16(), 426);

    first.0.close(None).await.expect("closed");
    let url = url.replace("http:", "ws:");
    crate::support::wait_for("a free slot", || async { connect_async(&url).await.ok().map(drop) })
        .await;
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_too_much_is_disconnected_and_others_are_not() {
    let world = World::new().await;
    let app = world.start().await;
    let (mut loud, mut quiet) = (connect(&app).await, connect(&app).await);
    loud.0.send(Message::text("x".repeat(100_000))).await.expect("sent");
    let disconnected = tokio::time::timeout(Duration::from_secs(30), async {
        while let Some(Ok(message)) = loud.0.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
        }
    });
    disconnected.await.expect("the service closes the connection");
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    assert_eq!(quiet.next().await["signupId"], json!(signup));
    app.stop().await;
}
