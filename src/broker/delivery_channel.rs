//! A channel that delivers messages, and the order in which they are answered.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lapin::{Channel, types::DeliveryTag};

/// A channel, with the tags of its deliveries that are not answered yet.
///
/// One acknowledgement can cover all deliveries up to a tag
/// (<https://www.rabbitmq.com/docs/confirms#consumer-acks-multiple-parameter>). RabbitMQ closes the
/// channel if the tag itself was answered before, so answers are sent one after the other.
#[derive(Debug)]
pub(super) struct DeliveryChannel {
    channel: Channel,
    unanswered: Mutex<Unanswered>,
    /// Locked while answers are sent.
    answering: tokio::sync::Mutex<()>,
}

impl DeliveryChannel {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, unanswered: Mutex::default(), answering: tokio::sync::Mutex::default() }
    }

    /// Records a delivery. Deliveries must be recorded in the order of their tags.
    pub(super) fn record(&self, tag: DeliveryTag) {
        self.unanswered().0.insert(tag);
    }

    /// Waits until no other answers are being sent. The next ones may be sent while the guard
    /// lives.
    pub(super) async fn begin_answers(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.answering.lock().await
    }

    /// Records that deliveries are answered, and returns how many of `tags`, which are in ascending
    /// order, come before every delivery that is not: one acknowledgement covers them.
    pub(super) fn answer(&self, tags: &[DeliveryTag]) -> usize {
        self.unanswered().answer(tags)
    }

    fn unanswered(&self) -> MutexGuard<'_, Unanswered> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for DeliveryChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

/// The tags of the deliveries that are not answered.
#[derive(Debug, Default)]
struct Unanswered(BTreeSet<DeliveryTag>);

impl Unanswered {
    fn answer(&mut self, tags: &[DeliveryTag]) -> usize {
        for tag in tags {
            self.0.remove(tag);
        }
        let lowest = self.0.first().copied();
        tags.partition_point(|tag| lowest.is_none_or(|lowest| *tag < lowest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_covers_no_unanswered_delivery() {
        let mut unanswered = Unanswered((1..=10).collect());
        assert_eq!(unanswered.answer(&[1, 2, 4]), 2, "3 is not answered");
        assert_eq!(unanswered.answer(&[5, 7]), 0);
        assert_eq!(unanswered.answer(&[3, 6, 8]), 3);
        assert_eq!(unanswered.answer(&[10]), 0);
        assert_eq!(unanswered.answer(&[9]), 1);
        assert_eq!(unanswered.answer(&[]), 0);
    }
}
