//! Mock mode: it is visible, its jobs are marked, and they can be sent for real later.

use crate::support::{World, confirmed, program, submitted, wait_for};
use customerio_sync::{
    app::App,
    job::{SyncPhase, tracked_event_id},
    ledger::{BulkStep, Ledger, Selection},
};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

const EVENT_QUEUE: &str = "customerio-sync.signup-submitted";

fn with_credentials(world: World, site_id: &str, api_key: &str) -> World {
    world.with("CUSTOMERIO_SITE_ID", site_id).with("CUSTOMERIO_API_KEY", api_key)
}

/// A world whose service is in mock mode.
async fn mock_world() -> World {
    with_credentials(World::new().await, "", "")
}

/// The world with credentials, for the next start of the service.
fn live(world: World) -> World {
    with_credentials(world, "site", "key")
}

/// Completes the initial jobs of `count` signups in mock mode, and stops the service. Returns the
/// signups.
async fn complete_in_mock_mode(world: &World, count: usize) -> Vec<Uuid> {
    let app = world.start().await;
    let signups: Vec<_> = (0..count).map(|_| Uuid::new_v4()).collect();
    for signup in &signups {
        world.submit(&submitted(*signup)).await;
    }
    for signup in &signups {
        let job = world.wait_for_job(*signup, "initial", "completed").await;
        assert_eq!(job["mock"], true);
    }
    app.stop().await;
    assert_eq!(world.calls().await.len(), 0);
    signups
}

/// Runs `failures retry --mock` with further arguments, and returns the response.
fn retry_mock(app: &App, arguments: &[&str]) -> Value {
    let url = format!("http://{}", app.http_addr());
    let mut command = program(&[("CUSTOMERIO_SYNC_URL".to_owned(), url)]);
    command.args(["failures", "retry", "--mock", "--json"]).args(arguments);
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Starts a bulk retry over HTTP, and waits until it is completed.
async fn run_bulk_retry(world: &World, app: &App, selection: &Value) -> Value {
    let bulk = world.act(app, "/sync-failures/retry", Some(selection)).await;
    wait_for_bulk_retry(world, app, &bulk["id"]).await
}

async fn wait_for_bulk_retry(world: &World, app: &App, id: &Value) -> Value {
    let path = format!("/bulk-retries/{}", id.as_str().expect("an id"));
    wait_for("the bulk retry to be completed", || async {
        Some(world.read(app, &path).await).filter(|bulk| bulk["status"] == "completed")
    })
    .await
}

async fn eligible(world: &World, app: &App, selection: Value) -> Value {
    let path = "/sync-failures/retry?dryRun=true";
    world.act(app, path, Some(&selection)).await["eligible"].clone()
}

#[tokio::test]
async fn with_one_credential_nothing_is_consumed_and_the_other_is_named() {
    let mut world = World::new().await;
    // Declares the queues.
    world.start().await.stop().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    for (site_id, api_key, missing) in
        [("site", " \n", "CUSTOMERIO_API_KEY"), ("\t", "key", "CUSTOMERIO_SITE_ID")]
    {
        world = with_credentials(world, site_id, api_key);
        let app = world.start_waiting().await;
        let reason = world.wait_for_reason(&app, missing).await;
        assert!(reason.starts_with("Customer.io: "), "{reason}");
        let (status, problem) = world.api(&app, "POST", "/process", None).await;
        assert_eq!(status, 503);
        assert!(problem["detail"].to_string().contains(missing), "{problem}");
        let queue = world.queue(EVENT_QUEUE).await;
        assert_eq!((queue.consumer_count(), queue.message_count()), (0, 1), "it consumes nothing");
        app.stop().await;
    }
    assert_eq!(world.calls().await.len(), 0);
    assert_eq!(world.job(signup, "initial").await, None);

    let world = live(world);
    let app = world.start().await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!((&job["mock"], world.calls().await.len()), (&json!(false), 1));
    app.stop().await;
}

#[tokio::test]
async fn one_credential_is_enough_for_mock_mode_if_that_is_allowed() {
    let world = with_credentials(World::new().await, "site", "")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__ALLOW_MOCK", "true");
    complete_in_mock_mode(&world, 1).await;
}

#[tokio::test]
async fn mock_mode_is_visible_and_its_jobs_are_marked() {
    let world = mock_world().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let outcome = outcomes.next().await.json();
    assert_eq!(
        (&outcome["type"], &outcome["mock"]),
        (&json!("sign_up.customerio_synced"), &json!(true))
    );
    let job = world.wait_for_job(signup, "initial", "completed").await;
    let path = format!("/jobs/{}", job["id"].as_str().expect("an id"));
    assert_eq!(world.read(&app, &path).await["job"]["mock"], true);
    assert_eq!(world.audit("customerio_synced").await[0]["details"]["mock"], true);

    let stats = world.read(&app, "/stats").await;
    assert_eq!((&stats["mode"], &stats["mockCompleted"]), (&json!("mock"), &json!(1)));
    let (status, body) = world.get(&app, "/readyz").await;
    assert!(status == 200 && body.contains("mock"), "{body}");
    let (_, metrics) = world.get(&app, "/metrics").await;
    for expected in ["customerio_sync_mock_mode 1", "customerio_sync_call_duration_seconds_count 0"]
    {
        assert!(metrics.lines().any(|line| line == expected), "{expected} in {metrics}");
    }
    let mut calls = metrics.lines().filter(|line| line.starts_with("customerio_sync_calls_total"));
    assert!(calls.all(|line| line.ends_with(" 0")), "a call was counted: {metrics}");
    app.stop().await;
}

#[tokio::test]
async fn with_credentials_nothing_is_marked() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    world.submit(&submitted(Uuid::new_v4())).await;
    assert_eq!(outcomes.next().await.json()["mock"], false);
    world.failed_signup().await;
    assert_eq!(outcomes.next().await.json()["mock"], false);
    let stats = world.read(&app, "/stats").await;
    assert_eq!((&stats["mode"], &stats["mockCompleted"]), (&json!("live"), &json!(0)));
    let (_, metrics) = world.get(&app, "/metrics").await;
    assert!(metrics.lines().any(|line| line == "customerio_sync_mock_mode 0"), "{metrics}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_completed_in_mock_mode_are_sent_once_by_one_command() {
    let world = mock_world().await;
    let signups = complete_in_mock_mode(&world, 5).await;
    let world = live(world);
    let app = world.start().await;
    let failed = world.failed_signup().await;
    world.wait_for_failures(1).await;

    let dry_run = retry_mock(&app, &["--dry-run"]);
    assert_eq!((&dry_run["eligible"], &dry_run["notEligible"]), (&json!(5), &json!([])));
    assert_eq!(world.events().await.len(), 0, "a dry run sends nothing");

    let mut outcomes = world.listen("signup.updates", "sign_up.customerio_synced").await;
    let bulk = retry_mock(&app, &[]);
    assert_eq!((&bulk["eligible"], &bulk["selection"]), (&json!(5), &json!({ "mock": true })));
    for _ in &signups {
        let outcome = outcomes.next().await.json();
        assert_eq!((&outcome["mock"], &outcome["manualRetry"]), (&json!(false), &json!(true)));
    }
    assert_eq!(wait_for_bulk_retry(&world, &app, &bulk["id"]).await["retried"], 5);
    let mut sent: Vec<_> = world.events().await;
    sent.retain(|event| event["repeats"] == 0);
    let mut ids: Vec<_> = sent.iter().filter_map(|event| event["id"].as_str()).collect();
    ids.sort_unstable();
    let id = |signup: &Uuid| tracked_event_id(*signup, SyncPhase::Initial).to_string();
    let mut expected: Vec<_> = signups.iter().map(id).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected, "each event is sent once");
    for signup in &signups {
        let job = world.wait_for_job(*signup, "initial", "completed").await;
        let facts = (&job["mock"], &job["run"], &job["attempt_count"]);
        assert_eq!(facts, (&json!(false), &json!(1), &json!(0)));
        assert_eq!(world.signup(*signup).await["customerio_synced"], true);
    }

    let failures = world.failures().await;
    assert_eq!((failures.len(), &failures[0]["resolved_at"]), (1, &Value::Null));
    let job = world.job(failed, "initial").await.expect("the failed job");
    assert_eq!((&job["status"], &job["run"]), (&json!("failed"), &json!(0)), "it is unchanged");
    assert_eq!(world.read(&app, "/stats").await["mockCompleted"], 0);
    let audit = world.audit("customerio_synced").await;
    let marks: Vec<_> = audit.iter().map(|entry| entry["details"]["mock"] == true).collect();
    assert_eq!(marks, [[true; 5], [false; 5]].concat());
    assert_eq!(retry_mock(&app, &["--dry-run"])["eligible"], 0);
    app.stop().await;
}

#[tokio::test]
async fn filters_combine_with_mock_and_select_no_other_job() {
    let world = mock_world().await;
    let app = world.start().await;
    let (signup, other) = (Uuid::new_v4(), Uuid::new_v4());
    world.submit(&submitted(signup)).await;
    world.submit(&submitted(other)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_for_job(other, "initial", "completed").await;
    world.confirm(&confirmed(signup)).await;
    world.wait_for_job(signup, "enriched", "completed").await;
    app.stop().await;

    let world = live(world);
    let app = world.start().await;
    world.failed_signup().await;
    assert_eq!(eligible(&world, &app, json!({})).await, 1, "only the failure");
    assert_eq!(eligible(&world, &app, json!({ "mock": false })).await, 1);
    assert_eq!(eligible(&world, &app, json!({ "mock": true })).await, 3);
    let of_signup = json!({ "mock": true, "search": format!("{signup}@") });
    assert_eq!(eligible(&world, &app, of_signup).await, 2);
    let with_error = json!({ "mock": true, "errorType": "other" });
    assert_eq!(eligible(&world, &app, with_error).await, 0, "a completed job has no error");

    let enriched = json!({ "mock": true, "syncPhase": "enriched" });
    assert_eq!(run_bulk_retry(&world, &app, &enriched).await["retried"], 1);
    wait_for("the enriched job to be sent", || async {
        let job = world.wait_for_job(signup, "enriched", "completed").await;
        (job["mock"] == false).then_some(())
    })
    .await;
    for signup in [signup, other] {
        assert_eq!(world.job(signup, "initial").await.expect("the job")["mock"], true);
    }
    app.stop().await;
}

#[tokio::test]
async fn in_mock_mode_a_dry_run_counts_the_jobs_and_a_retry_is_refused() {
    let world = mock_world().await;
    let signups = complete_in_mock_mode(&world, 1).await;
    let app = world.start().await;
    let selection = json!({ "mock": true });
    assert_eq!(eligible(&world, &app, selection.clone()).await, 1);
    let (status, problem) = world.api(&app, "POST", "/sync-failures/retry", Some(&selection)).await;
    assert_eq!(status, 409);
    assert!(problem["detail"].to_string().contains("set CUSTOMERIO_SITE_ID"), "{problem}");
    assert_eq!(world.count("SELECT count(*) FROM bulk_retries").await, 0);
    let job = world.job(signups[0], "initial").await.expect("the job");
    assert_eq!((&job["mock"], &job["run"]), (&json!(true), &json!(0)));
    app.stop().await;
}

fn ledger(world: &World) -> Ledger {
    Ledger::new(&world.config().database, &world.config().tls, 5).expect("a URL")
}

fn mock_jobs() -> Selection {
    Selection { mock: true, ..Selection::default() }
}

#[tokio::test]
async fn a_crash_after_the_restart_of_a_mock_job_loses_nothing() {
    let world = mock_world()
        .await
        .with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__RECOVERY__OVERDUE_AFTER", "500ms");
    let signup = complete_in_mock_mode(&world, 1).await[0];
    let ledger = ledger(&world);
    ledger.create_bulk_retry(&mock_jobs(), "ann").await.expect("created");
    // The process ends before it publishes the message of the restarted job.
    let step = ledger.bulk_step(10, Duration::ZERO).await.expect("a step");
    assert!(matches!(&step, BulkStep::Restarted(jobs) if jobs.len() == 1), "{step:?}");
    let job = world.job(signup, "initial").await.expect("the job");
    assert_eq!((&job["status"], &job["mock"]), (&json!("pending"), &json!(false)));
    let synced = world.signup(signup).await["customerio_synced"].clone();
    assert_eq!(synced, false, "the person is not in Customer.io");

    let world = live(world);
    let app = world.start().await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!((&job["mock"], &job["run"]), (&json!(false), &json!(1)));
    assert_eq!(world.events().await.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn the_previous_release_takes_no_step_of_a_bulk_retry_of_mock_jobs() {
    let world = mock_world().await;
    complete_in_mock_mode(&world, 1).await;
    let ledger = ledger(&world);
    let selection = Selection { sync_phase: Some(SyncPhase::Initial), ..mock_jobs() };
    let created = ledger.create_bulk_retry(&selection, "ann").await.expect("created");
    assert_eq!(created.selection, selection);
    let due =
        "SELECT count(*) FROM bulk_retries WHERE status = 'running' AND next_step_at <= now()";
    assert_eq!(world.count(due).await, 0, "the previous release finds it due");
    let readable =
        r#"SELECT count(*) FROM bulk_retries WHERE selection = '{"syncPhase": "initial"}'"#;
    assert_eq!(world.count(readable).await, 1, "the previous release refuses unknown keys");
    // This release takes one step that restarts the job, and one that finds none left.
    for expected in [1, 0] {
        let step = ledger.bulk_step(10, Duration::ZERO).await.expect("a step");
        assert!(matches!(&step, BulkStep::Restarted(jobs) if jobs.len() == expected), "{step:?}");
        assert_eq!(world.count(due).await, 0);
    }
    assert_eq!(ledger.bulk_step(10, Duration::ZERO).await.expect("a step"), BulkStep::Idle);
}
