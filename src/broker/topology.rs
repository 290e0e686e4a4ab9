//! Every exchange, queue and binding, as one table. Declaring, printing and checking read the same
//! table.
//!
//! All queues are quorum queues (<https://www.rabbitmq.com/docs/quorum-queues>). A delay tier is an
//! exchange and a queue without consumers: its messages expire after the tier's delay and are
//! dead-lettered, at least once, to the jobs exchange. At-least-once dead-lettering requires
//! `overflow: reject-publish`.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use super::{
    Error, TopologyConfig,
    names::{
        EVENTS_EXCHANGE, FAILED_EXCHANGE, FAILED_QUEUE, JOBS_EXCHANGE, MIRROR_QUEUE,
        QUARANTINE_QUEUE, TIER_PREFIX, UPDATES_EXCHANGE, WorkQueue, tier_queue,
    },
};
use crate::retry::{Ladder, Tier};

/// A delivery limit that is never reached. In RabbitMQ 4, reading a message in the management UI
/// counts as a delivery, and the default limit of 20 would drop it. In 3.10, a limit of -1 drops a
/// message at its first requeue.
pub(super) const UNLIMITED_DELIVERIES: i64 = 1_000_000_000;

#[derive(Debug, Clone, PartialEq)]
enum Argument {
    Text(&'static str),
    Number(i64),
}

#[derive(Debug, Clone, PartialEq)]
struct ExchangeSpec {
    name: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq)]
struct QueueSpec {
    name: String,
    arguments: Vec<(&'static str, Argument)>,
    /// The exchange and routing key it is bound to, if it is.
    source: Option<(String, &'static str)>,
}

/// The exchanges and queues of this service.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    exchanges: Vec<ExchangeSpec>,
    queues: Vec<QueueSpec>,
    declare: bool,
}

const AT_LEAST_ONCE_DEAD_LETTERING: [(&str, Argument); 2] = [
    ("x-dead-letter-strategy", Argument::Text("at-least-once")),
    ("x-overflow", Argument::Text("reject-publish")),
];

impl Topology {
    /// The topology for a ladder.
    pub fn new(ladder: &Ladder, config: &TopologyConfig) -> Self {
        // Two steps of the ladder may share a tier.
        let mut tiers: Vec<&Tier> = Vec::new();
        for tier in ladder.tiers() {
            if !tiers.iter().any(|one| one.name == tier.name) {
                tiers.push(tier);
            }
        }
        let exchange = |name: &str, kind| ExchangeSpec { name: name.to_owned(), kind };
        let mut exchanges = vec![
            exchange(EVENTS_EXCHANGE, "topic"),
            exchange(UPDATES_EXCHANGE, "topic"),
            exchange(JOBS_EXCHANGE, "fanout"),
            exchange(FAILED_EXCHANGE, "fanout"),
        ];
        exchanges.extend(tiers.iter().map(|tier| exchange(&tier_queue(tier), "fanout")));
        let mut queues: Vec<_> = WorkQueue::ALL
            .iter()
            .map(|&queue| QueueSpec::work(queue, config.delivery_limit.into()))
            .collect();
        queues.extend(tiers.iter().map(|tier| QueueSpec::tier(tier)));
        let failures = Some((FAILED_EXCHANGE.to_owned(), ""));
        queues.extend(
            [FAILED_QUEUE, MIRROR_QUEUE].map(|name| QueueSpec::kept(name, failures.clone())),
        );
        queues.push(QueueSpec::kept(QUARANTINE_QUEUE, None));
        Self { exchanges, queues, declare: config.declare }
    }

    /// Declares everything, or, with `topology.declare = false`, checks that everything exists as
    /// it would be declared. Bindings are made in both cases: that needs no permission to
    /// configure.
    pub async fn apply(&self, connection: &Connection) -> Result<(), Error> {
        // RabbitMQ closes the channel when it refuses a request, even if the difference is
        // accepted.
        let mut channel = open_channel(connection).await?;
        for exchange in &self.exchanges {
            if !channel.status().connected() {
                channel = open_channel(connection).await?;
            }
            if self.declare {
                exchange.declare(&channel).await?;
            } else {
                accept_incomparable(exchange.check(&channel).await)?;
            }
        }
        for queue in &self.queues {
            if !channel.status().connected() {
                channel = open_channel(connection).await?;
            }
            if self.declare {
                queue.declare(&channel).await?;
            } else {
                accept_incomparable(queue.check(&channel).await)?;
            }
            if !channel.status().connected() {
                channel = open_channel(connection).await?;
            }
            queue.bind(&channel).await?;
        }
        channel.close(200, "done".into()).await.map_err(Error::doing("closing a channel"))
    }

    /// Declares the exchanges and queues that are missing, and makes all bindings. Calls `report`
    /// with the name of each that it has declared, at once: the future may be dropped later. Fails
    /// if something is missing that may not be declared.
    pub(super) async fn restore(
        &self,
        connection: &Connection,
        report: impl Fn(&str),
    ) -> Result<(), Error> {
        let mut channel = open_channel(connection).await?;
        for exchange in &self.exchanges {
            match exchange.check_exists(&channel).await {
                Err(Error::Missing(_)) if self.declare => {
                    // RabbitMQ closes the channel with its refusal.
                    channel = open_channel(connection).await?;
                    exchange.declare(&channel).await?;
                    report(&exchange.name);
                }
                found => found?,
            }
        }
        for queue in &self.queues {
            match queue.check_exists(&channel).await {
                Err(Error::Missing(_)) if self.declare => {
                    channel = open_channel(connection).await?;
                    queue.declare(&channel).await?;
                    report(&queue.name);
                }
                found => found?,
            }
            queue.bind(&channel).await?;
        }
        channel.close(200, "done".into()).await.map_err(Error::doing("closing a channel"))
    }

    /// Whether exchanges and queues are declared, or only checked.
    pub fn declares(&self) -> bool {
        self.declare
    }

    /// The names of all exchanges and queues.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let exchanges = self.exchanges.iter().map(|exchange| exchange.name.as_str());
        exchanges.chain(self.queue_names())
    }

    /// The names of all queues.
    pub(super) fn queue_names(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(|queue| queue.name.as_str())
    }

    /// The queues of the delay tiers.
    pub(super) fn tier_queues(&self) -> impl Iterator<Item = &str> {
        self.queue_names().filter(|name| name.starts_with(TIER_PREFIX))
    }

    /// Returns what is missing, was declared with other arguments, or may not be compared by this
    /// user. Bindings are not checked, because AMQP has no request that lists them.
    pub(super) async fn differences(&self, connection: &Connection) -> Result<Vec<Error>, Error> {
        let mut differences = Vec::new();
        // RabbitMQ closes the channel at the first difference, so each check has its own.
        for exchange in &self.exchanges {
            let channel = open_channel(connection).await?;
            note(&mut differences, exchange.check(&channel).await)?;
        }
        for queue in &self.queues {
            let channel = open_channel(connection).await?;
            note(&mut differences, queue.check(&channel).await)?;
        }
        Ok(differences)
    }

    /// The topology as a RabbitMQ definitions file (<https://www.rabbitmq.com/docs/definitions>)
    /// for `vhost`.
    pub fn definitions(&self, vhost: &str) -> Value {
        let exchanges = self.exchanges.iter().map(|exchange| {
            json!({
                "name": exchange.name, "vhost": vhost, "type": exchange.kind,
                "durable": true, "auto_delete": false, "internal": false, "arguments": {},
            })
        });
        let queues = self.queues.iter().map(|queue| {
            let arguments: serde_json::Map<_, _> = queue
                .arguments
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.to_json()))
                .collect();
            json!({
                "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": arguments,
            })
        });
        let bindings = self.queues.iter().filter_map(|queue| {
            let (exchange, routing_key) = queue.source.as_ref()?;
            Some(json!({
                "source": exchange, "vhost": vhost,
                "destination": queue.name, "destination_type": "queue",
                "routing_key": routing_key, "arguments": {},
            }))
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

impl ExchangeSpec {
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
        match declared.map_err(|error| inequivalent(error, "declaring an exchange", &self.name)) {
            Err(Error::Inequivalent(text)) if is_about_arguments(&text) => Ok(()),
            other => other,
        }
    }

    /// Fails if it is missing or was declared with other arguments. Never creates it.
    async fn check(&self, channel: &Channel) -> Result<(), Error> {
        self.check_exists(channel).await?;
        comparison(self.declare(channel).await)
    }

    async fn check_exists(&self, channel: &Channel) -> Result<(), Error> {
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

impl QueueSpec {
    fn work(queue: WorkQueue, delivery_limit: i64) -> Self {
        let (exchange, routing_key) = queue.source();
        // The dead-letter exchange is never that of a tier: RabbitMQ drops a message that
        // dead-lettering returns to a queue that it came from.
        let mut arguments = vec![
            ("x-delivery-limit", Argument::Number(delivery_limit)),
            ("x-dead-letter-exchange", Argument::Text(FAILED_EXCHANGE)),
        ];
        arguments.extend(AT_LEAST_ONCE_DEAD_LETTERING);
        Self::quorum(queue.name().to_owned(), arguments, Some((exchange.to_owned(), routing_key)))
    }

    fn tier(tier: &Tier) -> Self {
        let ttl = i64::try_from(tier.delay.as_millis()).unwrap_or(i64::MAX);
        let mut arguments = vec![
            ("x-delivery-limit", Argument::Number(UNLIMITED_DELIVERIES)),
            ("x-message-ttl", Argument::Number(ttl)),
            ("x-dead-letter-exchange", Argument::Text(JOBS_EXCHANGE)),
        ];
        arguments.extend(AT_LEAST_ONCE_DEAD_LETTERING);
        Self::quorum(tier_queue(tier), arguments, Some((tier_queue(tier), "")))
    }

    /// A queue that people read, and that nothing is dropped from.
    fn kept(name: &str, source: Option<(String, &'static str)>) -> Self {
        let arguments = vec![("x-delivery-limit", Argument::Number(UNLIMITED_DELIVERIES))];
        Self::quorum(name.to_owned(), arguments, source)
    }

    fn quorum(
        name: String,
        mut arguments: Vec<(&'static str, Argument)>,
        source: Option<(String, &'static str)>,
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
        declared.map(drop).map_err(|error| inequivalent(error, "declaring a queue", &self.name))
    }

    /// Fails if it is missing or was declared with other arguments. Never creates it.
    async fn check(&self, channel: &Channel) -> Result<(), Error> {
        self.check_exists(channel).await?;
        comparison(self.declare(channel).await)
    }

    async fn check_exists(&self, channel: &Channel) -> Result<(), Error> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let found = channel
            .queue_declare(self.name.as_str().into(), options, FieldTable::default())
            .await
            .map(drop);
        found.map_err(|error| missing(error, format!("the queue {}", self.name)))
    }

    async fn bind(&self, channel: &Channel) -> Result<(), Error> {
        let Some((exchange, routing_key)) = &self.source else { return Ok(()) };
        channel
            .queue_bind(
                self.name.as_str().into(),
                exchange.as_str().into(),
                (*routing_key).into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| refused(error, "binding a queue", &self.name))
    }
}

async fn open_channel(connection: &Connection) -> Result<Channel, Error> {
    connection.create_channel().await.map_err(Error::doing("opening a channel"))
}

/// Without the permission to configure, an object that exists can't be compared with the expected
/// one. That is accepted: its arguments are the business of the team that declared it.
fn accept_incomparable(checked: Result<(), Error>) -> Result<(), Error> {
    match checked {
        Err(Error::Incomparable { .. }) => Ok(()),
        other => other,
    }
}

/// The result of comparing an object that exists.
fn comparison(declared: Result<(), Error>) -> Result<(), Error> {
    match declared {
        Err(Error::NotPermitted { name, text, .. }) => Err(Error::Incomparable { name, text }),
        other => other,
    }
}

/// Whether an exchange of the right type, durable and not internal, has other arguments, such as
/// an alternate exchange. RabbitMQ compares type and flags first
/// (<https://www.rabbitmq.com/docs/exchanges>), and names the first difference.
fn is_about_arguments(text: &str) -> bool {
    ["type", "durable", "auto_delete", "internal"]
        .iter()
        .all(|property| !text.contains(&format!("inequivalent arg '{property}'")))
}

/// Collects a difference, and returns any other error.
fn note(differences: &mut Vec<Error>, checked: Result<(), Error>) -> Result<(), Error> {
    match checked {
        Err(error @ (Error::Missing(_) | Error::Inequivalent(_) | Error::Incomparable { .. })) => {
            differences.push(error)
        }
        other => other?,
    }
    Ok(())
}

/// RabbitMQ's text for a 406 names the object, the argument and both values.
fn inequivalent(error: lapin::Error, doing: &'static str, name: &str) -> Error {
    match amqp_code(&error) {
        Some((406, text)) => Error::Inequivalent(text),
        _ => refused(error, doing, name),
    }
}

/// RabbitMQ's text for a 403 names the object and the user.
fn refused(error: lapin::Error, doing: &'static str, name: &str) -> Error {
    match amqp_code(&error) {
        Some((403, text)) => Error::NotPermitted { doing, name: name.to_owned(), text },
        _ => Error::Request { doing, source: error },
    }
}

/// RabbitMQ's code and text of an error (<https://www.rabbitmq.com/amqp-0-9-1-reference>).
pub(super) fn amqp_code(error: &lapin::Error) -> Option<(u16, String)> {
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
    fn the_default_tiers_have_the_delays_of_the_ladder() {
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
    fn every_queue_is_a_quorum_queue_with_an_explicit_delivery_limit() {
        let ladder = "1s,1s,2s".parse().expect("a ladder whose steps share a tier");
        let topology =
            Topology::new(&ladder, &TopologyConfig { declare: true, delivery_limit: 50 });
        assert_eq!(topology.queues.len(), 3 + 2 + 3);
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
