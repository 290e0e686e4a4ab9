//! Outcomes as they happen, for whoever wants to listen: a queue of this process alone, which goes
//! when it ends.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};

use super::{
    Error, Link,
    topology::UPDATES_EXCHANGE,
    while_connected::{request, unless_lost},
};
use crate::runtime::backoff::Pauses;

/// What a listener hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It listens from now on. What was published while it did not is not heard.
    Started,
    /// The body of an outcome.
    Outcome(Vec<u8>),
}

/// Listens to the outcomes of all replicas until it is dropped; a lost connection is opened again.
pub async fn listen(link: Arc<Link>, mut hear: impl FnMut(Heard)) {
    let mut pauses = Pauses::default();
    loop {
        match start(&link).await {
            Ok((channel, mut consumer)) => {
                pauses.reset();
                hear(Heard::Started);
                let is_lost = || !channel.status().connected();
                while let Some(Some(Ok(delivery))) = unless_lost(is_lost, consumer.next()).await {
                    hear(Heard::Outcome(delivery.data));
                }
                tracing::warn!("listening to outcomes was cut off, starting again");
            }
            Err(error) => tracing::warn!(%error, "listening to outcomes failed, trying again"),
        }
        pauses.pause().await;
    }
}

async fn start(link: &Link) -> Result<(Channel, Consumer), Error> {
    let channel = link.channel().await?;
    // It goes with its only consumer, and that with the channel when it is dropped.
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let declared = channel.queue_declare("".into(), options, FieldTable::default());
    let queue = request(&channel, "declaring a queue to listen to", declared).await?;
    let (name, everything) = (queue.name().clone(), "#".into());
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(
        name.clone(),
        UPDATES_EXCHANGE.into(),
        everything,
        options,
        FieldTable::default(),
    );
    request(&channel, "binding a queue to listen to", bound).await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
    let started = channel.basic_consume(name, "".into(), options, FieldTable::default());
    let consumer = request(&channel, "starting to listen", started).await?;
    Ok((channel, consumer))
}
