//! Every value of a profile carries the time at which it was stated, and arrives as it was stated.

use crate::support::{World, claimed_jobs, client, confirmed, contact, push, submitted, wait_for};
use chrono::TimeDelta;
use customerio_sync::job::{ClaimedJob, SyncPhase, tracked_event_id};
use lapin::BasicProperties;
use serde_json::{Value, json};
use uuid::Uuid;

/// A submission of the person `c-1` with this phone number, at this minute after noon.
fn of_person(signup: Uuid, minute: u32, phone: &str) -> Value {
    let mut event = submitted(signup);
    event["occurred_at"] = json!(format!("2025-02-18T12:{minute:02}:00Z"));
    event["customer"]["id"] = json!("c-1");
    event["customer"]["email"] = json!("ann@example.com");
    event["customer"]["phone"] = json!(phone);
    event
}

async fn publish(world: &World, routing_key: &str, body: &str) {
    let properties = BasicProperties::default().with_delivery_mode(2);
    world.publish("signup.events", routing_key, body.as_bytes(), properties).await;
}

async fn attributes(world: &World, person: &str) -> Value {
    world.sim(&format!("people/{person}")).await["attributes"].clone()
}

#[tokio::test]
async fn a_confirmation_does_not_overwrite_what_a_second_signup_stated() {
    let world = World::new().await;
    let app = world.start().await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let mut event = of_person(first, 0, "+1A");
    event["attributes"] = json!({ "plan": "silver", "only_first": 1 });
    world.submit(&event).await;
    world.wait_for_job(first, "initial", "completed").await;
    world.submit(&of_person(second, 1, "+1B")).await;
    world.wait_for_job(second, "initial", "completed").await;
    let mut confirmation = confirmed(first);
    confirmation["occurred_at"] = json!("2025-02-18T12:02:00Z");
    confirmation["customer"] = json!({ "first_name": "Anne" });
    world.confirm(&confirmation).await;
    world.wait_for_job(first, "enriched", "completed").await;

    let profile = attributes(&world, "c-1").await;
    assert_eq!(profile["phone"], "+1B", "{profile}");
    assert_eq!(profile["plan"], "gold", "{profile}");
    assert_eq!(profile["signup_id"], json!(second), "{profile}");
    assert_eq!(profile["first_name"], "Anne", "the confirmation stated it: {profile}");
    assert_eq!(profile["team_bet_on"], "Lakers", "{profile}");
    assert_eq!(profile["only_first"], 1, "{profile}");
    app.stop().await;
}

#[tokio::test]
async fn numbers_arrive_digit_for_digit() {
    let world = World::new().await.with("RETRY_DELAYS", "200ms,1s,2s,4s,8s");
    let app = world.start().await;
    // The retry reads them from the database.
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    let mut event = submitted(signup);
    event["attributes"] = json!({ "points": "POINTS", "ratio": "RATIO" });
    let body = event.to_string().replace("\"POINTS\"", "100000000000000000001");
    let body = body.replace("\"RATIO\"", "0.1000000000000000000000001");
    publish(&world, "signup.submitted", &body).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let mut event = confirmed(signup);
    event["bet_slip"]["odds"] = json!("ODDS");
    event["bet_slip"]["bet_amount"] = json!("AMOUNT");
    let body = event.to_string().replace("\"ODDS\"", "-1234567890123456789012345678901234567890");
    let body = body.replace("\"AMOUNT\"", "12345678901234567890.123");
    publish(&world, "signup.extraction_confirmed", &body).await;
    world.wait_for_job(signup, "enriched", "completed").await;

    let received = world.sim_text(&format!("people/{}", contact(signup))).await;
    for expected in [
        r#""points":100000000000000000001"#,
        r#""ratio":0.1000000000000000000000001"#,
        r#""odds":-1234567890123456789012345678901234567890"#,
        r#""bet_amount":12345678901234567890.123"#,
        r#""confidence":0.97"#,
    ] {
        assert!(received.contains(expected), "{expected} in {received}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_number_beyond_the_limits_is_unprocessable() {
    let world = World::new().await;
    let app = world.start().await;
    let numbers = ["1e400", &"9".repeat(41)];
    for number in numbers {
        let mut event = submitted(Uuid::new_v4());
        event["attributes"] = json!({ "n": "N" });
        publish(&world, "signup.submitted", &event.to_string().replace("\"N\"", number)).await;
    }
    let list = wait_for("the messages to be listed", || async {
        let list = world.read(&app, "/unprocessable").await;
        (list["total"] == numbers.len()).then_some(list)
    })
    .await;
    for item in list["items"].as_array().expect("a list") {
        assert_eq!(item["path"], "attributes.n", "{item}");
        let expected = "at most 40 digits and an exponent of at most 308";
        assert!(item["errorMessage"].as_str().expect("a text").contains(expected), "{item}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_changed_address_is_not_sent_where_it_identifies_the_person() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let with_address = |address: &str, minute: u32| {
        let mut event = of_person(signup, minute, "+15550100");
        event["customer"]["id"] = Value::Null;
        event["customer"]["email"] = json!(address);
        event
    };
    world.submit(&with_address("first@example.com", 0)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.submit(&with_address("second@example.com", 1)).await;
    wait_for("the new address to be stored", || async {
        (world.signup(signup).await["email"] == "second@example.com").then_some(())
    })
    .await;
    world.confirm(&confirmed(signup)).await;
    let job = world.wait_for_job(signup, "enriched", "completed").await;

    let shown = world.read(&app, &format!("/jobs/{}", job["id"].as_str().expect("an id"))).await;
    assert_eq!(shown["job"]["warning"], "email_not_changed", "{shown}");
    assert_eq!(shown["job"]["contactId"], "first@example.com");
    let audit = world.audit("customerio_synced").await;
    assert_eq!(audit[1]["details"]["warning"], "email_not_changed");
    let profile = attributes(&world, "first@example.com").await;
    assert_eq!(profile["team_bet_on"], "Lakers", "{profile}");
    let summary = world.sim("summary").await;
    assert_eq!((&summary["people"], &summary["attributeUpdateFailures"]), (&json!(1), &json!(0)));
    app.stop().await;
}

#[tokio::test]
async fn an_address_that_was_refused_is_corrected() {
    let world = World::new().await;
    let app = world.start().await;
    world.fault(json!({ "kind": "refuse", "identifier": "tpyo@example.com" })).await;
    let signup = Uuid::new_v4();
    let mut event = of_person(signup, 0, "+15550100");
    event["customer"]["id"] = Value::Null;
    event["customer"]["email"] = json!("tpyo@example.com");
    world.submit(&event).await;
    world.wait_for_job(signup, "initial", "failed").await;
    let mut confirmation = confirmed(signup);
    confirmation["customer"] = json!({ "email": "typo@example.com" });
    world.confirm(&confirmation).await;
    let job = world.wait_for_job(signup, "enriched", "completed").await;
    assert_eq!((&job["contact_id"], &job["warning"]), (&json!("typo@example.com"), &Value::Null));
    world.act(&app, &format!("/{signup}/retry"), None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["contact_id"], "typo@example.com");
    app.stop().await;
}

#[tokio::test]
async fn a_person_whose_id_is_stated_later_stays_one_person() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let mut event = submitted(signup);
    event["customer"]["id"] = Value::Null;
    world.submit(&event).await;
    world.wait_for_job(signup, "initial", "completed").await;
    let mut confirmation = confirmed(signup);
    confirmation["customer"] =
        json!({ "id": contact(signup), "email": event["customer"]["email"] });
    world.confirm(&confirmation).await;
    world.wait_for_job(signup, "enriched", "completed").await;

    let profile = attributes(&world, &contact(signup)).await;
    assert_eq!((&profile["plan"], &profile["odds"]), (&json!("gold"), &json!("+150")));
    let summary = world.sim("summary").await;
    assert_eq!((&summary["people"], &summary["attributeUpdateFailures"]), (&json!(1), &json!(0)));
    app.stop().await;
}

#[tokio::test]
async fn an_id_whose_first_call_was_lost_joins_the_person_with_the_address() {
    let world = World::new().await.with("RETRY_DELAYS", "1s,2s");
    let app = world.start().await;
    let (by_address, by_id) = (Uuid::new_v4(), Uuid::new_v4());
    let mut event = of_person(by_address, 0, "+1");
    event["customer"]["id"] = Value::Null;
    world.submit(&event).await;
    world.wait_for_job(by_address, "initial", "completed").await;

    world.fault(json!({ "kind": "reset", "calls": 2, "taken": false })).await;
    let mut confirmation = confirmed(by_id);
    confirmation["occurred_at"] = json!("2025-02-18T12:01:00Z");
    confirmation["customer"] = json!({ "id": "c-1", "email": "ann@example.com" });
    world.confirm(&confirmation).await;
    world.wait_for_retry(by_id, "enriched").await;
    // When the confirmation is retried, its bet slip is older than the address, so it travels in an
    // identify of its own.
    world.submit(&of_person(by_id, 2, "+2")).await;
    for phase in ["initial", "enriched"] {
        world.wait_for_job(by_id, phase, "completed").await;
    }
    let summary = world.sim("summary").await;
    assert_eq!((&summary["people"], &summary["attributeUpdateFailures"]), (&json!(1), &json!(0)));
    let profile = attributes(&world, "c-1").await;
    assert_eq!((&profile["phone"], &profile["odds"]), (&json!("+2"), &json!("+150")));
    app.stop().await;
}

/// Claimed jobs of submissions of the person `c-1`, in the order of `minutes`.
async fn claimed_of_person(world: &World, minutes: &[u32]) -> Vec<ClaimedJob> {
    let event = |minute: &u32| of_person(Uuid::new_v4(), *minute, &format!("+1{minute:02}"));
    claimed_jobs(world, &minutes.iter().map(event).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn jobs_of_one_person_travel_one_after_the_other_the_oldest_first() {
    let world = World::new().await;
    let mut jobs = claimed_of_person(&world, &[3, 1, 2]).await;
    let client = client(&world);
    // The result does not depend on how Customer.io orders updates.
    world.set_simulator(json!({ "attributeOrder": "arrival", "batchOrder": "reversed" })).await;
    world.fault(json!({ "kind": "latency", "ms": 100 })).await;
    push(&client, &jobs).await;

    jobs.sort_by_key(|job| job.job.occurred_at);
    let calls = world.calls().await;
    let expected = |job: &ClaimedJob| {
        json!([tracked_event_id(job.job.signup_id, SyncPhase::Initial).to_string()])
    };
    let sent: Vec<_> = calls.iter().map(|call| call["events"].clone()).collect();
    assert_eq!(sent, jobs.iter().map(expected).collect::<Vec<_>>());
    for times in world.call_times().await.windows(2) {
        assert!(times[1] - times[0] >= TimeDelta::milliseconds(100), "{times:?}");
    }
    assert_eq!(attributes(&world, "c-1").await["phone"], "+103");
}

#[tokio::test]
async fn batches_wait_for_the_calls_of_each_others_persons() {
    let world = World::new().await;
    let jobs = claimed_of_person(&world, &[1, 2, 3, 4]).await;
    let client = client(&world);
    world.fault(json!({ "kind": "latency", "ms": 100 })).await;
    futures_util::future::join_all(jobs.chunks(1).map(|job| push(&client, job))).await;

    let times = world.call_times().await;
    assert_eq!(times.len(), 4);
    for times in times.windows(2) {
        assert!(times[1] - times[0] >= TimeDelta::milliseconds(100), "{times:?}");
    }
}

#[tokio::test]
async fn many_events_of_one_signup_share_batches_with_others() {
    let world = World::new().await;
    world.start().await.stop().await;
    let flooded = Uuid::new_v4();
    let others: Vec<_> = (0..40).map(|_| Uuid::new_v4()).collect();
    for (index, other) in others.iter().enumerate() {
        for number in index * 20..(index + 1) * 20 {
            let mut event = of_person(flooded, 0, &format!("+1{number:04}"));
            // Batches side by side store them in any order.
            let time = format!("2025-02-18T12:{:02}:{:02}Z", number / 60, number % 60);
            event["occurred_at"] = json!(time);
            world.submit(&event).await;
        }
        world.submit(&submitted(*other)).await;
    }
    let app = world.start().await;
    for other in &others {
        world.wait_for_job(*other, "initial", "completed").await;
    }
    world.wait_for_job(flooded, "initial", "completed").await;
    wait_for("the last event to be stored", || async {
        (world.signup(flooded).await["phone"] == "+10799").then_some(())
    })
    .await;
    let metrics = world.get(&app, "/metrics").await.1;
    let batches = metrics.lines().find_map(|line| {
        line.strip_prefix("customerio_sync_batch_deliveries_count ")?.parse::<u32>().ok()
    });
    assert!(batches.expect("a count") < 200, "840 messages in {batches:?} batches");
    app.stop().await;
}
