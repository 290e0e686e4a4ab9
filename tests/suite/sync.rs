//! Processing of both event types when nothing fails.

use crate::support::{World, confirmed, contact, submitted, wait_for};
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test]
async fn a_submission_becomes_a_person_and_a_tracked_event() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!((&job["max_attempts"], &job["attempt_count"]), (&json!(5), &json!(0)));

    let person = world.sim(&format!("people/{}", contact(signup))).await;
    let expected = json!({
        "email": format!("{signup}@example.com"),
        "first_name": "Ann",
        "last_name": "Lee",
        "phone": "+15550100",
        "state": "NJ",
        "operator_id": "op-12",
        "operator_name": "Acme Sports",
        "signup_id": signup,
        "plan": "gold",
    });
    assert_eq!(person["attributes"], expected);
    let events = world.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["name"], "signup_submitted");
    assert_eq!(events[0]["timestamp"], 1_739_880_000);
    let data = json!({
        "signup_id": signup,
        "operator_id": "op-12",
        "operator_name": "Acme Sports",
        "submitted_at": "2025-02-18T12:00:00Z",
    });
    assert_eq!(events[0]["attributes"], data);

    let stored = world.signup(signup).await;
    assert_eq!(stored["customerio_synced"], true);
    assert_eq!(stored["customerio_contact_id"], contact(signup));
    assert_eq!(stored["customerio_sync_failed"], false);
    app.stop().await;
}

#[tokio::test]
async fn a_confirmation_adds_the_bet_slip() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.confirm(&confirmed(signup)).await;
    world.wait_for_job(signup, "enriched", "completed").await;

    let attributes = world.sim(&format!("people/{}", contact(signup))).await["attributes"].clone();
    let slip = json!({
        "bet_amount": 50.0,
        "team_bet_on": "Lakers",
        "odds": "+150",
        "confidence": 0.97,
    });
    for (name, value) in slip.as_object().expect("a map") {
        assert_eq!(&attributes[name], value, "{name} of the person");
    }
    assert_eq!(attributes["first_name"], "Ann", "the profile is still there");
    let events = world.events().await;
    assert_eq!(events[1]["name"], "signup_extraction_confirmed");
    assert_eq!(events[1]["attributes"]["odds"], "+150");
    assert_eq!(events[1]["attributes"]["extraction_id"], "ex-5");
    assert_eq!(events[1]["attributes"]["operator_id"], "op-12");
    app.stop().await;
}

#[tokio::test]
async fn a_confirmation_that_arrives_first_waits_for_its_signup() {
    let world = World::new().await.with("RETRY_DELAYS", "300ms,1s,2s,4s,8s");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.confirm(&confirmed(signup)).await;
    let job = world.wait_for_retry(signup, "enriched").await;
    assert_eq!(
        (&job["error_type"], &job["error_message"]),
        (&json!("other"), &json!("signup not known yet"))
    );
    assert_eq!(world.calls().await.len(), 0, "no call before the person is known");
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "enriched", "completed").await;
    assert_eq!(world.events().await.len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn a_confirmation_with_the_customer_needs_no_submission() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let mut event = confirmed(signup);
    event["customer"] = json!({ "email": "bob@example.com" });
    world.confirm(&event).await;
    world.wait_for_job(signup, "enriched", "completed").await;
    assert_eq!(world.sim("people/bob@example.com").await["attributes"]["team_bet_on"], "Lakers");
    assert_eq!(world.signup(signup).await["customerio_contact_id"], "bob@example.com");
    app.stop().await;
}

#[tokio::test]
async fn a_completed_job_is_not_repeated() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let first = submitted(signup);
    world.submit(&first).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.submit(&first).await;
    world.submit(&submitted(signup)).await;
    let other = Uuid::new_v4();
    world.submit(&submitted(other)).await;
    world.wait_for_job(other, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let events = world.events().await;
    assert_eq!(events.len(), 2, "one event per signup");
    assert!(events.iter().all(|event| event["repeats"] == 0), "{events:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_new_event_restarts_an_open_job_and_a_repeated_one_does_not() {
    let world = World::new().await.with("RETRY_DELAYS", "30s,60s,125s,625s,3125s");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    let first = submitted(signup);
    world.submit(&first).await;
    let job = world.wait_for_retry(signup, "initial").await;
    assert_eq!((&job["attempt_count"], &job["max_attempts"]), (&json!(1), &json!(5)));
    assert_eq!(
        (&job["error_type"], &job["sync_phase"]),
        (&json!("server_error"), &json!("initial"))
    );

    world.submit(&first).await;
    wait_for("the repeated event to be acknowledged", || async {
        let (_, metrics) = world.get(&app, "/metrics").await;
        metrics
            .contains(r#"customerio_sync_skipped_deliveries_total{why="superseded"} 1"#)
            .then_some(())
    })
    .await;
    assert_eq!(
        world.job(signup, "initial").await.expect("a job")["attempt_count"],
        1,
        "a repeated event changes nothing"
    );

    let mut second = submitted(signup);
    second["occurred_at"] = json!("2025-02-18T13:00:00Z");
    second["customer"]["first_name"] = json!("Anna");
    world.submit(&second).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!((&job["attempt_count"], &job["run"]), (&json!(0), &json!(1)));
    let person = world.sim(&format!("people/{}", contact(signup))).await;
    assert_eq!(person["attributes"]["first_name"], "Anna");
    app.stop().await;
}

#[tokio::test]
async fn an_older_event_does_not_overwrite_the_data_of_a_newer_one() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let mut newer = submitted(signup);
    newer["occurred_at"] = json!("2025-02-18T15:00:00Z");
    newer["customer"]["first_name"] = json!("Anna");
    newer["customer"]["phone"] = Value::Null;
    world.submit(&newer).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.submit(&submitted(signup)).await;
    let row = wait_for("the older event to be stored", || async {
        Some(world.signup(signup).await).filter(|row| row["phone"] == "+15550100")
    })
    .await;
    assert_eq!(row["first_name"], "Anna");
    app.stop().await;
}

#[tokio::test]
async fn outcomes_are_published_with_all_their_fields() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let outcome = outcomes.next().await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(outcome.routing_key, "sign_up.customerio_synced");
    let body = outcome.json();
    assert_eq!(body["id"], outcome.message_id());
    let expected = json!({
        "type": "sign_up.customerio_synced",
        "id": body["id"],
        "time": body["time"],
        "signupId": signup,
        "jobId": job["id"],
        "syncPhase": "initial",
        "contactId": contact(signup),
        "attemptCount": 0,
        "manualRetry": false,
        "mock": false,
    });
    assert_eq!(body, expected);

    let audit = world.audit("customerio_synced").await;
    assert_eq!(audit.len(), 1);
    assert_eq!(audit[0]["signup_id"], json!(signup));
    let details = &audit[0]["details"];
    assert_eq!((&details["jobId"], &details["syncPhase"]), (&job["id"], &json!("initial")));
    assert_eq!(details["contactId"], contact(signup));
    app.stop().await;
}

#[tokio::test]
async fn the_trace_of_an_event_continues_in_its_outcome() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut headers = lapin::types::FieldTable::default();
    headers.insert("traceparent".into(), lapin::types::AMQPValue::LongString(traceparent.into()));
    let properties = lapin::BasicProperties::default().with_headers(headers);
    let body = submitted(Uuid::new_v4()).to_string();
    world.publish("signup.events", "signup.submitted", body.as_bytes(), properties).await;
    assert_eq!(outcomes.next().await.header("traceparent").as_deref(), Some(traceparent));
    app.stop().await;
}

#[tokio::test]
async fn shutdown_finishes_jobs_in_flight_and_leaves_the_rest_queued() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "10");
    world.fault(json!({ "kind": "latency", "ms": 200 })).await;
    let mut service = world.spawn();
    service.wait_for_line("the service is running").await;
    let signups: Vec<_> = (0..200).map(|_| Uuid::new_v4()).collect();
    let channel = world.channel().await;
    for signup in &signups {
        let body = submitted(*signup).to_string();
        crate::support::publish_on(
            &channel,
            "signup.events",
            "signup.submitted",
            body.as_bytes(),
            Default::default(),
        )
        .await;
    }
    wait_for("the first completed job", || async {
        (world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'")
            .await
            > 0)
        .then_some(())
    })
    .await;
    assert!(service.terminate().await.success());
    assert_eq!(
        world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status <> 'completed'")
            .await,
        0
    );
    let jobs = world.count("SELECT count(*) FROM signup_customerio_sync_jobs").await;
    assert!(jobs < 200, "the shutdown came after the last job");

    world.clear_faults().await;
    let app = world.start().await;
    for signup in &signups {
        world.wait_for_job(*signup, "initial", "completed").await;
    }
    let events = world.events().await;
    assert_eq!(events.len(), 200);
    assert!(events.iter().all(|event| event["repeats"] == 0), "an event was sent twice");
    app.stop().await;
}
