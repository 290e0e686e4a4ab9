//! The published descriptions, `/openapi.json` and `/asyncapi.json`, match what the service does.

use crate::support::{World, confirmed, submitted, wait_for};
use customerio_sync::event::{EventType, RawEvent, parse};
use futures_util::StreamExt;
use jsonschema::Validator;
use lapin::BasicProperties;
use serde_json::{Value, json};
use std::{io::Write, path::PathBuf, process::Command};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use uuid::Uuid;

/// A schema that refers to the schema `name` of a description.
fn schema(description: &Value, name: &str) -> Value {
    json!({
        "$ref": format!("#/components/schemas/{name}"),
        "components": description["components"],
    })
}

fn validator(description: &Value, name: &str) -> Validator {
    jsonschema::validator_for(&schema(description, name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
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

/// The value with which [`change`] removes a field.
const ABSENT: &str = "absent";

/// Returns `event` with another value in the field at `pointer`, or without that field.
fn change(event: &Value, pointer: &str, value: Value) -> Value {
    let mut event = event.clone();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = event.pointer_mut(parent).expect("a parent").as_object_mut().expect("an object");
    if value == json!(ABSENT) {
        parent.remove(key);
    } else {
        parent.insert(key.to_owned(), value);
    }
    event
}

/// Submissions with one changed field each, and whether they are valid.
fn submissions() -> Vec<(Value, bool)> {
    let event = submitted(Uuid::new_v4());
    let cases = [
        ("/event_id", json!("e-1"), true),
        ("/unknown", json!([1]), true),
        ("/occurred_at", json!(ABSENT), true),
        ("/customer/first_name", Value::Null, true),
        ("/attributes", Value::Null, true),
        ("/attributes", json!({ "a": 1, "b": true, "c": "x", "d": 1.5 }), true),
        ("/signup_id", json!("7"), false),
        ("/signup_id", json!(ABSENT), false),
        ("/operator_id", json!(" "), false),
        ("/customer", json!([]), false),
        ("/customer/email", json!(ABSENT), false),
        ("/customer/email", json!(""), false),
        ("/customer/phone", json!(5), false),
        ("/attributes", json!({ "a": [] }), false),
        ("/attributes", json!({ "a": null }), false),
        ("/attributes", json!({ "cio_subscription_preferences": "x" }), false),
        ("/occurred_at", json!("yesterday"), false),
    ];
    cases.map(|(pointer, value, is_valid)| (change(&event, pointer, value), is_valid)).into()
}

/// Confirmations with one changed field each, and whether they are valid.
fn confirmations() -> Vec<(Value, bool)> {
    let event = confirmed(Uuid::new_v4());
    let cases = [
        ("/extraction_id", json!(ABSENT), true),
        ("/bet_slip/odds", json!(1.5), true),
        ("/customer", json!({ "email": "ann@example.com" }), true),
        ("/customer", Value::Null, true),
        ("/bet_slip", json!(ABSENT), false),
        ("/bet_slip/odds", json!(true), false),
        ("/bet_slip/odds", json!(ABSENT), false),
        ("/bet_slip/bet_amount", json!(-1), false),
        ("/bet_slip/confidence", json!(1.1), false),
        ("/bet_slip/team_bet_on", json!(""), false),
    ];
    cases.map(|(pointer, value, is_valid)| (change(&event, pointer, value), is_valid)).into()
}

#[tokio::test]
async fn the_event_schemas_and_the_service_accept_the_same_events() {
    let world = World::new().await;
    let app = world.start().await;
    let description = description(&world, &app, "/asyncapi.json").await;
    for (event_type, name, cases) in [
        (EventType::Submitted, "SignupSubmitted", submissions()),
        (EventType::Confirmed, "ExtractionConfirmed", confirmations()),
    ] {
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&schema(&description, name))
            .expect("a schema");
        for (event, is_valid) in cases {
            let body = event.to_string();
            let parsed = parse(RawEvent::new(event_type, body.as_bytes()));
            assert_eq!(
                (parsed.is_ok(), validator.is_valid(&event)),
                (is_valid, is_valid),
                "{event} {parsed:?}"
            );
        }
    }
    app.stop().await;
}

/// Checks the next message of the failure queue: its headers against the message `name` of the
/// description, and its body against the schema `body`.
async fn check_parked_message(world: &World, description: &Value, name: &str, body: Option<&str>) {
    let parked = world.next("customerio-sync.failed").await;
    let headers = parked.properties.headers().as_ref().expect("headers").inner();
    let headers: serde_json::Map<_, _> = headers
        .keys()
        .map(|key| {
            let text = parked.header(key.as_str()).expect("a header");
            let value = if key.as_str() == "x-attempt" {
                json!(text.parse::<i32>().expect("a number"))
            } else {
                json!(text)
            };
            (key.to_string(), value)
        })
        .collect();
    let schema = &description["components"]["messages"][name]["headers"];
    check(&jsonschema::validator_for(schema).expect("a schema"), &headers.into());
    if let Some(body) = body {
        check(&validator(description, body), &parked.json());
    }
}

/// The next text frame.
async fn next_frame(frames: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Value {
    loop {
        let frame = frames.next().await.expect("the connection is open").expect("a frame");
        if let Message::Text(text) = frame {
            return serde_json::from_str(&text).expect("JSON");
        }
    }
}

#[tokio::test]
async fn published_messages_and_frames_match_their_schemas() {
    let world = World::new().await;
    let app = world.start().await;
    let description = description(&world, &app, "/asyncapi.json").await;
    let outcome = validator(&description, "Outcome");
    let mut outcomes = world.listen("signup.updates", "#").await;
    let connect = async |feed: &str| {
        let url = format!("ws://{}/api/v1/signups/customerio/{feed}", app.http_addr());
        tokio_tungstenite::connect_async(url).await.expect("a WebSocket").0
    };
    let (mut outcome_frames, mut notice_frames) = (connect("ws").await, connect("live").await);

    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    check(&outcome, &outcomes.next().await.json());
    let failed = world.failed_signup().await;
    check(&outcome, &outcomes.next().await.json());
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    world.wait_for_failures(2).await;
    check_parked_message(&world, &description, "failedJob", Some("Job")).await;
    check_parked_message(&world, &description, "unprocessable", None).await;

    world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    world.wait_for_job(failed, "initial", "completed").await;
    for _ in 0..3 {
        check(&outcome, &next_frame(&mut outcome_frames).await);
    }
    let notice = validator(&description, "Notice");
    let (mut progress, mut counts) = (0, 0);
    while progress < 2 || counts < 1 {
        let frame = next_frame(&mut notice_frames).await;
        check(&notice, &frame);
        progress += i32::from(frame["type"] == "bulk_retry.progress");
        counts += i32::from(frame["type"] == "counts.changed");
    }
    let missed = validator(&description, "MissedFrames");
    check(&missed, &json!({ "type": "feed.missed", "missed": 3 }));
    app.stop().await;
}

#[tokio::test]
async fn references_resolve_and_operation_ids_are_unique() {
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
    let mut ids: Vec<_> =
        operations.map(|operation| operation["operationId"].as_str().expect("an id")).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), count), (27, 27), "each operation has its own id");
    app.stop().await;
}

/// Schemathesis generates valid and invalid requests from the description, and checks that the
/// description covers each response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_failure() {
    let world = World::new().await.with("ADMIN_TOKENS", "tester:operator:a-token-of-a-tester");
    let app = world.start().await;
    let signup = world.failed_signup().await;
    world
        .publish("signup.events", "signup.submitted", b"not json", BasicProperties::default())
        .await;
    world.wait_for_failures(2).await;
    let unprocessable = wait_for("the unprocessable message", || async {
        world.failures().await.into_iter().find(|failure| failure["job_id"].is_null())
    })
    .await;
    let job = world.job(signup, "initial").await.expect("the job");
    let mut config = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    write!(
        config,
        "[parameters]\n\
            \"path.jobId\" = {}\n\
            \"path.signupId\" = \"{signup}\"\n\
            \"path.failureId\" = {}\n",
        job["id"], unprocessable["id"]
    )
    .expect("written");

    let clients = PathBuf::from(
        std::env::var("CLIENTS_DIR")
            .expect("CLIENTS_DIR is not set; run the tests with `./dev test`"),
    );
    let mut schemathesis = Command::new(clients.join("python/bin/st"));
    schemathesis.arg("--config-file").arg(config.path());
    schemathesis.args(["run", "--continue-on-failure", "--max-examples", "25"]);
    schemathesis.args(["--exclude-path-regex", "/(ws|live)$"]);
    schemathesis.args(["--phases", "examples,coverage,fuzzing"]);
    schemathesis.args(["-H", "Authorization: Bearer a-token-of-a-tester"]);
    // The requests are the same in each run, unless SCHEMATHESIS_SEED is set.
    let seed = std::env::var("SCHEMATHESIS_SEED").unwrap_or_else(|_| "1".to_owned());
    schemathesis.args(["--seed", &seed]);
    schemathesis.arg(format!("http://{}/openapi.json", app.http_addr()));
    schemathesis.current_dir(config.path().parent().expect("a folder"));
    let output = tokio::task::spawn_blocking(move || schemathesis.output())
        .await
        .expect("the task ends")
        .expect("schemathesis runs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    assert!(report.contains("25 selected"), "{report}");
    app.stop().await;
}
