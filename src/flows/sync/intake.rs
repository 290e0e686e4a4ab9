//! Gathers deliveries into batches: everything that has arrived since the previous batch.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{Pipeline, inbound::InboundMessage};
use crate::{
    broker::{self, Connection, Delivery, WorkQueue},
    runtime::{metrics::Metrics, shutdown::Shutdown, text_enum::text_enum},
};

text_enum! {
    /// The result of parsing a message, for metrics.
    IntakeResult {
        /// It asks for work.
        Accepted = "accepted",
        /// It is unprocessable.
        Rejected = "rejected",
    }
}

pub(super) struct Intake {
    deliveries: mpsc::Receiver<(WorkQueue, Delivery)>,
    /// Parsed messages whose signup has a message in the previous batch.
    deferred: VecDeque<InboundMessage>,
    batch_size: usize,
    metrics: Arc<Metrics>,
}

impl Intake {
    /// Starts a consumer on every work queue.
    pub(super) fn start(connection: &Arc<Connection>, pipeline: &Pipeline) -> Self {
        let prefetch = pipeline.prefetch;
        let (sender, deliveries) = mpsc::channel(usize::from(prefetch) * WorkQueue::ALL.len());
        for queue in WorkQueue::ALL {
            let wrap = move |delivery| (queue, delivery);
            tokio::spawn(broker::consume(
                connection.clone(),
                queue.name(),
                prefetch,
                pipeline.shutdown.clone(),
                sender.clone(),
                wrap,
            ));
        }
        Self {
            deliveries,
            deferred: VecDeque::new(),
            batch_size: pipeline.config.batch_size.get(),
            metrics: pipeline.metrics.clone(),
        }
    }

    /// Returns the next batch, or `None` at shutdown.
    ///
    /// A batch contains at least one message, and no two for the same signup, so that each message
    /// gets an outcome of its own and transactions acquire their locks in one order.
    pub(super) async fn next_batch(&mut self, shutdown: &Shutdown) -> Option<Vec<InboundMessage>> {
        if shutdown.is_draining() {
            return None;
        }
        let mut batch = BatchBuilder::default();
        for message in std::mem::take(&mut self.deferred) {
            self.deferred.extend(batch.add(message, self.batch_size));
        }
        if batch.messages.is_empty() {
            let (queue, delivery) = tokio::select! {
                biased;
                () = shutdown.draining() => return None,
                delivery = self.deliveries.recv() => delivery?,
            };
            let message = self.parse(queue, delivery);
            self.deferred.extend(batch.add(message, self.batch_size));
        }
        while batch.messages.len() < self.batch_size && self.deferred.len() < self.batch_size {
            let Ok((queue, delivery)) = self.deliveries.try_recv() else { break };
            let message = self.parse(queue, delivery);
            self.deferred.extend(batch.add(message, self.batch_size));
        }
        self.metrics.batch_size.observe(batch.messages.len() as f64);
        Some(batch.messages)
    }

    /// Requeues the deliveries that are in no batch.
    pub(super) async fn requeue_rest(mut self) {
        for message in self.deferred {
            message.envelope.requeue().await;
        }
        while let Ok((_, delivery)) = self.deliveries.try_recv() {
            delivery.acker.requeue().await;
        }
    }

    fn parse(&self, queue: WorkQueue, delivery: Delivery) -> InboundMessage {
        let message = InboundMessage::parse(queue, delivery);
        let result = match message.parsed {
            Ok(_) => IntakeResult::Accepted,
            Err(_) => IntakeResult::Rejected,
        };
        self.metrics.events.with_label_values(&[queue.name(), result.as_str()]).inc();
        message
    }
}

#[derive(Default)]
struct BatchBuilder {
    messages: Vec<InboundMessage>,
    signups: HashSet<uuid::Uuid>,
}

impl BatchBuilder {
    /// Adds `message`, or returns it if it belongs in a later batch.
    fn add(&mut self, message: InboundMessage, batch_size: usize) -> Option<InboundMessage> {
        let parsed = message.parsed.as_ref();
        let fits = self.messages.len() < batch_size
            && parsed.map_or(true, |arrival| self.signups.insert(arrival.signup_id()));
        if fits {
            self.messages.push(message);
            return None;
        }
        Some(message)
    }
}
