//! The floor: what the same broker and database do for the same work without the service.
//!
//! RabbitMQ delivers each event and takes its acknowledgement, and confirms one published outcome.
//! PostgreSQL executes the statements of the ledger with the rows of a batch, by pgbench. Each is
//! measured alone, so with both processors; one after the other is what remains if everything else
//! costs nothing.

use std::{path::Path, process::Command, time::Instant};

use futures_util::{StreamExt, future::join_all};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use test_servers::postgres_programs;

use crate::{
    arguments::Arguments,
    report::Report,
    servers::{Servers, output},
    stage::{Stage, folder},
};

/// The name of the result that others are compared with.
pub(crate) const COMPOSED: &str = "floor, composed";

/// Messages per acknowledgement and per wait for confirms, as many as a batch of the service has.
const BATCH: usize = 200;
const PREFETCH: u16 = 800;
const QUEUES: [&str; 2] =
    ["customerio-sync.signup-submitted", "customerio-sync.extraction-confirmed"];
/// Clients of pgbench, and the seconds that it runs.
const CLIENTS: &str = "4";
const SECONDS: &str = "10";

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    for _ in 0..arguments.rounds {
        let stage = Stage::new(servers, &arguments.program, &arguments.program).await;
        stage.publish(&arguments.program, arguments.events);
        let connection =
            Connection::connect(&stage.amqp_url, ConnectionProperties::default()).await;
        let connection = connection.expect("RabbitMQ answers");
        let channel = connection.create_channel().await.expect("a channel");
        let consumed = consume(&channel).await;
        let published = publish(&channel, arguments.events).await;
        let batches = pgbench(&stage.database_url, &folder("floor.sql"));
        let stored = batches * BATCH as f64;
        connection.close(200, "done".into()).await.expect("closed");
        stage.remove().await;
        let composed = 1.0 / (1.0 / consumed + 1.0 / published + 1.0 / stored);
        report.add("floor, consuming and acknowledging", "this", "messages/s", consumed);
        report.add("floor, publishing with confirms", "this", "messages/s", published);
        report.add("floor, statements of the ledger", "this", "jobs/s", stored);
        report.add(COMPOSED, "this", "jobs/s", composed);
    }
}

/// Consumes all events, and returns the messages per second.
async fn consume(channel: &Channel) -> f64 {
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("set");
    let (began, mut all) = (Instant::now(), 0);
    for queue in QUEUES {
        let declared = channel.queue_declare(
            queue.into(),
            QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() },
            FieldTable::default(),
        );
        let events = declared.await.expect("the queue exists").message_count();
        let consumer = channel.basic_consume(
            queue.into(),
            queue.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut consumer = consumer.await.expect("consuming");
        for number in 1..=events {
            let delivery = consumer.next().await.expect("a delivery").expect("a delivery");
            if number % BATCH as u32 == 0 || number == events {
                let options = BasicAckOptions { multiple: true };
                delivery.acker.ack(options).await.expect("acknowledged");
            }
        }
        all += events;
    }
    f64::from(all) / began.elapsed().as_secs_f64()
}

/// Publishes as many outcomes, and returns the messages per second.
async fn publish(channel: &Channel, events: usize) -> f64 {
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let body = [b'x'; 400];
    let began = Instant::now();
    for _ in 0..events / BATCH {
        let confirms = (0..BATCH).map(|_| async {
            let published = channel.basic_publish(
                "signup.updates".into(),
                "sign_up.customerio_synced".into(),
                BasicPublishOptions::default(),
                &body,
                BasicProperties::default().with_delivery_mode(2),
            );
            published.await.expect("published").await.expect("confirmed")
        });
        join_all(confirms).await;
    }
    (events / BATCH * BATCH) as f64 / began.elapsed().as_secs_f64()
}

/// Runs a script, and returns how often per second it was executed.
fn pgbench(database_url: &str, script: &Path) -> f64 {
    let mut command = Command::new(postgres_programs().expect("installed").join("pgbench"));
    command.args(["--no-vacuum", "--protocol=prepared", "-c", CLIENTS, "-j", "2", "-T", SECONDS]);
    let report = output(command.arg("-f").arg(script).arg(database_url));
    let line = report.lines().find_map(|line| line.strip_prefix("tps = "));
    let number = line.and_then(|line| line.split(' ').next()).and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("no result: {report}"))
}
