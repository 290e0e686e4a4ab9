//! How many messages of a queue a replica may have unacknowledged.
//!
//! RabbitMQ counts the deliveries of a message, and gives it up at the delivery limit. When a
//! process crashes, everything that it has unacknowledged is counted. So a window starts at one
//! message: a message that crashes its consumers is then counted alone, at the head of its queue.
//! The window widens as messages are acknowledged. It is also limited by the size of the bodies,
//! since AMQP as RabbitMQ implements it has no limit in bytes
//! (<https://www.rabbitmq.com/docs/consumer-prefetch>).

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};

/// Factor by which a window widens.
const GROWTH: u16 = 8;
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
    /// Acknowledgements when the window got its size.
    acknowledged_before: u64,
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
            acknowledged_before: 0,
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
    pub(super) fn record(&mut self, body_bytes: usize) -> bool {
        if self.recent.len() == RECENT_BODIES {
            self.recent.pop_front();
        }
        self.recent.push_back(body_bytes);
        let next = self.next_size();
        let changes = next != self.size;
        if changes {
            self.size = next;
            self.acknowledged_before = self.acknowledged.get();
        }
        changes
    }

    fn next_size(&self) -> u16 {
        let largest = self.recent.iter().max().copied().unwrap_or_default().max(1);
        let fitting = u16::try_from(WINDOW_BYTES_MAX / largest).unwrap_or(u16::MAX).max(1);
        let max = self.max.get();
        let allowed = max.min(fitting);
        let acknowledged = self.acknowledged.get() - self.acknowledged_before;
        let is_proven = acknowledged >= u64::from(self.size);
        match self.size {
            size if size > allowed => allowed,
            // Small steps at the limit of the bytes would replace the consumer again and again.
            size if is_proven && size <= allowed / 2 => size.saturating_mul(GROWTH).min(allowed),
            _ if is_proven && allowed == max => allowed,
            size => size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// Delivers and acknowledges messages, and returns the sizes that the window had.
    fn sizes(window: &mut Window, body_bytes: usize, messages: usize) -> Vec<u16> {
        let mut sizes = vec![window.size()];
        for _ in 0..messages {
            if window.record(body_bytes) {
                sizes.push(window.size());
            }
            window.acknowledged().increment();
        }
        sizes
    }

    #[test]
    fn a_window_widens_as_messages_are_acknowledged() {
        assert_eq!(sizes(&mut Window::new(WindowLimit::new(800)), KIB, 1000), [1, 8, 64, 512, 800]);
        assert_eq!(sizes(&mut Window::new(WindowLimit::new(1)), KIB, 1000), [1]);
        assert_eq!(sizes(&mut Window::new(WindowLimit::new(3)), KIB, 1000), [1, 3]);
    }

    #[test]
    fn a_window_stays_at_one_message_while_none_is_acknowledged() {
        let mut window = Window::new(WindowLimit::new(800));
        assert!(!(0..100).any(|_| window.record(KIB)));
    }

    #[test]
    fn large_bodies_limit_the_window_and_narrow_it_at_once() {
        let mut window = Window::new(WindowLimit::new(800));
        assert_eq!(sizes(&mut window, 256 * KIB, 2000), [1, 8, 64, 128]);
        assert!(window.record(4 * 1024 * KIB));
        assert_eq!(window.size(), 8);
        assert!(window.record(200 * 1024 * KIB));
        assert_eq!(window.size(), 1);
    }

    #[test]
    fn a_window_widens_again_after_large_bodies() {
        let mut window = Window::new(WindowLimit::new(800));
        sizes(&mut window, 4 * 1024 * KIB, 100);
        assert_eq!(window.size(), 8);
        sizes(&mut window, KIB, 2000);
        assert_eq!(window.size(), 800);
    }

    #[test]
    fn bodies_of_slightly_different_sizes_replace_the_consumer_rarely() {
        let mut window = Window::new(WindowLimit::new(800));
        let changes = (0..5000).filter(|number| {
            window.acknowledged().increment();
            window.record((200 + number % 50) * KIB)
        });
        assert!(changes.count() < 10);
    }
}
