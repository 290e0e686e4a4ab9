//! Checks of RabbitMQ over AMQP, and the fix of an error of it. They change nothing.

use std::time::Duration;

use lapin::{
    Channel, Connection,
    options::{
        BasicConsumeOptions, ExchangeUnbindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
    uri::{AMQPScheme, AMQPUri},
};
use serde_json::Value;

use super::{
    Address, Error, Topology, WorkQueue,
    names::{EVENTS_EXCHANGE, FAILED_QUEUE, MIRROR_QUEUE},
    topology::amqp_code,
    version::is_at_least,
};
use crate::runtime::{certificate::tls_fix, check::CheckResult};

/// Maximum time for all checks on an open connection.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// The oldest version that is supported.
const VERSION_MIN: (u32, u32) = (3, 10);
/// The exchanges and queues that the service uses, as a pattern of RabbitMQ's permissions
/// (<https://www.rabbitmq.com/docs/access-control#authorisation>). `amq.gen-…` is the queue of
/// the live feed, and `amq.default` the exchange of replays.
const NAMES_PATTERN: &str =
    r"^(signup\.(events|updates)|customerio-sync\..*|amq\.(default|gen.*))$";
/// The pattern for the permission to configure if everything is declared by somebody else.
const NO_NAMES_PATTERN: &str = r"^amq\.gen-.+$";
/// A name like that of the queue of the live feed.
const FEED_QUEUE: &str = "amq.gen-customerio-sync.doctor";
/// A routing key that no binding has.
const UNUSED_ROUTING_KEY: &str = "customerio-sync.doctor";
/// Checks the connection, the version, the permissions, the topology and the consumers.
pub async fn check(
    address: &Address,
    topology: &Topology,
    is_compared_elsewhere: bool,
) -> Vec<CheckResult> {
    let declares = topology.declares();
    let failed = |error: &Error| {
        vec![CheckResult::failed("broker", detail(error), fix(address, declares, error))]
    };
    let connection = match address.connect("doctor").await {
        Ok(connection) => connection,
        Err(error) => return failed(&error),
    };
    let uri = address.uri();
    let version = address.version().await;
    let mut results = vec![check_version(version, &uri)];
    let place = Place::of(&uri);
    let inspecting = async {
        let differences = topology.differences(&connection).await?;
        let definitions = topology.definitions(place.vhost);
        let refusals = refusals(&connection, &definitions).await?;
        let queues = check_consumers(&connection).await?;
        let feed = check_feed(&connection, place).await?;
        Ok::<_, Error>((differences, refusals, queues, feed))
    };
    match tokio::time::timeout(CHECK_TIMEOUT, inspecting).await {
        Err(_) => results.extend(failed(&Error::ConnectTimeout(CHECK_TIMEOUT))),
        Ok(Err(error)) => results.extend(failed(&error)),
        Ok(Ok((differences, refusals, queues, feed))) => {
            results.extend(check_topology(&differences, declares, is_compared_elsewhere, place));
            results.push(check_permissions(&refusals, declares, place));
            results.push(queues);
            results.extend(feed);
        }
    }
    // Channels that found a difference may still be closing; the connection closes in any case.
    let closing = connection.close(200, "done".into());
    let _ = tokio::time::timeout(address.connect_timeout(), closing).await;
    results
}

/// The virtual host and the user, for commands in a fix.
#[derive(Clone, Copy)]
struct Place<'a> {
    vhost: &'a str,
    user: &'a str,
}

impl<'a> Place<'a> {
    fn of(uri: &'a AMQPUri) -> Self {
        Self { vhost: &uri.vhost, user: &uri.authority.userinfo.username }
    }

    /// The command that grants all permissions that the service needs.
    fn set_permissions(self, configures: bool) -> String {
        let Self { vhost, user } = self;
        let configure = if configures { NAMES_PATTERN } else { NO_NAMES_PATTERN };
        format!(
            "rabbitmqctl set_permissions -p '{vhost}' '{user}' '{configure}' '{NAMES_PATTERN}' \
             '{NAMES_PATTERN}'"
        )
    }
}

/// Returns what to do about an error of RabbitMQ, by its code and text
/// (<https://www.rabbitmq.com/amqp-0-9-1-reference>), or about an error of the connection.
pub fn fix(address: &Address, declares: bool, error: &Error) -> String {
    let uri = address.uri();
    let place = Place::of(&uri);
    let Place { vhost, user } = place;
    let server = format!("RabbitMQ at {}:{}", uri.authority.host, uri.authority.port);
    let reach = format!("start {server}, or set AMQP_URL to the address of a running server");
    let source = match error {
        Error::Connect(source) | Error::Request { source, .. } => source,
        Error::Missing(_) => return declare_fix(declares).to_owned(),
        Error::Inequivalent(text) => return fix_of_difference(text, declares),
        Error::NotPermitted { .. } => return place.set_permissions(declares),
        Error::Certificate(_) => {
            return "let the user of the service read the file, or correct tls.ca_file, \
                    broker.client_certificate or broker.client_key"
                .to_owned();
        }
        _ => return reach,
    };
    match amqp_code(source) {
        Some((403, text)) if text.contains("Login was refused") => format!(
            "correct the user or the password in AMQP_URL, or set the password in RabbitMQ: \
             rabbitmqctl change_password '{user}' '…'"
        ),
        Some((530, _)) if vhost.is_empty() => {
            "write the virtual host / as %2f: amqp://user:password@host:5672/%2f".to_owned()
        }
        Some((530, text)) if text.contains("not found") => format!(
            "create it (rabbitmqctl add_vhost '{vhost}' && {}), or correct the end of AMQP_URL",
            place.set_permissions(true)
        ),
        Some((530, text)) if text.contains("limit") => {
            format!("raise the limit of connections of the virtual host {vhost} or the user {user}")
        }
        Some((403 | 530, _)) => place.set_permissions(true),
        Some((541, _)) => format!("rabbitmqctl restart_vhost -p '{vhost}'"),
        _ => {
            let client = "broker.client_certificate and broker.client_key";
            let fix = tls_fix(&source.to_string(), &server, "tls.ca_file", Some(client));
            // A server that requires a client's certificate may just close the connection.
            let reach = match uri.scheme {
                AMQPScheme::AMQP => reach,
                AMQPScheme::AMQPS => {
                    format!("{reach}; if it requires a client's certificate, set {client}")
                }
            };
            fix.unwrap_or(reach)
        }
    }
}

/// The error in words. Never contains the URL.
pub fn detail(error: &Error) -> String {
    match error {
        Error::Connect(source) | Error::Request { source, .. } => {
            amqp_code(source).map_or_else(|| error.to_string(), |(_, text)| text)
        }
        _ => error.to_string(),
    }
}

fn check_version(version: Option<String>, uri: &AMQPUri) -> CheckResult {
    let (major, minor) = VERSION_MIN;
    let host = &uri.authority.host;
    match version {
        None => CheckResult::warning(
            "broker",
            "connected, but the server did not send its version",
            format!("check that `rabbitmqctl version` on {host} prints {major}.{minor} or newer"),
        ),
        Some(version) if is_at_least(&version, VERSION_MIN) => {
            CheckResult::passed("broker", format!("RabbitMQ {version}"))
        }
        Some(version) => CheckResult::failed(
            "broker",
            format!("RabbitMQ {version} is too old"),
            format!("upgrade the server to RabbitMQ {major}.{minor} or newer"),
        ),
    }
}

/// What declares the exchanges, queues and bindings.
pub(super) fn declare_fix(declares: bool) -> &'static str {
    if declares {
        "run `customerio-sync topology`"
    } else {
        "run `CUSTOMERIO_SYNC__TOPOLOGY__DECLARE=true customerio-sync topology` as a user with the \
            configure permission, or import what `customerio-sync topology --print` prints"
    }
}

fn check_topology(
    differences: &[Error],
    declares: bool,
    is_compared_elsewhere: bool,
    place: Place<'_>,
) -> Vec<CheckResult> {
    let failed = |detail: String, fix| CheckResult::failed("topology", detail, fix);
    let mut results = Vec::new();
    let mut refused = None;
    for difference in differences {
        match difference {
            Error::Missing(what) => {
                let fix = declare_fix(declares).to_owned();
                results.push(failed(format!("{what} does not exist"), fix));
            }
            Error::Inequivalent(text) => {
                results.push(failed(text.clone(), fix_of_difference(text, declares)));
            }
            other => refused = refused.or(Some(other)),
        }
    }
    if let Some(refused) = refused {
        let grant = place.set_permissions(true);
        if declares {
            let otherwise = "or declare everything yourself and set topology.declare = false";
            results.push(failed(detail(refused), format!("{grant}; {otherwise}")));
        } else if !is_compared_elsewhere {
            results.push(CheckResult::warning(
                "topology",
                "exchanges and queues exist; their arguments cannot be compared without the \
                    configure permission",
                format!("set broker.management_api, or to compare them once: {grant}"),
            ));
        }
    }
    if results.is_empty() {
        results.push(CheckResult::passed("topology", "all exchanges and queues exist"));
    }
    results
}

fn fix_of_difference(text: &str, declares: bool) -> String {
    let settings =
        [("x-delivery-limit", "topology.delivery_limit"), ("x-message-ttl", "retry.delays")];
    let setting = settings.iter().find(|(argument, _)| text.contains(argument));
    let change = setting
        .map(|(_, setting)| format!("set {setting} to the value that the queue has, or "))
        .unwrap_or_default();
    let is_exchange = text.contains("for exchange '");
    let object = if is_exchange { "exchange" } else { "queue when it is empty" };
    format!("{change}delete the {object} and {}", declare_fix(declares))
}

/// Reports what RabbitMQ refused to this user.
fn check_permissions(refusals: &[String], declares: bool, place: Place<'_>) -> CheckResult {
    let user = place.user;
    match refusals {
        [] => CheckResult::passed("permissions", format!("the user {user} may read and write")),
        [first, others @ ..] => {
            let more = match others.len() {
                0 => String::new(),
                count => format!(" (and {count} more)"),
            };
            let detail = format!("{first}{more}");
            CheckResult::failed("permissions", detail, place.set_permissions(declares))
        }
    }
}

/// Returns what this user may not read or write, as RabbitMQ says it.
///
/// Each request needs the permission and has no effect: it removes a binding that does not exist,
/// or starts a consumer with an invalid argument, which RabbitMQ checks after the permission.
async fn refusals(connection: &Connection, definitions: &Value) -> Result<Vec<String>, Error> {
    let name = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let list = |key: &str| definitions[key].as_array().cloned().unwrap_or_default();
    let mut refusals = Vec::new();
    for exchange in list("exchanges") {
        let exchange = name(&exchange, "name");
        // Events are published by others; this user reads that exchange when it binds its queues.
        if exchange != EVENTS_EXCHANGE {
            let channel = open(connection).await?;
            let requested = channel.exchange_unbind(
                exchange.as_str().into(),
                exchange.as_str().into(),
                UNUSED_ROUTING_KEY.into(),
                ExchangeUnbindOptions::default(),
                FieldTable::default(),
            );
            note_refusal(&mut refusals, "writing to", &exchange, requested.await)?;
        }
    }
    for binding in list("bindings") {
        let (queue, exchange) = (name(&binding, "destination"), name(&binding, "source"));
        let channel = open(connection).await?;
        let requested = channel.queue_unbind(
            queue.as_str().into(),
            exchange.as_str().into(),
            UNUSED_ROUTING_KEY.into(),
            FieldTable::default(),
        );
        note_refusal(&mut refusals, "binding", &queue, requested.await)?;
    }
    let work_queues = WorkQueue::ALL.map(WorkQueue::name).into_iter();
    for queue in work_queues.chain([MIRROR_QUEUE, FAILED_QUEUE]) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongString("invalid".into()));
        let options = BasicConsumeOptions::default();
        let channel = open(connection).await?;
        let requested = channel.basic_consume(queue.into(), "".into(), options, arguments).await;
        note_refusal(&mut refusals, "reading from", queue, requested.map(drop))?;
    }
    Ok(refusals)
}

/// Warns if this user may not configure the queue of the live feed. The request deletes a queue
/// that does not exist.
async fn check_feed(
    connection: &Connection,
    place: Place<'_>,
) -> Result<Option<CheckResult>, Error> {
    let channel = open(connection).await?;
    let options = QueueDeleteOptions { if_unused: true, if_empty: true, ..Default::default() };
    let mut refusals = Vec::new();
    let deleted = channel.queue_delete(FEED_QUEUE.into(), options).await.map(drop);
    note_refusal(&mut refusals, "configuring", FEED_QUEUE, deleted)?;
    Ok(refusals.pop().map(|detail| {
        let detail = format!("{detail}; so the WebSocket /ws sends no outcomes");
        CheckResult::warning("feed", detail, place.set_permissions(false))
    }))
}

/// RabbitMQ closes a channel with the error of a request, so each request has its own.
async fn open(connection: &Connection) -> Result<Channel, Error> {
    connection.create_channel().await.map_err(Error::doing("opening a channel"))
}

/// Collects a refusal. A missing object and an invalid argument count as permitted; returns any
/// other error.
fn note_refusal(
    refusals: &mut Vec<String>,
    doing: &'static str,
    name: &str,
    result: lapin::Result<()>,
) -> Result<(), Error> {
    let Err(error) = result else { return Ok(()) };
    match amqp_code(&error) {
        Some((403, text)) => refusals.push(format!("{doing} {name}: {text}")),
        Some((404 | 406, _)) => {}
        _ => return Err(Error::Request { doing: "checking the permissions", source: error }),
    }
    Ok(())
}

/// Reports messages and consumers of the work queues. A missing queue is left out.
async fn check_consumers(connection: &Connection) -> Result<CheckResult, Error> {
    let (mut depths, mut idle) = (Vec::new(), Vec::new());
    for queue in WorkQueue::ALL.map(WorkQueue::name) {
        let channel = open(connection).await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let Ok(state) = channel.queue_declare(queue.into(), options, FieldTable::default()).await
        else {
            continue;
        };
        let (ready, consumers) = (state.message_count(), state.consumer_count());
        depths.push(format!("{queue} has {ready} ready messages and {consumers} consumers"));
        if consumers == 0 {
            idle.push(queue);
        }
    }
    Ok(if idle.is_empty() {
        CheckResult::passed("queues", depths.join(", "))
    } else {
        let detail = format!("no consumer on {}", idle.join(", "));
        CheckResult::warning("queues", detail, "start `customerio-sync serve`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::TopologyConfig;

    fn inequivalent(argument: &str, object: &str) -> String {
        format!(
            "PRECONDITION_FAILED - inequivalent arg '{argument}' for {object} in vhost '/': \
             received none but current is the value 'x' of type 'longstr'"
        )
    }

    #[test]
    fn the_fix_of_a_difference_names_the_setting() {
        let fix = |argument| fix_of_difference(&inequivalent(argument, "queue 'q'"), true);
        assert!(fix("x-delivery-limit").starts_with("set topology.delivery_limit to the value"));
        assert!(fix("x-message-ttl").starts_with("set retry.delays to the value"));
        assert!(fix("x-overflow").starts_with("delete the queue when it is empty and run"));
    }

    #[test]
    fn the_permissions_match_every_name_of_the_topology() {
        let ladder = "5s,1h".parse().expect("a ladder");
        let declaration = TopologyConfig { declare: true, delivery_limit: 50 };
        let definitions = Topology::new(&ladder, &declaration).definitions("/");
        let pattern = regex::Regex::new(NAMES_PATTERN).expect("a pattern");
        for kind in ["exchanges", "queues"] {
            for object in definitions[kind].as_array().expect("a list") {
                let name = object["name"].as_str().expect("a name");
                assert!(pattern.is_match(name), "{name}");
            }
        }
    }
}
