//! `/healthz`, `/readyz` and `/metrics`.

use crate::support::{Servers, TempServer, World, submitted, wait_for};
use serde_json::{Value, json};
use std::time::Duration;
use test_servers::RabbitMq;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

#[tokio::test]
async fn a_working_service_is_live_and_ready() {
    let world = World::new().await;
    let app = world.start().await;
    assert_eq!(world.get(&app, "/healthz").await.0, 200);
    assert_eq!(
        world.get(&app, "/readyz").await,
        (200, r#"{"mode":"live","status":"ready"}"#.to_owned())
    );
    assert_eq!(world.get(&app, "/nothing").await.0, 404);
    app.stop().await;
}

#[tokio::test]
async fn a_service_without_a_database_is_live_but_not_ready_and_says_why() {
    let world = World::new().await;
    let app = world.start().await;
    // The database has the name of the virtual host.
    let database = world.vhost.clone();
    let mut admin =
        <sqlx::PgConnection as sqlx::Connection>::connect(&Servers::shared().database_url)
            .await
            .expect("PostgreSQL answers");
    let forbid_connections = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false");
    let end_sessions = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    for sql in [forbid_connections, end_sessions] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await.expect("executed");
    }
    assert_eq!(world.get(&app, "/healthz").await.0, 200);
    let (status, body) = world.get(&app, "/readyz").await;
    assert_eq!(status, 503);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert!(body["reasons"][0].as_str().expect("a reason").starts_with("database: "), "{body}");

    let sql = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await.expect("executed");
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.get(&app, "/readyz").await.0, 200);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_confirms_is_reported_and_work_resumes_with_them() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = World::on(Servers::with_rabbitmq(&rabbitmq)).await;
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "latency", "ms": 5000 })).await;
    world.submit(&submitted(signup)).await;
    wait_for("the call of the job to be in flight", || async {
        world.job(signup, "initial").await.filter(|job| job["status"] == "processing")
    })
    .await;
    rabbitmq.set_memory_alarm(true).expect("the alarm changes");
    let (_, body) = wait_for("the service to be unready", || async {
        Some(world.get(&app, "/readyz").await).filter(|(status, _)| *status == 503)
    })
    .await;
    assert!(body.contains("broker: messages unconfirmed for more than 10s: 1;"), "{body}");
    rabbitmq.set_memory_alarm(false).expect("the alarm changes");
    wait_for("the service to be ready", || async {
        Some(world.get(&app, "/readyz").await).filter(|(status, _)| *status == 200)
    })
    .await;
    world.wait_until_all_queues_are_empty().await;
    app.stop().await;
}

#[tokio::test]
async fn metrics_follow_the_prometheus_conventions() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__METRICS__INTERVAL", "100ms")
        .with("CUSTOMERIO_SYNC__METRICS__COMPLETED_INTERVAL", "100ms");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_until_all_queues_are_empty().await;
    let text = wait_for("the completed job to be counted", || async {
        let (_, text) = world.get(&app, "/metrics").await;
        let counted = r#"customerio_sync_jobs{status="completed"} 1"#;
        text.lines().any(|line| line == counted).then_some(text)
    })
    .await;
    for expected in [
        concat!(
            r#"customerio_sync_events_total{queue="customerio-sync.signup-submitted","#,
            r#"result="accepted"} 1"#
        ),
        r#"customerio_sync_job_attempts_total{outcome="completed",phase="initial"} 1"#,
        r#"customerio_sync_calls_total{status="200"} 1"#,
        r#"customerio_sync_jobs{status="failed"} 0"#,
        r#"customerio_sync_publishes_total{destination="outcome",result="confirmed"} 1"#,
        "customerio_sync_open_failures 0",
        "customerio_sync_oldest_overdue_job_age_seconds 0",
        "customerio_sync_call_duration_seconds_count 1",
        r#"customerio_sync_event_to_accepted_seconds_count{phase="initial"} 1"#,
        "customerio_sync_batch_deliveries_count 1",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} is missing in:\n{text}");
    }
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = name.split_once(' ').expect("a name and a type");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
    }
    app.stop().await;
}

#[tokio::test]
async fn probes_answer_while_idle_connections_use_up_the_limit() {
    const LIMIT: usize = 8;
    let world = World::new().await.with("CUSTOMERIO_SYNC__HTTP__CONNECTIONS", &LIMIT.to_string());
    let app = world.start().await;
    // The body of this request is not complete.
    let mut in_flight = TcpStream::connect(app.http_addr()).await.expect("connected");
    let request = "POST /api/v1/signups/customerio/sync-failures/retry?dryRun=true HTTP/1.1\r\n\
        Host: localhost\r\n\
        Content-Type: application/json\r\n\
        Content-Length: 2\r\n\
        Connection: close\r\n\r\n{";
    in_flight.write_all(request.as_bytes()).await.expect("written");
    let mut idle = Vec::new();
    for number in 0..5 * LIMIT {
        let mut connection = TcpStream::connect(app.http_addr()).await.expect("connected");
        if number % 2 == 0 {
            let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
            connection.write_all(request).await.expect("written");
        }
        idle.push(connection);
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let probe = tokio::time::timeout(Duration::from_secs(20), world.get(&app, path));
        assert_eq!(probe.await.expect("an answer in time").0, 200, "{path}");
    }
    in_flight.write_all(b"}").await.expect("written");
    let mut response = String::new();
    in_flight.read_to_string(&mut response).await.expect("read");
    assert!(response.starts_with("HTTP/1.1 200"), "a request in flight is not cut: {response}");
    app.stop().await;
}
