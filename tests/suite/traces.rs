//! Traces: the spans that are exported, the context that messages carry, and collectors that are
//! away.

use crate::support::{
    CollectedSpan, Collector, Process, World, contact, free_addr, program, submitted,
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use opentelemetry_proto::tonic::trace::v1::{span::SpanKind, status::StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use uuid::Uuid;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const UPSTREAM_SPAN: &str = "b7ad6b7169203331";
const TRACE_STATE: &str = "vendor=1,other=x:y";

fn traceparent() -> String {
    format!("00-{TRACE}-{UPSTREAM_SPAN}-01")
}

/// Publishes an event that carries a trace context.
async fn submit_in_trace(world: &World, signup: Uuid) {
    let mut headers = FieldTable::default();
    for (name, text) in [("traceparent", traceparent().as_str()), ("tracestate", TRACE_STATE)] {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
    let properties =
        BasicProperties::default().with_headers(headers).with_message_id("message-1".into());
    let body = submitted(signup).to_string();
    world.publish("signup.events", "signup.submitted", body.as_bytes(), properties).await;
}

/// Starts the service, which exports its traces to `endpoint`.
async fn spawn(world: &World, endpoint: &str) -> Process {
    let service = world.spawn_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
    ]);
    service.wait_for_line("the service is running").await;
    service
}

/// What is left of an event whose first call failed and whose second call succeeded.
struct Retried {
    collector: Collector,
    spans: Vec<CollectedSpan>,
    signup: Uuid,
    /// The log lines of its two attempts.
    lines: Vec<Value>,
    /// The trace context of its outcome.
    outcome: Option<String>,
}

impl Retried {
    async fn run() -> Self {
        let (world, collector) = (World::new().await, Collector::start().await);
        world.fault(json!({ "kind": "status", "status": 500, "calls": 1 })).await;
        let mut service = spawn(&world, &collector.url).await;
        let mut outcomes = world.listen("signup.updates", "#").await;
        let signup = Uuid::new_v4();
        submit_in_trace(&world, signup).await;
        let outcome = outcomes.next().await.header("traceparent");
        world.wait_until_all_queues_are_empty().await;
        assert!(service.terminate().await.success());
        let log = service.log();
        let lines = log.lines().filter(|line| line.contains("\"sync attempt"));
        let lines = lines.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        Self { spans: collector.spans(), collector, signup, lines, outcome }
    }

    fn named(&self, name: &str) -> &CollectedSpan {
        let mut found = self.spans.iter().filter(|span| span.name == name);
        let span = found.next().unwrap_or_else(|| panic!("{name} in {:#?}", self.spans));
        assert!(found.next().is_none(), "{name} is there once");
        span
    }

    /// The span of the call that is linked to `span` alone.
    fn call_for(&self, span: &CollectedSpan) -> &CollectedSpan {
        let is_linked =
            |one: &&CollectedSpan| one.kind == SpanKind::Client && one.links == [span.ids()];
        self.spans.iter().find(is_linked).unwrap_or_else(|| panic!("{:#?}", self.spans))
    }
}

fn assert_attributes(span: &CollectedSpan, expected: &[(&str, &str)]) {
    for (key, text) in expected {
        let found = span.attributes.get(*key).map(String::as_str);
        assert_eq!(found, Some(*text), "{key} of {}", span.name);
    }
}

#[tokio::test]
async fn an_event_that_is_retried_has_one_trace_per_hop_with_links() {
    let run = Retried::run().await;
    let mut names: Vec<_> = run.spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "POST /api/v2/batch",
            "POST /api/v2/batch",
            "process customerio-sync.jobs",
            "process customerio-sync.signup-submitted",
            "send customerio-sync.retry.200ms",
            "send signup.updates",
        ]
    );
    let first = run.named("process customerio-sync.signup-submitted");
    let retry = run.named("send customerio-sync.retry.200ms");
    let second = run.named("process customerio-sync.jobs");
    let outcome = run.named("send signup.updates");
    let (failed, accepted) = (run.call_for(first), run.call_for(second));

    let kinds = [first, second, retry, outcome].map(|span| span.kind);
    let (consumer, producer) = (SpanKind::Consumer, SpanKind::Producer);
    assert_eq!(kinds, [consumer, consumer, producer, producer]);
    assert_eq!((first.trace_id.as_str(), first.parent.as_deref()), (TRACE, Some(UPSTREAM_SPAN)));
    assert_eq!((retry.trace_id.as_str(), retry.parent.as_ref()), (TRACE, Some(&first.span_id)));
    for span in [first, retry] {
        assert_eq!((span.trace_state.as_str(), span.links.len()), (TRACE_STATE, 0));
    }
    assert_eq!((second.parent.as_ref(), &second.links), (None, &vec![retry.ids()]));
    let parent = (&second.trace_id, Some(&second.span_id));
    assert_eq!((&outcome.trace_id, outcome.parent.as_ref()), parent);
    assert_eq!(run.outcome, Some(format!("00-{}-{}-01", outcome.trace_id, outcome.span_id)));
    let mut traces: Vec<_> = [first, second, failed, accepted].map(|span| &span.trace_id).into();
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 4, "each hop and each call starts a trace");
    assert!(failed.parent.is_none() && accepted.parent.is_none(), "{failed:?} {accepted:?}");
}

#[tokio::test]
async fn spans_have_the_attributes_of_the_conventions() {
    let run = Retried::run().await;
    let first = run.named("process customerio-sync.signup-submitted");
    let second = run.named("process customerio-sync.jobs");
    let retry = run.named("send customerio-sync.retry.200ms");
    let destination = "signup.events:signup.submitted:customerio-sync.signup-submitted";
    assert_attributes(
        first,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "process"),
            ("messaging.operation.name", "process"),
            ("messaging.destination.name", destination),
            ("messaging.rabbitmq.destination.routing_key", "signup.submitted"),
            ("messaging.message.id", "message-1"),
            ("customerio_sync.outcome", "retrying"),
            ("customerio_sync.job.phase", "initial"),
            ("customerio_sync.job.attempt", "0"),
        ],
    );
    assert_attributes(
        retry,
        &[
            ("messaging.operation.type", "send"),
            ("messaging.destination.name", "customerio-sync.retry.200ms"),
        ],
    );
    let id = retry.attributes.get("messaging.message.id");
    assert_eq!(id, second.attributes.get("messaging.message.id"), "the tier keeps the message");
    assert_attributes(second, &[("customerio_sync.outcome", "completed")]);
    for span in [first, second, retry, run.call_for(first)] {
        assert!(span.attributes.contains_key("server.address"), "{span:?}");
        assert!(span.attributes.contains_key("server.port"), "{span:?}");
    }
    for (call, status) in [(run.call_for(first), "500"), (run.call_for(second), "200")] {
        assert_attributes(
            call,
            &[
                ("http.request.method", "POST"),
                ("url.template", "/api/v2/batch"),
                ("http.response.status_code", status),
                ("messaging.batch.message_count", "1"),
            ],
        );
    }
}

#[tokio::test]
async fn a_failed_attempt_and_its_call_have_an_error_status() {
    let run = Retried::run().await;
    let first = run.named("process customerio-sync.signup-submitted");
    assert_attributes(first, &[("error.type", "server_error")]);
    assert_attributes(run.call_for(first), &[("error.type", "500")]);
    for span in &run.spans {
        let has_failed = span.attributes.contains_key("error.type");
        let expected = if has_failed { StatusCode::Error } else { StatusCode::Unset };
        assert_eq!(span.status, expected, "{span:?}");
    }
    assert_eq!(run.spans.iter().filter(|span| span.status == StatusCode::Error).count(), 2);
}

#[tokio::test]
async fn the_resource_names_the_service_its_version_and_the_process() {
    let run = Retried::run().await;
    let resource = &run.spans[0].resource;
    assert_eq!(resource["service.name"], "customerio-sync");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert!(resource["service.instance.id"].parse::<Uuid>().is_ok(), "{resource:?}");
    assert_eq!(resource["deployment.environment.name"], "test");
}

#[tokio::test]
async fn nothing_about_the_person_is_exported() {
    let run = Retried::run().await;
    assert!(run.collector.has_received("customerio-sync.jobs"), "the search finds texts");
    for text in ["@example.com", "+15550100", "Acme Sports", &contact(run.signup)] {
        assert!(!run.collector.has_received(text), "{text}");
    }
    for span in &run.spans {
        let texts: Vec<_> = span.attributes.values().collect();
        for name in ["Ann", "Lee"] {
            assert!(!texts.iter().any(|text| text.contains(name)), "{name} in {span:?}");
        }
    }
}

#[tokio::test]
async fn the_log_line_of_an_attempt_carries_the_ids_of_its_span() {
    let run = Retried::run().await;
    let ids: Vec<_> = run.lines.iter().map(|line| (&line["trace_id"], &line["span_id"])).collect();
    let spans = ["process customerio-sync.signup-submitted", "process customerio-sync.jobs"]
        .map(|name| run.named(name).ids())
        .map(|(trace_id, span_id)| (json!(trace_id), json!(span_id)));
    let expected: Vec<_> = spans.iter().map(|(trace_id, span_id)| (trace_id, span_id)).collect();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn the_service_name_can_be_set() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let settings = [
        ("AMQP_URL", world.amqp_url.clone()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url)),
        ("OTEL_SERVICE_NAME", "events of a test".to_owned()),
    ];
    let output = run(&settings, &["publish", "--sample", "3"]).await;
    assert!(output.status.success(), "{output:?}");
    let spans = collector.spans();
    assert_eq!(spans.len(), 3);
    for span in spans {
        assert_eq!((span.name.as_str(), span.kind), ("send signup.events", SpanKind::Producer));
        assert_eq!(span.resource["service.name"], "events of a test");
    }
}

#[tokio::test]
async fn without_an_exporter_the_trace_context_is_passed_on_unchanged() {
    let world = World::new().await;
    let app = world.start().await;
    let mut outcomes = world.listen("signup.updates", "#").await;
    world.fault(json!({ "kind": "status", "status": 500, "calls": 1 })).await;
    submit_in_trace(&world, Uuid::new_v4()).await;
    let context = |message: &crate::support::Received| {
        (message.header("traceparent"), message.header("tracestate"))
    };
    let expected = (Some(traceparent()), Some(TRACE_STATE.to_owned()));
    assert_eq!(context(&outcomes.next().await), expected, "after a tier");

    // A retry by an operator has only what the ledger stores.
    world.fault(json!({ "kind": "status", "status": 422, "calls": 1 })).await;
    submit_in_trace(&world, Uuid::new_v4()).await;
    assert_eq!(context(&outcomes.next().await), expected, "the failure");
    world.wait_for_failures(1).await;
    assert_eq!(context(&world.next("customerio-sync.failed").await), expected);
    world.act(&app, "/sync-failures/retry", Some(&json!({}))).await;
    assert_eq!(context(&outcomes.next().await), expected, "after a retry by an operator");
    app.stop().await;
}

/// Runs a command to its end, while the servers of the test keep running.
async fn run(settings: &[(&str, String)], arguments: &[&str]) -> std::process::Output {
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let mut command = program(&settings);
    command.args(arguments).stdin(std::process::Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    output.await.expect("the task ends").expect("the program runs")
}

#[tokio::test]
async fn every_command_starts_with_an_endpoint_for_traces() {
    let world = World::new().await;
    let nobody = free_addr();
    for endpoint in [format!("http://{nobody}"), format!("https://{nobody}")] {
        let settings = [
            ("DATABASE_URL", world.database_url.clone()),
            ("AMQP_URL", world.amqp_url.clone()),
            ("CUSTOMERIO_SITE_ID", "site".to_owned()),
            ("CUSTOMERIO_API_KEY", "key".to_owned()),
            ("CUSTOMERIO_TRACK_URL", format!("http://{}", world.simulator.addr())),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ];
        let url = format!("http://{nobody}");
        let id = Uuid::new_v4().to_string();
        let commands: [(&[&str], i32); 9] = [
            (&["migrate"], 0),
            (&["topology"], 0),
            (&["topology", "--print"], 0),
            (&["publish"], 0),
            (&["publish", "--sample", "1"], 0),
            (&["doctor"], 0),
            // No service listens there.
            (&["stats", "--url", &url], 1),
            (&["failures", "list", "--url", &url], 1),
            (&["jobs", "show", &id, "--url", &url], 1),
        ];
        for (arguments, code) in commands {
            let output = run(&settings, arguments).await;
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {log}");
            assert!(!log.contains("panicked"), "{arguments:?}: {log}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_never_answers_delays_neither_jobs_nor_the_shutdown() {
    // The operating system accepts connections for it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let world = World::new().await;
    let mut service = world.spawn_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "10".to_owned()),
        // Most of the spans of 50 jobs find the queue full.
        ("OTEL_BSP_MAX_QUEUE_SIZE", "8".to_owned()),
    ]);
    service.wait_for_line("the service is running").await;
    let signups: Vec<_> = (0..50).map(|_| Uuid::new_v4()).collect();
    for signup in &signups {
        world.submit(&submitted(*signup)).await;
    }
    for signup in &signups {
        world.wait_for_job(*signup, "initial", "completed").await;
    }
    let start = Instant::now();
    assert!(service.terminate().await.success());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert!(service.log().contains("exporting the last traces failed"), "{}", service.log());
}

#[tokio::test]
async fn a_collector_that_is_away_is_logged_once() {
    let world = World::new().await;
    let mut service = world.spawn_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", free_addr())),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "200".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "10".to_owned()),
    ]);
    service.wait_for_line("the service is running").await;
    let line = "exporting traces failed";
    for _ in 0..3 {
        let signup = Uuid::new_v4();
        world.submit(&submitted(signup)).await;
        world.wait_for_job(signup, "initial", "completed").await;
        service.wait_for_line(line).await;
    }
    assert!(service.terminate().await.success());
    let log = service.log();
    let count = log.lines().filter(|one| one.contains(line)).count();
    assert_eq!(count, 1, "one line per minute: {log}");
}

#[tokio::test]
async fn an_unsupported_variable_is_an_error_that_names_it() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318".to_owned());
    let database = ("DATABASE_URL", "postgres://localhost/x".to_owned());
    let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned());
    let output = run(&[database, endpoint, protocol], &["migrate"]).await;
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    let expected = "OTEL_EXPORTER_OTLP_PROTOCOL: found \"grpc\", expected http/protobuf";
    assert!(log.contains(expected), "{log}");
}
