//! Publishing with confirms: a message counts as published when the broker says so, and is tried
//! until then.
//!
//! A mandatory message has a channel to itself until it is confirmed. lapin can attach a returned
//! message to the wrong confirm when mandatory publishes are pipelined on one channel, and an
//! unroutable message would pass for a published one. Outcome events are not mandatory and share
//! one channel.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::{RwLock, Semaphore},
    time::timeout,
};

use super::{Config, Error, Link, Message, while_connected::request};
use crate::runtime::{backoff::Pauses, metrics::Metrics};

/// A message that is not confirmed within this time is late. It is waited for all the same: sent
/// again, it would be two.
const LATE_AFTER: Duration = Duration::from_secs(10);

/// Publishes on its own connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Arc<Link>,
    metrics: Arc<Metrics>,
    /// One permit a channel.
    permits: Semaphore,
    idle: Mutex<Vec<Channel>>,
    /// For messages that are not mandatory.
    shared: RwLock<Option<Channel>>,
    late: AtomicUsize,
}

/// Why a message is not published yet.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("no queue took it: {0}")]
    Returned(String),
    #[error("the broker refused it")]
    Nacked,
    #[error("whether it arrived is not known: {0}")]
    Lost(#[from] Error),
}

impl NotYet {
    fn label(&self) -> &'static str {
        match self {
            Self::Returned(_) => "returned",
            Self::Nacked => "nacked",
            Self::Lost(_) => "lost",
        }
    }
}

impl Publisher {
    /// A publisher on `link`.
    pub fn new(link: Arc<Link>, config: &Config, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            link,
            metrics,
            permits: Semaphore::new(config.publish_channels.get()),
            idle: Mutex::default(),
            shared: RwLock::default(),
            late: AtomicUsize::new(0),
        }))
    }

    /// Publishes `message` and waits for its confirm, however often that has to be tried. A repeat
    /// has the same `message_id`.
    pub async fn publish(&self, message: &Message) {
        let mut pauses = Pauses::default();
        loop {
            let published = self.tell_when_late(message, async {
                if message.mandatory {
                    self.publish_mandatory(message).await
                } else {
                    self.publish_shared(message).await
                }
            });
            let published = published.await;
            let result = published.as_ref().map_or_else(NotYet::label, |()| "confirmed");
            self.0.metrics.publishes.with_label_values(&[message.destination, result]).inc();
            let Err(error) = published else { return };
            tracing::warn!(%error, message_id = message.message_id, exchange = message.exchange,
            "not published yet, trying again");
            pauses.pause().await;
            if matches!(error, NotYet::Returned(_))
                && let Err(error) = self.0.link.apply_topology().await
            {
                tracing::warn!(%error, "declaring the topology again failed");
            }
        }
    }

    /// What keeps messages from being published, if something does although the broker is there.
    pub fn trouble(&self) -> Option<String> {
        let late = self.0.late.load(Ordering::Relaxed);
        (late > 0).then(|| {
            format!(
                "messages unconfirmed for more than {LATE_AFTER:?}: {late}; RabbitMQ blocks \
                    publishers, or a queue has no leader"
            )
        })
    }

    async fn tell_when_late<T>(&self, message: &Message, published: impl Future<Output = T>) -> T {
        let mut published = pin!(published);
        if let Ok(published) = timeout(LATE_AFTER, &mut published).await {
            return published;
        }
        let late = Late::new(&self.0.late);
        if late.is_first {
            tracing::warn!(
                exchange = message.exchange,
                message_id = message.message_id,
                "a message is not confirmed within {LATE_AFTER:?}; it is waited for"
            );
        }
        published.await
    }

    async fn publish_mandatory(&self, message: &Message) -> Result<(), NotYet> {
        let _permit = self.0.permits.acquire().await.expect("the semaphore is never closed");
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.confirming_channel().await?,
        };
        let published = publish(&channel, message).await;
        // After a loss the channel is unfit. After a return it is fit: nothing else is under way on
        // it.
        if !matches!(published, Err(NotYet::Lost(_))) {
            self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        }
        published
    }

    async fn publish_shared(&self, message: &Message) -> Result<(), NotYet> {
        let current = self.0.shared.read().await.clone();
        let channel = match current.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.replace_shared().await?,
        };
        publish(&channel, message).await
    }

    async fn replace_shared(&self) -> Result<Channel, NotYet> {
        let mut shared = self.0.shared.write().await;
        if let Some(channel) = shared.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.confirming_channel().await?;
        *shared = Some(channel.clone());
        Ok(channel)
    }

    async fn confirming_channel(&self) -> Result<Channel, Error> {
        let channel = self.0.link.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        request(&channel, "asking for publisher confirms", confirms).await?;
        Ok(channel)
    }
}

/// Counts as a late message until it is dropped.
struct Late<'a> {
    count: &'a AtomicUsize,
    is_first: bool,
}

impl<'a> Late<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, is_first: count.fetch_add(1, Ordering::Relaxed) == 0 }
    }
}

impl Drop for Late<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn publish(channel: &Channel, message: &Message) -> Result<(), NotYet> {
    let options = BasicPublishOptions { mandatory: message.mandatory, ..Default::default() };
    let published = channel.basic_publish(
        message.exchange.as_str().into(),
        message.routing_key.as_str().into(),
        options,
        &message.body,
        properties(message),
    );
    let confirm = request(channel, "publishing", published).await?;
    match request(channel, "waiting for a publisher confirm", confirm).await? {
        Confirmation::Ack(None) => Ok(()),
        // An unroutable message is acknowledged, too; it is returned first.
        Confirmation::Ack(Some(returned)) => Err(NotYet::Returned(returned.reply_text.to_string())),
        Confirmation::Nack(_) => Err(NotYet::Nacked),
        Confirmation::NotRequested => unreachable!("confirms are asked for on every channel"),
    }
}

fn properties(message: &Message) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_app_id("customerio-sync".into())
        .with_headers(message.headers.0.clone());
    let properties = match message.message_id.as_str() {
        "" => properties,
        id => properties.with_message_id(short(id)),
    };
    match &message.content_type {
        Some(content_type) => properties.with_content_type(short(content_type)),
        None => properties,
    }
}

/// AMQP's short strings hold 255 bytes.
fn short(text: &str) -> lapin::types::ShortString {
    text[..text.floor_char_boundary(255)].into()
}
