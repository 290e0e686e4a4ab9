//! `/metrics`: every metric is documented and has its series from the start, an unknown value has
//! none, and no server that is away delays the answer.

use crate::support::{
    Documented, Labels, Servers, TempServer, World, documented_metrics, free_addr, http_client,
    metric_value, submitted, wait_for,
};
use customerio_sync::{admin::API_PREFIX, app::App};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use regex::Regex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use test_servers::{Postgres, RabbitMq};
use uuid::Uuid;

const DEFAULT_LADDER: &str = "5s,25s,125s,625s,3125s";
/// Maximum time for an answer. Any wait for a server takes longer.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(1);

/// A world whose service counts ledger and queues often.
fn counting_often(world: World) -> World {
    world
        .with("CUSTOMERIO_SYNC__METRICS__INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__METRICS__COMPLETED_INTERVAL", "100ms")
}

async fn scrape(world: &World, app: &App) -> String {
    let (status, text) = world.get(app, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    text
}

/// Waits until every one of the series has its value. `None` means that there is no such series.
async fn wait_for_values(world: &World, app: &App, expected: &[(&str, Option<f64>)]) {
    wait_for(&format!("{expected:?}"), || async {
        let text = scrape(world, app).await;
        expected
            .iter()
            .all(|(series, expected)| metric_value(&text, series) == *expected)
            .then_some(())
    })
    .await;
}

/// A metric as the service renders it.
#[derive(Debug, Default)]
struct Rendered {
    kind: String,
    /// The labels of each series. A histogram has one per combination of its labels.
    series: Vec<BTreeMap<String, String>>,
}

fn rendered(text: &str) -> BTreeMap<String, Rendered> {
    let label = Regex::new(r#"([a-z_]+)="([^"]*)""#).expect("a valid pattern");
    let mut metrics: BTreeMap<String, Rendered> = BTreeMap::new();
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            metrics.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().expect("a name");
            let family = name.strip_suffix("_count").unwrap_or(name);
            // The buckets and the sum of a histogram have the labels of its count.
            if let Some(metric) = metrics.get_mut(family) {
                let labels = label.captures_iter(line);
                let pairs = labels.map(|pair| (pair[1].to_owned(), pair[2].to_owned()));
                metric.series.push(pairs.collect());
            }
        }
    }
    metrics
}

impl Rendered {
    fn labels(&self) -> Labels {
        let mut labels = Labels::new();
        for (name, value) in self.series.iter().flatten() {
            labels.entry(name.clone()).or_default().insert(value.clone());
        }
        labels
    }
}

/// The differences between the documented metrics and the rendered ones.
fn differences(
    documented: &BTreeMap<String, Documented>,
    rendered: &BTreeMap<String, Rendered>,
) -> Vec<String> {
    let mut differences = Vec::new();
    for name in rendered.keys().filter(|name| !documented.contains_key(*name)) {
        differences.push(format!("{name} is not documented"));
    }
    for (name, expected) in documented {
        let Some(metric) = rendered.get(name) else {
            if expected.from == "start" {
                differences.push(format!("{name} has no series"));
            }
            continue;
        };
        let labels = metric.labels();
        if metric.kind != expected.kind {
            differences.push(format!("{name} is a {}", metric.kind));
        }
        if !labels.keys().eq(&expected.label_names) {
            differences.push(format!("{name} has the labels {:?}", labels.keys()));
        }
        for (label, values) in &expected.labels {
            if labels.get(label) != Some(values) {
                differences.push(format!("{label} of {name}: {:?}", labels.get(label)));
            }
        }
        // A route has only the methods that it allows.
        let combinations: usize = labels.values().map(BTreeSet::len).product();
        if !labels.contains_key("route") && metric.series.len() != combinations {
            differences.push(format!("{name} has {} of its series", metric.series.len()));
        }
    }
    differences
}

#[tokio::test]
async fn every_metric_is_documented_with_every_label_value_from_the_start() {
    let world = counting_often(World::new().await)
        .with("RETRY_DELAYS", DEFAULT_LADDER)
        .with("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "100ms");
    let app = world.start().await;
    let at_start = scrape(&world, &app).await;
    let mut documented = documented_metrics();
    let (_, description) = world.get(&app, "/openapi.json").await;
    let description: Value = serde_json::from_str(&description).expect("JSON");
    let paths = description["paths"].as_object().expect("an object").keys();
    for routes in documented.values_mut().filter_map(|metric| metric.labels.get_mut("route")) {
        routes.extend(paths.clone().cloned());
    }
    // Some of what is counted later may be missing at the start, with all or with some values.
    let from_start = |name: &String| documented.get(name).is_none_or(|one| one.from == "start");
    let mut first = rendered(&at_start);
    first.retain(|name, _| from_start(name));
    assert_eq!(differences(&documented, &first), Vec::<String>::new(), "{at_start}");

    let is_complete = |rendered: &BTreeMap<String, Rendered>| {
        let later = documented.iter().filter(|(_, metric)| metric.from != "certificate");
        later.map(|(name, _)| name).all(|name| rendered.contains_key(name))
            && rendered["customerio_sync_jobs"].series.len() == 4
            && rendered["customerio_sync_queue_consumers"].series.len() == 11
    };
    let all = wait_for("every metric to have a series", || async {
        Some(rendered(&scrape(&world, &app).await)).filter(is_complete)
    })
    .await;
    assert_eq!(differences(&documented, &all), Vec::<String>::new());
    let unlisted: Vec<_> = documented
        .iter()
        .filter(|(_, metric)| metric.labels.is_empty() && !metric.label_names.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(unlisted, ["customerio_sync_build_info"], "metrics without listed label values");
    app.stop().await;
}

#[tokio::test]
async fn metrics_do_not_wait_for_a_database_that_never_answers() {
    let world = World::new().await;
    // The kernel accepts the connections, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let database = format!("postgres://nobody@{}/none", silent.local_addr().expect("bound"));
    let addr = free_addr();
    let mut service =
        world.spawn_with(&[("DATABASE_URL", database), ("HTTP_ADDR", addr.to_string())]);
    let client = http_client();
    wait_for("the service to listen", || async {
        tokio::net::TcpStream::connect(addr).await.ok().map(drop)
    })
    .await;
    let scrape = async {
        let response = client.get(format!("http://{addr}/metrics")).send().await;
        response.expect("an answer").text().await.expect("a body")
    };
    let text = tokio::time::timeout(SCRAPE_TIMEOUT, scrape).await.expect("an answer in time");
    assert_eq!(metric_value(&text, r#"connected{connection="database"}"#), Some(0.0), "{text}");
    assert_eq!(metric_value(&text, r#"connected{connection="consume"}"#), Some(0.0), "{text}");
    assert!(metric_value(&text, "schema_version_wanted").is_some_and(|version| version >= 10.0));
    let rendered = rendered(&text);
    for (name, metric) in documented_metrics() {
        let is_counted = metric.from == "first count";
        assert!(!is_counted || !rendered.contains_key(&name), "{name} has a value:\n{text}");
    }
    service.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_counts_and_their_age_remain_while_the_database_is_away() {
    let postgres = TempServer::<Postgres>::started();
    let servers = Servers { database_url: postgres.url(), ..Servers::shared() };
    let world = counting_often(World::on(servers).await);
    let app = world.start().await;
    world.failed_signup().await;
    let counted = [
        (r#"connected{connection="database"}"#, Some(1.0)),
        (r#"jobs{status="failed"}"#, Some(1.0)),
        ("open_failures", Some(1.0)),
    ];
    wait_for_values(&world, &app, &counted).await;
    postgres.stop();
    wait_for_values(&world, &app, &[(r#"connected{connection="database"}"#, Some(0.0))]).await;
    let failures = r#"connection_failures_total{connection="database"}"#;
    let before = scrape(&world, &app).await;
    let after = wait_for("another ping without an answer", || async {
        let text = tokio::time::timeout(SCRAPE_TIMEOUT, scrape(&world, &app));
        let text = text.await.expect("an answer in time");
        (metric_value(&text, failures) > metric_value(&before, failures)).then_some(text)
    })
    .await;
    let last_read = metric_value(&before, "ledger_last_read_timestamp_seconds");
    assert!(last_read.is_some());
    for series in [
        r#"jobs{status="failed"}"#,
        "open_failures",
        "ledger_last_read_timestamp_seconds",
        "schema_version",
    ] {
        assert_eq!(metric_value(&after, series), metric_value(&before, series), "{series}");
        assert_ne!(metric_value(&after, series), None, "{series}");
    }
    postgres.start();
    wait_for("the ledger to be counted again", || async {
        let text = scrape(&world, &app).await;
        (metric_value(&text, "ledger_last_read_timestamp_seconds") > last_read).then_some(())
    })
    .await;
    wait_for_values(&world, &app, &counted).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_reported_and_its_queues_have_no_counts() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = counting_often(World::on(Servers::with_rabbitmq(&rabbitmq)).await)
        .with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "1s");
    let app = world.start().await;
    let (ready, consumers) = (
        r#"queue_messages_ready{queue="customerio-sync.failed"}"#,
        r#"queue_consumers{queue="customerio-sync.jobs"}"#,
    );
    let (consuming, connected) =
        (r#"consuming{queue="customerio-sync.jobs"}"#, r#"connected{connection="consume"}"#);
    let published = r#"connected{connection="publish"}"#;
    world.failed_signup().await;
    let with_broker = [
        (ready, Some(1.0)),
        (consumers, Some(1.0)),
        (consuming, Some(1.0)),
        (connected, Some(1.0)),
        (published, Some(1.0)),
    ];
    wait_for_values(&world, &app, &with_broker).await;
    rabbitmq.stop();
    let without_broker = [
        (ready, None),
        (consumers, None),
        (consuming, Some(0.0)),
        (connected, Some(0.0)),
        (published, Some(0.0)),
    ];
    wait_for_values(&world, &app, &without_broker).await;
    wait_for("failed attempts to connect", || async {
        let text = scrape(&world, &app).await;
        let failures = metric_value(&text, r#"connection_failures_total{connection="consume"}"#);
        failures.filter(|failures| *failures > 0.0)
    })
    .await;
    rabbitmq.start();
    wait_for_values(&world, &app, &with_broker).await;
    app.stop().await;
}

#[tokio::test]
async fn the_age_of_overdue_jobs_counts_from_their_due_time() {
    let world = counting_often(World::new().await).with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 2 })).await;
    let signups = [Uuid::new_v4(), Uuid::new_v4()];
    for signup in signups {
        world.submit(&submitted(signup)).await;
        world.wait_for_retry(signup, "initial").await;
    }
    let nothing = [("overdue_jobs", Some(0.0)), ("oldest_overdue_job_age_seconds", Some(0.0))];
    wait_for_values(&world, &app, &nothing).await;
    // The first job was created long ago and is due in an hour, like a restarted one.
    let sql = "
        UPDATE signup_customerio_sync_jobs
        SET created_at = now() - interval '3 days',
            next_retry_at = CASE
                WHEN signup_id = $1 THEN next_retry_at
                ELSE now() - interval '1000 seconds'
            END";
    sqlx::query(sql).bind(signups[0]).execute(&world.pool).await.expect("updated");
    wait_for_values(&world, &app, &[("overdue_jobs", Some(1.0))]).await;
    let age = metric_value(&scrape(&world, &app).await, "oldest_overdue_job_age_seconds");
    assert!(age.is_some_and(|age| (999.0..10_000.0).contains(&age)), "{age:?}");
    app.stop().await;
}

#[tokio::test]
async fn jobs_whose_event_passes_the_age_for_campaigns_are_counted() {
    let world = counting_often(World::new().await);
    let app = world.start().await;
    let signups = [
        world.failed_signup().await,
        world.failed_signup().await,
        world.failed_signup().await,
        world.failed_signup().await,
    ];
    for (signup, hours) in signups.iter().zip([59, 61, 73, 80]) {
        let sql = "
            UPDATE signup_customerio_sync_jobs
            SET occurred_at = now() - make_interval(hours => $2)
            WHERE signup_id = $1";
        sqlx::query(sql).bind(*signup).bind(hours).execute(&world.pool).await.expect("updated");
    }
    let (due_soon, passed) = (r#"late_jobs{state="due_soon"}"#, r#"late_jobs{state="passed"}"#);
    wait_for_values(&world, &app, &[(due_soon, Some(1.0)), (passed, Some(2.0))]).await;
    wait_for_values(&world, &app, &[("unsynced_signups", Some(4.0))]).await;
    let dismiss = format!(
        "UPDATE signup_customerio_sync_jobs SET dismissed_at = now(), dismissed_reason = 'a test'
        WHERE signup_id = '{}'",
        signups[0]
    );
    world.execute(&dismiss).await;
    wait_for_values(&world, &app, &[("unsynced_signups", Some(3.0))]).await;
    app.stop().await;
}

#[tokio::test]
async fn the_broker_counts_as_connected_while_the_database_is_away() {
    let world = World::new().await;
    let away = format!("postgres://postgres@{}/nothing", free_addr());
    let world = world.with("DATABASE_URL", &away);
    let app = world.start_waiting().await;
    let connected = |name: &str| format!(r#"connected{{connection="{name}"}}"#);
    let [consume, publish, database] = ["consume", "publish", "database"].map(connected);
    let expected = [(consume.as_str(), Some(1.0)), (&publish, Some(1.0)), (&database, Some(0.0))];
    wait_for_values(&world, &app, &expected).await;
    app.stop().await;
}

#[tokio::test]
async fn discrepancies_are_unknown_while_the_integrity_check_fails() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "100ms");
    let app = world.start().await;
    let balance = r#"integrity_drift{kind="balance"}"#;
    wait_for_values(&world, &app, &[(balance, Some(0.0))]).await;
    world.execute("ALTER TABLE taken_in RENAME TO renamed").await;
    wait_for_values(&world, &app, &[(balance, None)]).await;
    world.execute("ALTER TABLE renamed RENAME TO taken_in").await;
    wait_for_values(&world, &app, &[(balance, Some(0.0))]).await;
    app.stop().await;
}

#[tokio::test]
async fn a_message_beyond_its_delivery_limit_is_counted_when_it_is_mirrored() {
    let world = World::new().await;
    let app = world.start().await;
    let mut headers = FieldTable::default();
    headers.insert("x-reason".into(), AMQPValue::LongString("delivery-limit".into()));
    let properties = BasicProperties::default().with_headers(headers);
    world.publish("customerio-sync.failed", "", b"{}", properties).await;
    let mirrored = |reason| format!(r#"mirrored_total{{reason="{reason}"}}"#);
    let (counted, other) = (mirrored("delivery-limit"), mirrored("unprocessable"));
    let expected = [(counted.as_str(), Some(1.0)), (other.as_str(), Some(0.0))];
    wait_for_values(&world, &app, &expected).await;
    app.stop().await;
}

#[tokio::test]
async fn mock_mode_is_a_metric_and_counts_no_calls() {
    let world = World::new().await.with("CUSTOMERIO_SITE_ID", "").with("CUSTOMERIO_API_KEY", "");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    let attempts = r#"job_attempts_total{outcome="completed",phase="initial"}"#;
    let expected = [
        ("mock_mode", Some(1.0)),
        (attempts, Some(1.0)),
        (r#"calls_total{status="none"}"#, Some(0.0)),
        ("call_duration_seconds_count", Some(0.0)),
    ];
    wait_for_values(&world, &app, &expected).await;
    app.stop().await;
}

#[tokio::test]
async fn one_replica_reports_that_it_leads_each_task() {
    let world = counting_often(World::new().await)
        .with("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "100ms");
    let (first, second) = tokio::join!(world.start(), world.start());
    let leaders = async |task: &str| {
        let series = format!(r#"leading{{task="{task}"}}"#);
        let mut leaders = 0.0;
        for app in [&first, &second] {
            leaders += metric_value(&scrape(&world, app).await, &series).expect("a series");
        }
        leaders
    };
    for task in ["recovery", "failure_queue", "integrity", "retention"] {
        wait_for(&format!("a leader of {task}"), || async {
            (leaders(task).await == 1.0).then_some(())
        })
        .await;
    }
    first.stop().await;
    for task in ["recovery", "failure_queue", "integrity", "retention"] {
        let series = format!(r#"leading{{task="{task}"}}"#);
        wait_for_values(&world, &second, &[(series.as_str(), Some(1.0))]).await;
    }
    second.stop().await;
}

#[tokio::test]
async fn requests_are_counted_by_the_template_of_their_path() {
    const TOKEN: &str = "0123456789abcdef-of-ann";
    let world = World::new().await.with("ADMIN_TOKENS", &format!("ann:operator:{TOKEN}"));
    let app = world.start().await;
    let get = async |path: &str, token: &str| {
        let url = format!("http://{}{path}", app.http_addr());
        let request = world.http().get(url).bearer_auth(token);
        request.send().await.expect("a response").status().as_u16()
    };
    for _ in 0..2 {
        let path = format!("{API_PREFIX}/jobs/{}", Uuid::new_v4());
        assert_eq!(get(&path, TOKEN).await, 404);
    }
    assert_eq!(get("/no/such/path", TOKEN).await, 404);
    assert_eq!(get(&format!("{API_PREFIX}/stats"), "0123456789abcdef-wrong").await, 401);
    let text = scrape(&world, &app).await;
    let (_, description) = world.get(&app, "/openapi.json").await;
    let description: Value = serde_json::from_str(&description).expect("JSON");
    let start = format!("{API_PREFIX}/jobs/{{");
    let mut paths = description["paths"].as_object().expect("an object").keys();
    let job = paths.find(|path| path.starts_with(&start) && path.ends_with('}')).expect("a path");
    let requests = |route: &str, method: &str, status: &str| {
        let series = format!(
            r#"http_requests_total{{method="{method}",route="{route}",status="{status}"}}"#
        );
        metric_value(&text, &series)
    };
    assert_eq!(requests(job, "GET", "4xx"), Some(2.0), "{text}");
    assert_eq!(requests(job, "GET", "2xx"), Some(0.0), "{text}");
    assert_eq!(requests("other", "other", "4xx"), Some(1.0), "{text}");
    assert_eq!(requests(&format!("{API_PREFIX}/stats"), "GET", "4xx"), Some(1.0), "{text}");
    assert_eq!(metric_value(&text, "wrong_tokens_total"), Some(1.0), "{text}");
    assert!(!text.contains("/no/such/path"), "{text}");
    app.stop().await;
}

#[tokio::test]
async fn websocket_clients_are_counted_while_they_are_connected() {
    let world = World::new().await;
    let app = world.start().await;
    let url = format!("ws://{}{API_PREFIX}/ws", app.http_addr());
    let (client, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
    wait_for_values(&world, &app, &[("websocket_clients", Some(1.0))]).await;
    drop(client);
    wait_for_values(&world, &app, &[("websocket_clients", Some(0.0))]).await;
    app.stop().await;
}
