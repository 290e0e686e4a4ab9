//! Calls that fail, and what each failure is called.

use crate::support::{World, arrival, contact, submitted, wait_for};
use customerio_sync::{
    customerio::{CustomerIo, Holder, Pushed},
    job::{Outcome, Work},
    ledger::{Ledger, Opened},
};
use futures_util::future::BoxFuture;
use serde_json::json;
use std::{collections::HashSet, sync::Arc, time::Duration};
use uuid::Uuid;

/// Submits one signup while `fault` is on, and tells how its first try ended.
async fn first_try(world: &World) -> (String, String, i64) {
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let tried = |job: &serde_json::Value| {
        job["error_type"] != serde_json::Value::Null && job["status"] != "processing"
    };
    let job =
        wait_for("the first try", || async { world.job(signup, "initial").await.filter(tried) })
            .await;
    let text = |field: &str| job[field].as_str().expect("a text").to_owned();
    (text("status"), text("error_type"), job["attempt_count"].as_i64().expect("a number"))
}

#[tokio::test]
async fn every_status_is_tried_again_or_parked_as_its_kind_says() {
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
    for (status, ends, error_type) in cases {
        world
            .fault(json!({ "kind": "status", "status": status, "calls": 1,
        "body": "<html>no</html>" }))
            .await;
        let attempts = i64::from(ends == "pending");
        assert_eq!(
            first_try(&world).await,
            (ends.to_owned(), error_type.to_owned(), attempts),
            "{status}"
        );
        // Refused credentials shut the gate; a call that goes through opens it.
        let signup = Uuid::new_v4();
        world.submit(&submitted(signup)).await;
        world.wait_for_job(signup, "initial", "completed").await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_refused_is_a_network_error() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("its address");
    let url = format!("http://{unused}");
    let world = World::new().await.with("RETRY_DELAYS", "1h").with("CUSTOMERIO_TRACK_URL", &url);
    let app = world.start().await;
    assert_eq!(first_try(&world).await, ("pending".to_owned(), "network".to_owned(), 1));
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
    assert_eq!(first_try(&world).await.1, "network");
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_a_network_error() {
    let world = World::new()
        .await
        .with("RETRY_DELAYS", "1h")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__TIMEOUT", "200ms");
    let app = world.start().await;
    world.fault(json!({ "kind": "endless", "calls": 1 })).await;
    assert_eq!(first_try(&world).await.1, "network");
    world.fault(json!({ "kind": "latency", "ms": 5000 })).await;
    assert_eq!(first_try(&world).await.1, "network");
    app.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_reset_is_tried_again_and_the_event_is_tracked_once() {
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

/// Jobs that are claimed and ready to be sent.
async fn ready_jobs(world: &World, signups: &[Uuid]) -> Vec<Work> {
    let ledger = Ledger::new(&world.config().database, 5).expect("a URL");
    ledger.migrate().await.expect("migrated");
    let arrivals: Vec<_> =
        signups.iter().map(|signup| arrival(&submitted(*signup), false)).collect();
    let opened = ledger.open(Uuid::new_v4(), &arrivals).await.expect("opened").opened;
    let work = |opened| match opened {
        Opened::Claimed(work) => *work,
        other => panic!("claimed, not {other:?}"),
    };
    opened.into_iter().map(work).collect()
}

fn client(world: &World) -> CustomerIo {
    let config = world.config();
    let client = CustomerIo::new(&config.customerio, config.gate, Arc::default())
        .expect("the settings are valid");
    client.budget().grant(900.0, tokio::time::Instant::now() + Duration::from_secs(3600));
    client
}

/// Loses no claim.
struct HoldsAll;

impl Holder for HoldsAll {
    fn still_held(&self, jobs: Vec<Uuid>) -> BoxFuture<'_, HashSet<Uuid>> {
        Box::pin(async move { HashSet::from_iter(jobs) })
    }
}

async fn outcomes(client: &CustomerIo, jobs: &[Work]) -> Vec<Outcome> {
    let pushed = client.push(jobs, &client.pass().await, &HoldsAll).await;
    let outcome = |pushed| match pushed {
        Pushed::Tried { attempt, .. } => attempt.outcome,
        other => panic!("tried, not {other:?}"),
    };
    pushed.into_iter().map(outcome).collect()
}

#[tokio::test]
async fn a_call_that_is_refused_whole_is_split_until_the_culprit_stands_alone() {
    let world = World::new().await;
    let signups: Vec<_> = (0..16).map(|_| Uuid::new_v4()).collect();
    let jobs = ready_jobs(&world, &signups).await;
    world
        .fault(json!({ "kind": "refuse", "identifier": contact(signups[11]), "whole": true }))
        .await;
    let client = client(&world);
    for (index, outcome) in outcomes(&client, &jobs).await.into_iter().enumerate() {
        assert_eq!(matches!(outcome, Outcome::Refused(_)), index == 11, "job {index}: {outcome:?}");
    }
    let statuses: Vec<_> =
        world.calls().await.iter().map(|call| call["status"].as_u64().expect("a status")).collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 400).count(),
        5,
        "16, 8, 4, 2 and 1 jobs: {statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        4,
        "8, 4, 2 and 1 jobs: {statuses:?}"
    );
}

#[tokio::test]
async fn jobs_that_are_ready_together_travel_in_as_few_calls_as_the_limits_allow() {
    let world = World::new().await;
    let signups: Vec<_> = (0..120).map(|_| Uuid::new_v4()).collect();
    let jobs = ready_jobs(&world, &signups).await;
    let client = client(&world);
    assert!(outcomes(&client, &jobs).await.iter().all(|outcome| *outcome == Outcome::Accepted));
    assert_eq!(world.calls().await.len(), 3, "100 operations a call, two a job");
    assert_eq!(world.events().await.len(), 120);
}

#[tokio::test]
async fn one_refused_item_does_not_touch_its_neighbours() {
    let world = World::new().await;
    world.start().await.stop().await;
    let signups: Vec<_> = (0..30).map(|_| Uuid::new_v4()).collect();
    let culprit = signups[17];
    world.fault(json!({ "kind": "refuse", "identifier": contact(culprit) })).await;
    for signup in &signups {
        world.submit(&submitted(*signup)).await;
    }
    let app = world.start().await;
    for signup in &signups {
        let expected = if *signup == culprit { "failed" } else { "completed" };
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
        // About 27 kB a job: 40 of them fit into no single call, and the simulator refuses a larger
        // one.
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
async fn without_credentials_every_call_succeeds_and_nobody_is_called() {
    let world = World::new().await.with("CUSTOMERIO_API_KEY", "");
    let mut service = world.spawn();
    service.wait_for_line("serving").await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.calls().await.len(), 0);
    assert!(service.terminate().await.success());
    assert_eq!(service.log().matches("mock mode").count(), 1, "it warns once");
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
async fn an_answer_with_bytes_that_no_text_column_takes_is_told_all_the_same() {
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
