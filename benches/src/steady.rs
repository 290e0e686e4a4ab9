//! Open loop: events arrive at a fixed rate, however fast they are handled.
//!
//! An event's time is when it was due to be published. If publisher or service fall behind, the
//! delay counts for every event that is due meanwhile, so that nothing is hidden by coordinated
//! omission.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use crate::{
    arguments::Arguments, report::Report, servers::Servers, stage::Stage, statistics::percentile,
};

/// Share of the rate of a drain at which events arrive.
const SHARE: f64 = 0.2;
/// Events per second, if no drain was measured.
const DEFAULT_RATE: f64 = 1000.0;
/// Durations of a call that are measured, in milliseconds.
const LATENCIES: [u64; 2] = [0, 100];
/// Events of the first seconds are not measured: windows and batches in flight still grow.
const WARM_UP_SECONDS: usize = 5;
const TICK: Duration = Duration::from_millis(2);

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    let drained = report.median("drain, calls of 0 ms", "this");
    let rate = drained.map_or(DEFAULT_RATE, |drained| drained * SHARE).round();
    for latency in LATENCIES {
        for (name, program) in arguments.programs(0) {
            let stage = Stage::new(servers, program, &arguments.program).await;
            if latency > 0 {
                stage.add_fault(json!({ "kind": "latency", "ms": latency })).await;
            }
            let (replica, url) = stage.serve(program);
            stage.wait_until_ready(&url).await;
            let began = stage.now().await;
            let events = rate as usize * (arguments.seconds + WARM_UP_SECONDS);
            publish(&stage.amqp_url, rate, events).await;
            stage.wait_until_completed(events, began).await;
            drop(replica);
            let latencies = latencies(&stage, began + WARM_UP_SECONDS as f64).await;
            stage.remove().await;
            let what = format!("{rate} events per second, calls of {latency} ms");
            for (percent, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                let value = percentile(&latencies, share);
                report.add(&format!("{what}: {percent} to accepted"), name, "ms", value);
            }
        }
    }
}

/// Publishes `events` events, `rate` per second.
pub(crate) async fn publish(amqp_url: &str, rate: f64, events: usize) {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await;
    let connection = connection.expect("RabbitMQ answers");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let (began, mut published) = (Utc::now(), 0);
    while published < events {
        let due = (Utc::now() - began).as_seconds_f64() * rate;
        while published < events && (published as f64) < due {
            let at = began + TimeDelta::nanoseconds((published as f64 / rate * 1e9) as i64);
            let body = event(at).to_string();
            let confirm = channel.basic_publish(
                "signup.events".into(),
                "signup.submitted".into(),
                BasicPublishOptions::default(),
                body.as_bytes(),
                BasicProperties::default().with_delivery_mode(2),
            );
            // Waiting for each confirm would close the loop.
            drop(confirm.await.expect("published"));
            published += 1;
        }
        tokio::time::sleep(TICK).await;
    }
    channel.wait_for_confirms().await.expect("confirmed");
    connection.close(200, "done".into()).await.expect("closed");
}

fn event(at: DateTime<Utc>) -> serde_json::Value {
    let signup = Uuid::new_v4().to_string();
    json!({
        "event_id": Uuid::new_v4().to_string(),
        "occurred_at": at.to_rfc3339_opts(SecondsFormat::Micros, true),
        "signup_id": signup,
        "operator_id": "op-12",
        "operator_name": "Acme Sports",
        "customer": {
            "id": format!("c-{signup}"),
            "email": format!("{signup}@example.com"),
            "first_name": "Ann",
            "last_name": "Lee",
            "phone": "+15550100",
            "state": "NJ",
        },
        "attributes": { "plan": "gold" },
    })
}

/// The time from each event since `since`, in seconds since 1970, to the end of the call that was
/// accepted, in milliseconds.
pub(crate) async fn latencies(stage: &Stage<'_>, since: f64) -> Vec<f64> {
    let sql = "
        SELECT (extract(
            epoch FROM a.started_at + a.duration_ms * interval '1 ms' - j.occurred_at
        ) * 1000)::float8
        FROM sync_attempts a
        JOIN signup_customerio_sync_jobs j ON j.id = a.job_id
        WHERE a.error_type IS NULL AND j.occurred_at >= to_timestamp($1)";
    let rows =
        sqlx::query(sql).bind(since).fetch_all(&stage.pool).await.expect("PostgreSQL answers");
    rows.iter().map(|row| row.get(0)).collect()
}
