//! Customer.io is away, refuses the credentials, or wants to be left alone: jobs wait, and few
//! spend a retry.

use crate::support::{World, submitted, wait_for};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde_json::json;
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

/// Waits until Customer.io was asked so often whether it answers at all.
async fn wait_for_questions(world: &World, count: usize) {
    let questions = || async {
        world.calls().await.iter().filter(|call| call["path"] == "/api/v1/accounts/region").count()
    };
    wait_for(&format!("{count} questions"), || async {
        (questions().await >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_outage_costs_few_jobs_a_retry_and_ends_with_none_failed() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__GATE__PROBE_AT_LEAST_EVERY", "200ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    submit(&world, 1000).await;
    let stats = wait_for("the gate to shut", || async {
        Some(world.read(&app, "/stats").await).filter(|stats| stats["gate"]["state"] == "open")
    })
    .await;
    assert_eq!(stats["gate"]["reason"], "outage");
    let calls = world.calls().await.len();
    wait_for("five probes", || async { (world.calls().await.len() >= calls + 5).then_some(()) })
        .await;
    let (_, metrics) = world.get(&app, "/metrics").await;
    assert!(metrics.lines().any(|line| line == "customerio_sync_gate_open 1"), "{metrics}");
    let since = |reason: &str| {
        let name =
            format!("customerio_sync_gate_open_since_timestamp_seconds{{reason=\"{reason}\"}} ");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .expect("the metric of each reason");
        line.parse::<i64>().expect("Unix seconds")
    };
    let told: DateTime<Utc> =
        stats["gate"]["since"].as_str().expect("a time").parse().expect("RFC 3339");
    assert_eq!((since("outage"), since("credentials"), since("asked")), (told.timestamp(), 0, 0));
    assert_eq!(world.get(&app, "/readyz").await.0, 200, "it can work; Customer.io can't");
    world.clear_faults().await;
    wait_for_completed(&world, 1000).await;
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    // Those of the first calls, and one a probe.
    let retried =
        world.count("SELECT count(*) FROM sync_attempts WHERE error_type IS NOT NULL").await;
    assert!(retried < 900, "{retried} tries failed");
    assert_eq!(world.read(&app, "/stats").await["gate"]["state"], "closed");
    app.stop().await;
}

#[tokio::test]
async fn an_outage_that_outlasts_the_ladder_fails_no_job_although_there_are_fewer_jobs_than_probes()
{
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__GATE__FAILURES_IN_A_ROW", "2")
        .with("CUSTOMERIO_SYNC__GATE__PROBE_AT_LEAST_EVERY", "100ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    submit(&world, 6).await;
    // The whole ladder takes two seconds.
    wait_for_questions(&world, 40).await;
    world.clear_faults().await;
    wait_for_completed(&world, 6).await;
    assert_eq!(world.count("SELECT count(*) FROM sync_failures").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn refused_credentials_fail_the_jobs_of_one_call_and_let_the_others_wait() {
    let world = World::new().await;
    let app = world.start().await;
    let url = format!("ws://{}/api/v1/signups/customerio/ws", app.http_addr());
    let (mut frames, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    let first = Uuid::new_v4();
    world.submit(&submitted(first)).await;
    world.wait_for_job(first, "initial", "failed").await;
    let notice = async {
        loop {
            let frame = frames.next().await.expect("the connection goes on").expect("a frame");
            let frame: serde_json::Value =
                serde_json::from_str(&frame.into_text().expect("text")).unwrap_or_default();
            if frame["type"] == "gate.changed" {
                return frame;
            }
        }
    };
    let notice =
        tokio::time::timeout(std::time::Duration::from_secs(30), notice).await.expect("it is told");
    assert_eq!(
        (&notice["gate"]["isShut"], &notice["gate"]["reason"]),
        (&json!(true), &json!("credentials"))
    );
    let (status, told) = world.get(&app, "/readyz").await;
    assert!(status == 503 && told.contains("credentials refused"), "{told}");

    submit(&world, 50).await;
    wait_for_questions(&world, 3).await;
    let failed = world
        .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'")
        .await;
    assert_eq!(failed, 1, "the others wait");
    world.clear_faults().await;
    wait_for_completed(&world, 50).await;
    assert_eq!(world.get(&app, "/readyz").await.0, 200);
    app.stop().await;
}

#[tokio::test]
async fn calls_that_waited_for_their_turn_when_the_gate_shut_are_not_made() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "5")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2");
    world.start().await.stop().await;
    submit(&world, 20).await;
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    let app = world.start().await;
    let failed = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'";
    let waiting = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'pending'";
    wait_for("a job to fail", || async { (world.count(failed).await > 0).then_some(()) }).await;
    wait_for("the claims of the others to be given back", || async {
        (world.count(waiting).await == 19).then_some(())
    })
    .await;
    world.clear_faults().await;
    wait_for_completed(&world, 19).await;
    assert_eq!(world.count(failed).await, 1, "that of the first call");
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 20, "one try each");
    assert_eq!(world.events().await.len(), 19);
    app.stop().await;
}

#[tokio::test]
async fn what_is_held_for_long_waits_on_a_tier_and_spends_no_retry() {
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
    wait_for("every message to be put off twice", || async {
        let (_, metrics) = world.get(&app, "/metrics").await;
        let put_off = metrics.lines().find_map(|line| {
            line.strip_prefix(r#"customerio_sync_skipped_deliveries_total{why="put_off"} "#)
        });
        put_off.and_then(|count| count.parse().ok()).filter(|count: &u32| *count >= 100)
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
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 51, "one try each");
    assert_eq!(world.events().await.len(), 50);
    app.stop().await;
}
