//! Deliveries of one queue, and their acknowledgement.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::FieldTable,
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Error, HeaderMap, Link,
    while_connected::{request, unless_lost},
};
use crate::runtime::{backoff::Pauses, shutdown::Lifecycle};

/// A message that was delivered and waits for its acknowledgement.
#[derive(Debug)]
pub struct Delivery {
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// Its `content_type`.
    pub content_type: Option<String>,
    /// Its `message_id`.
    pub message_id: Option<String>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// What acknowledges it.
    pub receipt: Receipt,
}

/// Acknowledges one delivery, once.
#[derive(Debug)]
pub struct Receipt {
    delivery: Box<lapin::message::Delivery>,
    delivered_at: Instant,
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// It was sent.
    Sent,
    /// The channel of the delivery is gone: the broker delivers the message again.
    ChannelGone,
}

impl Receipt {
    /// When the message was delivered.
    pub fn delivered_at(&self) -> Instant {
        self.delivered_at
    }

    /// Acknowledges: all that follows from the message is committed and confirmed.
    pub async fn ack(self) -> Acknowledged {
        self.acknowledged(self.delivery.ack(BasicAckOptions::default())).await
    }

    /// Gives the message back to its queue.
    pub async fn give_back(self) -> Acknowledged {
        self.acknowledged(
            self.delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }),
        )
        .await
    }

    async fn acknowledged(&self, sent: impl Future<Output = lapin::Result<bool>>) -> Acknowledged {
        match unless_lost(|| self.delivery.acker.poisoned(), sent).await {
            Some(Ok(true)) => Acknowledged::Sent,
            Some(Ok(false) | Err(_)) | None => Acknowledged::ChannelGone,
        }
    }
}

impl Delivery {
    fn new(mut delivery: lapin::message::Delivery) -> Self {
        let text = |value: &Option<lapin::types::ShortString>| {
            value.as_ref().map(|text| text.as_str().to_owned())
        };
        Self {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered,
            content_type: text(delivery.properties.content_type()),
            message_id: text(delivery.properties.message_id()),
            headers: HeaderMap::new(delivery.properties.headers().as_ref()),
            body: std::mem::take(&mut delivery.data),
            receipt: Receipt { delivery: Box::new(delivery), delivered_at: Instant::now() },
        }
    }
}

/// Sends the deliveries of `queue` to `deliveries`, `prefetch` unacknowledged ones at most, until
/// nothing new is to be taken. A channel or connection that is lost is replaced. The channel stays
/// open until everything has to end, so that what is in hand can still be acknowledged.
pub async fn consume<T: Send>(
    link: Arc<Link>,
    queue: &'static str,
    prefetch: u16,
    lifecycle: Lifecycle,
    deliveries: mpsc::Sender<T>,
    wrap: impl Fn(Delivery) -> T,
) {
    let mut pauses = Pauses::default();
    while !lifecycle.is_draining() {
        match start(&link, queue, prefetch).await {
            Ok((channel, mut consumer)) => {
                pauses.reset();
                if forward(&channel, &mut consumer, &lifecycle, &deliveries, &wrap).await
                    == Ended::Draining
                {
                    stop(&channel, &consumer).await;
                    drop(deliveries);
                    lifecycle.ended().await;
                    return;
                }
                tracing::warn!(queue, "the consumer was cut off, starting again");
            }
            Err(error) => tracing::warn!(%error, queue, "consuming failed, trying again"),
        }
        tokio::select! {
            () = lifecycle.draining() => {}
            () = pauses.pause() => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Draining,
    CutOff,
}

async fn start(
    link: &Link,
    queue: &'static str,
    prefetch: u16,
) -> Result<(Channel, Consumer), Error> {
    let channel = link.channel().await?;
    let prefetched = channel.basic_qos(prefetch, BasicQosOptions::default());
    request(&channel, "setting the prefetch", prefetched).await?;
    let started = channel.basic_consume(
        queue.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = request(&channel, "starting a consumer", started).await?;
    Ok((channel, consumer))
}

async fn forward<T: Send>(
    channel: &Channel,
    consumer: &mut Consumer,
    lifecycle: &Lifecycle,
    deliveries: &mpsc::Sender<T>,
    wrap: &impl Fn(Delivery) -> T,
) -> Ended {
    loop {
        let next = tokio::select! {
            biased;
            () = lifecycle.draining() => return Ended::Draining,
            next = unless_lost(|| !channel.status().connected(), consumer.next()) => next,
        };
        let Some(Some(Ok(delivery))) = next else { return Ended::CutOff };
        // The channel has room for the whole prefetch, so this waits for nothing.
        if deliveries.send(wrap(Delivery::new(delivery))).await.is_err() {
            return Ended::Draining;
        }
    }
}

async fn stop(channel: &Channel, consumer: &Consumer) {
    let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    if let Err(error) = request(channel, "cancelling a consumer", cancelled).await {
        tracing::debug!(%error, "the consumer goes with its channel");
    }
}
