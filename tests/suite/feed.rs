//! The two WebSocket feeds: clients receive frames live, or the number of frames that they missed.

use crate::support::{Servers, TempServer, World, contact, publish_on, submitted, wait_for};
use customerio_sync::app::App;
use futures_util::{SinkExt, StreamExt};
use lapin::BasicProperties;
use serde_json::{Value, json};
use std::time::Duration;
use test_servers::RabbitMq;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};
use uuid::Uuid;

struct FeedClient(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// Connects to the outcomes.
async fn connect(app: &App) -> FeedClient {
    FeedClient::connect(&app.http_addr().to_string(), "ws").await
}

/// Connects to progress, breaker changes and counts.
async fn connect_live(app: &App) -> FeedClient {
    FeedClient::connect(&app.http_addr().to_string(), "live").await
}

/// An outcome as the service publishes it, with a number.
fn outcome(n: u64) -> Value {
    json!({
        "type": "sign_up.customerio_synced",
        "id": format!("{n}:0:0:synced"),
        "time": "2025-02-18T12:00:00.000Z",
        "signupId": Uuid::nil(),
        "jobId": Uuid::nil(),
        "syncPhase": "initial",
        "contactId": "c",
        "attemptCount": 0,
        "manualRetry": false,
        "n": n,
    })
}

impl FeedClient {
    async fn connect(addr: &str, feed: &str) -> Self {
        let url = format!("ws://{addr}/api/v1/signups/customerio/{feed}");
        Self(connect_async(url).await.expect("a WebSocket").0)
    }

    /// Returns the next frame of a type.
    async fn next_of(&mut self, frame_type: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == frame_type {
                return frame;
            }
        }
    }

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
    let mut client = connect_live(&app).await;
    let bulk = world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    let mut last = Value::Null;
    while last["bulkRetry"]["status"] != "completed" {
        last = client.next_of("bulk_retry.progress").await;
        assert_eq!(last["bulkRetry"]["id"], bulk["id"]);
    }
    assert_eq!(
        (&last["bulkRetry"]["retried"], &last["bulkRetry"]["eligible"]),
        (&json!(1), &json!(1))
    );
    app.stop().await;
}

#[tokio::test]
async fn only_outcomes_of_this_service_reach_a_client() {
    let world = World::new().await;
    let app = world.start().await;
    let mut client = connect(&app).await;
    let channel = world.channel().await;
    // The test listens as well, so that no message is unroutable.
    let _listener = world.listen("signup.updates", "#").await;
    let synced = "sign_up.customerio_synced";
    let failed = "sign_up.customerio_sync_failed";
    // The fields in the order in which they are parsed.
    let (id, time) = ("1:0:0:synced", "2025-02-18T12:00:00Z");
    let array = json!([synced, id, time, Uuid::nil(), Uuid::nil(), "initial", 0, false]);
    let mut without_job = outcome(2);
    without_job.as_object_mut().expect("an object").remove("jobId");
    let foreign = [
        ("else.where", outcome(3).to_string().into_bytes()),
        (failed, outcome(4).to_string().into_bytes()),
        (synced, json!({ "type": "x" }).to_string().into_bytes()),
        (synced, without_job.to_string().into_bytes()),
        (synced, array.to_string().into_bytes()),
        (synced, b"not json".to_vec()),
        (synced, vec![0xff, 0xfe]),
        (synced, json!({ "type": synced, "text": "x".repeat(100_000) }).to_string().into_bytes()),
    ];
    for (routing_key, body) in &foreign {
        let properties = BasicProperties::default();
        publish_on(&channel, "signup.updates", routing_key, body, properties).await;
    }
    let own = outcome(5);
    let body = own.to_string();
    publish_on(&channel, "signup.updates", synced, body.as_bytes(), BasicProperties::default())
        .await;
    assert_eq!(client.next().await, own, "the first frame is the first outcome");
    // Neither progress nor counts nor the breaker are on this feed.
    let mut live = connect_live(&app).await;
    world.failed_signup().await;
    world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    live.next_of("bulk_retry.progress").await;
    for expected in [failed, synced] {
        assert_eq!(client.next().await["type"], expected);
    }
    app.stop().await;
}

#[tokio::test]
async fn counts_and_breaker_changes_are_pushed_when_they_change() {
    let world = World::new().await;
    let app = world.start().await;
    let mut client = connect_live(&app).await;
    let counts = client.next_of("counts.changed").await["counts"].clone();
    let signups = &counts["last24Hours"]["signups"];
    assert_eq!((&counts["openFailures"], signups), (&json!(0), &json!(0)));
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    world.submit(&submitted(Uuid::new_v4())).await;
    let breaker = client.next_of("breaker.changed").await["breaker"].clone();
    assert_eq!(breaker["reason"], "credentials");
    loop {
        let counts = client.next_of("counts.changed").await["counts"].clone();
        if counts["openFailures"] == 1 {
            let recent = &counts["last24Hours"];
            break assert_eq!((&recent["signups"], &recent["notSynced"]), (&json!(1), &json!(1)));
        }
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_feed_works_while_rabbitmq_is_down() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = World::on(Servers::with_rabbitmq(&rabbitmq)).await;
    let app = world.start().await;
    rabbitmq.stop();
    let mut client = connect_live(&app).await;
    let counts = client.next_of("counts.changed").await;
    assert_eq!(counts["counts"]["pending"], 0);
    let stats = wait_for("the queues to be unknown", || async {
        Some(world.read(&app, "/stats").await).filter(|stats| stats["messagesWaiting"].is_null())
    })
    .await;
    let queue = json!({
        "name": "customerio-sync.signup-submitted",
        "ready": null,
        "consumers": null,
    });
    assert_eq!(stats["queues"][0], queue, "unknown, and not 0");
    rabbitmq.start();
    wait_for("the queues to be known", || async {
        (world.read(&app, "/stats").await["messagesWaiting"] == 0).then_some(())
    })
    .await;
    app.stop().await;
}

/// Creates a RabbitMQ user who may configure the queues of the service alone, and returns the URL.
async fn url_without_generated_queues(world: &World) -> String {
    let user = &world.vhost;
    let put = async |path: String, body: Value| {
        let request = world.http().put(format!("{}/api/{path}", world.management_url));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let status = request.send().await.expect("RabbitMQ answers").status();
        assert!(status.is_success(), "{path}: {status}");
    };
    put(format!("users/{user}"), json!({ "password": "hush", "tags": "" })).await;
    let permissions = json!({
        "configure": "^(customerio-sync|signup)",
        "write": ".*",
        "read": ".*",
    });
    put(format!("permissions/{user}/{user}"), permissions).await;
    let (_, server) = world.amqp_url.rsplit_once('@').expect("a URL with a user");
    format!("amqp://{user}:hush@{server}")
}

#[tokio::test]
async fn a_refused_feed_queue_is_logged_once_and_the_live_feed_works() {
    let world = World::new().await;
    let url = url_without_generated_queues(&world).await;
    let world = world.with("AMQP_URL", &url);
    let mut service = world.spawn();
    let line = service.wait_for_line("the service is running").await;
    let line: Value = serde_json::from_str(&line).expect("a JSON line");
    let addr = line["http_addr"].as_str().expect("an address");
    let refusal = "RabbitMQ does not allow the queue of the live feed";
    let first = FeedClient::connect(addr, "ws").await;
    service.wait_for_line(refusal).await;
    drop(first);
    // The handshake waits two seconds for the subscription, in which there is no further attempt.
    let _second = FeedClient::connect(addr, "ws").await;
    let refusals = service.log().lines().filter(|line| line.contains(refusal)).count();
    let retries = service.log().matches("subscribing to outcomes failed").count();
    assert_eq!((refusals, retries), (1, 0), "{}", service.log());
    let mut live = FeedClient::connect(addr, "live").await;
    live.next_of("counts.changed").await;
    assert!(service.terminate().await.success());
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
            let mut frame = outcome(n);
            frame["padding"] = json!(padding);
            publish_on(
                &channel,
                "signup.updates",
                "sign_up.customerio_synced",
                frame.to_string().as_bytes(),
                BasicProperties::default(),
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
    wait_for("a free slot", || async { connect_async(&url).await.ok().map(drop) }).await;
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
