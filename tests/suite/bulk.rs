//! Operations on many failures: bulk retries, dismissals, and unprocessable messages.

use crate::support::{World, publish_on, submitted, wait_for};
use customerio_sync::app::App;
use futures_util::future::join_all;
use lapin::BasicProperties;
use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

/// 60 failed jobs: 40 of an outage and 20 that were refused. The events of the first 10 are a week
/// old.
const SEED: &str = "
    INSERT INTO signups (id, operator_id, email, customerio_sync_failed, customerio_sync_error)
    SELECT gen_random_uuid(), 'op', 'person' || n || '@example.com', true, 'x'
    FROM generate_series(1, 60) AS n;
    INSERT INTO signup_customerio_sync_jobs
        (id, signup_id, sync_phase, status, attempt_count, error_type, error_message, failed_at,
        failed_reason, occurred_at)
    SELECT gen_random_uuid(), id, 'initial', 'failed', 0,
        CASE WHEN n <= 40 THEN 'server_error' ELSE 'other' END,
        CASE WHEN n <= 40 THEN 'Customer.io answered 503: ' || n
            ELSE 'Customer.io refused the identify: ' || n END,
        now(), 'permanent',
        CASE WHEN n <= 10 THEN now() - interval '7 days' ELSE now() END
    FROM (SELECT id, substring(email FROM '[0-9]+')::int AS n FROM signups) AS numbered;
";

/// The signature of the jobs that failed in the outage.
const OUTAGE_SIGNATURE: &str = "Customer.io answered 503: {n}";

async fn seeded(jobs_per_second: &str) -> (World, App) {
    let world =
        World::new().await.with("CUSTOMERIO_SYNC__BULK_RETRY__JOBS_PER_SECOND", jobs_per_second);
    let app = world.start().await;
    world.pool.execute(SEED).await.expect("seeded");
    (world, app)
}

async fn wait_for_bulk(world: &World, app: &App, id: &Value, status: &str) -> Value {
    let path = format!("/bulk-retries/{}", id.as_str().expect("an id"));
    let what = format!("the bulk retry to be {status}");
    wait_for(&what, || async {
        Some(world.read(app, &path).await).filter(|bulk| bulk["status"] == status)
    })
    .await
}

async fn completed(world: &World) -> i64 {
    world.count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'").await
}

async fn wait_for_completed(world: &World, count: i64) {
    wait_for(&format!("{count} completed jobs"), || async {
        (completed(world).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_counts_the_eligible_jobs_and_explains_the_others() {
    let (world, app) = seeded("500").await;
    let statements = "
        UPDATE signup_customerio_sync_jobs
        SET status = 'pending', failed_at = NULL, failed_reason = NULL
        WHERE error_message LIKE '%503: 40';
        UPDATE signup_customerio_sync_jobs
        SET dismissed_at = now(), dismissed_reason = 'x'
        WHERE error_message LIKE '%503: 39';
    ";
    world.pool.execute(statements).await.expect("changed");
    let selection = json!({ "errorType": "server_error" });
    let result = world.act(&app, "/sync-failures/retry?dryRun=true", Some(&selection)).await;
    assert_eq!((&result["dryRun"], &result["eligible"]), (&json!(true), &json!(38)));
    assert_eq!(result["olderThan72Hours"], 10);
    let reasons: Vec<_> = result["notEligible"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (&one["reason"], &one["count"]))
        .collect();
    assert_eq!(reasons, [(&json!("dismissed"), &json!(1)), (&json!("waiting"), &json!(1))]);
    assert_eq!(world.count("SELECT count(*) FROM bulk_retries").await, 0);
    assert_eq!(completed(&world).await, 0, "no job was retried");
    app.stop().await;
}

#[tokio::test]
async fn a_canary_and_then_its_whole_group_are_retried_each_job_once() {
    let (world, app) = seeded("500").await;
    let groups = world.read(&app, "/failure-groups").await;
    assert_eq!(
        (&groups["items"][0]["signature"], &groups["items"][0]["count"]),
        (&json!(OUTAGE_SIGNATURE), &json!(40))
    );
    let canary = json!({ "jobIds": [groups["items"][0]["sampleJobId"]] });
    let canary = world.act(&app, "/sync-failures/retry", Some(&canary)).await;
    assert_eq!(wait_for_bulk(&world, &app, &canary["id"], "completed").await["retried"], 1);
    wait_for_completed(&world, 1).await;

    // Two operators press the button at the same time.
    let group = json!({ "signature": OUTAGE_SIGNATURE, "errorType": "server_error" });
    let (one, other) = tokio::join!(
        world.act(&app, "/sync-failures/retry", Some(&group)),
        world.act(&app, "/sync-failures/retry", Some(&group)),
    );
    assert_eq!(one["status"], "running");
    let one = wait_for_bulk(&world, &app, &one["id"], "completed").await;
    let other = wait_for_bulk(&world, &app, &other["id"], "completed").await;
    let retried =
        one["retried"].as_i64().expect("a count") + other["retried"].as_i64().expect("a count");
    assert_eq!(retried, 39, "{one} {other}");
    wait_for_completed(&world, 40).await;
    assert_eq!(world.count("SELECT max(run)::int8 FROM signup_customerio_sync_jobs").await, 1);
    assert!(
        world.events().await.iter().all(|event| event["repeats"] == 0),
        "no event was sent twice"
    );
    assert_eq!(world.audit("customerio_manual_retry").await.len(), 40);
    assert_eq!(
        world.read(&app, "/sync-failures").await["total"],
        20,
        "the other group is unchanged"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_bulk_retry_respects_its_rate_and_can_be_cancelled() {
    let (world, app) = seeded("5").await;
    let bulk = world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    assert_eq!((&bulk["eligible"], &bulk["actor"]), (&json!(60), &json!("local")));
    let path = format!("/bulk-retries/{}", bulk["id"].as_str().expect("an id"));
    let seen = wait_for("a few retried jobs", || async {
        Some(world.read(&app, &path).await).filter(|bulk| bulk["retried"].as_i64() >= Some(4))
    })
    .await;
    let cancelled = world.act(&app, &format!("{path}/cancel"), None).await;
    assert_eq!(
        (&cancelled["status"], &cancelled["cancelledBy"]),
        (&json!("cancelled"), &json!("local"))
    );
    let time = |value: &Value| {
        value
            .as_str()
            .and_then(|text| text.parse::<chrono::DateTime<chrono::Utc>>().ok())
            .expect("a time")
    };
    let took = (time(&seen["updatedAt"]) - time(&seen["createdAt"])).num_milliseconds();
    assert!(took >= 600, "four jobs at five per second took {took} ms");
    let (status, problem) = world.api(&app, "POST", &format!("{path}/cancel"), None).await;
    assert!(
        status == 409 && problem["detail"].to_string().contains("already cancelled"),
        "{problem}"
    );
    assert_eq!(world.read(&app, "/bulk-retries").await["items"][0]["status"], "cancelled");
    app.stop().await;
}

#[tokio::test]
async fn a_bulk_retry_continues_after_a_restart() {
    let (world, app) = seeded("20").await;
    let bulk =
        world.act(&app, "/sync-failures/retry", Some(&json!({ "errorType": "other" }))).await;
    let path = format!("/bulk-retries/{}", bulk["id"].as_str().expect("an id"));
    wait_for("the first retried job", || async {
        Some(world.read(&app, &path).await).filter(|bulk| bulk["retried"].as_i64() > Some(0))
    })
    .await;
    app.stop().await;
    let left = world
        .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'")
        .await;
    assert!(left > 40, "the service stopped before the bulk retry completed");
    let app = world.start().await;
    let bulk = wait_for_bulk(&world, &app, &bulk["id"], "completed").await;
    assert_eq!(bulk["retried"], 20);
    wait_for_completed(&world, 20).await;
    app.stop().await;
}

#[tokio::test]
async fn a_job_that_fails_again_is_not_retried_by_the_same_bulk_retry() {
    let (world, app) = seeded("500").await;
    world.fault(json!({ "kind": "status", "status": 422 })).await;
    let bulk =
        world.act(&app, "/sync-failures/retry", Some(&json!({ "errorType": "other" }))).await;
    let bulk = wait_for_bulk(&world, &app, &bulk["id"], "completed").await;
    assert_eq!(bulk["retried"], 20);
    world.wait_for_failures(20).await;
    assert_eq!(world.count("SELECT max(run)::int8 FROM signup_customerio_sync_jobs").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_dismissed_failure_leaves_the_list_and_can_be_retried_manually() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world.wait_for_failures(1).await;
    let selection = json!({ "search": "example.com", "reason": "a test account" });
    let dry_run = world.act(&app, "/sync-failures/dismiss?dryRun=true", Some(&selection)).await;
    assert_eq!(dry_run["eligible"], 1);
    let first = world.act(&app, "/sync-failures/dismiss", Some(&selection)).await;
    assert_eq!((&first["dismissed"], &first["status"]), (&json!(1), &json!("completed")));
    let second = world.act(&app, "/sync-failures/dismiss", Some(&selection)).await;
    assert_eq!((&second["dismissed"], &second["status"]), (&json!(0), &json!("completed")));
    assert_eq!(world.read(&app, "/sync-failures").await["total"], 0);
    assert_eq!(world.read(&app, "/failure-groups").await["items"], json!([]));
    let stats = world.read(&app, "/stats").await;
    assert_eq!((&stats["openFailures"], &stats["byStatus"]["failed"]), (&json!(0), &json!(1)));
    assert_eq!(world.failures().await[0]["resolution"], "dismissed");
    let audit = world.audit("customerio_dismiss").await;
    assert_eq!(audit[0]["details"]["reason"], "a test account");
    assert_eq!(audit[0]["details"]["bulkActionId"], first["id"]);

    world.act(&app, &format!("/{signup}/retry"), None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["dismissed_at"], Value::Null);
    app.stop().await;
}

#[tokio::test]
async fn a_failure_dismissed_before_it_is_mirrored_is_mirrored_as_dismissed() {
    let world = World::new().await;
    let app = world.start().await;
    world.failed_signup().await;
    world.wait_for_failures(1).await;
    // Simulates a late mirror: the row is deleted, and the message arrives again.
    world.act(&app, "/sync-failures/dismiss", Some(&json!({ "reason": "x" }))).await;
    world.pool.execute("DELETE FROM sync_failures").await.expect("deleted");
    let parked = world.next("customerio-sync.failed").await;
    world.publish("", "customerio-sync.failed.mirror", &parked.body, parked.properties).await;
    let mirrored = world.wait_for_failures(1).await;
    assert_eq!(mirrored[0]["resolution"], "dismissed");
    app.stop().await;
}

/// Publishes an event without an e-mail address and a message that is not UTF-8, and waits until
/// both are mirrored. Returns the body of the event.
async fn publish_unprocessable(world: &World) -> String {
    let mut event = submitted(Uuid::new_v4());
    event["customer"] = json!({ "first_name": "Ann" });
    let event = event.to_string();
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id("m-1".into());
    world.publish("signup.events", "signup.submitted", event.as_bytes(), properties).await;
    world
        .publish("signup.events", "signup.submitted", b"\xff\xfe", BasicProperties::default())
        .await;
    world.wait_for_failures(2).await;
    event
}

/// Returns the first unprocessable message in the list that `is_wanted`.
async fn find_unprocessable(
    world: &World,
    app: &App,
    is_wanted: impl Fn(&Value) -> bool,
) -> Option<Value> {
    let list = world.read(app, "/unprocessable").await;
    list["items"].as_array().expect("items").iter().find(|item| is_wanted(item)).cloned()
}

#[tokio::test]
async fn an_unprocessable_message_is_listed_with_its_bytes_and_diagnosis() {
    let world = World::new().await;
    let app = world.start().await;
    let event = publish_unprocessable(&world).await;
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 2);
    let item = find_unprocessable(&world, &app, |item| item["body"].is_string()).await;
    let item = item.expect("the event");
    assert_eq!(
        (&item["reason"], &item["path"]),
        (&json!("unprocessable"), &json!("customer.email"))
    );
    let message = item["errorMessage"].as_str().expect("a text");
    assert!(message.starts_with("customer.email: missing field `email`"), "{item}");
    assert_eq!(
        (&item["exchange"], &item["routingKey"]),
        (&json!("signup.events"), &json!("signup.submitted"))
    );
    assert_eq!(item["body"], event);
    assert_eq!(item["verdict"]["cause"], "data");
    let path = format!("/unprocessable/{}", item["id"].as_str().expect("an id"));
    assert_eq!(world.read(&app, &path).await["body"], event);

    let not_text = find_unprocessable(&world, &app, |item| !item["body"].is_string()).await;
    assert_eq!(not_text.expect("the other message")["bodyBase64"], "//4=");
    app.stop().await;
}

#[tokio::test]
async fn an_unprocessable_message_can_be_replayed_and_dismissed() {
    let world = World::new().await;
    let app = world.start().await;
    let event = publish_unprocessable(&world).await;
    let item = find_unprocessable(&world, &app, |item| item["body"] == event).await;
    let item = item.expect("the event");

    // The event is still invalid: its failure is resolved, and a new failure replaces it.
    let path = format!("/unprocessable/{}", item["id"].as_str().expect("an id"));
    world.act(&app, &format!("{path}/replay"), None).await;
    let is_replayed = |other: &Value| other["body"] == event && other["id"] != item["id"];
    let replayed = wait_for("the replayed message to come back", || {
        find_unprocessable(&world, &app, is_replayed)
    })
    .await;
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 2);
    assert_eq!(
        (&replayed["exchange"], &replayed["routingKey"]),
        (&item["exchange"], &item["routingKey"]),
        "a replay keeps the origin of the message"
    );
    assert_eq!(world.audit("customerio_replay").await[0]["details"]["failureId"], item["id"]);
    assert_eq!(world.api(&app, "POST", &format!("{path}/replay"), None).await.0, 404);

    let path = format!("/unprocessable/{}", replayed["id"].as_str().expect("an id"));
    let reason = json!({ "reason": "sent again by its publisher" });
    world.act(&app, &format!("{path}/dismiss"), Some(&reason)).await;
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 1);
    app.stop().await;
}

#[tokio::test]
async fn a_replayed_message_that_is_now_valid_becomes_a_job() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    // An older version of the service rejected the event.
    let sql = "
        INSERT INTO sync_failures
            (message_id, reason, error_message, headers, content_type, body, original_exchange,
            original_routing_key, failed_at)
        VALUES ('unprocessable:1', 'unprocessable', '$: x',
            '{\"x-original-message-id\": \"m-7\"}', 'application/json', $1, 'signup.events',
            'signup.submitted', now())";
    let mut event = submitted(signup);
    event.as_object_mut().expect("an object").remove("event_id");
    sqlx::query(sql)
        .bind(event.to_string().into_bytes())
        .execute(&world.pool)
        .await
        .expect("a failure");
    let id = world.read(&app, "/unprocessable").await["items"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    world.act(&app, &format!("/unprocessable/{id}/replay"), None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["event_id"], "m-7", "the message keeps its id");
    assert_eq!(world.failures().await[0]["resolution"], "replayed");
    app.stop().await;
}

#[tokio::test]
async fn live_traffic_goes_before_bulk_retries_at_the_rate_limit() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "20")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2");
    let app = world.start().await;
    world.pool.execute(SEED).await.expect("seeded");
    // Published together, so that they arrive much faster than the rate limit allows calls.
    let channel = world.channel().await;
    let bodies: Vec<_> = (0..120).map(|_| submitted(Uuid::new_v4()).to_string()).collect();
    join_all(bodies.iter().map(|body| {
        let properties = BasicProperties::default();
        publish_on(&channel, "signup.events", "signup.submitted", body.as_bytes(), properties)
    }))
    .await;
    let waiting = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'";
    wait_for("jobs to wait for the rate limit", || async {
        (world.count(waiting).await > 40).then_some(())
    })
    .await;
    let bulk =
        world.act(&app, "/sync-failures/retry", Some(&json!({ "errorType": "other" }))).await;
    let live = "
        SELECT count(*) FROM signup_customerio_sync_jobs
        WHERE status = 'completed' AND NOT manual_retry";
    wait_for("the live traffic to complete", || async {
        (world.count(live).await == 120).then_some(())
    })
    .await;
    let started =
        world.count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE manual_retry").await;
    assert!(started <= 10, "{started} of 20 retries started before the live traffic completed");
    wait_for_bulk(&world, &app, &bulk["id"], "completed").await;
    wait_for_completed(&world, 140).await;
    app.stop().await;
}
