//! Moves a message that ends its consumers again and again out of their way.
//!
//! A message of a work queue that crashes every process that receives it is given up at the
//! delivery limit, and reaches the failure queues. Those have no usable limit: reading them in the
//! management UI counts as well. So the mirror's consumer moves a message that was delivered many
//! times into the quarantine queue, before anything reads it. The service never consumes that
//! queue.

use lapin::{
    BasicProperties, Channel,
    message::Delivery,
    options::{BasicAckOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};

use super::{
    Error,
    names::{MIRROR_QUEUE, QUARANTINE_QUEUE, headers},
    original::{harmless_name, inert_properties},
    while_connected::request,
};

/// Deliveries after which a message of the mirror's queue is moved. A replica that stops while it
/// has the message causes one. Redelivered messages widen the window of its consumer step by step,
/// so neighbours are counted a few times.
const DELIVERIES_MAX: i64 = 20;

/// Whether a delivery has to be moved instead of being read.
pub(super) fn belongs_in_quarantine(queue: &str, delivery: &Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    let count = headers.and_then(|headers| headers.inner().get(headers::DELIVERY_COUNT));
    queue == MIRROR_QUEUE && count.and_then(integer).is_some_and(|count| count >= DELIVERIES_MAX)
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::LongLongInt(value) => Some(*value),
        AMQPValue::LongInt(value) => Some((*value).into()),
        AMQPValue::ShortInt(value) => Some((*value).into()),
        AMQPValue::ShortShortInt(value) => Some((*value).into()),
        _ => None,
    }
}

/// Publishes a delivery to the quarantine queue, with its body and its properties, waits for the
/// confirm, and acknowledges it.
pub(super) async fn move_to_quarantine(
    channel: &Channel,
    queue: &str,
    delivery: &Delivery,
) -> Result<(), Error> {
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    request(channel, "asking for confirms", confirms).await?;
    let published = channel.basic_publish(
        "".into(),
        QUARANTINE_QUEUE.into(),
        BasicPublishOptions { mandatory: true, ..Default::default() },
        &delivery.data,
        properties(queue, delivery),
    );
    let confirm = request(channel, "moving a message to the quarantine", published).await?;
    let confirmed = request(channel, "moving a message to the quarantine", confirm).await?;
    // RabbitMQ also acknowledges a message that it returns.
    if !confirmed.is_ack() || confirmed.take_message().is_some() {
        return Err(Error::Missing(format!("the queue {QUARANTINE_QUEUE}")));
    }
    request(channel, "acknowledging a message", delivery.ack(BasicAckOptions::default())).await?;
    tracing::error!(
        queue,
        "a message ended its consumers {DELIVERIES_MAX} times and was moved to the queue \
            {QUARANTINE_QUEUE}"
    );
    Ok(())
}

/// The properties of a delivery without `user_id` and `expiration`, which RabbitMQ acts upon.
fn properties(queue: &str, delivery: &Delivery) -> BasicProperties {
    let from = &delivery.properties;
    let mut headers = FieldTable::default();
    for (key, value) in from.headers().iter().flat_map(FieldTable::inner) {
        // RabbitMQ adds it to each delivery.
        if key.as_str() != headers::DELIVERY_COUNT {
            headers.insert(harmless_name(key), value.clone());
        }
    }
    headers.insert(headers::ORIGINAL_QUEUE.into(), AMQPValue::LongString(queue.into()));
    let properties = inert_properties(from).with_headers(headers);
    match from.reply_to() {
        Some(reply_to) => properties.with_reply_to(reply_to.clone()),
        None => properties,
    }
}
