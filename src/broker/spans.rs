//! The spans of messages, after OpenTelemetry's conventions for RabbitMQ
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>).

use std::sync::Arc;

use lapin::uri::AMQPUri;

use super::{Delivery, Message, names::DEFAULT_EXCHANGE_LABEL};
use crate::runtime::trace::{KeyValue, SpanKind, SpanParent, SpanStart, TraceSpan};

/// The address of the broker.
#[derive(Debug, Clone)]
pub(super) struct ServerAddress {
    host: Arc<str>,
    port: u16,
}

impl ServerAddress {
    pub(super) fn of(uri: &AMQPUri) -> Self {
        Self { host: uri.authority.host.as_str().into(), port: uri.authority.port }
    }
}

/// Starts the span of publishing `message`: a child of the current span. Without one, for example
/// when an operator retries a job, it starts a trace.
pub(super) fn send(message: &Message, server: &ServerAddress) -> TraceSpan {
    TraceSpan::start(|| {
        let (exchange, routing_key) = (&message.exchange, &message.routing_key);
        let destination = destination(&[exchange, routing_key]);
        SpanStart {
            name: format!("send {}", destination_part(exchange)).into(),
            kind: SpanKind::Producer,
            parent: SpanParent::Current(message.trace.clone()),
            attributes: attributes("send", destination, routing_key, &message.message_id, server),
        }
    })
}

/// Starts the span of processing `delivery`.
pub(super) fn process(
    delivery: &Delivery,
    server: &ServerAddress,
    parent: impl FnOnce() -> SpanParent,
) -> TraceSpan {
    TraceSpan::start(|| {
        let Delivery { exchange, routing_key, queue, .. } = delivery;
        // The routing key of a message that was published to the default exchange is the queue.
        let queue_part = if routing_key == queue { "" } else { *queue };
        let destination = destination(&[exchange, routing_key, queue_part]);
        let message_id = delivery.message_id.as_deref().unwrap_or_default();
        SpanStart {
            name: format!("process {queue}").into(),
            kind: SpanKind::Consumer,
            parent: parent(),
            attributes: attributes("process", destination, routing_key, message_id, server),
        }
    })
}

/// The parts of a destination that are not empty, joined as the conventions require.
fn destination(parts: &[&str]) -> String {
    let parts: Vec<_> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    destination_part(&parts.join(":")).to_owned()
}

fn destination_part(name: &str) -> &str {
    if name.is_empty() { DEFAULT_EXCHANGE_LABEL } else { name }
}

fn attributes(
    operation: &'static str,
    destination: String,
    routing_key: &str,
    message_id: &str,
    server: &ServerAddress,
) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.destination.name", destination),
        KeyValue::new("server.address", server.host.clone()),
        KeyValue::new("server.port", i64::from(server.port)),
    ];
    for (key, text) in [
        ("messaging.rabbitmq.destination.routing_key", routing_key),
        ("messaging.message.id", message_id),
    ] {
        if !text.is_empty() {
            attributes.push(KeyValue::new(key, text.to_owned()));
        }
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_has_the_parts_that_are_not_empty() {
        assert_eq!(destination(&["signup.events", "submitted", "q"]), "signup.events:submitted:q");
        assert_eq!(destination(&["customerio-sync.retry.5s", ""]), "customerio-sync.retry.5s");
        assert_eq!(destination(&["", "q", ""]), "q");
        assert_eq!(destination(&["", ""]), DEFAULT_EXCHANGE_LABEL);
    }
}
