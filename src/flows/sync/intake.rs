//! Gathers deliveries into batches: whatever has come while the last batch was on its way.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::inbound::Item;
use crate::{
    broker::{self, Delivery, Link, WorkQueue},
    runtime::{metrics::Metrics, shutdown::Lifecycle},
};

pub(super) struct Intake {
    deliveries: mpsc::Receiver<(WorkQueue, Delivery)>,
    /// Read already, and about a signup that the batch before has a message of.
    deferred: VecDeque<Item>,
    batch_size: usize,
    metrics: Arc<Metrics>,
}

impl Intake {
    /// Starts a consumer on every work queue.
    pub(super) fn start(
        link: &Arc<Link>,
        prefetch: u16,
        batch_size: usize,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (sender, deliveries) = mpsc::channel(usize::from(prefetch) * WorkQueue::ALL.len());
        for queue in WorkQueue::ALL {
            let wrap = move |delivery| (queue, delivery);
            tokio::spawn(broker::consume(
                link.clone(),
                queue.name(),
                prefetch,
                lifecycle.clone(),
                sender.clone(),
                wrap,
            ));
        }
        Self { deliveries, deferred: VecDeque::new(), batch_size, metrics }
    }

    /// The next batch: at least one message, and no two about the same signup, so that each can be
    /// answered for itself and transactions take their locks in one order. `None` when nothing new
    /// is to be taken.
    pub(super) async fn next_batch(&mut self, lifecycle: &Lifecycle) -> Option<Vec<Item>> {
        if lifecycle.is_draining() {
            return None;
        }
        let mut batch = Gathering::default();
        for item in std::mem::take(&mut self.deferred) {
            self.deferred.extend(batch.add(item, self.batch_size));
        }
        if batch.items.is_empty() {
            let (queue, delivery) = tokio::select! {
                biased;
                () = lifecycle.draining() => return None,
                delivery = self.deliveries.recv() => delivery?,
            };
            let item = self.read(queue, delivery);
            self.deferred.extend(batch.add(item, self.batch_size));
        }
        while batch.items.len() < self.batch_size && self.deferred.len() < self.batch_size {
            let Ok((queue, delivery)) = self.deliveries.try_recv() else { break };
            let item = self.read(queue, delivery);
            self.deferred.extend(batch.add(item, self.batch_size));
        }
        self.metrics.batch_size.observe(batch.items.len() as f64);
        Some(batch.items)
    }

    /// Gives back what was delivered and not begun.
    pub(super) async fn give_back_rest(mut self) {
        for item in self.deferred {
            item.envelope.give_back().await;
        }
        while let Ok((_, delivery)) = self.deliveries.try_recv() {
            delivery.receipt.give_back().await;
        }
    }

    fn read(&self, queue: WorkQueue, delivery: Delivery) -> Item {
        let item = Item::read(queue, delivery);
        let result = if item.read.is_ok() { "accepted" } else { "rejected" };
        self.metrics.events.with_label_values(&[queue.name(), result]).inc();
        item
    }
}

#[derive(Default)]
struct Gathering {
    items: Vec<Item>,
    signups: HashSet<uuid::Uuid>,
}

impl Gathering {
    /// Adds `item`, or gives it back when its turn is in a later batch.
    fn add(&mut self, item: Item, batch_size: usize) -> Option<Item> {
        let is_in_turn = self.items.len() < batch_size
            && item.read.as_ref().map_or(true, |arrival| self.signups.insert(arrival.signup_id()));
        if is_in_turn {
            self.items.push(item);
            return None;
        }
        Some(item)
    }
}
