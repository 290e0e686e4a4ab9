//! Gathers deliveries into batches: everything that has arrived since the previous batch.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Pipeline,
    inbound::{InFlight, RejectedMessage, parse},
};
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

/// Maximum time for the consumers to end.
const STOP_TIME: Duration = Duration::from_secs(10);

pub(super) struct Intake {
    deliveries: mpsc::Receiver<(WorkQueue, Delivery)>,
    /// One per work queue. They end when the intake is stopped.
    consumers: JoinSet<()>,
    /// Parsed messages that did not fit into the previous batch.
    deferred: VecDeque<InFlight>,
    batch_size: usize,
    metrics: Arc<Metrics>,
    stop: Shutdown,
}

/// Messages that are handled together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) messages: Vec<InFlight>,
    pub(super) rejected: Vec<RejectedMessage>,
}

impl Intake {
    /// Starts a consumer on every work queue.
    pub(super) fn start(connection: &Arc<Connection>, pipeline: &Pipeline) -> Self {
        let (limit, stop) = (&pipeline.batch_limit, pipeline.shutdown.child());
        let (sender, deliveries) = mpsc::channel(limit.deliveries_max() * WorkQueue::ALL.len());
        let mut consumers = JoinSet::new();
        for queue in WorkQueue::ALL {
            let wrap = move |delivery| (queue, delivery);
            consumers.spawn(broker::consume(
                connection.clone(),
                queue.name(),
                limit.window(),
                stop.clone(),
                sender.clone(),
                wrap,
            ));
        }
        Self {
            deliveries,
            consumers,
            deferred: VecDeque::new(),
            batch_size: pipeline.config.batch_size.get(),
            metrics: pipeline.metrics.clone(),
            stop,
        }
    }

    /// Returns the next batch. `None` when it is stopped, or a consumer has ended.
    ///
    /// A batch contains at least one message, and at most one job per signup, so that transactions
    /// acquire their locks in one order. It may contain several events of that job, as many as the
    /// job remembers: if many events of one signup arrive, they delay other signups little.
    pub(super) async fn next_batch(&mut self) -> Option<Batch> {
        if self.stop.is_draining() {
            return None;
        }
        let mut batch = BatchBuilder::default();
        for message in std::mem::take(&mut self.deferred) {
            self.deferred.extend(batch.add(message, self.batch_size));
        }
        if batch.is_empty() {
            let (queue, delivery) = tokio::select! {
                biased;
                () = self.stop.draining() => return None,
                delivery = self.deliveries.recv() => delivery?,
                _ = self.consumers.join_next() => return None,
            };
            self.add(&mut batch, queue, delivery);
        }
        while batch.len() < self.batch_size && self.deferred.len() < self.batch_size {
            let Ok((queue, delivery)) = self.deliveries.try_recv() else { break };
            self.add(&mut batch, queue, delivery);
        }
        self.metrics.batch_size.observe(batch.len() as f64);
        Some(batch.batch)
    }

    /// Stops the consumers, and then requeues the deliveries that are in no batch: they are not
    /// delivered again to this process.
    pub(super) async fn stop(mut self) {
        self.stop.drain();
        let mut ackers = Vec::new();
        // The consumers wait until their deliveries are received.
        let received = async {
            while let Some((_, delivery)) = self.deliveries.recv().await {
                ackers.push(delivery.acker);
            }
        };
        if tokio::time::timeout(STOP_TIME, received).await.is_err() {
            tracing::warn!("a consumer did not end within {STOP_TIME:?} and is aborted");
        }
        for acker in ackers {
            acker.requeue().await;
        }
        for message in self.deferred {
            message.envelope.requeue().await;
        }
    }

    fn add(&mut self, batch: &mut BatchBuilder, queue: WorkQueue, delivery: Delivery) {
        if !delivery.acker.is_current() {
            // RabbitMQ delivers it again.
            return;
        }
        let parsed = parse(queue, delivery);
        let result = if parsed.is_ok() { IntakeResult::Accepted } else { IntakeResult::Rejected };
        self.metrics.events.with_label_values(&[queue.name(), result.as_str()]).inc();
        match parsed {
            Ok(message) => self.deferred.extend(batch.add(message, self.batch_size)),
            Err(rejected) => batch.batch.rejected.push(*rejected),
        }
    }
}

#[derive(Default)]
struct BatchBuilder {
    batch: Batch,
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
    fn len(&self) -> usize {
        self.batch.messages.len() + self.batch.rejected.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `message`, or returns it if it belongs in a later batch.
    fn add(&mut self, message: InFlight, batch_size: usize) -> Option<InFlight> {
        if self.len() < batch_size && self.fits(&message.arrival) {
            self.batch.messages.push(message);
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
