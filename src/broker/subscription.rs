//! A live subscription to outcomes: an exclusive queue of this process, deleted when it ends.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};

use super::{
    Connection, Error,
    names::UPDATES_EXCHANGE,
    while_connected::{request, while_connected},
};
use crate::runtime::backoff::Backoff;

/// An event that a subscription reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeEvent {
    /// It receives outcomes from now on. Earlier outcomes are missed.
    Subscribed,
    /// The body of an outcome.
    Outcome(Vec<u8>),
}

/// Reports the outcomes of all replicas until it is dropped. A lost connection is reopened.
pub async fn subscribe_outcomes(connection: Arc<Connection>, mut report: impl FnMut(OutcomeEvent)) {
    let mut backoff = Backoff::default();
    loop {
        match start(&connection).await {
            Ok((channel, mut consumer)) => {
                backoff.reset();
                report(OutcomeEvent::Subscribed);
                let is_disconnected = || !channel.status().connected();
                while let Some(Some(Ok(delivery))) =
                    while_connected(is_disconnected, consumer.next()).await
                {
                    report(OutcomeEvent::Outcome(delivery.data));
                }
                tracing::warn!("the subscription to outcomes was lost, restarting");
            }
            Err(error) => tracing::warn!(%error, "subscribing to outcomes failed, retrying"),
        }
        backoff.wait().await;
    }
}

async fn start(connection: &Connection) -> Result<(Channel, Consumer), Error> {
    let channel = connection.channel().await?;
    // The queue is deleted with its only consumer, which ends with the channel.
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let declared = channel.queue_declare("".into(), options, FieldTable::default());
    let queue = request(&channel, "declaring a queue for outcomes", declared).await?;
    let (name, everything) = (queue.name().clone(), "#".into());
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(
        name.clone(),
        UPDATES_EXCHANGE.into(),
        everything,
        options,
        FieldTable::default(),
    );
    request(&channel, "binding a queue for outcomes", bound).await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
    let started = channel.basic_consume(name, "".into(), options, FieldTable::default());
    let consumer = request(&channel, "consuming outcomes", started).await?;
    Ok((channel, consumer))
}
