//! Every exchange, queue and binding, as one table of data. Declaring, printing and checking read
//! the same table.
//!
//! All queues are quorum queues (<https://www.rabbitmq.com/docs/quorum-queues>). A delay tier is an
//! exchange and a queue without consumers: its messages expire after the tier's delay and are
//! dead-lettered, at least once, to the jobs exchange. At-least-once dead-lettering needs
//! `overflow: reject-publish`.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use super::{Error, TopologyConfig};
use crate::{
    event::EventType,
    retry::{Ladder, Tier},
};

pub(super) const EVENTS_EXCHANGE: &str = "signup.events";
pub(super) const UPDATES_EXCHANGE: &str = "signup.updates";
/// The exchange that messages for jobs are published to.
pub const JOBS_EXCHANGE: &str = "customerio-sync.jobs";
pub(super) const FAILED_EXCHANGE: &str = "customerio-sync.failed";
/// The queue that people look at.
pub const FAILED_QUEUE: &str = "customerio-sync.failed";
/// The queue that the mirror consumes.
pub const MIRROR_QUEUE: &str = "customerio-sync.failed.mirror";

/// A delivery limit that is never reached. On RabbitMQ 4 a peek in the management UI counts as a
/// delivery, and without a limit of our own the default of 20 would drop the message; on 3.10 a
/// limit of -1 drops it at its first requeue.
const NO_LIMIT: i64 = 1_000_000_000;

/// A queue whose messages ask for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkQueue {
    /// Events of one type.
    Events(EventType),
    /// Jobs that come back from a tier, or that an operator retries.
    Jobs,
}

impl WorkQueue {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::Events(EventType::Submitted), Self::Events(EventType::Confirmed), Self::Jobs];

    /// The queue's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events(EventType::Submitted) => "customerio-sync.signup-submitted",
            Self::Events(EventType::Confirmed) => "customerio-sync.extraction-confirmed",
            Self::Jobs => "customerio-sync.jobs",
        }
    }

    const fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Events(event_type) => (EVENTS_EXCHANGE, event_type.routing_key()),
            Self::Jobs => (JOBS_EXCHANGE, ""),
        }
    }
}

const TIER_PREFIX: &str = "customerio-sync.retry.";

/// The name of a tier's exchange, and of its queue.
pub(super) fn tier_name(tier: &Tier) -> String {
    format!("{TIER_PREFIX}{}", tier.name)
}

#[derive(Debug, Clone, PartialEq)]
enum Argument {
    Text(&'static str),
    Number(i64),
}

#[derive(Debug, Clone, PartialEq)]
struct Exchange {
    name: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq)]
struct Queue {
    name: String,
    arguments: Vec<(&'static str, Argument)>,
    /// The exchange and routing key it is bound to.
    source: (String, &'static str),
}

/// The table.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    exchanges: Vec<Exchange>,
    queues: Vec<Queue>,
    declare: bool,
}

const DEAD_LETTER_SAFELY: [(&str, Argument); 2] = [
    ("x-dead-letter-strategy", Argument::Text("at-least-once")),
    ("x-overflow", Argument::Text("reject-publish")),
];

impl Topology {
    /// The table for a ladder.
    pub fn new(ladder: &Ladder, config: &TopologyConfig) -> Self {
        // Two steps of the ladder may share a tier.
        let mut tiers: Vec<&Tier> = Vec::new();
        for tier in ladder.tiers() {
            if !tiers.iter().any(|one| one.name == tier.name) {
                tiers.push(tier);
            }
        }
        let exchange = |name: &str, kind| Exchange { name: name.to_owned(), kind };
        let mut exchanges = vec![
            exchange(EVENTS_EXCHANGE, "topic"),
            exchange(UPDATES_EXCHANGE, "topic"),
            exchange(JOBS_EXCHANGE, "fanout"),
            exchange(FAILED_EXCHANGE, "fanout"),
        ];
        exchanges.extend(tiers.iter().map(|tier| exchange(&tier_name(tier), "fanout")));
        let mut queues: Vec<_> = WorkQueue::ALL
            .iter()
            .map(|&queue| Queue::work(queue, config.delivery_limit.into()))
            .collect();
        queues.extend(tiers.iter().map(|tier| Queue::tier(tier)));
        queues.extend([FAILED_QUEUE, MIRROR_QUEUE].map(Queue::failed));
        Self { exchanges, queues, declare: config.declare }
    }

    /// Declares everything, or checks that everything stands as it would be declared.
    pub async fn apply(&self, connection: &Connection) -> Result<(), Error> {
        let channel =
            connection.create_channel().await.map_err(Error::doing("opening a channel"))?;
        for exchange in &self.exchanges {
            if self.declare {
                exchange.declare(&channel).await?;
            } else {
                exchange.check(&channel).await?;
            }
        }
        for queue in &self.queues {
            if self.declare {
                queue.declare(&channel).await?;
                queue.bind(&channel).await?;
            } else {
                queue.check(&channel).await?;
            }
        }
        channel.close(200, "done".into()).await.map_err(Error::doing("closing a channel"))
    }

    /// The queues of the delay tiers.
    pub(super) fn tier_queues(&self) -> impl Iterator<Item = &str> {
        self.queues
            .iter()
            .map(|queue| queue.name.as_str())
            .filter(|name| name.starts_with(TIER_PREFIX))
    }

    /// What is missing, or stands with other arguments. Bindings can't be asked for over AMQP.
    pub(super) async fn differences(&self, connection: &Connection) -> Result<Vec<Error>, Error> {
        let mut differences = Vec::new();
        // A channel ends with the first thing that is not as it is said to be, so each has one of
        // its own.
        let fresh =
            async || connection.create_channel().await.map_err(Error::doing("opening a channel"));
        for exchange in &self.exchanges {
            note(&mut differences, exchange.check(&fresh().await?).await)?;
        }
        for queue in &self.queues {
            note(&mut differences, queue.check(&fresh().await?).await)?;
        }
        Ok(differences)
    }

    /// The table as a RabbitMQ definitions file (<https://www.rabbitmq.com/docs/definitions>) for
    /// `vhost`.
    pub fn definitions(&self, vhost: &str) -> Value {
        let exchanges = self.exchanges.iter().map(|exchange| {
            json!({
                "name": exchange.name, "vhost": vhost, "type": exchange.kind,
                "durable": true, "auto_delete": false, "internal": false, "arguments": {},
            })
        });
        let queues = self.queues.iter().map(|queue| {
            json!({
                "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": queue.arguments.iter().map(|(key, value)| ((*key).to_owned(),
                value.to_json())).collect::<serde_json::Map<_, _>>(),
            })
        });
        let bindings = self.queues.iter().map(|queue| {
            json!({
                "source": queue.source.0, "vhost": vhost, "destination": queue.name,
                "destination_type": "queue",
                "routing_key": queue.source.1, "arguments": {},
            })
        });
        json!({
            "exchanges": exchanges.collect::<Vec<_>>(),
            "queues": queues.collect::<Vec<_>>(),
            "bindings": bindings.collect::<Vec<_>>(),
        })
    }
}

impl Argument {
    fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => (*text).into(),
            Self::Number(number) => (*number).into(),
        }
    }

    fn to_amqp(&self) -> AMQPValue {
        match self {
            Self::Text(text) => AMQPValue::LongString((*text).into()),
            Self::Number(number) => AMQPValue::LongLongInt(*number),
        }
    }
}

impl Exchange {
    async fn declare(&self, channel: &Channel) -> Result<(), Error> {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared = channel
            .exchange_declare(
                self.name.as_str().into(),
                ExchangeKind::Custom(self.kind.to_owned()),
                options,
                FieldTable::default(),
            )
            .await;
        declared.map_err(|error| inequivalent(error, "declaring an exchange"))
    }

    /// Fails if it is missing, or stands with other arguments. Nothing is made: it is declared only
    /// where it is there.
    async fn check(&self, channel: &Channel) -> Result<(), Error> {
        self.require(channel).await?;
        self.declare(channel).await
    }

    async fn require(&self, channel: &Channel) -> Result<(), Error> {
        let options = ExchangeDeclareOptions { passive: true, durable: true, ..Default::default() };
        let found = channel
            .exchange_declare(
                self.name.as_str().into(),
                ExchangeKind::Custom(self.kind.to_owned()),
                options,
                FieldTable::default(),
            )
            .await;
        found.map_err(|error| missing(error, format!("the exchange {}", self.name)))
    }
}

impl Queue {
    fn work(queue: WorkQueue, delivery_limit: i64) -> Self {
        let (exchange, routing_key) = queue.source();
        // Never to a tier: a message that came from there and goes back by dead-lettering is a
        // cycle, and is dropped.
        let mut arguments = vec![
            ("x-delivery-limit", Argument::Number(delivery_limit)),
            ("x-dead-letter-exchange", Argument::Text(FAILED_EXCHANGE)),
        ];
        arguments.extend(DEAD_LETTER_SAFELY);
        Self::quorum(queue.name().to_owned(), arguments, (exchange.to_owned(), routing_key))
    }

    fn tier(tier: &Tier) -> Self {
        let ttl = i64::try_from(tier.delay.as_millis()).unwrap_or(i64::MAX);
        let mut arguments = vec![
            ("x-delivery-limit", Argument::Number(NO_LIMIT)),
            ("x-message-ttl", Argument::Number(ttl)),
            ("x-dead-letter-exchange", Argument::Text(JOBS_EXCHANGE)),
        ];
        arguments.extend(DEAD_LETTER_SAFELY);
        Self::quorum(tier_name(tier), arguments, (tier_name(tier), ""))
    }

    fn failed(name: &str) -> Self {
        let arguments = vec![("x-delivery-limit", Argument::Number(NO_LIMIT))];
        Self::quorum(name.to_owned(), arguments, (FAILED_EXCHANGE.to_owned(), ""))
    }

    fn quorum(
        name: String,
        mut arguments: Vec<(&'static str, Argument)>,
        source: (String, &'static str),
    ) -> Self {
        arguments.insert(0, ("x-queue-type", Argument::Text("quorum")));
        Self { name, arguments, source }
    }

    async fn declare(&self, channel: &Channel) -> Result<(), Error> {
        let mut arguments = FieldTable::default();
        for (key, value) in &self.arguments {
            arguments.insert((*key).into(), value.to_amqp());
        }
        let declared = channel
            .queue_declare(self.name.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await;
        declared.map(drop).map_err(|error| inequivalent(error, "declaring a queue"))
    }

    /// Fails if it is missing, or stands with other arguments. Nothing is made: it is declared only
    /// where it is there.
    async fn check(&self, channel: &Channel) -> Result<(), Error> {
        self.require(channel).await?;
        self.declare(channel).await
    }

    async fn require(&self, channel: &Channel) -> Result<(), Error> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let found = channel
            .queue_declare(self.name.as_str().into(), options, FieldTable::default())
            .await
            .map(drop);
        found.map_err(|error| missing(error, format!("the queue {}", self.name)))
    }

    async fn bind(&self, channel: &Channel) -> Result<(), Error> {
        let (exchange, routing_key) = &self.source;
        channel
            .queue_bind(
                self.name.as_str().into(),
                exchange.as_str().into(),
                (*routing_key).into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(Error::doing("binding a queue"))
    }
}

/// Keeps a difference, and passes on what is none.
fn note(differences: &mut Vec<Error>, checked: Result<(), Error>) -> Result<(), Error> {
    match checked {
        Err(error @ (Error::Missing(_) | Error::Inequivalent(_))) => differences.push(error),
        other => other?,
    }
    Ok(())
}

/// RabbitMQ's own text of a 406 names the object, the argument and both values.
fn inequivalent(error: lapin::Error, doing: &'static str) -> Error {
    match amqp_code(&error) {
        Some((406, text)) => Error::Inequivalent(text),
        _ => Error::Request { doing, source: error },
    }
}

fn amqp_code(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => {
            Some((error.get_id(), error.get_message().to_string()))
        }
        _ => None,
    }
}

fn missing(error: lapin::Error, what: String) -> Error {
    match amqp_code(&error) {
        Some((404, _)) => Error::Missing(what),
        _ => Error::Request { doing: "checking the topology", source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_tiers_have_the_ladders_delays() {
        let ladder = "5s,25s,125s,625s,3125s".parse().expect("the default ladder");
        let topology =
            Topology::new(&ladder, &TopologyConfig { declare: true, delivery_limit: 50 });
        let definitions = topology.definitions("/");
        let ttls: Vec<_> = definitions["queues"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|queue| {
                Some((queue["name"].as_str()?, queue["arguments"]["x-message-ttl"].as_i64()?))
            })
            .collect();
        assert_eq!(
            ttls,
            [
                ("customerio-sync.retry.5s", 5_000),
                ("customerio-sync.retry.25s", 25_000),
                ("customerio-sync.retry.125s", 125_000),
                ("customerio-sync.retry.625s", 625_000),
                ("customerio-sync.retry.3125s", 3_125_000),
            ]
        );
    }

    #[test]
    fn every_queue_is_a_quorum_queue_with_a_delivery_limit_of_its_own() {
        let ladder = "1s,1s,2s".parse().expect("a ladder whose steps share a tier");
        let topology =
            Topology::new(&ladder, &TopologyConfig { declare: true, delivery_limit: 50 });
        assert_eq!(topology.queues.len(), 3 + 2 + 2);
        for queue in &topology.queues {
            assert!(
                queue.arguments.contains(&("x-queue-type", Argument::Text("quorum"))),
                "{}",
                queue.name
            );
            let limit = queue.arguments.iter().find(|(key, _)| *key == "x-delivery-limit");
            assert!(matches!(limit, Some((_, Argument::Number(1..)))), "{}", queue.name);
        }
    }
}
