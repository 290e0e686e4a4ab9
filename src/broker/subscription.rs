//! A live subscription to outcomes: an exclusive queue of this process, deleted when it ends.

#![expect(clippy::disallowed_methods, reason = "an edge: a refused subscription pauses")]

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::Instant;

use super::{
    Connection, Error,
    message::{OutcomeType, is_outcome},
    names::UPDATES_EXCHANGE,
    while_connected::{request, while_connected},
};
use crate::runtime::backoff::Backoff;

/// Pause after RabbitMQ refused the queue or its bindings. Only a change of the user's permissions
/// helps.
const REFUSAL_PAUSE: Duration = Duration::from_secs(60);

/// An event that a subscription reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeEvent {
    /// It receives outcomes from now on. Earlier outcomes are missed.
    Subscribed {
        /// Whether it was lost before, or could not be started at once.
        is_late: bool,
    },
    /// The body of an outcome.
    Outcome(Vec<u8>),
}

/// A subscription to the outcomes of all replicas.
#[derive(Debug)]
pub struct OutcomeSubscription {
    connection: Arc<Connection>,
    /// When RabbitMQ last refused access. It is kept between two runs, so that clients that come
    /// and go cause neither requests nor warnings.
    refused_at: Option<Instant>,
}

impl OutcomeSubscription {
    /// Creates a subscription that is not started.
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection, refused_at: None }
    }

    /// Reports outcomes until it is dropped. A lost connection is reopened. If RabbitMQ refuses
    /// access, that is logged once, and retried once per minute.
    pub async fn run(&mut self, mut report: impl FnMut(OutcomeEvent)) {
        let mut backoff = Backoff::default();
        let mut is_late = false;
        loop {
            if let Some(refused_at) = self.refused_at {
                tokio::time::sleep_until(refused_at + REFUSAL_PAUSE).await;
            }
            match start(&self.connection).await {
                Ok((channel, mut consumer)) => {
                    self.refused_at = None;
                    backoff.reset();
                    report(OutcomeEvent::Subscribed { is_late });
                    forward(&channel, &mut consumer, &mut report).await;
                    tracing::warn!("the subscription to outcomes was lost, restarting");
                }
                Err(error) if error.is_access_refused() => self.note_refusal(&error),
                Err(error) => tracing::warn!(%error, "subscribing to outcomes failed, retrying"),
            }
            is_late = true;
            backoff.wait().await;
        }
    }

    fn note_refusal(&mut self, error: &Error) {
        if self.refused_at.replace(Instant::now()).is_none() {
            tracing::warn!(
                %error,
                "RabbitMQ does not allow the queue of the live feed (amq.gen-…): WebSocket \
                    clients receive no outcomes until the user may configure, write and read it"
            );
        }
    }
}

/// Reports outcomes until the consumer or its channel is lost.
async fn forward(
    channel: &Channel,
    consumer: &mut Consumer,
    report: &mut impl FnMut(OutcomeEvent),
) {
    let is_disconnected = || !channel.status().connected();
    while let Some(Some(Ok(delivery))) = while_connected(is_disconnected, consumer.next()).await {
        let routing_key = delivery.routing_key.as_str();
        if is_outcome(routing_key, &delivery.data) {
            report(OutcomeEvent::Outcome(delivery.data));
        } else {
            tracing::debug!(routing_key, "dropped a message that is not an outcome");
        }
    }
}

async fn start(connection: &Connection) -> Result<(Channel, Consumer), Error> {
    let channel = connection.channel().await?;
    // The queue is deleted with its only consumer, which ends with the channel.
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let declared = channel.queue_declare("".into(), options, FieldTable::default());
    let queue = request(&channel, "declaring a queue for outcomes", declared).await?;
    let name = queue.name().clone();
    for outcome in OutcomeType::ALL {
        let bound = channel.queue_bind(
            name.clone(),
            UPDATES_EXCHANGE.into(),
            outcome.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        request(&channel, "binding a queue for outcomes", bound).await?;
    }
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
    let started = channel.basic_consume(name, "".into(), options, FieldTable::default());
    let consumer = request(&channel, "consuming outcomes", started).await?;
    Ok((channel, consumer))
}
