//! The virtual host of a world: publishing, consuming and inspecting queues.

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Queue,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
        ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use super::{World, wait::WAIT_TIMEOUT, wait_for};

impl World {
    pub(crate) async fn channel(&self) -> Channel {
        let mut connection = self.connection.lock().await;
        if !connection.as_ref().is_some_and(|connection| connection.status().connected()) {
            let properties = ConnectionProperties::default();
            *connection = Some(
                Connection::connect(&self.amqp_url, properties).await.expect("RabbitMQ answers"),
            );
        }
        let channel = connection
            .as_ref()
            .expect("connected above")
            .create_channel()
            .await
            .expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        channel
    }

    pub(crate) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) {
        let channel = self.channel().await;
        publish_on(&channel, exchange, routing_key, body, properties).await;
    }

    /// Publishes an event as upstream services do.
    pub(crate) async fn publish_event(&self, routing_key: &str, body: &Value) {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        self.publish("signup.events", routing_key, body.to_string().as_bytes(), properties).await;
    }

    pub(crate) async fn submit(&self, event: &Value) {
        self.publish_event("signup.submitted", event).await;
    }

    pub(crate) async fn confirm(&self, event: &Value) {
        self.publish_event("signup.extraction_confirmed", event).await;
    }

    /// The number of ready messages in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        self.queue(queue).await.message_count()
    }

    pub(crate) async fn wait_for_depth(&self, queue: &str, depth: u32) {
        let what = format!("{depth} messages in {queue}");
        wait_for(&what, || async { (self.depth(queue).await == depth).then_some(()) }).await;
    }

    /// The state of a queue at this moment.
    pub(crate) async fn queue(&self, queue: &str) -> Queue {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .expect("the queue exists")
    }

    /// Removes the next message of a queue, if there is one.
    pub(crate) async fn take(&self, queue: &str) -> Option<Received> {
        let channel = self.channel().await;
        let message = channel
            .basic_get(queue.into(), BasicGetOptions::default())
            .await
            .expect("the queue exists")?;
        message.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
        Some(Received::new(message.delivery))
    }

    /// Waits for the next message of a queue, and removes it.
    pub(crate) async fn next(&self, queue: &str) -> Received {
        let what = format!("a message in {queue}");
        wait_for(&what, || async { self.take(queue).await }).await
    }

    /// Binds a queue to `exchange`, and consumes its messages from now on.
    pub(crate) async fn listen(&self, exchange: &str, binding_key: &str) -> Listener {
        let channel = self.channel().await;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await
            .expect("declared");
        let name = queue.name().clone();
        channel
            .queue_bind(
                name.clone(),
                exchange.into(),
                binding_key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("bound");
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        Listener(
            channel
                .basic_consume(name, "".into(), options, FieldTable::default())
                .await
                .expect("consuming"),
        )
    }

    /// Waits until every queue of the virtual host is empty.
    pub(crate) async fn wait_until_all_queues_are_empty(&self) {
        wait_for("all queues to be empty", || async {
            let queues = self.management("queues").await;
            for queue in queues.as_array().expect("a list") {
                let name = queue["name"].as_str().expect("a name");
                if self.depth(name).await > 0 {
                    return None;
                }
            }
            // The counts of the management API lag, but they include unacknowledged messages.
            let total = |queue: &Value| queue["messages"].as_u64().unwrap_or(1);
            (queues.as_array().expect("a list").iter().map(total).sum::<u64>() == 0).then_some(())
        })
        .await;
    }

    /// Creates a user, or changes its password, and permits it to configure, write and read what
    /// these patterns match.
    pub(crate) async fn permit(&self, user: &str, password: &str, patterns: [&str; 3]) {
        let [configure, write, read] = patterns;
        let account = json!({ "password": password, "tags": "" });
        self.put(&format!("users/{user}"), &account).await;
        let permissions = json!({ "configure": configure, "write": write, "read": read });
        self.put(&format!("permissions/{}/{user}", self.vhost), &permissions).await;
    }

    /// Creates or changes an object by the management API.
    pub(crate) async fn put(&self, path: &str, body: &Value) {
        let request = self.http.put(format!("{}/api/{path}", self.management_url));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = request.send().await.expect("the management API answers");
        assert!(response.status().is_success(), "PUT {path}: {}", response.status());
    }

    /// The AMQP URL of this virtual host for a user.
    pub(crate) fn amqp_url_of(&self, user: &str, password: &str) -> String {
        let (_, address) = self.amqp_url.rsplit_once('@').expect("a URL with a user");
        format!("amqp://{user}:{password}@{address}")
    }

    /// Returns a response of the management API about this virtual host.
    pub(crate) async fn management(&self, what: &str) -> Value {
        let url = format!("{}/api/{what}/{}", self.management_url, self.vhost);
        let response = self.http.get(url).send().await.expect("the management API answers");
        serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
    }
}

pub(crate) async fn publish_on(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let published =
        channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await;
    let confirmed = published.expect("published").await.expect("confirmed");
    assert!(
        matches!(confirmed, lapin::Confirmation::Ack(None)),
        "{exchange}/{routing_key}: {confirmed:?}"
    );
}

/// A consumer of the messages of an exchange.
pub(crate) struct Listener(lapin::Consumer);

impl Listener {
    pub(crate) async fn next(&mut self) -> Received {
        let next =
            tokio::time::timeout(WAIT_TIMEOUT, self.0.next()).await.expect("a message in time");
        Received::new(next.expect("the consumer continues").expect("a delivery"))
    }
}

/// A message that was received from a queue.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn new(delivery: lapin::message::Delivery) -> Self {
        Self {
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub(crate) fn header(&self, key: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(key)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    pub(crate) fn message_id(&self) -> String {
        self.properties.message_id().as_ref().expect("a message id").to_string()
    }
}
