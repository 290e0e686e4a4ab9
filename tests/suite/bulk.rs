//! Many failures at once: bulk retries, dismissals, and messages that could not be understood.

use crate::support::{World, publish_on, submitted, wait_for};
use customerio_sync::app::App;
use lapin::BasicProperties;
use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

/// 60 failed jobs: 40 of an outage, 20 refused; the events of the first 10 are a week old.
const SEED: &str = "
    INSERT INTO signups (id, operator_id, email, customerio_sync_failed, customerio_sync_error)
    SELECT gen_random_uuid(), 'op', 'person' || n || '@example.com', true, 'x' FROM \
    generate_series(1, 60) AS n;
    INSERT INTO signup_customerio_sync_jobs
        (id, signup_id, sync_phase, status, attempt_count, error_type, error_message, failed_at, \
    failed_reason, occurred_at)
    SELECT gen_random_uuid(), id, 'initial', 'failed', 0,
        CASE WHEN n <= 40 THEN 'server_error' ELSE 'other' END,
        CASE WHEN n <= 40 THEN 'Customer.io answered 503: ' || n ELSE 'Customer.io refused the \
    identify: ' || n END,
        now(), 'permanent', CASE WHEN n <= 10 THEN now() - interval '7 days' ELSE now() END
    FROM (SELECT id, substring(email FROM '[0-9]+')::int AS n FROM signups) AS numbered;
";

const OUTAGE: &str = "Customer.io answered 503: {n}";

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

#[tokio::test]
async fn a_dry_run_tells_what_would_be_retried_and_what_not_and_why() {
    let (world, app) = seeded("500").await;
    let statements = "
        UPDATE signup_customerio_sync_jobs SET status = 'pending', failed_at = NULL, \
        failed_reason = NULL
        WHERE error_message LIKE '%503: 40';
        UPDATE signup_customerio_sync_jobs SET dismissed_at = now(), dismissed_reason = 'x' WHERE \
        error_message LIKE '%503: 39';";
    world.pool.execute(statements).await.expect("changed");
    let selection = json!({ "errorType": "server_error" });
    let answer = world.act(&app, "/sync-failures/retry?dryRun=true", Some(&selection)).await;
    assert_eq!((&answer["dryRun"], &answer["eligible"]), (&json!(true), &json!(38)));
    assert_eq!(answer["olderThan72Hours"], 10);
    let reasons: Vec<_> = answer["notEligible"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (&one["reason"], &one["count"]))
        .collect();
    assert_eq!(reasons, [(&json!("dismissed"), &json!(1)), (&json!("waiting"), &json!(1))]);
    assert_eq!(world.count("SELECT count(*) FROM bulk_retries").await, 0);
    assert_eq!(completed(&world).await, 0, "nothing was done");
    app.stop().await;
}

#[tokio::test]
async fn a_canary_and_then_its_group_are_retried_and_each_job_once() {
    let (world, app) = seeded("500").await;
    let groups = world.read(&app, "/failure-groups").await;
    assert_eq!(
        (&groups["items"][0]["signature"], &groups["items"][0]["count"]),
        (&json!(OUTAGE), &json!(40))
    );
    let canary = world
        .act(
            &app,
            "/sync-failures/retry",
            Some(&json!({ "jobIds": [groups["items"][0]["sampleJobId"]] })),
        )
        .await;
    assert_eq!(wait_for_bulk(&world, &app, &canary["id"], "completed").await["retried"], 1);
    wait_for("the canary", || async { (completed(&world).await == 1).then_some(()) }).await;

    // Two operators press the same button.
    let group = json!({ "signature": OUTAGE, "errorType": "server_error" });
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
    wait_for("the group", || async { (completed(&world).await == 40).then_some(()) }).await;
    assert_eq!(world.count("SELECT max(run)::int8 FROM signup_customerio_sync_jobs").await, 1);
    assert!(
        world.events().await.iter().all(|event| event["repeats"] == 0),
        "nothing was sent twice"
    );
    assert_eq!(world.audit("customerio_manual_retry").await.len(), 40);
    assert_eq!(
        world.read(&app, "/sync-failures").await["total"],
        20,
        "the other group is as it was"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_bulk_retry_keeps_its_rate_and_can_be_cancelled() {
    let (world, app) = seeded("5").await;
    let bulk = world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    assert_eq!((&bulk["eligible"], &bulk["actor"]), (&json!(60), &json!("local")));
    let path = format!("/bulk-retries/{}", bulk["id"].as_str().expect("an id"));
    let seen = wait_for("a few jobs", || async {
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
    assert!(took >= 600, "four jobs at five a second took {took} ms");
    let (status, problem) = world.api(&app, "POST", &format!("{path}/cancel"), None).await;
    assert!(
        status == 409 && problem["detail"].to_string().contains("cancelled already"),
        "{problem}"
    );
    assert_eq!(world.read(&app, "/bulk-retries").await["items"][0]["status"], "cancelled");
    app.stop().await;
}

#[tokio::test]
async fn a_bulk_retry_goes_on_after_a_restart() {
    let (world, app) = seeded("20").await;
    let bulk =
        world.act(&app, "/sync-failures/retry", Some(&json!({ "errorType": "other" }))).await;
    let path = format!("/bulk-retries/{}", bulk["id"].as_str().expect("an id"));
    wait_for("a start", || async {
        Some(world.read(&app, &path).await).filter(|bulk| bulk["retried"].as_i64() > Some(0))
    })
    .await;
    app.stop().await;
    let left = world
        .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'failed'")
        .await;
    assert!(left > 40, "it was stopped in the middle");
    let app = world.start().await;
    let bulk = wait_for_bulk(&world, &app, &bulk["id"], "completed").await;
    assert_eq!(bulk["retried"], 20);
    wait_for("all jobs", || async { (completed(&world).await == 20).then_some(()) }).await;
    app.stop().await;
}

#[tokio::test]
async fn what_fails_again_is_not_retried_by_the_same_bulk_retry() {
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
async fn dismissed_failures_leave_the_list_and_can_still_be_retried_by_hand() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world.wait_for_failures(1).await;
    let selection = json!({ "search": "example.com", "reason": "a test account" });
    let dry = world.act(&app, "/sync-failures/dismiss?dryRun=true", Some(&selection)).await;
    assert_eq!(dry["eligible"], 1);
    assert_eq!(
        world.act(&app, "/sync-failures/dismiss", Some(&selection)).await,
        json!({ "dismissed": 1 })
    );
    assert_eq!(
        world.act(&app, "/sync-failures/dismiss", Some(&selection)).await,
        json!({ "dismissed": 0 })
    );
    assert_eq!(world.read(&app, "/sync-failures").await["total"], 0);
    assert_eq!(world.read(&app, "/failure-groups").await["items"], json!([]));
    let stats = world.read(&app, "/stats").await;
    assert_eq!((&stats["openFailures"], &stats["byStatus"]["failed"]), (&json!(0), &json!(1)));
    assert_eq!(world.failures().await[0]["resolution"], "dismissed");
    let audit = world.audit("customerio_dismiss").await;
    assert_eq!(audit[0]["details"]["reason"], "a test account");

    world.act(&app, &format!("/{signup}/retry"), None).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["dismissed_at"], Value::Null);
    app.stop().await;
}

#[tokio::test]
async fn a_failure_that_is_dismissed_before_it_is_mirrored_is_mirrored_as_dismissed() {
    let world = World::new().await;
    let app = world.start().await;
    world.failed_signup().await;
    world.wait_for_failures(1).await;
    // As if the mirror had been late: its row is gone, and the message comes again.
    world.act(&app, "/sync-failures/dismiss", Some(&json!({ "reason": "x" }))).await;
    world.pool.execute("DELETE FROM sync_failures").await.expect("gone");
    let parked = world.next("customerio-sync.failed").await;
    world.publish("", "customerio-sync.failed.mirror", &parked.body, parked.properties).await;
    let mirrored = world.wait_for_failures(1).await;
    assert_eq!(mirrored[0]["resolution"], "dismissed");
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_could_not_be_understood_is_shown_replayed_and_dismissed() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    let mut event = submitted(signup);
    event["customer"] = json!({ "first_name": "Ann" });
    let properties = || {
        BasicProperties::default()
            .with_content_type("application/json".into())
            .with_message_id("m-1".into())
    };
    world
        .publish("signup.events", "signup.submitted", event.to_string().as_bytes(), properties())
        .await;
    world
        .publish("signup.events", "signup.submitted", b"\xff\xfe", BasicProperties::default())
        .await;
    world.wait_for_failures(2).await;
    let list = world.read(&app, "/unprocessable").await;
    assert_eq!(list["total"], 2);
    let of_body = |list: &Value, is_text: bool| {
        list["items"]
            .as_array()
            .expect("items")
            .iter()
            .find(|item| item["body"].is_string() == is_text)
            .expect("an item")
            .clone()
    };
    let item = of_body(&list, true);
    assert_eq!(
        (&item["reason"], &item["path"]),
        (&json!("unprocessable"), &json!("customer.email"))
    );
    assert!(
        item["errorMessage"].as_str().expect("a text").starts_with("missing field `email`"),
        "{item}"
    );
    assert_eq!(
        (&item["exchange"], &item["routingKey"]),
        (&json!("signup.events"), &json!("signup.submitted"))
    );
    assert_eq!(item["body"], event.to_string());
    assert_eq!(item["verdict"]["cause"], "data");
    assert_eq!(of_body(&list, false)["bodyBase64"], "//4=");
    let path = format!("/unprocessable/{}", item["id"].as_str().expect("an id"));
    assert_eq!(world.read(&app, &path).await["body"], event.to_string());

    // It still can't be understood: the replayed one is resolved, and a new one takes its place.
    world.act(&app, &format!("{path}/replay"), None).await;
    let again = wait_for("the replayed message to come back", || async {
        let list = world.read(&app, "/unprocessable").await;
        list["items"]
            .as_array()
            .expect("items")
            .iter()
            .find(|one| one["body"] == item["body"] && one["id"] != item["id"])
            .cloned()
    })
    .await;
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 2);
    assert_eq!(world.audit("customerio_replay").await[0]["details"]["failureId"], item["id"]);
    assert_eq!(world.api(&app, "POST", &format!("{path}/replay"), None).await.0, 404);

    let path = format!("/unprocessable/{}", again["id"].as_str().expect("an id"));
    world
        .act(
            &app,
            &format!("{path}/dismiss"),
            Some(&json!({ "reason": "sent again by its publisher" })),
        )
        .await;
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 1);
    app.stop().await;
}

#[tokio::test]
async fn a_replayed_message_that_is_understood_now_becomes_a_job() {
    let world = World::new().await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    // An older version of the service refused it.
    let sql = "
        INSERT INTO sync_failures
            (message_id, reason, error_message, headers, content_type, body, original_exchange, \
        original_routing_key, failed_at)
        VALUES ('unprocessable:1', 'unprocessable', '$: x', \
        '{\"x-original-message-id\": \"m-7\"}', 'application/json', $1,
            'signup.events', 'signup.submitted', now())";
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
    assert_eq!(job["event_id"], "m-7", "the message kept its id");
    assert_eq!(world.failures().await[0]["resolution"], "replayed");
    app.stop().await;
}

#[tokio::test]
async fn live_traffic_goes_before_bulk_retries_when_calls_are_short() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "40")
        .with("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "2");
    let app = world.start().await;
    world.pool.execute(SEED).await.expect("seeded");
    let channel = world.channel().await;
    for _ in 0..120 {
        let body = submitted(Uuid::new_v4()).to_string();
        publish_on(
            &channel,
            "signup.events",
            "signup.submitted",
            body.as_bytes(),
            BasicProperties::default(),
        )
        .await;
    }
    let waiting = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'";
    wait_for("calls to be short", || async { (world.count(waiting).await > 80).then_some(()) })
        .await;
    let bulk =
        world.act(&app, "/sync-failures/retry", Some(&json!({ "errorType": "other" }))).await;
    let live = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed' AND \
        NOT manual_retry";
    wait_for("the live traffic to be worked off", || async {
        (world.count(live).await == 120).then_some(())
    })
    .await;
    let started =
        world.count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE manual_retry").await;
    assert!(started <= 10, "{started} of 20 were started before");
    wait_for_bulk(&world, &app, &bulk["id"], "completed").await;
    wait_for("all to be done", || async { (completed(&world).await == 140).then_some(()) }).await;
    app.stop().await;
}
