//! Reads a queue from its head to its end, and removes single messages.
//!
//! AMQP can't remove a message from the middle of a queue. The reader receives all of them one by
//! one (`basic.get`, which no prefetch limits) and acknowledges those that have to go. The others
//! stay unacknowledged until it ends; then RabbitMQ requeues them. Nothing is published.

use std::sync::Arc;

use lapin::options::BasicGetOptions;

use super::{
    Connection, Delivery, Error, delivery_channel::DeliveryChannel, while_connected::request,
    window::AckCounter,
};

/// A reader of one queue.
#[derive(Debug)]
pub struct QueueReader {
    connection: Arc<Connection>,
    channel: Arc<DeliveryChannel>,
    queue: &'static str,
}

impl QueueReader {
    /// A reader that starts at the head of `queue`.
    pub async fn open(connection: Arc<Connection>, queue: &'static str) -> Result<Self, Error> {
        let channel = Arc::new(DeliveryChannel::new(connection.channel().await?));
        Ok(Self { connection, channel, queue })
    }

    /// Reads the next `limit` messages, or fewer at the end of the queue. One that is not
    /// acknowledged returns to the queue when the reader ends.
    pub async fn read(&self, limit: usize) -> Result<Vec<Delivery>, Error> {
        let mut deliveries = Vec::new();
        while deliveries.len() < limit {
            let read = self.channel.basic_get(self.queue.into(), BasicGetOptions::default());
            let Some(message) = request(&self.channel, "reading a queue", read).await? else {
                break;
            };
            let (server, acknowledged) = (self.connection.server(), AckCounter::default());
            let channel = &self.channel;
            let mut delivery =
                Delivery::new(self.queue, server, &acknowledged, channel, message.delivery);
            delivery.acker.leave_until_channel_closes();
            deliveries.push(delivery);
        }
        Ok(deliveries)
    }

    /// Ends it, so that RabbitMQ requeues what was not acknowledged.
    pub async fn close(self) -> Result<(), Error> {
        let closed = self.channel.close(200, "done".into());
        request(&self.channel, "closing a channel", closed).await
    }
}
