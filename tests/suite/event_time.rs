//! Events that are repeated, late or ahead of the clock never replace newer data with older data.

use crate::support::{World, contact, metric_value, submitted, wait_for};
use chrono::{DateTime, TimeDelta, Utc};
use customerio_sync::app::App;
use serde_json::{Value, json};
use uuid::Uuid;

/// A submission with this phone number, and the time at which it occurred, if it states one.
fn with_phone(signup: Uuid, phone: &str, time: Option<&str>) -> Value {
    let mut event = submitted(signup);
    event["customer"]["phone"] = json!(phone);
    event["occurred_at"] = json!(time);
    event
}

async fn wait_for_phone(world: &World, signup: Uuid, phone: &str) {
    wait_for("the phone number to be stored", || async {
        (world.signup(signup).await["phone"] == phone).then_some(())
    })
    .await;
}

async fn wait_for_skipped(world: &World, app: &App, why: &str, count: u32) {
    let line = format!("customerio_sync_skipped_deliveries_total{{why=\"{why}\"}} {count}\n");
    wait_for(&line, || async { world.get(app, "/metrics").await.1.contains(&line).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_repeated_event_without_a_time_writes_nothing() {
    let world = World::new().await.with("RETRY_DELAYS", "30s,60s,125s,625s,3125s");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    let signup = Uuid::new_v4();
    let first = with_phone(signup, "+15550101", None);
    world.submit(&first).await;
    world.wait_for_retry(signup, "initial").await;
    world.submit(&with_phone(signup, "+15550102", None)).await;
    wait_for_phone(&world, signup, "+15550102").await;

    world.submit(&first).await;
    wait_for_skipped(&world, &app, "superseded", 1).await;
    assert_eq!(world.signup(signup).await["phone"], "+15550102");

    world.clear_faults().await;
    world.submit(&with_phone(signup, "+15550103", None)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    let person = world.sim(&format!("people/{}", contact(signup))).await;
    assert_eq!(person["attributes"]["phone"], "+15550103");
    app.stop().await;
}

#[tokio::test]
async fn a_repeated_event_of_a_completed_job_writes_nothing() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let first = with_phone(signup, "+15550101", None);
    let second = with_phone(signup, "+15550102", None);
    let third = with_phone(signup, "+15550103", None);
    world.submit(&first).await;
    world.wait_for_job(signup, "initial", "completed").await;
    for (event, phone) in [(&second, "+15550102"), (&third, "+15550103")] {
        world.submit(event).await;
        wait_for_phone(&world, signup, phone).await;
    }
    wait_for_skipped(&world, &app, "already_completed", 2).await;

    world.submit(&second).await;
    wait_for_skipped(&world, &app, "already_completed", 3).await;
    world.submit(&first).await;
    wait_for("the first event to be skipped", || async {
        let metrics = world.get(&app, "/metrics").await.1;
        let skipped = |why: &str| {
            let series = format!("skipped_deliveries_total{{why=\"{why}\"}}");
            metric_value(&metrics, &series).unwrap_or(0.0)
        };
        (skipped("already_completed") + skipped("settled") == 4.0).then_some(())
    })
    .await;
    assert_eq!(world.signup(signup).await["phone"], "+15550103");
    app.stop().await;
}

#[tokio::test]
async fn a_late_event_does_not_set_the_time_of_its_job_back() {
    let world = World::new().await.with("RETRY_DELAYS", "30s,60s,125s,625s,3125s");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&with_phone(signup, "+15550102", Some("2025-02-18T12:05:00Z"))).await;
    world.wait_for_retry(signup, "initial").await;

    world.submit(&with_phone(signup, "+15550101", Some("2025-02-18T12:00:00Z"))).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["run"], 1, "the late event restarts the job: {job}");
    let time: DateTime<Utc> = job["occurred_at"].as_str().expect("a time").parse().expect("valid");
    assert_eq!(time.to_rfc3339(), "2025-02-18T12:05:00+00:00");
    let person = world.sim(&format!("people/{}", contact(signup))).await;
    assert_eq!(person["attributes"]["phone"], "+15550102");
    app.stop().await;
}

#[tokio::test]
async fn a_time_in_the_future_is_replaced_by_the_time_of_arrival() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&with_phone(signup, "+15550101", Some("2099-01-01T00:00:00Z"))).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    let id = job["id"].as_str().expect("an id");
    let shown = world.read(&app, &format!("/jobs/{id}")).await["job"].clone();
    assert_eq!(shown["statedAt"], "2099-01-01T00:00:00Z", "{shown}");
    let time: DateTime<Utc> = shown["occurredAt"].as_str().expect("set").parse().expect("a time");
    assert!((Utc::now() - time).abs() < TimeDelta::minutes(5), "{time}");

    world.submit(&with_phone(signup, "+15550102", None)).await;
    wait_for_phone(&world, signup, "+15550102").await;
    app.stop().await;
}

#[tokio::test]
async fn a_restart_replaces_a_time_in_the_future_too() {
    let world = World::new().await.with("RETRY_DELAYS", "30s,60s,125s,625s,3125s");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&with_phone(signup, "+15550101", None)).await;
    world.wait_for_retry(signup, "initial").await;
    world.submit(&with_phone(signup, "+15550102", Some("2099-01-01T00:00:00Z"))).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    let time: DateTime<Utc> = job["occurred_at"].as_str().expect("set").parse().expect("a time");
    assert!((Utc::now() - time).abs() < TimeDelta::minutes(5), "{time}");
    assert!(job["stated_at"].as_str().is_some_and(|time| time.starts_with("2099")), "{job}");
    app.stop().await;
}
