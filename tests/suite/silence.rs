//! Connections that fall silent without being closed, and sessions of the database that are of no
//! use: work continues over new ones within a minute.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::support::{World, submitted, wait_for};

/// Time within which work has to continue.
const LIMIT: Duration = Duration::from_secs(60);

/// Completes a job, silences the connections while another is in flight, and checks that this one
/// and further ones complete in time.
async fn check_that_work_continues(variable: &str) {
    let (world, forwarder) = World::behind_forwarder(variable).await;
    let app = world.start().await;
    let first = Uuid::new_v4();
    world.submit(&submitted(first)).await;
    world.wait_for_job(first, "initial", "completed").await;

    world.fault(json!({ "kind": "latency", "ms": 1000, "calls": 1 })).await;
    let in_flight = Uuid::new_v4();
    world.submit(&submitted(in_flight)).await;
    wait_for("a call in flight", || async {
        world.job(in_flight, "initial").await.filter(|job| job["status"] == "processing")
    })
    .await;
    forwarder.silence();
    let silenced = Instant::now();
    let later = [(); 10].map(|()| Uuid::new_v4());
    for signup in later {
        world.submit(&submitted(signup)).await;
    }
    for signup in later.into_iter().chain([in_flight]) {
        world.wait_for_job(signup, "initial", "completed").await;
    }
    assert!(silenced.elapsed() < LIMIT, "{:?}", silenced.elapsed());
    assert_eq!(world.get(&app, "/healthz").await.0, 200);
    wait_for("the service to be ready", || async {
        (world.get(&app, "/readyz").await.0 == 200).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn work_continues_when_connections_to_the_database_fall_silent() {
    check_that_work_continues("DATABASE_URL").await;
}

#[tokio::test]
async fn work_continues_when_connections_to_the_broker_fall_silent() {
    check_that_work_continues("AMQP_URL").await;
}

#[tokio::test]
async fn work_continues_when_connections_to_customer_io_fall_silent() {
    check_that_work_continues("CUSTOMERIO_TRACK_URL").await;
}

#[tokio::test]
async fn sessions_that_became_read_only_are_replaced() {
    let world = World::new().await;
    let app = world.start().await;
    let set_read_only = async |value: &str| {
        let database = &world.vhost;
        let sql = format!("ALTER DATABASE {database} SET default_transaction_read_only = {value}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&world.pool).await
    };
    set_read_only("on").await.expect("altered");
    world.end_sessions().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let reason = world.wait_for_reason(&app, "read-only").await;
    assert!(reason.starts_with("database: writes: none for "), "{reason}");
    // The sessions of the test are read-only as well.
    let reset = "SET default_transaction_read_only = off";
    let mut connection = world.pool.acquire().await.expect("a connection");
    sqlx::query(reset).execute(&mut *connection).await.expect("set");
    let sql = format!("ALTER DATABASE {} RESET default_transaction_read_only", world.vhost);
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await.expect("altered");
    world.wait_for_job(signup, "initial", "completed").await;
    assert_eq!(world.get(&app, "/readyz").await.0, 200);
    app.stop().await;
}
