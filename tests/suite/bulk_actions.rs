//! Bulk actions: dismissals of many failures, and replays and dismissals of many unprocessable
//! messages. Replays reach no queue but the one that the message came from.

use crate::support::{World, submitted, wait_for};
use customerio_sync::app::App;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

/// 5000 failed jobs, several times more than one step of a dismissal resolves.
const MANY_FAILURES: &str = "
    INSERT INTO signups (id, operator_id, customerio_sync_failed, customerio_sync_error)
    SELECT gen_random_uuid(), 'op', true, 'x' FROM generate_series(1, 5000);
    INSERT INTO signup_customerio_sync_jobs
        (id, signup_id, sync_phase, status, error_type, error_message, error_signature, failed_at,
        failed_reason)
    SELECT gen_random_uuid(), id, 'initial', 'failed', 'other', 'refused', 'refused', now(),
        'permanent'
    FROM signups;
";

async fn with_many_failures() -> (World, App) {
    let world = World::new().await;
    let app = world.start().await;
    world.pool.execute(MANY_FAILURES).await.expect("seeded");
    (world, app)
}

/// Starts to dismiss all failures. Returns the path of the bulk action.
async fn begin_dismissal(world: &World, app: &App) -> String {
    let body = json!({ "reason": "test accounts" });
    let (status, dismissal) = world.api(app, "POST", "/sync-failures/dismiss", Some(&body)).await;
    assert_eq!((status, &dismissal["status"]), (202, &json!("running")), "{dismissal}");
    assert_eq!(dismissal["eligible"], 5000);
    format!("/bulk-actions/{}", dismissal["id"].as_str().expect("an id"))
}

async fn wait_until_completed(world: &World, app: &App, path: &str) -> Value {
    wait_for("the bulk action to be completed", || async {
        Some(world.read(app, path).await).filter(|action| action["status"] == "completed")
    })
    .await
}

async fn dismissed(world: &World) -> i64 {
    let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE dismissed_at IS NOT NULL";
    world.count(sql).await
}

#[tokio::test]
async fn a_large_dismissal_continues_after_a_restart() {
    let (world, app) = with_many_failures().await;
    let path = begin_dismissal(&world, &app).await;
    app.stop().await;
    let done = dismissed(&world).await;
    assert!((1..5000).contains(&done), "{done} failures were dismissed before the restart");

    let app = world.start().await;
    let action = wait_until_completed(&world, &app, &path).await;
    assert_eq!(
        (&action["kind"], &action["done"], &action["actor"], &action["reason"]),
        (&json!("dismiss_failures"), &json!(5000), &json!("local"), &json!("test accounts"))
    );
    assert_eq!(dismissed(&world).await, 5000);
    let audit = world.audit("customerio_dismiss").await;
    assert_eq!(audit.len(), 5000, "each dismissal is audited once");
    assert!(audit.iter().all(|entry| {
        entry["actor"] == "local" && entry["details"]["reason"] == "test accounts"
    }));
    assert_eq!(world.audit("customerio_bulk_dismiss").await.len(), 1);
    assert_eq!(world.read(&app, "/bulk-retries").await["items"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn a_cancelled_dismissal_stops_after_its_current_step() {
    let (world, app) = with_many_failures().await;
    let path = begin_dismissal(&world, &app).await;
    let cancelled = world.act(&app, &format!("{path}/cancel"), None).await;
    assert_eq!(
        (&cancelled["status"], &cancelled["cancelledBy"]),
        (&json!("cancelled"), &json!("local"))
    );
    let done = cancelled["done"].as_i64().expect("a count");
    assert!(done < 5000, "{cancelled}");
    let (status, problem) = world.api(&app, "POST", &format!("{path}/cancel"), None).await;
    assert!(
        status == 409 && problem["detail"].to_string().contains("already cancelled"),
        "{problem}"
    );

    // The next dismissal does the rest, so the first one has ended.
    let next = begin_dismissal_of_rest(&world, &app, 5000 - done).await;
    wait_until_completed(&world, &app, &next).await;
    assert_eq!(world.read(&app, &path).await["done"], done);
    assert_eq!(dismissed(&world).await, 5000);
    assert_eq!(world.audit("customerio_bulk_action_cancelled").await.len(), 1);
    app.stop().await;
}

/// Dismisses the `count` failures that are left. Returns the path of the bulk action.
async fn begin_dismissal_of_rest(world: &World, app: &App, count: i64) -> String {
    let body = json!({ "reason": "the rest" });
    let dismissal = world.act(app, "/sync-failures/dismiss", Some(&body)).await;
    assert_eq!(dismissal["eligible"], count);
    format!("/bulk-actions/{}", dismissal["id"].as_str().expect("an id"))
}

/// Inserts an unprocessable message with this body and origin, as if it had been mirrored.
async fn insert_unprocessable(world: &World, body: &[u8], path: &str, origin: (&str, &str)) {
    let sql = "
        INSERT INTO sync_failures
            (message_id, reason, error_message, error_path, headers, content_type, body,
            original_exchange, original_routing_key, failed_at)
        VALUES (gen_random_uuid()::text, 'unprocessable', $2 || ': x', $2, '{}',
            'application/json', $1, $3, $4, now())";
    let inserted = sqlx::query(sql).bind(body).bind(path).bind(origin.0).bind(origin.1);
    inserted.execute(&world.pool).await.expect("inserted");
}

#[tokio::test]
async fn messages_of_a_selection_are_replayed_and_become_jobs() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__BULK_RETRY__JOBS_PER_SECOND", "50");
    let app = world.start().await;
    // An earlier release rejected valid events.
    let ours = ("signup.events", "signup.submitted");
    for _ in 0..25 {
        let event = submitted(Uuid::new_v4()).to_string();
        insert_unprocessable(&world, event.as_bytes(), "$", ours).await;
    }
    insert_unprocessable(&world, b"{}", "customer.email", ours).await;
    insert_unprocessable(&world, b"{}", "$", ("billing", "signup.submitted")).await;

    let selection =
        json!({ "reason": "unprocessable", "path": "$", "routingKey": "signup.submitted" });
    let dry_run = world.act(&app, "/unprocessable/replay?dryRun=true", Some(&selection)).await;
    assert_eq!((&dry_run["eligible"], &dry_run["notReplayable"]), (&json!(25), &json!(1)));
    assert_eq!(dry_run["sampleIds"].as_array().map(Vec::len), Some(10));
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 27, "a dry run changes nothing");

    let (status, action) = world.api(&app, "POST", "/unprocessable/replay", Some(&selection)).await;
    assert_eq!((status, &action["eligible"]), (202, &json!(25)), "{action}");
    let path = format!("/bulk-actions/{}", action["id"].as_str().expect("an id"));
    let action = wait_until_completed(&world, &app, &path).await;
    assert_eq!((&action["kind"], &action["done"]), (&json!("replay_unprocessable"), &json!(25)));
    let completed = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
    wait_for("25 completed jobs", || async { (world.count(completed).await == 25).then_some(()) })
        .await;
    assert_eq!(world.audit("customerio_replay").await.len(), 25);
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 2, "the others are left alone");
    app.stop().await;
}

#[tokio::test]
async fn messages_of_a_selection_are_dismissed_for_a_reason() {
    let world = World::new().await;
    let app = world.start().await;
    for path in ["customer.email", "customer.email", "bet_slip.odds"] {
        insert_unprocessable(&world, b"{}", path, ("signup.events", "signup.submitted")).await;
    }
    let dismissal = json!({ "path": "customer.email", "dismissReason": "published again" });
    let dry_run = world.act(&app, "/unprocessable/dismiss?dryRun=true", Some(&dismissal)).await;
    assert_eq!((&dry_run["dryRun"], &dry_run["eligible"]), (&json!(true), &json!(2)));

    let action = world.act(&app, "/unprocessable/dismiss", Some(&dismissal)).await;
    assert_eq!((&action["status"], &action["done"]), (&json!("completed"), &json!(2)));
    let list = world.read(&app, "/unprocessable").await;
    assert_eq!((&list["total"], &list["items"][0]["path"]), (&json!(1), &json!("bet_slip.odds")));
    let audit = world.audit("customerio_dismiss").await;
    assert_eq!(audit.len(), 2);
    assert_eq!(audit[0]["details"]["reason"], "published again");
    assert_eq!(world.read(&app, "/bulk-actions").await["items"][0], action);
    app.stop().await;
}

/// Headers of a message, as an arbitrary client writes them.
fn headers(pairs: &[(&str, &str)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (key, value) in pairs {
        table.insert((*key).into(), AMQPValue::LongString((*value).into()));
    }
    BasicProperties::default().with_headers(table)
}

#[tokio::test]
async fn a_replay_reaches_no_other_queue_of_the_event_exchange() {
    let world = World::new().await;
    let app = world.start().await;
    let mut of_another_team = world.listen("signup.events", "#").await;
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    assert_eq!(of_another_team.next().await.body, b"not json");
    world.wait_for_failures(1).await;
    let item = world.read(&app, "/unprocessable").await["items"][0].clone();
    let path = format!("/unprocessable/{}/replay", item["id"].as_str().expect("an id"));
    let replayed = world.act(&app, &path, None).await;
    assert_eq!(replayed["routingKey"], "customerio-sync.signup-submitted");
    world.wait_for_failures(2).await;

    let event = submitted(Uuid::new_v4());
    world.submit(&event).await;
    assert_eq!(of_another_team.next().await.json(), event, "the replay is not in between");
    app.stop().await;
}

#[tokio::test]
async fn headers_that_name_another_exchange_lead_to_no_publish() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    let forged = headers(&[
        ("x-reason", "unprocessable"),
        ("x-original-exchange", "signup.updates"),
        ("x-original-routing-key", "sign_up.customerio_synced"),
    ]);
    world.publish("customerio-sync.failed", "", b"{}", forged).await;
    world.wait_for_failures(1).await;
    let item = world.read(&app, "/unprocessable").await["items"][0].clone();
    let path = format!("/unprocessable/{}/replay", item["id"].as_str().expect("an id"));
    let (status, problem) = world.api(&app, "POST", &path, None).await;
    assert!(
        status == 409 && problem["detail"].to_string().contains("signup.updates"),
        "{status} {problem}"
    );
    assert_eq!(world.read(&app, "/unprocessable").await["total"], 1, "it stays in the list");

    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    assert_eq!(outcomes.next().await.json()["signupId"], json!(signup));
    app.stop().await;
}

#[tokio::test]
async fn headers_on_the_default_exchange_lead_to_no_other_queue() {
    let world = World::new().await;
    let app = world.start().await;
    let queue = "customerio-sync.signup-submitted";
    let origins =
        [("signup.updates", "x"), ("signup.events", "signup.extraction_confirmed"), ("", "x")];
    for (exchange, routing_key) in origins {
        let named = [("x-original-exchange", exchange), ("x-original-routing-key", routing_key)];
        let body = format!("{exchange} {routing_key}");
        world.publish("", queue, body.as_bytes(), headers(&named)).await;
    }
    for failure in world.wait_for_failures(origins.len()).await {
        assert_eq!(
            (&failure["original_exchange"], &failure["original_routing_key"]),
            (&json!(""), &json!(queue)),
            "the origin is where the message was published"
        );
    }
    app.stop().await;
}
