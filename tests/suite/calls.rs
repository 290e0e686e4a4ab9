//! Calls to Customer.io: how failures are classified, and how jobs are batched into calls.

use crate::support::{World, claimed_jobs, client, contact, free_addr, push, submitted, wait_for};
use customerio_sync::job::Outcome;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

/// Submits a signup, waits for the first attempt of its job, and returns the job's status, error
/// type and attempt count.
async fn first_attempt(world: &World) -> (String, String, i64) {
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let has_failed = |job: &serde_json::Value| {
        job["error_type"] != serde_json::Value::Null && job["status"] != "processing"
    };
    let job = wait_for("the first attempt", || async {
        world.job(signup, "initial").await.filter(has_failed)
    })
    .await;
    let text = |field: &str| job[field].as_str().expect("a text").to_owned();
    (text("status"), text("error_type"), job["attempt_count"].as_i64().expect("a number"))
}

#[tokio::test]
async fn each_http_status_leads_to_a_retry_or_to_a_failure() {
    let world = World::new().await.with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    let cases = [
        (429, "pending", "rate_limit"),
        (500, "pending", "server_error"),
        (502, "pending", "server_error"),
        (503, "pending", "server_error"),
        (504, "pending", "server_error"),
        (408, "pending", "other"),
        (400, "failed", "other"),
        (401, "failed", "other"),
        (403, "failed", "other"),
        (404, "failed", "other"),
        (302, "failed", "other"),
    ];
    for (http_status, job_status, error_type) in cases {
        let body = "<html>no</html>";
        world
            .fault(json!({ "kind": "status", "status": http_status, "calls": 1, "body": body }))
            .await;
        let attempts = i64::from(job_status == "pending");
        assert_eq!(
            first_attempt(&world).await,
            (job_status.to_owned(), error_type.to_owned(), attempts),
            "{http_status}"
        );
        // Rejected credentials open the circuit breaker. A successful call closes it.
        let signup = Uuid::new_v4();
        world.submit(&submitted(signup)).await;
        world.wait_for_job(signup, "initial", "completed").await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_refused_connection_is_a_network_error() {
    let url = format!("http://{}", free_addr());
    let world = World::new().await.with("RETRY_DELAYS", "1h").with("CUSTOMERIO_TRACK_URL", &url);
    let app = world.start().await;
    assert_eq!(first_attempt(&world).await, ("pending".to_owned(), "network".to_owned(), 1));
    let row = &world.rows("SELECT error_message FROM sync_attempts").await[0];
    let message: String = sqlx::Row::get(row, "error_message");
    assert!(
        message.starts_with("no connection to Customer.io") && message.contains("refused"),
        "{message}"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_a_network_error() {
    let url = "http://track.customerio.invalid";
    let world = World::new().await.with("RETRY_DELAYS", "1h").with("CUSTOMERIO_TRACK_URL", url);
    let app = world.start().await;
    assert_eq!(first_attempt(&world).await.1, "network");
    app.stop().await;
}

#[tokio::test]
async fn a_response_that_takes_too_long_is_a_network_error() {
    let world = World::new()
        .await
        .with("RETRY_DELAYS", "1h")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__TIMEOUT", "200ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "endless", "calls": 1 })).await;
    assert_eq!(first_attempt(&world).await.1, "network");
    world.fault(json!({ "kind": "latency", "ms": 5000 })).await;
    assert_eq!(first_attempt(&world).await.1, "network");
    app.stop().await;
}

#[tokio::test]
async fn a_reset_connection_is_retried_and_the_event_is_tracked_once() {
    let world = World::new().await;
    let app = world.start().await;
    world.fault(json!({ "kind": "reset", "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["attempt_count"], 1);
    assert_eq!(world.events().await.len(), 1);
    app.stop().await;
}

fn submissions(signups: &[Uuid]) -> Vec<serde_json::Value> {
    signups.iter().copied().map(submitted).collect()
}

#[tokio::test]
async fn a_rejected_batch_is_split_until_the_bad_job_is_isolated() {
    let world = World::new().await;
    let signups: Vec<_> = (0..16).map(|_| Uuid::new_v4()).collect();
    let jobs = claimed_jobs(&world, &submissions(&signups)).await;
    world
        .fault(json!({ "kind": "refuse", "identifier": contact(signups[11]), "whole": true }))
        .await;
    let client = client(&world);
    for (index, outcome) in push(&client, &jobs).await.into_iter().enumerate() {
        assert_eq!(matches!(outcome, Outcome::Refused(_)), index == 11, "job {index}: {outcome:?}");
    }
    let statuses: Vec<_> =
        world.calls().await.iter().map(|call| call["status"].as_u64().expect("a status")).collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 400).count(),
        5,
        "calls with 16, 8, 4, 2 and 1 jobs are rejected: {statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        4,
        "calls with 8, 4, 2 and 1 jobs are accepted: {statuses:?}"
    );
}

#[tokio::test]
async fn jobs_are_sent_in_as_few_calls_as_the_limits_allow() {
    let world = World::new().await;
    let signups: Vec<_> = (0..120).map(|_| Uuid::new_v4()).collect();
    let jobs = claimed_jobs(&world, &submissions(&signups)).await;
    let client = client(&world);
    assert!(push(&client, &jobs).await.iter().all(|outcome| *outcome == Outcome::Accepted));
    assert_eq!(world.calls().await.len(), 3, "100 operations per call, two per job");
    assert_eq!(world.events().await.len(), 120);
}

#[tokio::test]
async fn a_rejected_job_does_not_affect_the_others_in_its_batch() {
    let world = World::new().await;
    world.start().await.stop().await;
    let signups: Vec<_> = (0..30).map(|_| Uuid::new_v4()).collect();
    let rejected = signups[17];
    world.fault(json!({ "kind": "refuse", "identifier": contact(rejected) })).await;
    for signup in &signups {
        world.submit(&submitted(*signup)).await;
    }
    let app = world.start().await;
    for signup in &signups {
        let expected = if *signup == rejected { "failed" } else { "completed" };
        world.wait_for_job(*signup, "initial", expected).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn large_jobs_are_split_into_calls_of_the_allowed_size() {
    let world = World::new().await;
    world.start().await.stop().await;
    let signups: Vec<_> = (0..40).map(|_| Uuid::new_v4()).collect();
    for signup in &signups {
        let mut event = submitted(*signup);
        // About 27 kB per job. All 40 exceed the size of one call, and the simulator rejects a
        // larger call.
        event["attributes"] = (0..28).map(|n| (format!("a{n}"), json!("x".repeat(950)))).collect();
        world.submit(&event).await;
    }
    let app = world.start().await;
    for signup in &signups {
        world.wait_for_job(*signup, "initial", "completed").await;
    }
    assert!(world.calls().await.iter().all(|call| call["status"] == 200));
    app.stop().await;
}

#[tokio::test]
async fn without_credentials_jobs_complete_without_a_call() {
    let world = World::new().await.with("CUSTOMERIO_SITE_ID", "").with("CUSTOMERIO_API_KEY", "");
    let mut service = world.spawn();
    service.wait_for_line("the service is running").await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.calls().await.len(), 0);
    assert!(service.terminate().await.success());
    assert_eq!(service.log().matches("mock mode").count(), 1, "mock mode is logged once");
}

#[tokio::test]
async fn calls_stay_under_the_configured_rate() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "10")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2");
    let app = world.start().await;
    let signups: Vec<_> = (0..25).map(|_| Uuid::new_v4()).collect();
    for signup in &signups {
        world.submit(&submitted(*signup)).await;
    }
    for signup in &signups {
        world.wait_for_job(*signup, "initial", "completed").await;
    }
    let times = world.call_times().await;
    let took = (times[24] - times[0]).to_std().expect("in order");
    assert!(took >= Duration::from_millis(2250), "25 calls took {took:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_nul_character_in_a_response_is_replaced_in_the_error_message() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world
        .fault(json!({ "kind": "status", "status": 422, "calls": 1, "body": "no\u{0}good" }))
        .await;
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "failed").await;
    assert_eq!(job["error_message"], "Customer.io answered 422: no\u{fffd}good");
    app.stop().await;
}
