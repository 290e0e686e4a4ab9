//! Customer.io is unavailable, refuses the credentials, or asks for a pause: jobs wait, and few of
//! them spend a retry.

use crate::support::{World, metric_value, submitted, wait_for};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

async fn submit(world: &World, count: usize) {
    let channel = world.channel().await;
    for _ in 0..count {
        let body = submitted(Uuid::new_v4()).to_string();
        let properties =
            lapin::BasicProperties::default().with_content_type("application/json".into());
        crate::support::publish_on(
            &channel,
            "signup.events",
            "signup.submitted",
            body.as_bytes(),
            properties,
        )
        .await;
    }
}

async fn wait_for_completed(world: &World, count: i64) {
    wait_for(&format!("{count} completed jobs"), || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await == count).then_some(())
    })
    .await;
}

/// Waits until the breaker has probed with `count` harmless requests.
async fn wait_for_region_requests(world: &World, count: usize) {
    let requests = || async {
        world.calls().await.iter().filter(|call| call["path"] == "/api/v1/accounts/region").count()
    };
    wait_for(&format!("{count} region requests"), || async {
        (requests().await >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_outage_costs_few_jobs_a_retry_and_fails_none() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "200ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    submit(&world, 1000).await;
    let stats = wait_for("the breaker to open", || async {
        Some(world.read(&app, "/stats").await).filter(|stats| stats["breaker"]["state"] == "open")
    })
    .await;
    assert_eq!(stats["breaker"]["reason"], "outage");
    let calls = world.calls().await.len();
    wait_for("five probes", || async { (world.calls().await.len() >= calls + 5).then_some(()) })
        .await;
    let (_, metrics) = world.get(&app, "/metrics").await;
    assert!(metrics.lines().any(|line| line == "customerio_sync_breaker_open 1"), "{metrics}");
    let since = |reason: &str| {
        let name =
            format!("customerio_sync_breaker_open_since_timestamp_seconds{{reason=\"{reason}\"}} ");
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .expect("the metric of each reason");
        value.parse::<i64>().expect("Unix seconds")
    };
    let opened_at: DateTime<Utc> =
        stats["breaker"]["since"].as_str().expect("a time").parse().expect("RFC 3339");
    assert_eq!(
        (since("outage"), since("credentials"), since("retry_after")),
        (opened_at.timestamp(), 0, 0)
    );
    assert_eq!(world.get(&app, "/readyz").await.0, 200, "an outage leaves the service ready");
    world.clear_faults().await;
    wait_for_completed(&world, 1000).await;
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    // The jobs of the first calls, and one per probe.
    let failed_attempts =
        world.count("SELECT count(*) FROM sync_attempts WHERE error_type IS NOT NULL").await;
    assert!(failed_attempts < 900, "{failed_attempts} attempts failed");
    assert_eq!(world.read(&app, "/stats").await["breaker"]["state"], "closed");
    app.stop().await;
}

#[tokio::test]
async fn an_outage_longer_than_the_ladder_fails_none_of_a_few_jobs() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__BREAKER__FAILURES_IN_A_ROW", "2")
        .with("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "100ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    submit(&world, 6).await;
    // The whole ladder takes two seconds. There are more probes than jobs.
    wait_for_region_requests(&world, 40).await;
    world.clear_faults().await;
    wait_for_completed(&world, 6).await;
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn refused_credentials_fail_the_jobs_of_one_call_and_the_rest_wait() {
    let world = World::new().await;
    let app = world.start().await;
    let url = format!("ws://{}/api/v1/signups/customerio/live", app.http_addr());
    let (mut frames, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    let first = Uuid::new_v4();
    world.submit(&submitted(first)).await;
    world.wait_for_job(first, "initial", "failed").await;
    let breaker_frame = async {
        loop {
            let frame = frames.next().await.expect("the connection stays open").expect("a frame");
            let frame: Value =
                serde_json::from_str(&frame.into_text().expect("text")).unwrap_or_default();
            if frame["type"] == "breaker.changed" {
                return frame;
            }
        }
    };
    let frame = tokio::time::timeout(Duration::from_secs(30), breaker_frame)
        .await
        .expect("a breaker.changed frame in time");
    // The first probe may already be in flight.
    assert!(
        matches!(frame["breaker"]["state"].as_str(), Some("open" | "half_open")),
        "the breaker is not open: {frame}"
    );
    assert_eq!(frame["breaker"]["reason"], "credentials");
    let (status, body) = world.get(&app, "/readyz").await;
    assert!(status == 503 && body.contains("credentials refused"), "{body}");

    submit(&world, 50).await;
    wait_for_region_requests(&world, 3).await;
    let failed = world
        .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'")
        .await;
    assert_eq!(failed, 1, "the other jobs wait");
    world.clear_faults().await;
    wait_for_completed(&world, 50).await;
    assert_eq!(world.get(&app, "/readyz").await.0, 200);
    app.stop().await;
}

#[tokio::test]
async fn calls_queued_when_the_breaker_opens_are_not_made() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "2")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2")
        .with("CUSTOMERIO_SYNC__SYNC__BATCHES_IN_FLIGHT", "30");
    let app = world.start().await;
    // With these, the consumer gets a window for all that follow.
    submit(&world, 10).await;
    wait_for_completed(&world, 10).await;
    // The other jobs arrive during the first call, and the next one is not allowed before its end.
    world.fault(json!({ "kind": "latency", "ms": 400 })).await;
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    submit(&world, 20).await;
    let failed = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'";
    let pending = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'pending'";
    wait_for("a job to fail", || async { (world.count(failed).await > 0).then_some(()) }).await;
    wait_for("the claims of the other jobs to be released", || async {
        (world.count(pending).await == 19).then_some(())
    })
    .await;
    world.clear_faults().await;
    wait_for_completed(&world, 29).await;
    assert_eq!(world.count(failed).await, 1, "the job of the first call");
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 30, "one attempt per job");
    assert_eq!(world.events().await.len(), 29);
    app.stop().await;
}

#[tokio::test]
async fn jobs_are_deferred_to_a_tier_in_a_long_pause_and_spend_no_retry() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__SYNC__HOLD", "300ms")
        .with("RETRY_DELAYS", "500ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    let first = Uuid::new_v4();
    world.submit(&submitted(first)).await;
    world.wait_for_job(first, "initial", "failed").await;
    submit(&world, 50).await;
    wait_for("every message to be deferred twice", || async {
        let (_, metrics) = world.get(&app, "/metrics").await;
        let deferred = metric_value(&metrics, r#"skipped_deliveries_total{why="deferred"}"#);
        deferred.filter(|count| *count >= 100.0)
    })
    .await;
    assert_eq!(
        world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE attempt_count = 0")
            .await,
        51
    );
    world.clear_faults().await;
    wait_for_completed(&world, 50).await;
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 51, "one attempt per job");
    assert_eq!(world.events().await.len(), 50);
    app.stop().await;
}

#[tokio::test]
async fn stats_show_the_worst_circuit_breaker_of_all_replicas() {
    let world = World::new().await;
    // Calls of this replica fail, and it alone has work.
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    let mut failing = world.spawn();
    failing.wait_for_line("the service is running").await;
    world.submit(&submitted(Uuid::new_v4())).await;
    failing.wait_for_line("the circuit breaker for Customer.io is open").await;
    // This one makes no call.
    let app = world.start().await;
    let stats = wait_for("the breaker of the other replica", || async {
        Some(world.read(&app, "/stats").await).filter(|stats| stats["breaker"]["state"] != "closed")
    })
    .await;
    let breaker = &stats["breaker"];
    assert_eq!(breaker["reason"], "credentials");
    assert!(breaker["since"].is_string() && breaker["meaning"].is_string(), "{breaker}");
    let replica = breaker["replica"].as_str().expect("a name");
    assert!(replica.ends_with(&format!(":{}", failing.id())), "{replica}");
    let (_, metrics) = world.get(&app, "/metrics").await;
    let own = metrics.lines().any(|line| line == "customerio_sync_breaker_open 0");
    assert!(own, "the own breaker is closed: {metrics}");

    // A replica that is gone counts until its lease ends.
    failing.kill();
    wait_for("the own breaker", || async {
        (world.read(&app, "/stats").await["breaker"]["state"] == "closed").then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_address_fails_three_jobs_until_an_operator_closes_the_breaker() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "100ms");
    world.start().await.stop().await;
    // The batch endpoint redirects, and the request for the region succeeds.
    world.fault(json!({ "kind": "status", "status": 301, "path": "/api/v2/batch" })).await;
    submit(&world, 300).await;
    let app = world.start().await;
    let failed = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'";
    let reason = world.wait_for_reason(&app, "POST /breaker/close").await;
    assert!(reason.contains("CUSTOMERIO_REGION"), "{reason}");
    // They are recorded shortly after the breaker has halted.
    let processing = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'";
    let refused = wait_for("three failed jobs, and none in flight", || async {
        let refused = world.count(failed).await;
        (refused >= 3 && world.count(processing).await == 0).then_some(refused)
    })
    .await;
    // Calls that were in flight with the first one carry one job as well.
    assert!(refused <= 6, "{refused}");
    let calls = world.calls().await.len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((world.count(failed).await, world.calls().await.len()), (refused, calls));
    let stats = world.read(&app, "/stats").await;
    assert_eq!(
        (&stats["breaker"]["state"], &stats["breaker"]["nextProbeAt"]),
        (&json!("open"), &Value::Null,)
    );

    world.clear_faults().await;
    let closed = world.act(&app, "/breaker/close", None).await;
    assert_eq!(closed["breaker"]["state"], "closed");
    wait_for_completed(&world, 300 - refused).await;
    assert_eq!(world.audit("customerio_breaker_closed").await.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_key_fails_few_jobs_of_a_backlog() {
    let world = World::new().await;
    world.start().await.stop().await;
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    submit(&world, 500).await;
    let app = world.start().await;
    wait_for_region_requests(&world, 3).await;
    let failed = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'";
    let refused = world.count(failed).await;
    assert!((1..=4).contains(&refused), "{refused}");
    world.clear_faults().await;
    wait_for_completed(&world, 500 - refused).await;
    app.stop().await;
}

#[tokio::test]
async fn an_operator_ends_a_pause_on_all_replicas() {
    let world = World::new().await;
    let (app, other) = (world.start().await, world.start().await);
    let pause = json!({ "kind": "status", "status": 429, "calls": 1, "retry_after": "600" });
    world.fault(pause).await;
    submit(&world, 1).await;
    for app in [&app, &other] {
        wait_for("the pause", || async {
            let (_, metrics) = world.get(app, "/metrics").await;
            metrics.lines().any(|line| line == "customerio_sync_breaker_open 1").then_some(())
        })
        .await;
    }
    world.act(&app, "/breaker/close", None).await;
    for app in [&app, &other] {
        wait_for("the end of the pause", || async {
            let (_, metrics) = world.get(app, "/metrics").await;
            metrics.lines().any(|line| line == "customerio_sync_breaker_open 0").then_some(())
        })
        .await;
    }
    submit(&world, 20).await;
    wait_for("the jobs to complete", || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await >= 20).then_some(())
    })
    .await;
    app.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_refused_call_with_several_jobs_fails_none() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__SYNC__BATCHES_IN_FLIGHT", "1");
    let app = world.start().await;
    submit(&world, 100).await;
    wait_for_completed(&world, 100).await;
    // The next jobs arrive during one call, and travel together.
    world.fault(json!({ "kind": "latency", "ms": 1000, "calls": 1 })).await;
    submit(&world, 1).await;
    let processing = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'";
    wait_for("a call in flight", || async { (world.count(processing).await == 1).then_some(()) })
        .await;
    submit(&world, 20).await;
    world.fault(json!({ "kind": "status", "status": 401, "calls": 1 })).await;
    wait_for_completed(&world, 121).await;
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 121);
    app.stop().await;
}
