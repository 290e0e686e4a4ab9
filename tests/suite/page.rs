//! The operators' page in headless Chromium. The checks are in `tests/page/`.

use crate::support::{World, root, submitted};
use customerio_sync::app::App;
use lapin::BasicProperties;
use serde_json::json;
use sqlx::Executor;
use std::{path::PathBuf, process::Command};
use uuid::Uuid;

/// Six jobs that failed today: three with server errors, on events of last week, and three that
/// Customer.io refused.
const SEED: &str = "
    INSERT INTO signups (
        id, operator_id, email, first_name, last_name, customerio_sync_failed,
        customerio_sync_error
    )
    SELECT gen_random_uuid(), 'op', 'person' || n || '@example.com', 'First' || n, 'Last', true, 'x'
    FROM generate_series(1, 6) AS n;
    INSERT INTO signup_customerio_sync_jobs (
        id, signup_id, sync_phase, status, attempt_count, last_attempt_at, error_type,
        error_message, failed_at, failed_reason, occurred_at
    )
    SELECT gen_random_uuid(), id, 'initial', 'failed',
        CASE WHEN n <= 3 THEN 5 ELSE 0 END,
        now() - n * interval '1 minute',
        CASE WHEN n <= 3 THEN 'server_error' ELSE 'other' END,
        CASE
            WHEN n <= 3 THEN 'Customer.io answered 503: ' || n
            ELSE 'Customer.io refused the identify: ' || n
        END,
        now(), 'permanent',
        CASE WHEN n <= 3 THEN now() - interval '7 days' ELSE now() END
    FROM (SELECT id, substring(email FROM '[0-9]+')::int AS n FROM signups) AS numbered;
";

async fn start_seeded(world: World) -> (World, App) {
    let app = world.start().await;
    world.pool.execute(SEED).await.expect("seeded");
    (world, app)
}

/// Runs a script of `tests/page/` against the service.
async fn run(app: &App, script: &str) {
    let required = |variable: &str| {
        std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set; run the tests with `./dev test`"))
    };
    let mut node = Command::new("node");
    node.arg(root().join("tests/page").join(script));
    node.env("CLIENTS_DIR", PathBuf::from(required("CLIENTS_DIR")));
    node.env("CHROMIUM", required("CHROMIUM"))
        .env("SERVICE_URL", format!("http://{}", app.http_addr()));
    let output = tokio::task::spawn_blocking(move || node.output())
        .await
        .expect("the task ends")
        .expect("node starts");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_found_explained_and_fixed_with_the_keyboard() {
    let (world, app) = start_seeded(World::new().await).await;
    run(&app, "list.mjs").await;
    assert_eq!(world.audit("customerio_reveal").await.len(), 1);
    assert_eq!(world.audit("customerio_manual_retry").await.len(), 1);
    assert_eq!(world.audit("customerio_dismiss").await[0]["details"]["reason"], "a test account");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_groups_are_retried_in_bulk_and_the_page_updates_live() {
    let (world, app) = start_seeded(World::new().await).await;
    let mut event = submitted(Uuid::new_v4());
    event["customer"] = json!({ "id": "no-address" });
    world
        .publish(
            "signup.events",
            "signup.submitted",
            event.to_string().as_bytes(),
            BasicProperties::default(),
        )
        .await;
    world.wait_for_failures(1).await;
    run(&app, "bulk.mjs").await;
    assert_eq!(
        world.audit("customerio_dismiss").await[0]["details"]["reason"],
        "published again by its publisher"
    );
    assert_eq!(
        world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'")
            .await,
        5
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_renders_in_every_theme_and_width_and_for_a_viewer() {
    let world = World::new()
        .await
        .with("ADMIN_TOKENS", "olga:operator:token-of-an-operator,vera:viewer:token-of-a-viewer");
    let (world, app) = start_seeded(world).await;
    run(&app, "looks.mjs").await;
    assert!(world.audit("customerio_manual_retry").await.is_empty(), "a viewer's keys do nothing");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_mock_mode_and_marks_its_jobs() {
    let world = World::new().await.with("CUSTOMERIO_SITE_ID", "").with("CUSTOMERIO_API_KEY", "");
    let (world, app) = start_seeded(world).await;
    run(&app, "mock.mjs").await;
    assert_eq!(world.calls().await.len(), 0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_closes_the_breaker_on_the_page() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__BREAKER__PROBE_AFTER", "1h")
        .with("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "1h");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 401, "calls": 1 })).await;
    let refused = Uuid::new_v4();
    world.submit(&submitted(refused)).await;
    world.wait_for_job(refused, "initial", "failed").await;
    let waiting = Uuid::new_v4();
    world.submit(&submitted(waiting)).await;
    run(&app, "breaker.mjs").await;
    world.wait_for_job(waiting, "initial", "completed").await;
    assert_eq!(world.audit("customerio_breaker_closed").await.len(), 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_headline_claims_no_more_than_is_known() {
    let world = World::new().await;
    let app = world.start().await;
    for _ in 0..3 {
        let signup = Uuid::new_v4();
        world.submit(&submitted(signup)).await;
        world.wait_for_job(signup, "initial", "completed").await;
    }
    world.wait_until_all_queues_are_empty().await;
    run(&app, "headline.mjs").await;
    app.stop().await;
}
