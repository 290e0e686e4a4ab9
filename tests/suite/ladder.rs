//! Failures: which jobs are retried, when, and which messages are parked.

use crate::support::{Received, SHORT_LADDER, World, confirmed, contact, submitted, wait_for};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test]
async fn a_job_climbs_the_five_tiers_and_then_fails() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "failed").await;

    assert_eq!((&job["attempt_count"], &job["error_type"]), (&json!(5), &json!("server_error")));
    assert_eq!(job["next_retry_at"], Value::Null);
    check_retry_times(&world).await;
    check_tiers(&world).await;
    check_signup_and_audit(&world, signup, &job).await;
    check_exhausted_outcome(&outcomes.next().await, &job);

    let parked = world.next("customerio-sync.failed").await;
    check_parked(&parked, &job, "exhausted", "5");
    let failures = world.wait_for_failures(1).await;
    assert_eq!((&failures[0]["job_id"], &failures[0]["reason"]), (&job["id"], &json!("exhausted")));
    assert_eq!(
        (&failures[0]["resolved_at"], &failures[0]["error_type"]),
        (&Value::Null, &json!("server_error"))
    );
    assert_eq!(world.calls().await.len(), 6, "no call after the fifth retry");
    app.stop().await;
}

/// Checks that each retry waited at least as long as its tier.
async fn check_retry_times(world: &World) {
    let times = world.call_times().await;
    assert_eq!(times.len(), 6, "the first call and five retries");
    for (index, delay) in [200, 300, 400, 500, 600].into_iter().enumerate() {
        let waited = (times[index + 1] - times[index]).num_milliseconds();
        assert!(waited >= delay, "retry {} came after {waited} ms", index + 1);
    }
}

/// Checks that the attempts name the tiers in order, and the last one none.
async fn check_tiers(world: &World) {
    let attempts = world
        .rows("SELECT attempt, http_status, error_type, tier FROM sync_attempts ORDER BY id")
        .await;
    let tiers: Vec<Option<String>> =
        attempts.iter().map(|row| sqlx::Row::get(row, "tier")).collect();
    let mut expected: Vec<_> = SHORT_LADDER.split(',').map(|tier| Some(tier.to_owned())).collect();
    expected.push(None);
    assert_eq!(tiers, expected);
}

/// Checks that the signup and the audit log record the failure of `job`.
async fn check_signup_and_audit(world: &World, signup: Uuid, job: &Value) {
    let stored = world.signup(signup).await;
    assert_eq!(
        (&stored["customerio_sync_failed"], &stored["customerio_synced"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(stored["customerio_sync_error"], job["error_message"]);
    let audit = world.audit("customerio_sync_failed").await;
    let details = &audit[0]["details"];
    assert_eq!((&details["jobId"], &details["exhaustedRetries"]), (&job["id"], &json!(true)));
    assert_eq!(
        (&details["syncPhase"], &details["contactId"]),
        (&json!("initial"), &json!(contact(signup)))
    );
}

fn check_exhausted_outcome(outcome: &Received, job: &Value) {
    assert_eq!(outcome.routing_key, "sign_up.customerio_sync_failed");
    let body = outcome.json();
    assert_eq!((&body["exhaustedRetries"], &body["attemptCount"]), (&json!(true), &json!(5)));
    assert_eq!(
        (&body["errorType"], &body["errorMessage"]),
        (&json!("server_error"), &job["error_message"])
    );
}

fn check_parked(parked: &Received, job: &Value, reason: &str, attempt: &str) {
    let text = |value: &Value| Some(value.as_str().expect("a text").to_owned());
    assert_eq!(parked.header("x-job-id"), text(&job["id"]));
    assert_eq!(parked.header("x-signup-id"), text(&job["signup_id"]));
    assert_eq!(parked.header("x-sync-phase"), text(&job["sync_phase"]));
    assert_eq!(parked.header("x-error-type"), text(&job["error_type"]));
    assert_eq!(parked.header("x-error-message"), text(&job["error_message"]));
    assert_eq!(parked.header("x-attempt").as_deref(), Some(attempt));
    assert_eq!(parked.header("x-reason").as_deref(), Some(reason));
    for header in ["x-first-failed-at", "x-failed-at"] {
        let value = parked.header(header).unwrap_or_else(|| panic!("{header} is missing"));
        assert!(value.parse::<DateTime<Utc>>().is_ok(), "{header}: {value}");
    }
    assert!(
        parked.header("x-original-exchange").is_some()
            && parked.header("x-original-routing-key").is_some()
    );
    assert_eq!(parked.header("x-death"), None, "headers added by the broker are not passed on");
    let body = json!({
        "job_id": job["id"],
        "signup_id": job["signup_id"],
        "sync_phase": job["sync_phase"],
        "attempt": job["attempt_count"],
    });
    assert_eq!(parked.json(), body);
}

#[tokio::test]
async fn a_refused_job_fails_without_a_retry() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    let (good, bad) = (Uuid::new_v4(), Uuid::new_v4());
    let refusal = json!({
        "kind": "refuse",
        "identifier": contact(bad),
        "field": "attributes.plan",
        "message": "too long",
    });
    world.fault(refusal).await;
    world.submit(&submitted(bad)).await;
    let job = world.wait_for_job(bad, "initial", "failed").await;
    assert_eq!((&job["attempt_count"], &job["error_type"]), (&json!(0), &json!("other")));
    assert_eq!(
        job["error_message"],
        "Customer.io refused the identify: invalid: attributes.plan: too long"
    );
    assert_eq!(outcomes.next().await.json()["exhaustedRetries"], false);
    check_parked(&world.next("customerio-sync.failed").await, &job, "permanent", "0");
    let audit = world.audit("customerio_sync_failed").await;
    assert_eq!(audit[0]["details"]["exhaustedRetries"], false);

    world.submit(&submitted(good)).await;
    world.wait_for_job(good, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_job_completes_after_two_failed_attempts() {
    let world = World::new().await;
    let app = world.start().await;
    world
        .fault(json!([
            { "kind": "status", "status": 500, "calls": 1 },
            { "kind": "status", "status": 429, "calls": 1 },
        ]))
        .await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!((&job["attempt_count"], &job["error_type"]), (&json!(2), &Value::Null));
    let events = world.events().await;
    assert_eq!((events.len(), &events[0]["repeats"]), (1, &json!(0)));
    assert_eq!(world.signup(signup).await["customerio_sync_failed"], false);
    world.wait_until_all_queues_are_empty().await;
    app.stop().await;
}

#[tokio::test]
async fn both_phases_of_a_signup_run_side_by_side() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 502, "calls": 2 })).await;
    world.submit(&submitted(signup)).await;
    world.confirm(&confirmed(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_for_job(signup, "enriched", "completed").await;
    let mut names: Vec<_> =
        world.events().await.iter().map(|event| event["name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["signup_extraction_confirmed", "signup_submitted"]);
    app.stop().await;
}

#[tokio::test]
async fn retry_after_delays_the_retry_and_pauses_all_calls() {
    let world = World::new().await.with("RETRY_DELAYS", "200ms,2500ms,4s,5s,6s");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 429, "calls": 1, "retry_after": "2" })).await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    world.submit(&submitted(first)).await;
    world.wait_for_retry(first, "initial").await;
    world.submit(&submitted(second)).await;
    world.wait_for_job(second, "initial", "completed").await;
    world.wait_for_job(first, "initial", "completed").await;

    let tier = world.rows("SELECT tier FROM sync_attempts WHERE tier IS NOT NULL").await;
    assert_eq!(
        sqlx::Row::get::<String, _>(&tier[0], "tier"),
        "2500ms",
        "the first tier that is long enough"
    );
    let times = world.call_times().await;
    let paused = (times[1] - times[0]).num_milliseconds();
    assert!(paused >= 1990, "the call of the other job came after {paused} ms");
    app.stop().await;
}

#[tokio::test]
async fn a_value_over_a_limit_fails_only_its_own_job() {
    let world = World::new().await;
    let app = world.start().await;
    let (long, good) = (Uuid::new_v4(), Uuid::new_v4());
    let mut event = submitted(long);
    event["customer"]["first_name"] = json!("x".repeat(1001));
    world.submit(&event).await;
    world.submit(&submitted(good)).await;
    let job = world.wait_for_job(long, "initial", "failed").await;
    assert_eq!(job["error_message"], "first_name is 1001 bytes; Customer.io allows at most 1000");
    world.wait_for_job(good, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_new_event_restarts_a_failed_job_and_resolves_its_failure() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "refuse", "identifier": contact(signup) })).await;
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "failed").await;
    world.wait_for_failures(1).await;
    world.clear_faults().await;
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.failures().await[0]["resolution"], "superseded");
    let stored = world.signup(signup).await;
    assert_eq!(
        (&stored["customerio_sync_failed"], &stored["customerio_synced"]),
        (&json!(false), &json!(true))
    );
    app.stop().await;
}

#[tokio::test]
async fn a_new_run_has_the_ladder_of_the_present_settings() {
    let world = World::new().await;
    let app = world.start().await;
    let (retried, restarted) = (world.failed_signup().await, world.failed_signup().await);
    app.stop().await;
    let world = world.with("RETRY_DELAYS", "200ms,300ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    world.act(&app, &format!("/{retried}/retry"), None).await;
    world.submit(&submitted(restarted)).await;
    for signup in [retried, restarted] {
        let job = wait_for("the end of the new run", || async {
            let again = world.job(signup, "initial").await?;
            (again["status"] == "failed" && again["run"] == 1).then_some(again)
        })
        .await;
        let attempts = (&job["max_attempts"], &job["attempt_count"], &job["failed_reason"]);
        assert_eq!(attempts, (&json!(2), &json!(2), &json!("exhausted")));
    }
    app.stop().await;
}
