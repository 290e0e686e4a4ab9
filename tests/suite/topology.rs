//! Exchanges and queues as declared in the broker.

use crate::support::{
    Process, World, http_client, metric_value, program, publish_on, submitted, wait_for,
};
use customerio_sync::app::App;
use lapin::{
    BasicProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use serde_json::{Value, json};
use uuid::Uuid;

const DEFAULT_LADDER: &str = "5s,25s,125s,625s,3125s";

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().expect("a list").iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is missing"))
}

#[tokio::test]
async fn tiers_have_the_default_delays_and_dead_letter_at_least_once() {
    let world = World::new().await.with("RETRY_DELAYS", DEFAULT_LADDER);
    world.start().await.stop().await;
    let queues = world.management("queues").await;
    for (tier, ttl) in
        [("5s", 5_000), ("25s", 25_000), ("125s", 125_000), ("625s", 625_000), ("3125s", 3_125_000)]
    {
        let arguments = &named(&queues, &format!("customerio-sync.retry.{tier}"))["arguments"];
        let expected = json!({
            "x-queue-type": "quorum",
            "x-message-ttl": ttl,
            "x-dead-letter-exchange": "customerio-sync.jobs",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": 1_000_000_000,
        });
        assert_eq!(arguments, &expected, "{tier}");
    }
    for queue in [
        "customerio-sync.jobs",
        "customerio-sync.signup-submitted",
        "customerio-sync.extraction-confirmed",
    ] {
        let arguments = &named(&queues, queue)["arguments"];
        assert_eq!(
            (&arguments["x-delivery-limit"], &arguments["x-queue-type"]),
            (&json!(50), &json!("quorum"))
        );
        assert_eq!(
            arguments["x-dead-letter-exchange"], "customerio-sync.failed",
            "{queue} must not dead-letter to a tier"
        );
    }
}

/// Publishes a message to each tier in turn, and checks that it returns exactly once.
async fn pass_through(world: &World, tiers: &[&str], message_id: &str) {
    for tier in tiers {
        let properties =
            BasicProperties::default().with_message_id(message_id.into()).with_delivery_mode(2);
        let channel = world.channel().await;
        publish_on(
            &channel,
            &format!("customerio-sync.retry.{tier}"),
            "",
            b"a message",
            properties,
        )
        .await;
        let returned = world.next("customerio-sync.jobs").await;
        assert_eq!(returned.message_id(), message_id, "from the tier {tier}");
        let depth = world.depth("customerio-sync.jobs").await;
        assert_eq!(depth, 0, "the tier {tier} returned the message more than once");
    }
}

#[tokio::test]
async fn a_message_returns_once_from_every_tier_in_both_of_two_rounds() {
    let world = World::new().await;
    world.start().await.stop().await;
    let tiers: Vec<_> = crate::support::SHORT_LADDER.split(',').collect();
    pass_through(&world, &tiers, "first").await;
    pass_through(&world, &tiers, "first").await;
}

#[tokio::test]
async fn a_restarted_job_passes_through_all_tiers_again() {
    let world = World::new().await;
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "failed").await;
    world.submit(&submitted(signup)).await;
    crate::support::wait_for("twelve calls", || async {
        (world.calls().await.len() == 12).then_some(())
    })
    .await;
    let job = world.wait_for_job(signup, "initial", "failed").await;
    assert_eq!((&job["run"], &job["attempt_count"]), (&json!(1), &json!(5)));
    let failures = world.wait_for_failures(2).await;
    let open = failures.iter().filter(|failure| failure["resolved_at"] == Value::Null).count();
    assert_eq!(open, 1, "the first failure is superseded");
    app.stop().await;
}

#[tokio::test]
async fn the_service_waits_while_a_queue_differs_and_names_it() {
    let world = World::new().await.with("RETRY_DELAYS", "5s");
    world.start().await.stop().await;
    let channel = world.channel().await;
    let tier = "customerio-sync.retry.5s";
    channel.queue_delete(tier.into(), QueueDeleteOptions::default()).await.expect("deleted");
    let mut arguments = FieldTable::default();
    for (key, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", "customerio-sync.jobs"),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(key.into(), lapin::types::AMQPValue::LongString(value.into()));
    }
    for (key, value) in [("x-delivery-limit", 1_000_000_000), ("x-message-ttl", 7000)] {
        arguments.insert(key.into(), lapin::types::AMQPValue::LongInt(value));
    }
    let channel = world.channel().await;
    channel
        .queue_declare(tier.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .expect("declared");

    let app = world.start_waiting().await;
    let reason = world.wait_for_reason(&app, tier).await;
    for part in ["topology: ", "x-message-ttl", "5000", "7000"] {
        assert!(reason.contains(part), "{reason:?} should name {part}");
    }
    // What the reason says to do.
    let channel = world.channel().await;
    channel.queue_delete(tier.into(), QueueDeleteOptions::default()).await.expect("deleted");
    app.started().await;
    app.stop().await;
}

#[tokio::test]
async fn the_service_waits_for_a_missing_exchange_if_nothing_may_be_declared() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "false");
    let app = world.start_waiting().await;
    world.wait_for_reason(&app, "the exchange signup.events does not exist").await;
    app.stop().await;
    let declaring = world.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "true");
    declaring.start().await.stop().await;
    let checking = declaring.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "false");
    checking.start().await.stop().await;
}

#[tokio::test]
async fn the_printed_definitions_match_what_the_service_declares() {
    let world = World::new().await.with("RETRY_DELAYS", DEFAULT_LADDER);
    let settings = [("AMQP_URL".to_owned(), world.amqp_url.clone())];
    let printed = crate::support::program(&settings)
        .args(["topology", "--print"])
        .output()
        .expect("the program starts");
    assert!(printed.status.success());
    let url = format!("{}/api/definitions/{}", world.management_url, world.vhost);
    let imported = http_client()
        .post(url)
        .header("content-type", "application/json")
        .body(printed.stdout)
        .send()
        .await;
    assert!(imported.expect("the management API answers").status().is_success());
    assert_eq!(named(&world.management("queues").await, "customerio-sync.jobs")["durable"], true);
    // The service checks them, finds no difference, and works.
    let world = world.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "false");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_tier_deleted_at_run_time_is_redeclared_and_no_message_is_lost() {
    let world = World::new().await.with("RETRY_DELAYS", "300ms,400ms");
    let app = world.start().await;
    let channel = world.channel().await;
    channel
        .queue_delete("customerio-sync.retry.300ms".into(), QueueDeleteOptions::default())
        .await
        .expect("deleted");
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(job["attempt_count"], 1);
    let (_, metrics) = world.get(&app, "/metrics").await;
    let returned = r#"customerio_sync_publishes_total{destination="tier",result="returned"} "#;
    let returned = metrics.lines().find_map(|line| line.strip_prefix(returned));
    assert_ne!(returned, Some("0"), "the first publish was not returned as unroutable");
    assert!(returned.is_some(), "the metric has no series");
    app.stop().await;
}

#[tokio::test]
async fn the_topology_command_declares_and_exits() {
    let world = World::new().await;
    let settings = [("AMQP_URL".to_owned(), world.amqp_url.clone())];
    let status =
        crate::support::program(&settings).arg("topology").status().expect("the program starts");
    assert!(status.success());
    assert_eq!(world.depth("customerio-sync.failed.mirror").await, 0);
    let mut service = Process::spawn(&["serve"], &settings);
    service.wait_for_line("DATABASE_URL is required").await;
    service.kill();
}

/// Deletes a part of the topology.
async fn delete(world: &World, path: &str) {
    let url = format!("{}/api/{path}", world.management_url);
    let deleted = world.http().delete(&url).send().await.expect("the management API answers");
    assert!(deleted.status().is_success(), "{path}: {}", deleted.status());
}

async fn wait_for_restored(world: &World, app: &App, object: &str) {
    let series = format!("restored_objects_total{{object=\"{object}\"}}");
    wait_for(&format!("{object} to be restored"), || async {
        let (_, metrics) = world.get(app, "/metrics").await;
        // The guard and a publisher may find it missing at the same time.
        (metric_value(&metrics, &series)? > 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn deleted_queues_exchanges_and_bindings_are_restored() {
    // The retry waits for longer than it takes to delete its queue.
    let world = World::new()
        .await
        .with("RETRY_DELAYS", "5s")
        .with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "500ms")
        .with("CUSTOMERIO_SYNC__RECOVERY__OVERDUE_AFTER", "1s");
    let app = world.start().await;
    let vhost = &world.vhost;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let retried = Uuid::new_v4();
    world.submit(&submitted(retried)).await;
    world.wait_for_retry(retried, "initial").await;
    for queue in ["customerio-sync.retry.5s", "customerio-sync.jobs"] {
        delete(&world, &format!("queues/{vhost}/{queue}")).await;
    }
    delete(&world, &format!("exchanges/{vhost}/customerio-sync.failed")).await;
    let queue = "customerio-sync.signup-submitted";
    delete(&world, &format!("bindings/{vhost}/e/signup.events/q/{queue}/signup.submitted")).await;
    for object in ["customerio-sync.jobs", "customerio-sync.failed", "customerio-sync.retry.5s"] {
        wait_for_restored(&world, &app, object).await;
    }
    // Recovery publishes the message that was in one of the queues.
    world.wait_for_job(retried, "initial", "completed").await;
    let signup = world.failed_signup().await;
    let failures = world.wait_for_failures(1).await;
    let job = world.job(signup, "initial").await.expect("a job");
    assert_eq!(failures[0]["job_id"], job["id"]);

    delete(&world, &format!("queues/{vhost}/{queue}")).await;
    wait_for_restored(&world, &app, queue).await;
    let later = Uuid::new_v4();
    world.submit(&submitted(later)).await;
    world.wait_for_job(later, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn objects_deleted_before_a_reconnect_are_restored_and_counted() {
    let (world, forwarder) = World::behind_forwarder("AMQP_URL").await;
    let app = world.start().await;
    for (kind, name) in [("queues", "customerio-sync.jobs"), ("exchanges", "signup.events")] {
        delete(&world, &format!("{kind}/{}/{name}", world.vhost)).await;
    }
    forwarder.cut();
    for object in ["customerio-sync.jobs", "signup.events"] {
        wait_for_restored(&world, &app, object).await;
    }
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_deleted_queue_that_may_not_be_declared_is_named() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "false");
    let may_declare = ("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "true".to_owned());
    let declaring = program(&world.settings_with(&[may_declare])).arg("topology").status();
    assert!(declaring.expect("it runs").success());
    let app = world.start().await;
    delete(&world, &format!("queues/{}/customerio-sync.failed", world.vhost)).await;
    let reason = world.wait_for_reason(&app, "topology: ").await;
    assert!(reason.contains("the queue customerio-sync.failed does not exist"), "{reason}");
    assert_eq!(world.get(&app, "/healthz").await.0, 200);
    app.stop().await;
}
