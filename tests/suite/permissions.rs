//! The rights that docs/operations.md grants in RabbitMQ and PostgreSQL suffice.

use crate::support::{Service, World, authority, program, root, submitted, wait_for};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// A pattern that matches nothing.
const NOTHING: &str = "^$";
/// Type and routing key of a success.
const OUTCOME: &str = "sign_up.customerio_synced";

fn operations() -> String {
    std::fs::read_to_string(root().join("docs/operations.md")).expect("the document is there")
}

/// The code blocks of a language below a heading of the document.
fn code_blocks(document: &str, heading: &str, language: &str) -> String {
    let start = document.find(&format!("\n### {heading}\n")).expect("the heading");
    let section = &document[start + 5..];
    let section = section.split("\n### ").next().expect("a section");
    let blocks = section.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)).collect()
}

/// The patterns to configure, write and read that the document gives a user.
fn patterns(user: &str) -> [String; 3] {
    let commands = code_blocks(&operations(), "RabbitMQ permissions", "sh");
    let command = commands
        .split("rabbitmqctl set_permissions -p / ")
        .find_map(|command| command.strip_prefix(&format!("{user} ")))
        .expect("the user is in the document");
    let quoted: Vec<_> = command.split('\'').skip(1).step_by(2).map(str::to_owned).collect();
    quoted.try_into().expect("three patterns")
}

/// Creates a user with the rights of one in the document. Returns its AMQP URL.
async fn create_user(world: &World, documented: &str, patterns: &[String; 3]) -> String {
    let user = format!("{documented}-{}", world.vhost);
    world.permit(&user, "password", patterns.each_ref().map(String::as_str)).await;
    world.amqp_url_of(&user, "password")
}

/// Sends a request of an operator, which must succeed.
async fn act(world: &World, service: &Service, path: &str) {
    let url = service.url(&format!("/api/v1/signups/customerio{path}"));
    let response = world.http().post(url).send().await.expect("the service answers");
    assert!(response.status().is_success(), "{path}: {}", response.status());
}

/// What the service does, at least once: a success, a retry on a tier, a failure that is parked,
/// mirrored and retried by an operator, and a replay.
async fn everything_works(world: &World, service: &Service) {
    service.wait_until_ready().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["attempt_count"], 1, "it was retried on a tier");
    assert_eq!(outcomes.next().await.json()["signupId"], json!(signup));

    let failed = world.failed_signup().await;
    world.wait_for_failures(1).await;
    world.wait_for_depth("customerio-sync.failed", 1).await;
    act(world, service, &format!("/{failed}/retry")).await;
    world.wait_for_job(failed, "initial", "completed").await;
    world.wait_for_depth("customerio-sync.failed", 0).await;

    world.publish_event("signup.submitted", &json!({ "no": "event" })).await;
    let parked = wait_for("the unprocessable message to be mirrored", || async {
        world.failures().await.into_iter().find(|failure| failure["job_id"] == Value::Null)
    })
    .await;
    let id = parked["id"].as_str().expect("an id");
    act(world, service, &format!("/unprocessable/{id}/replay")).await;
    world.wait_for_failures(3).await;
}

/// The outcome of a job that another replica, here the test, publishes reaches the page.
async fn outcomes_of_other_replicas_are_pushed(world: &World, service: &Service) {
    let url = service.url("/api/v1/signups/customerio/ws").replace("http:", "ws:");
    let (mut frames, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
    // While it is bound, an outcome is never unroutable.
    let _listener = world.listen("signup.updates", "#").await;
    let frame = async {
        loop {
            let body = outcome().to_string();
            world.publish("signup.updates", OUTCOME, body.as_bytes(), Default::default()).await;
            let next = tokio::time::timeout(Duration::from_secs(1), frames.next()).await;
            if let Ok(Some(Ok(frame))) = next
                && frame.to_text().is_ok_and(|text| text.contains(OUTCOME))
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), frame).await.expect("a frame in time");
}

fn outcome() -> Value {
    json!({
        "type": OUTCOME,
        "id": Uuid::new_v4(),
        "time": "2025-02-18T12:00:00Z",
        "signupId": Uuid::new_v4(),
        "jobId": Uuid::new_v4(),
        "syncPhase": "initial",
        "contactId": "c-1",
        "attemptCount": 0,
        "manualRetry": false,
        "mock": false,
    })
}

#[tokio::test]
async fn the_documented_rights_in_rabbitmq_suffice_to_declare_and_run() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "500ms");
    let url = create_user(&world, "customerio-sync", &patterns("customerio-sync")).await;
    let service = world.serve_with(&[("AMQP_URL", url)]);
    everything_works(&world, &service).await;
    outcomes_of_other_replicas_are_pushed(&world, &service).await;
}

#[tokio::test]
async fn a_runner_without_configure_works_on_what_a_declarer_declared() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "500ms")
        .with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "1s");
    let declarer = "customerio-sync-declarer";
    let url = create_user(&world, declarer, &patterns(declarer)).await;
    let declared = program(&world.settings_with(&[("AMQP_URL", url)])).arg("topology").output();
    let declared = declared.expect("the program runs");
    assert!(declared.status.success(), "{}", String::from_utf8_lossy(&declared.stderr));

    let runner = patterns("customerio-sync-runner");
    let url = create_user(&world, "customerio-sync-runner", &runner).await;
    let declare = ("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "false".to_owned());
    let service = world.serve_with(&[("AMQP_URL", url), declare.clone()]);
    everything_works(&world, &service).await;
    outcomes_of_other_replicas_are_pushed(&world, &service).await;
    drop(service);

    let [_, write, read] = runner;
    let url = create_user(&world, "without-configure", &[NOTHING.to_owned(), write, read]).await;
    let service = world.serve_with(&[("AMQP_URL", url), declare]);
    service.wait_until_ready().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
}

#[tokio::test]
async fn the_documented_roles_of_postgresql_suffice() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "500ms");
    // Roles belong to the server, so each test has its own. The database is called the same.
    let name = &world.vhost;
    let grants = code_blocks(&operations(), "PostgreSQL roles", "sql");
    world.execute(&grants.replace("customerio_sync", name)).await;
    let url_of = |role: &str| {
        format!("postgres://{role}:change-me@{}/{name}", authority(&world.database_url))
    };
    let migrator = ("DATABASE_URL", url_of(&format!("{name}_migrator")));
    let migrated = program(&world.settings_with(&[migrator])).arg("migrate").output();
    let migrated = migrated.expect("the program runs");
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let service = world.serve_with(&[
        ("DATABASE_URL", url_of(name)),
        ("CUSTOMERIO_SYNC__DATABASE__MIGRATE", "false".to_owned()),
    ]);
    everything_works(&world, &service).await;
}
