//! The deliveries of one queue, and their acknowledgement.

#![expect(clippy::disallowed_methods, reason = "an edge: a message is delivered now")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all};
use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::{DeliveryTag, FieldTable},
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Connection, Error, HeaderMap,
    delivery_channel::DeliveryChannel,
    headers,
    message::MessageProperties,
    quarantine::{belongs_in_quarantine, move_to_quarantine},
    spans::{self, ServerAddress},
    while_connected::{request, while_connected},
    window::{AckCounter, Window, WindowLimit},
};
use crate::{
    event::{BinaryAttributes, EventType, RawEvent},
    runtime::{
        backoff::Backoff,
        shutdown::Shutdown,
        trace::{SpanParent, TraceContext, TraceSpan},
    },
};

/// A delivered message that is not acknowledged yet.
#[derive(Debug)]
pub struct Delivery {
    /// The queue that it was delivered from.
    pub queue: &'static str,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// Whether RabbitMQ has delivered it before.
    pub redelivered: bool,
    /// Its `content_type`.
    pub content_type: Option<String>,
    /// Its `content_encoding`.
    pub content_encoding: Option<String>,
    /// Its `timestamp`, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// Its `message_id`.
    pub message_id: Option<String>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Acknowledges it.
    pub acker: Acker,
    server: ServerAddress,
}

/// Acknowledges one delivery, once. If it is dropped before, because a task failed, its channel is
/// closed, so that RabbitMQ requeues the message. The next channel starts with a window of one
/// message: one that makes tasks fail is counted alone.
#[derive(Debug)]
pub struct Acker {
    delivery: Box<lapin::message::Delivery>,
    /// Open as long as a delivery needs it.
    channel: Arc<DeliveryChannel>,
    delivered_at: Instant,
    acknowledged: AckCounter,
    is_answered: bool,
}

/// Result of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckResult {
    /// It was sent.
    Sent,
    /// The channel of the delivery is closed. RabbitMQ redelivers the message.
    ChannelClosed,
}

impl AckResult {
    /// `Sent` if each was sent.
    fn of_all(results: Vec<Self>) -> Self {
        results.into_iter().find(|one| *one != Self::Sent).unwrap_or(Self::Sent)
    }
}

/// Pause before a message is requeued whose task has failed. Until then, the claim on its job is
/// released.
const DROPPED_PAUSE: Duration = Duration::from_secs(1);

impl Acker {
    /// When the message was delivered.
    pub fn delivered_at(&self) -> Instant {
        self.delivered_at
    }

    /// Whether the message can be acknowledged. RabbitMQ redelivers it if its channel is closed.
    pub fn is_current(&self) -> bool {
        self.channel.status().connected()
    }

    /// Lets the message return to its queue when its channel is closed, unless it is acknowledged.
    pub(super) fn leave_until_channel_closes(&mut self) {
        self.is_answered = true;
    }

    /// What the message that parks this one keeps of its properties.
    pub fn properties(&self) -> MessageProperties {
        MessageProperties::kept(&self.delivery.properties)
    }

    /// Acknowledges the message. Call it only after everything that must follow is committed and
    /// confirmed, or on record.
    pub async fn ack(self) -> AckResult {
        Self::ack_all(vec![self]).await
    }

    /// Acknowledges messages, with one frame for all that no unanswered message precedes.
    pub async fn ack_all(mut ackers: Vec<Self>) -> AckResult {
        ackers.sort_unstable_by_key(|acker| (Arc::as_ptr(&acker.channel), acker.tag()));
        let channels = ackers.chunk_by_mut(|one, other| Arc::ptr_eq(&one.channel, &other.channel));
        AckResult::of_all(join_all(channels.map(Self::ack_on_channel)).await)
    }

    /// Acknowledges messages of one channel, in the order of their tags.
    async fn ack_on_channel(ackers: &mut [Self]) -> AckResult {
        let Some(channel) = ackers.first().map(|acker| acker.channel.clone()) else {
            return AckResult::Sent;
        };
        for acker in &mut *ackers {
            acker.is_answered = true;
            acker.acknowledged.increment();
        }
        let _answering = channel.begin_answers().await;
        let tags: Vec<_> = ackers.iter().map(Self::tag).collect();
        let (covered, others) = ackers.split_at(channel.answer(&tags));
        let multiple = |multiple| BasicAckOptions { multiple };
        let one_for_all = covered.last().map(|last| (last, multiple(covered.len() > 1)));
        let one_each = others.iter().map(|acker| (acker, multiple(false)));
        let sent = one_for_all.into_iter().chain(one_each);
        let results = sent.map(|(acker, options)| acker.answer(acker.delivery.ack(options)));
        AckResult::of_all(join_all(results).await)
    }

    /// Requeues the message.
    pub async fn requeue(mut self) -> AckResult {
        self.is_answered = true;
        let _answering = self.channel.begin_answers().await;
        let options = BasicNackOptions { requeue: true, ..Default::default() };
        let result = self.answer(self.delivery.nack(options)).await;
        self.channel.answer(&[self.tag()]);
        result
    }

    fn tag(&self) -> DeliveryTag {
        self.delivery.delivery_tag
    }

    async fn answer(&self, sent: impl Future<Output = lapin::Result<bool>>) -> AckResult {
        match while_connected(|| self.delivery.acker.poisoned(), sent).await {
            Some(Ok(true)) => AckResult::Sent,
            Some(Ok(false) | Err(_)) | None => AckResult::ChannelClosed,
        }
    }
}

impl Drop for Acker {
    fn drop(&mut self) {
        if self.is_answered || !self.is_current() {
            return;
        }
        let channel = self.channel.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(DROPPED_PAUSE).await;
                // It fails if another acker was faster.
                let closed = channel.close(200, "a message was dropped".into());
                let _ = request(&channel, "closing a channel", closed).await;
            });
        }
    }
}

impl Delivery {
    pub(super) fn new(
        queue: &'static str,
        server: &ServerAddress,
        acknowledged: &AckCounter,
        channel: &Arc<DeliveryChannel>,
        mut delivery: lapin::message::Delivery,
    ) -> Self {
        channel.record(delivery.delivery_tag);
        let text = |value: &Option<lapin::types::ShortString>| {
            value.as_ref().map(|text| cleaned(text.as_str()))
        };
        Self {
            queue,
            exchange: cleaned(delivery.exchange.as_str()),
            routing_key: cleaned(delivery.routing_key.as_str()),
            redelivered: delivery.redelivered,
            content_type: text(delivery.properties.content_type()),
            content_encoding: text(delivery.properties.content_encoding()),
            timestamp: *delivery.properties.timestamp(),
            message_id: text(delivery.properties.message_id()),
            headers: HeaderMap::new(delivery.properties.headers().as_ref()),
            body: std::mem::take(&mut delivery.data),
            acker: Acker {
                delivery: Box::new(delivery),
                channel: channel.clone(),
                delivered_at: Instant::now(),
                acknowledged: acknowledged.clone(),
                is_answered: false,
            },
            server: server.clone(),
        }
    }

    /// What it contains, as an event of a type.
    pub fn raw_event(&self, event_type: EventType) -> RawEvent<'_> {
        let header = |name: &str| {
            let named = |prefix: &&str| self.headers.text(&format!("{prefix}{name}"));
            headers::CLOUD_EVENTS_PREFIXES.iter().find_map(named)
        };
        RawEvent {
            content_type: self.content_type.as_deref(),
            content_encoding: self.content_encoding.as_deref(),
            message_id: self.message_id.as_deref(),
            timestamp: self.timestamp,
            binary: header("specversion").map(|specversion| BinaryAttributes {
                specversion,
                id: header("id"),
                event_type: header("type"),
                time: header("time"),
            }),
            ..RawEvent::new(event_type, &self.body)
        }
    }

    /// The trace context that it carries.
    pub fn trace_context(&self) -> TraceContext {
        TraceContext::new(
            self.headers.text(headers::TRACEPARENT),
            self.headers.text(headers::TRACESTATE),
        )
    }

    /// Starts the span of processing it.
    pub fn process_span(&self, parent: impl FnOnce() -> SpanParent) -> TraceSpan {
        spans::process(self, &self.server, parent)
    }
}

/// A text of a message without U+0000, which PostgreSQL can't store. [`HeaderMap`] cleans the
/// headers.
fn cleaned(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Whether each queue that a connection consumes has a consumer.
#[derive(Debug, Default)]
pub struct ConsumerStates(Mutex<HashMap<&'static str, ConsumerState>>);

#[derive(Debug, Clone, Copy)]
enum ConsumerState {
    Running,
    /// There is none since then.
    Lost(Instant),
}

impl ConsumerStates {
    /// The queues that have had no consumer for longer than `time`.
    pub fn lost_for(&self, time: Duration) -> Vec<&'static str> {
        let is_lost = |state: &ConsumerState| match state {
            ConsumerState::Running => false,
            ConsumerState::Lost(since) => since.elapsed() > time,
        };
        let states = self.states();
        let mut lost: Vec<_> =
            states.iter().filter(|(_, state)| is_lost(state)).map(|(queue, _)| *queue).collect();
        lost.sort_unstable();
        lost
    }

    fn set_running(&self, queue: &'static str) {
        self.states().insert(queue, ConsumerState::Running);
    }

    /// Keeps the time of the loss until the consumer runs again.
    fn set_lost(&self, queue: &'static str) {
        let mut states = self.states();
        if !matches!(states.get(queue), Some(ConsumerState::Lost(_))) {
            states.insert(queue, ConsumerState::Lost(Instant::now()));
        }
    }

    fn states(&self) -> MutexGuard<'_, HashMap<&'static str, ConsumerState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the deliveries of `queue` to `deliveries` until shutdown, with at most `prefetch`
/// unacknowledged. It starts with one, and gets more as new ones arrive and redelivered ones are
/// acknowledged ([`Window`]). A lost channel or connection is replaced. The channel stays open as
/// long as a message in flight needs it.
pub async fn consume<T: Send>(
    connection: Arc<Connection>,
    queue: &'static str,
    limit: WindowLimit,
    shutdown: Shutdown,
    deliveries: mpsc::Sender<T>,
    wrap: impl Fn(Delivery) -> T,
) {
    let mut backoff = Backoff::default();
    while !shutdown.is_draining() {
        let mut window = Window::new(limit.clone());
        match Subscription::start(&connection, queue, &window).await {
            Ok(mut subscription) => {
                backoff.reset();
                connection.consumers().set_running(queue);
                let consuming = connection.consuming(queue);
                let end = subscription.forward(&mut window, &shutdown, &deliveries, &wrap).await;
                drop(consuming);
                if end == ForwardEnd::Draining {
                    stop(&subscription.channel, &subscription.consumer).await;
                    connection.consumers().set_lost(queue);
                    return;
                }
                tracing::warn!(queue, "the consumer lost its channel, restarting");
            }
            Err(error) => tracing::warn!(%error, queue, "starting a consumer failed, retrying"),
        }
        connection.consumers().set_lost(queue);
        tokio::select! {
            () = shutdown.draining() => {}
            () = backoff.wait() => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum ForwardEnd {
    Draining,
    Lost,
}

/// A consumer on a channel of its own.
struct Subscription<'a> {
    connection: &'a Connection,
    queue: &'static str,
    channel: Arc<DeliveryChannel>,
    consumer: Consumer,
}

impl<'a> Subscription<'a> {
    async fn start(
        connection: &'a Connection,
        queue: &'static str,
        window: &Window,
    ) -> Result<Self, Error> {
        let channel = Arc::new(DeliveryChannel::new(connection.channel().await?));
        let consumer = start(&channel, queue, window).await?;
        Ok(Self { connection, queue, channel, consumer })
    }

    async fn forward<T: Send>(
        &mut self,
        window: &mut Window,
        shutdown: &Shutdown,
        deliveries: &mpsc::Sender<T>,
        wrap: &impl Fn(Delivery) -> T,
    ) -> ForwardEnd {
        loop {
            let is_lost = || !self.channel.status().connected();
            let next = tokio::select! {
                biased;
                () = shutdown.draining() => return ForwardEnd::Draining,
                next = while_connected(is_lost, self.consumer.next()) => next,
            };
            let Some(Some(Ok(delivery))) = next else { return ForwardEnd::Lost };
            if belongs_in_quarantine(self.queue, &delivery) {
                match move_to_quarantine(&self.channel, self.queue, &delivery).await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "a message was not moved to the quarantine");
                        return ForwardEnd::Lost;
                    }
                }
            }
            let changes = window.record(delivery.data.len(), delivery.redelivered);
            // The channel has room for the whole prefetch, so this never waits.
            if deliveries.send(wrap(self.read(delivery, window))).await.is_err() {
                return ForwardEnd::Draining;
            }
            if changes && self.replace(window, deliveries, wrap).await.is_err() {
                return ForwardEnd::Lost;
            }
        }
    }

    fn read(&self, delivery: lapin::message::Delivery, window: &Window) -> Delivery {
        let server = self.connection.server();
        let delivery =
            Delivery::new(self.queue, server, window.acknowledged(), &self.channel, delivery);
        if delivery.headers.get(headers::REPAIRED).is_some() {
            self.connection.count_repaired(self.queue);
        }
        delivery
    }

    /// Replaces the consumer by one with the size of the window: a size applies to new consumers
    /// (<https://www.rabbitmq.com/docs/consumer-prefetch>). What the old one received is forwarded,
    /// and stays unacknowledged on the same channel.
    async fn replace<T: Send>(
        &mut self,
        window: &mut Window,
        deliveries: &mpsc::Sender<T>,
        wrap: &impl Fn(Delivery) -> T,
    ) -> Result<(), Error> {
        let cancelled =
            self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        request(&self.channel, "replacing a consumer", cancelled).await?;
        let is_lost = || !self.channel.status().connected();
        while let Some(Some(Ok(delivery))) = while_connected(is_lost, self.consumer.next()).await {
            window.count(delivery.redelivered);
            // The receiver ends only with the service.
            let _ = deliveries.send(wrap(self.read(delivery, window))).await;
        }
        self.consumer = start(&self.channel, self.queue, window).await?;
        Ok(())
    }
}

async fn start(channel: &Channel, queue: &str, window: &Window) -> Result<Consumer, Error> {
    let prefetched = channel.basic_qos(window.size(), BasicQosOptions::default());
    request(channel, "setting the prefetch", prefetched).await?;
    let started = channel.basic_consume(
        queue.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    request(channel, "starting a consumer", started).await
}

async fn stop(channel: &Channel, consumer: &Consumer) {
    let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    if let Err(error) = request(channel, "cancelling a consumer", cancelled).await {
        tracing::debug!(%error, "cancelling a consumer failed; it ends with its channel");
    }
}
