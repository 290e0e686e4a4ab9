//! Publishing with confirms: a message counts as published when RabbitMQ confirms it, and is
//! retried until then.
//!
//! A mandatory message has a channel of its own until it is confirmed. lapin can attach a returned
//! message to the wrong confirm when mandatory publishes are pipelined on one channel, and an
//! unroutable message would count as published. Outcomes, which are not mandatory, and events, of
//! which any return ends the command that publishes them, share one channel.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::{RwLock, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Config, Connection, Error, Message, headers,
    message::{Destination, short},
    original::merged,
    spans,
    while_connected::request,
};
use crate::runtime::{
    backoff::Backoff,
    heartbeat::Heartbeat,
    metrics::{GaugeGuard, Metrics},
    shutdown::Shutdown,
    text_enum::text_enum,
    trace::{TraceContext, TraceSpan},
};

/// Time without a confirm after which a heartbeat is published.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum age of the last confirm of a publisher that works.
const CONFIRM_AGE_MAX: Duration = Duration::from_secs(45);
/// Routing key of heartbeats. No queue has this name.
const UNROUTABLE_KEY: &str = "customerio-sync.heartbeat";
/// Time after which a missing confirm is reported.
const CONFIRM_OVERDUE_AFTER: Duration = Duration::from_secs(10);

/// A handle to the publisher, which has its own connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher(Arc<PublisherShared>);

#[derive(Debug)]
struct PublisherShared {
    connection: Arc<Connection>,
    metrics: Arc<Metrics>,
    /// One permit per channel.
    permits: Semaphore,
    idle: Mutex<Vec<Channel>>,
    /// The channel for outcomes and events.
    shared: RwLock<Option<Channel>>,
    /// Number of messages whose confirm is overdue.
    overdue: AtomicUsize,
    last_confirm: Heartbeat,
}

text_enum! {
    /// The result of a publish, for metrics.
    PublishResult {
        /// RabbitMQ confirmed it.
        Confirmed = "confirmed",
        /// It was unroutable.
        Returned = "returned",
        /// RabbitMQ refused it.
        Nacked = "nacked",
        /// It is unknown whether it arrived.
        Lost = "lost",
    }
}

/// RabbitMQ's answer to a message that was published once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishAnswer {
    /// It has the message.
    Confirmed,
    /// No queue is bound to the exchange.
    Unroutable,
    /// It refuses the message: a queue is full.
    Refused,
    /// There was no answer in time, or the connection was lost.
    None,
}

/// Why a publish was not confirmed.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Returned(Unroutable),
    #[error("RabbitMQ refused it")]
    Nacked,
    #[error("it is unknown whether it arrived: {0}")]
    Lost(#[from] Error),
}

/// RabbitMQ returned a mandatory message, because its exchange routes it to no queue
/// (<https://www.rabbitmq.com/docs/publishers#unroutable>).
#[derive(Debug, thiserror::Error)]
#[error("exchange {exchange} routes the routing key `{routing_key}` to no queue")]
pub struct Unroutable {
    exchange: String,
    routing_key: String,
}

/// The span of a publish, and the confirm to wait for.
type StartedPublish = (TraceSpan, lapin::Result<PublisherConfirm>);

impl PublishAnswer {
    fn of(published: &Result<(), PublishError>) -> Self {
        match published {
            Ok(()) => Self::Confirmed,
            Err(PublishError::Returned(_)) => Self::Unroutable,
            Err(PublishError::Nacked) => Self::Refused,
            Err(PublishError::Lost(_)) => Self::None,
        }
    }
}

impl PublishError {
    fn result(&self) -> PublishResult {
        match self {
            Self::Returned(_) => PublishResult::Returned,
            Self::Nacked => PublishResult::Nacked,
            Self::Lost(_) => PublishResult::Lost,
        }
    }
}

impl Publisher {
    /// A publisher on `connection`.
    pub fn new(connection: Arc<Connection>, config: &Config, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(PublisherShared {
            connection,
            metrics,
            permits: Semaphore::new(config.publish_channels.get()),
            idle: Mutex::default(),
            shared: RwLock::default(),
            overdue: AtomicUsize::new(0),
            last_confirm: Heartbeat::default(),
        }))
    }

    /// Publishes `message`, and retries until RabbitMQ confirms it. An unroutable message is
    /// published again after the topology has been restored. A repeat has the same `message_id`.
    pub async fn publish(&self, message: &Message) {
        let mut backoff = Backoff::default();
        while self.publish_routable(message).await.is_err() {
            backoff.wait().await;
            self.restore_topology().await;
        }
    }

    /// Publishes `message`, and retries until RabbitMQ confirms it or returns it as unroutable. A
    /// repeat has the same `message_id`. Of several events in flight, one may get the error of
    /// another.
    pub async fn publish_routable(&self, message: &Message) -> Result<(), Unroutable> {
        let mut backoff = Backoff::default();
        loop {
            match self.send_counted(message).await {
                Ok(()) => return Ok(()),
                Err(PublishError::Returned(unroutable)) => return Err(unroutable),
                Err(_) => backoff.wait().await,
            }
        }
    }

    /// Publishes `message` once, and waits at most `limit` for the confirm.
    pub async fn publish_once(&self, message: &Message, limit: Duration) -> PublishAnswer {
        match timeout(limit, self.send_counted(message)).await {
            Ok(published) => PublishAnswer::of(&published),
            Err(_) => self.lost(message),
        }
    }

    /// Publishes outcomes once each, and waits for their confirms until `until`. Returns an answer
    /// per outcome, in their order. They share their timers: a replica publishes one outcome per
    /// job.
    pub async fn publish_outcomes_once(
        &self,
        outcomes: &[(Message, Option<TraceSpan>)],
        until: Instant,
    ) -> Vec<PublishAnswer> {
        let Some((first, _)) = outcomes.first() else { return Vec::new() };
        let all_lost = || outcomes.iter().map(|(message, _)| self.lost(message)).collect();
        let mut answers = Vec::with_capacity(outcomes.len());
        let starting = self.warn_when_overdue(first, self.start_outcomes(outcomes));
        let (channel, started) = match timeout_at(until, starting).await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => {
                self.0.last_confirm.fail(&error);
                tracing::warn!(%error, outcomes = outcomes.len(), "publishing outcomes failed");
                return all_lost();
            }
            Err(_) => {
                self.drop_shared_channel().await;
                return all_lost();
            }
        };
        let mut is_late = false;
        for ((message, _), (span, confirm)) in outcomes.iter().zip(started) {
            let confirming = async {
                let confirm = confirm.map_err(Error::doing("publishing"))?;
                confirmed(&channel, confirm).await
            };
            let confirming = pin!(self.warn_when_overdue(message, confirming));
            // After a confirm that is missing, the others have arrived, or are missing too.
            let published = if is_late {
                confirming.now_or_never()
            } else {
                timeout_at(until, confirming).await.ok()
            };
            is_late |= published.is_none() || !channel.status().connected();
            answers.push(self.answer(message, &span, published));
        }
        if answers.contains(&PublishAnswer::None) {
            self.drop_shared_channel().await;
        }
        answers
    }

    /// The answer to an outcome. `None` if there was no confirm in time.
    fn answer(
        &self,
        message: &Message,
        span: &TraceSpan,
        published: Option<Result<(), PublishError>>,
    ) -> PublishAnswer {
        let Some(published) = published else {
            span.fail(PublishResult::Lost.as_str());
            return self.lost(message);
        };
        if let Err(error) = &published {
            span.fail(error.result().as_str());
        }
        self.conclude(message, &published);
        PublishAnswer::of(&published)
    }

    /// Publishes outcomes, each within its span. The future of each resolves when it is confirmed.
    async fn start_outcomes(
        &self,
        outcomes: &[(Message, Option<TraceSpan>)],
    ) -> Result<(Channel, Vec<StartedPublish>), PublishError> {
        let channel = self.shared_channel().await?;
        let start = async |message: &Message| {
            let span = spans::send(message, self.0.connection.server());
            let trace = span.outgoing(&message.trace);
            let confirm = start_publish(&channel, message, &trace).await;
            (span, confirm)
        };
        let starting = outcomes.iter().map(async |(message, span)| match span {
            Some(span) => span.within(start(message)).await,
            None => start(message).await,
        });
        let starting = async { Ok(join_all(starting).await) };
        let started = request(&channel, "publishing", starting).await?;
        Ok((channel, started))
    }

    /// Gives up the shared channel: lapin remembers every confirm that nobody waits for until the
    /// channel is closed.
    async fn drop_shared_channel(&self) {
        self.0.shared.write().await.take();
    }

    /// Counts a message that was not confirmed in time.
    fn lost(&self, message: &Message) -> PublishAnswer {
        self.count(message, PublishResult::Lost);
        PublishAnswer::None
    }

    /// Declares what a message that was not confirmed may lack.
    pub async fn restore_topology(&self) {
        if let Err(error) = self.0.connection.restore_topology().await {
            tracing::warn!(%error, "restoring the topology failed");
        }
    }

    /// Publishes a message that no queue takes whenever no other was confirmed for a while, until
    /// shutdown. So an idle publisher notices too that RabbitMQ blocks it.
    pub async fn check_idle(self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.draining() => return,
                () = tokio::time::sleep(IDLE_CHECK_INTERVAL) => {}
            }
            if self.0.last_confirm.age() < IDLE_CHECK_INTERVAL {
                continue;
            }
            match timeout(CONFIRM_OVERDUE_AFTER, self.publish_unroutable()).await {
                Ok(Ok(())) => self.0.last_confirm.beat(),
                Ok(Err(error)) => self.0.last_confirm.fail(error),
                Err(_) => {
                    self.0.last_confirm.fail("RabbitMQ blocks publishers");
                    self.drop_shared_channel().await;
                }
            }
        }
    }

    /// Publishes to the default exchange with a routing key that no queue has as its name.
    async fn publish_unroutable(&self) -> Result<(), PublishError> {
        let channel = self.shared_channel().await?;
        let published = channel.basic_publish(
            "".into(),
            UNROUTABLE_KEY.into(),
            BasicPublishOptions::default(),
            &[],
            BasicProperties::default(),
        );
        let confirm = request(&channel, "publishing a heartbeat", published).await?;
        request(&channel, "waiting for the confirm of a heartbeat", confirm).await?;
        Ok(())
    }

    fn count(&self, message: &Message, result: PublishResult) {
        let labels = [message.destination.as_str(), result.as_str()];
        self.0.metrics.publishes.with_label_values(&labels).inc();
    }

    /// Publishes `message`, counts the result and logs a failure.
    async fn send_counted(&self, message: &Message) -> Result<(), PublishError> {
        let published = self.send(message).await;
        self.conclude(message, &published);
        published
    }

    /// Counts the result of a publish, and logs a failure.
    fn conclude(&self, message: &Message, published: &Result<(), PublishError>) {
        let result =
            published.as_ref().map_or_else(PublishError::result, |()| PublishResult::Confirmed);
        self.count(message, result);
        match published {
            // RabbitMQ has answered.
            Ok(()) | Err(PublishError::Returned(_) | PublishError::Nacked) => {
                self.0.last_confirm.beat();
            }
            Err(error @ PublishError::Lost(_)) => self.0.last_confirm.fail(error),
        }
        if let Err(error) = published {
            tracing::warn!(
                %error,
                message_id = message.message_id,
                exchange = message.exchange,
                "publishing a message failed"
            );
        }
    }

    /// Publishes `message`. The span of this attempt is the one that the message follows from.
    async fn send(&self, message: &Message) -> Result<(), PublishError> {
        let span = spans::send(message, self.0.connection.server());
        let trace = span.outgoing(&message.trace);
        let published = self.warn_when_overdue(message, async {
            match message.destination {
                Destination::Event | Destination::Outcome => {
                    self.publish_shared(message, &trace).await
                }
                _ => self.publish_alone(message, &trace).await,
            }
        });
        let published = published.await;
        if let Err(error) = &published {
            span.fail(error.result().as_str());
        }
        published
    }

    /// Describes why RabbitMQ, although connected, does not confirm messages. `None` if it confirms
    /// them.
    pub fn problem(&self) -> Option<String> {
        if let Some(problem) = self.0.last_confirm.overdue(CONFIRM_AGE_MAX) {
            return Some(format!("confirmed messages: {problem}"));
        }
        let overdue = self.0.overdue.load(Ordering::Relaxed);
        (overdue > 0).then(|| {
            format!(
                "messages unconfirmed for more than {CONFIRM_OVERDUE_AFTER:?}: {overdue}; \
                    RabbitMQ blocks publishers, or a queue has no leader"
            )
        })
    }

    async fn warn_when_overdue<T>(
        &self,
        message: &Message,
        published: impl Future<Output = T>,
    ) -> T {
        let mut published = pin!(published);
        if let Ok(published) = timeout(CONFIRM_OVERDUE_AFTER, &mut published).await {
            return published;
        }
        let overdue = OverdueConfirm::new(&self.0.overdue);
        let _reported = GaugeGuard::new(&self.0.metrics.publishes_overdue);
        if overdue.is_first {
            tracing::warn!(
                exchange = message.exchange,
                message_id = message.message_id,
                "a message was not confirmed within {CONFIRM_OVERDUE_AFTER:?}, still waiting"
            );
        }
        published.await
    }

    async fn publish_alone(
        &self,
        message: &Message,
        trace: &TraceContext,
    ) -> Result<(), PublishError> {
        let _permit = self.0.permits.acquire().await.expect("the semaphore is never closed");
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.confirming_channel().await?,
        };
        let published = publish(&channel, message, trace).await;
        // A channel can be reused after a return, since nothing else is in flight on it, but not
        // after a loss.
        if !matches!(published, Err(PublishError::Lost(_))) {
            self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        }
        published
    }

    async fn publish_shared(
        &self,
        message: &Message,
        trace: &TraceContext,
    ) -> Result<(), PublishError> {
        let channel = self.shared_channel().await?;
        publish(&channel, message, trace).await
    }

    async fn shared_channel(&self) -> Result<Channel, PublishError> {
        let current = self.0.shared.read().await.clone();
        match current.filter(|channel| channel.status().connected()) {
            Some(channel) => Ok(channel),
            None => self.replace_shared().await,
        }
    }

    async fn replace_shared(&self) -> Result<Channel, PublishError> {
        let mut shared = self.0.shared.write().await;
        if let Some(channel) = shared.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.confirming_channel().await?;
        *shared = Some(channel.clone());
        Ok(channel)
    }

    async fn confirming_channel(&self) -> Result<Channel, Error> {
        let channel = self.0.connection.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        request(&channel, "enabling publisher confirms", confirms).await?;
        Ok(channel)
    }
}

/// Counts one overdue confirm until it is dropped.
struct OverdueConfirm<'a> {
    count: &'a AtomicUsize,
    is_first: bool,
}

impl<'a> OverdueConfirm<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, is_first: count.fetch_add(1, Ordering::Relaxed) == 0 }
    }
}

impl Drop for OverdueConfirm<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn publish(
    channel: &Channel,
    message: &Message,
    trace: &TraceContext,
) -> Result<(), PublishError> {
    let confirm = request(channel, "publishing", start_publish(channel, message, trace)).await?;
    confirmed(channel, confirm).await
}

/// Publishes `message`. The result resolves when RabbitMQ has answered.
async fn start_publish(
    channel: &Channel,
    message: &Message,
    trace: &TraceContext,
) -> lapin::Result<PublisherConfirm> {
    // Nobody need listen to outcomes.
    let mandatory = message.destination != Destination::Outcome;
    let options = BasicPublishOptions { mandatory, ..Default::default() };
    let published = channel.basic_publish(
        message.exchange.as_str().into(),
        message.routing_key.as_str().into(),
        options,
        &message.body,
        properties(message, trace),
    );
    published.await
}

async fn confirmed(channel: &Channel, confirm: PublisherConfirm) -> Result<(), PublishError> {
    match request(channel, "waiting for a publisher confirm", confirm).await? {
        Confirmation::Ack(None) => Ok(()),
        // RabbitMQ also acknowledges an unroutable message, after returning it.
        Confirmation::Ack(Some(returned)) => Err(PublishError::Returned(Unroutable {
            exchange: returned.exchange.to_string(),
            routing_key: returned.routing_key.to_string(),
        })),
        Confirmation::Nack(_) => Err(PublishError::Nacked),
        Confirmation::NotRequested => unreachable!("confirms are enabled on every channel"),
    }
}

fn properties(message: &Message, trace: &TraceContext) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    let ours = message
        .headers
        .clone()
        .optional(headers::TRACEPARENT, trace.traceparent.as_deref())
        .optional(headers::TRACESTATE, trace.tracestate.as_deref());
    let original = message.original.clone();
    let properties = match original.app_id() {
        Some(_) => original,
        None => original.with_app_id("customerio-sync".into()),
    };
    let headers = merged(message.original.headers().as_ref(), ours.0);
    let properties = properties.with_delivery_mode(PERSISTENT).with_headers(headers);
    let properties = match message.message_id.as_str() {
        "" => properties,
        id => properties.with_message_id(short(id)),
    };
    match &message.content_type {
        Some(content_type) => properties.with_content_type(short(content_type)),
        None => properties,
    }
}
