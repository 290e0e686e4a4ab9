//! How many messages of a queue a replica may have unacknowledged.
//!
//! RabbitMQ counts the deliveries of a message, and gives it up at the delivery limit. When a
//! process crashes, everything that it has unacknowledged is counted. So a window starts at one
//! message. Messages that are delivered for the first time widen it at once: nothing was counted
//! for them yet. Redelivered messages come first, and may be what crashed the last process. They
//! widen the window step by step, as they are acknowledged: a message that crashes its consumers is
//! soon counted alone, at the head of its queue.
//!
//! The window is also limited by the size of the bodies, since AMQP as RabbitMQ implements it has
//! no limit in bytes (<https://www.rabbitmq.com/docs/consumer-prefetch>).

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};

/// Factor by which acknowledged messages widen a window. It keeps the number of crashes until the
/// message that causes them is alone at the head below half of the default delivery limit.
const GROWTH: u16 = 8;
/// Factor by which new messages widen a window. The window has its full size when [`RECENT_BODIES`]
/// are known.
const GROWTH_IF_NEW: u16 = 64;
/// Maximum bytes of the bodies of a window, as far as the last ones predict the next ones.
const WINDOW_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Number of bodies that predict the size of the next ones.
const RECENT_BODIES: usize = 64;

/// The number of acknowledged messages. Every delivery has one.
#[derive(Debug, Clone, Default)]
pub(super) struct AckCounter(Arc<AtomicU64>);

impl AckCounter {
    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The maximum size of a window, in messages, which may change. Its clones share it.
#[derive(Debug, Clone)]
pub struct WindowLimit(Arc<AtomicU16>);

impl WindowLimit {
    /// A limit of `messages`.
    pub fn new(messages: u16) -> Self {
        Self(Arc::new(AtomicU16::new(messages)))
    }

    /// Changes the limit.
    pub fn set(&self, messages: u16) {
        self.0.store(messages, Ordering::Relaxed);
    }

    /// The limit.
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The window of one consumer.
#[derive(Debug)]
pub(super) struct Window {
    size: u16,
    max: WindowLimit,
    acknowledged: AckCounter,
    delivered: u64,
    /// Deliveries up to the last message that had been delivered before.
    delivered_again: u64,
    /// Acknowledgements and deliveries when the window got its size.
    acknowledged_before: u64,
    delivered_before: u64,
    /// Sizes of the last bodies.
    recent: VecDeque<usize>,
}

impl Window {
    /// A window of one message, which widens up to `max`.
    pub(super) fn new(max: WindowLimit) -> Self {
        Self {
            size: 1,
            max,
            acknowledged: AckCounter::default(),
            delivered: 0,
            delivered_again: 0,
            acknowledged_before: 0,
            delivered_before: 0,
            recent: VecDeque::with_capacity(RECENT_BODIES),
        }
    }

    /// The current size, in messages.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Counts the acknowledgements.
    pub(super) fn acknowledged(&self) -> &AckCounter {
        &self.acknowledged
    }

    /// Records a delivery, with the size of its body in bytes. Returns whether the size of the
    /// window changed, so that the consumer has to be replaced.
    pub(super) fn record(&mut self, body_bytes: usize, is_redelivered: bool) -> bool {
        self.count(is_redelivered);
        if self.recent.len() == RECENT_BODIES {
            self.recent.pop_front();
        }
        self.recent.push_back(body_bytes);
        let next = self.next_size();
        let changes = next != self.size;
        if changes {
            self.size = next;
            self.acknowledged_before = self.acknowledged.get();
            self.delivered_before = self.delivered;
        }
        changes
    }

    /// Counts a delivery to a consumer that is being replaced.
    pub(super) fn count(&mut self, is_redelivered: bool) {
        self.delivered += 1;
        if is_redelivered {
            self.delivered_again = self.delivered;
        }
    }

    fn next_size(&self) -> u16 {
        let largest = self.recent.iter().max().copied().unwrap_or_default().max(1);
        let fitting = u16::try_from(WINDOW_BYTES_MAX / largest).unwrap_or(u16::MAX).max(1);
        let max = self.max.get();
        let allowed = max.min(fitting);
        let acknowledged = self.acknowledged.get();
        let (growth, passed) = if acknowledged >= self.delivered_again {
            (GROWTH_IF_NEW, self.delivered - self.delivered_before)
        } else {
            (GROWTH, acknowledged - self.acknowledged_before)
        };
        let widens = passed >= u64::from(self.size);
        match self.size {
            size if size > allowed => allowed,
            // Small steps at the limit of the bytes would replace the consumer again and again.
            size if widens && size <= allowed / 2 => size.saturating_mul(growth).min(allowed),
            _ if widens && allowed == max => allowed,
            size => size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// Delivers and acknowledges new messages, and returns the sizes that the window had.
    fn sizes(window: &mut Window, body_bytes: usize, messages: usize) -> Vec<u16> {
        sizes_of(window, body_bytes, messages, false)
    }

    fn sizes_of(
        window: &mut Window,
        body_bytes: usize,
        messages: usize,
        are_redelivered: bool,
    ) -> Vec<u16> {
        let mut sizes = vec![window.size()];
        for _ in 0..messages {
            if window.record(body_bytes, are_redelivered) {
                sizes.push(window.size());
            }
            window.acknowledged().increment();
        }
        sizes
    }

    fn window(max: u16) -> Window {
        Window::new(WindowLimit::new(max))
    }

    #[test]
    fn redelivered_messages_widen_a_window_as_they_are_acknowledged() {
        let sizes = |max| sizes_of(&mut window(max), KIB, 1000, true);
        assert_eq!(sizes(800), [1, 8, 64, 512, 800]);
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(3), [1, 3]);
    }

    #[test]
    fn a_window_stays_at_one_message_while_no_redelivered_one_is_acknowledged() {
        let mut window = window(800);
        assert!(!(0..100).any(|_| window.record(KIB, true)));
        assert!(!(0..100).any(|_| window.record(KIB, false)), "they come after the others");
    }

    #[test]
    fn new_messages_widen_a_window_as_they_arrive() {
        let mut window = window(800);
        let deliveries: Vec<_> = (0..100).filter(|_| window.record(KIB, false)).collect();
        assert_eq!((window.size(), deliveries), (800, vec![0, 64]));
    }

    #[test]
    fn new_messages_widen_a_window_after_the_redelivered_ones_are_acknowledged() {
        let mut window = window(800);
        window.record(KIB, true);
        assert!(!window.record(KIB, false));
        window.acknowledged().increment();
        assert!(window.record(KIB, false));
        assert_eq!(window.size(), 64);
    }

    #[test]
    fn a_message_that_crashes_its_consumers_is_alone_before_the_delivery_limit_is_reached() {
        const DELIVERY_LIMIT: usize = 50;
        for position in [1, 7, 63, 500, 799, 6399] {
            // Messages before the one that crashes its process.
            let (mut left, mut crashes) = (position, 0);
            while left > 0 {
                let mut window = window(6400);
                let mut acknowledged = 0;
                while acknowledged + u64::from(window.size()) <= left {
                    sizes_of(&mut window, KIB, 1, true);
                    acknowledged += 1;
                }
                left -= acknowledged;
                crashes += 1;
            }
            assert!(
                crashes < DELIVERY_LIMIT / 2,
                "{crashes} crashes before message {position} is at the head"
            );
        }
    }

    #[test]
    fn large_bodies_limit_the_window_and_narrow_it_at_once() {
        let mut window = window(800);
        assert_eq!(sizes(&mut window, 256 * KIB, 2000), [1, 64, 128]);
        assert!(window.record(4 * 1024 * KIB, false));
        assert_eq!(window.size(), 8);
        assert!(window.record(200 * 1024 * KIB, false));
        assert_eq!(window.size(), 1);
    }

    #[test]
    fn a_window_widens_again_after_large_bodies() {
        let mut window = window(800);
        sizes(&mut window, 4 * 1024 * KIB, 100);
        assert_eq!(window.size(), 8);
        sizes(&mut window, KIB, 2000);
        assert_eq!(window.size(), 800);
    }

    #[test]
    fn bodies_of_slightly_different_sizes_replace_the_consumer_rarely() {
        let mut window = window(800);
        let changes = (0..5000).filter(|number| {
            window.acknowledged().increment();
            window.record((200 + number % 50) * KIB, false)
        });
        assert!(changes.count() < 10);
    }
}
