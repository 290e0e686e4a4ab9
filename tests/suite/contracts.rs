//! The published descriptions, `/openapi.json` and `/asyncapi.json`, against what the service
//! really does.

use crate::support::{World, confirmed, submitted, wait_for};
use customerio_sync::event::{EventType, RawEvent, parse};
use futures_util::StreamExt;
use jsonschema::Validator;
use lapin::BasicProperties;
use serde_json::{Value, json};
use std::{io::Write, path::PathBuf, process::Command};
use uuid::Uuid;

/// A validator of a named schema of a description.
fn validator(description: &Value, name: &str) -> Validator {
    let schema = json!({ "$ref": format!("#/components/schemas/{name}"),
    "components": description["components"] });
    jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn check(validator: &Validator, value: &Value) {
    let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{value}: {errors:?}");
}

async fn description(world: &World, app: &customerio_sync::app::App, path: &str) -> Value {
    let (status, text) = world.get(app, path).await;
    assert_eq!(status, 200);
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn the_schemas_of_the_events_accept_and_refuse_what_the_service_accepts_and_refuses() {
    let world = World::new().await;
    let app = world.start().await;
    let description = description(&world, &app, "/asyncapi.json").await;
    let (signup, sent) = (Uuid::new_v4(), confirmed(Uuid::new_v4()));
    let change = |event: &Value, pointer: &str, value: Value| {
        let mut event = event.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent =
            event.pointer_mut(parent).expect("a parent").as_object_mut().expect("an object");
        if value == json!("absent") {
            parent.remove(key);
        } else {
            parent.insert(key.to_owned(), value);
        }
        event
    };
    let initial =
        |pointer, value| (EventType::Submitted, change(&submitted(signup), pointer, value));
    let enriched = |pointer, value| (EventType::Confirmed, change(&sent, pointer, value));
    let cases = [
        (initial("/event_id", json!("e-1")), true),
        (initial("/unknown", json!([1])), true),
        (initial("/occurred_at", json!("absent")), true),
        (initial("/customer/first_name", Value::Null), true),
        (initial("/attributes", Value::Null), true),
        (initial("/attributes", json!({ "a": 1, "b": true, "c": "x", "d": 1.5 })), true),
        (initial("/signup_id", json!("7")), false),
        (initial("/signup_id", json!("absent")), false),
        (initial("/operator_id", json!(" ")), false),
        (initial("/customer", json!([])), false),
        (initial("/customer/email", json!("absent")), false),
        (initial("/customer/email", json!("")), false),
        (initial("/customer/phone", json!(5)), false),
        (initial("/attributes", json!({ "a": [] })), false),
        (initial("/attributes", json!({ "a": null })), false),
        (initial("/attributes", json!({ "cio_subscription_preferences": "x" })), false),
        (initial("/occurred_at", json!("yesterday")), false),
        (enriched("/extraction_id", json!("absent")), true),
        (enriched("/bet_slip/odds", json!(1.5)), true),
        (enriched("/customer", json!({ "email": "ann@example.com" })), true),
        (enriched("/customer", Value::Null), true),
        (enriched("/bet_slip", json!("absent")), false),
        (enriched("/bet_slip/odds", json!(true)), false),
        (enriched("/bet_slip/odds", json!("absent")), false),
        (enriched("/bet_slip/bet_amount", json!(-1)), false),
        (enriched("/bet_slip/confidence", json!(1.1)), false),
        (enriched("/bet_slip/team_bet_on", json!("")), false),
    ];
    for ((event_type, event), is_good) in cases {
        let name = if event_type == EventType::Submitted {
            "SignupSubmitted"
        } else {
            "ExtractionConfirmed"
        };
        let schema = json!({ "$ref": format!("#/components/schemas/{name}"),
        "components": description["components"] });
        let validator =
            jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
        let body = event.to_string();
        let read = parse(RawEvent {
            event_type,
            content_type: None,
            message_id: None,
            body: body.as_bytes(),
        });
        assert_eq!(
            (read.is_ok(), validator.is_valid(&event)),
            (is_good, is_good),
            "{event} {read:?}"
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn real_messages_and_frames_are_as_they_are_described() {
    let world = World::new().await;
    let app = world.start().await;
    let description = description(&world, &app, "/asyncapi.json").await;
    let outcome = validator(&description, "Outcome");
    let mut outcomes = world.listen("signup.updates", "#").await;
    let url = format!("ws://{}/api/v1/signups/customerio/ws", app.http_addr());
    let (mut frames, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");

    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    check(&outcome, &outcomes.next().await.json());
    let failed = world.failed_signup().await;
    check(&outcome, &outcomes.next().await.json());
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    world.wait_for_failures(2).await;

    let messages = &description["components"]["messages"];
    for (name, schema) in [("failedJob", Some("Job")), ("unprocessable", None)] {
        let parked = world.next("customerio-sync.failed").await;
        let headers = parked.properties.headers().as_ref().expect("headers").inner();
        let headers: serde_json::Map<_, _> = headers
            .keys()
            .map(|key| {
                let text = parked.header(key.as_str()).expect("a header");
                (
                    key.to_string(),
                    if key.as_str() == "x-attempt" {
                        json!(text.parse::<i32>().expect("a number"))
                    } else {
                        json!(text)
                    },
                )
            })
            .collect();
        check(
            &jsonschema::validator_for(&messages[name]["headers"]).expect("a schema"),
            &headers.into(),
        );
        if let Some(schema) = schema {
            check(&validator(&description, schema), &parked.json());
        }
    }

    world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    world.wait_for_job(failed, "initial", "completed").await;
    let notice = validator(&description, "Notice");
    let mut seen = (0, 0);
    while seen.0 < 3 || seen.1 < 2 {
        let frame = frames.next().await.expect("the connection goes on").expect("a frame");
        let Ok(text) = frame.into_text() else { continue };
        let Ok(frame) = serde_json::from_str::<Value>(&text) else { continue };
        if frame["type"] == "bulk_retry.progress" {
            check(&notice, &frame);
            seen.1 += 1;
        } else {
            check(&outcome, &frame);
            seen.0 += 1;
        }
    }
    check(&notice, &json!({ "type": "feed.missed", "missed": 3 }));
    app.stop().await;
}

#[tokio::test]
async fn every_reference_of_the_descriptions_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match value {
                Value::String(target) if key == "$ref" => found.push(target),
                _ => references(value, found),
            }),
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let world = World::new().await;
    let app = world.start().await;
    for path in ["/openapi.json", "/asyncapi.json"] {
        let description = description(&world, &app, path).await;
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > 10, "{path}");
        for target in found {
            assert!(
                description.pointer(target.trim_start_matches('#')).is_some(),
                "{path}: {target}"
            );
        }
    }
    let openapi = description(&world, &app, "/openapi.json").await;
    let operations = openapi["paths"]
        .as_object()
        .expect("paths")
        .values()
        .flat_map(|path| path.as_object().expect("operations").values());
    let mut names: Vec<_> =
        operations.map(|operation| operation["operationId"].as_str().expect("a name")).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), count), (19, 19), "each operation has a name of its own");
    app.stop().await;
}

/// Schemathesis makes requests of all shapes from the description and checks that each answer is
/// one that it describes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_failure() {
    let world = World::new().await.with("ADMIN_TOKENS", "tester:operator:a-token");
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    world.wait_for_failures(2).await;
    let unprocessable = wait_for("the message", || async {
        world.failures().await.into_iter().find(|failure| failure["job_id"].is_null())
    })
    .await;
    let job = world.job(signup, "initial").await.expect("the job");
    let mut config = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    write!(
        config,
        "[parameters]\n\"path.jobId\" = {}\n\"path.signupId\" = \"{signup}\"\n\"path.failureId\" \
            = {}\n",
        job["id"], unprocessable["id"]
    )
    .expect("written");

    let clients = PathBuf::from(
        std::env::var("CLIENTS_DIR")
            .expect("CLIENTS_DIR is not set; run the tests with `./dev test`"),
    );
    let mut schemathesis = Command::new(clients.join("python/bin/st"));
    schemathesis.arg("--config-file").arg(config.path());
    schemathesis.args([
        "run",
        "--continue-on-failure",
        "--max-examples",
        "25",
        "--exclude-path-regex",
        "/ws$",
    ]);
    schemathesis.args([
        "--phases",
        "examples,coverage,fuzzing",
        "-H",
        "Authorization: Bearer a-token",
    ]);
    // The same requests each time; SCHEMATHESIS_SEED makes others.
    schemathesis
        .args(["--seed", &std::env::var("SCHEMATHESIS_SEED").unwrap_or_else(|_| "1".to_owned())]);
    schemathesis.arg(format!("http://{}/openapi.json", app.http_addr()));
    schemathesis.current_dir(config.path().parent().expect("a folder"));
    let output = tokio::task::spawn_blocking(move || schemathesis.output())
        .await
        .expect("it runs")
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("18 selected"), "{told}");
    app.stop().await;
}
