//! Gathers deliveries into batches: everything that has arrived since the previous batch.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{Pipeline, inbound::InboundMessage};
use crate::{
    broker::{self, Connection, Delivery, WorkQueue},
    job::SyncPhase,
    ledger::{Arrival, EARLIER_EVENTS_MAX, Source},
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
    /// Parsed messages that did not fit into the previous batch.
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
    /// A batch contains at least one message, and at most one job per signup, so that transactions
    /// acquire their locks in one order. It may contain several events of that job, as many as the
    /// job remembers: if many events of one signup arrive, they delay other signups little.
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
    /// What each signup's messages ask for, and their number.
    signups: HashMap<uuid::Uuid, (Request, usize)>,
}

/// What a message asks for, or several messages of one signup together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    /// The job of this phase, for the newest of its events.
    Events(SyncPhase),
    /// One attempt of a job.
    Attempt,
}

impl Request {
    fn of(arrival: &Arrival) -> Self {
        match arrival.source {
            Source::Event(_) => Self::Events(arrival.phase()),
            Source::Job(_) | Source::Operator { .. } => Self::Attempt,
        }
    }
}

impl BatchBuilder {
    /// Adds `message`, or returns it if it belongs in a later batch.
    fn add(&mut self, message: InboundMessage, batch_size: usize) -> Option<InboundMessage> {
        let has_room = self.messages.len() < batch_size;
        if has_room && message.parsed.as_ref().map_or(true, |arrival| self.fits(arrival)) {
            self.messages.push(message);
            return None;
        }
        Some(message)
    }

    fn fits(&mut self, arrival: &Arrival) -> bool {
        let request = Request::of(arrival);
        match self.signups.entry(arrival.signup_id()) {
            Entry::Vacant(vacant) => {
                vacant.insert((request, 1));
                true
            }
            Entry::Occupied(mut occupied) => {
                let (other, number) = occupied.get_mut();
                let fits = request != Request::Attempt
                    && *other == request
                    && *number < EARLIER_EVENTS_MAX;
                *number += usize::from(fits);
                fits
            }
        }
    }
}
