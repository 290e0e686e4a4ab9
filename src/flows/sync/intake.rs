//! Gathers deliveries into batches: everything that has arrived since the previous batch.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Pipeline,
    inbound::{InFlight, RejectedMessage, parse},
    signups::{BatchSignups, SignupsInFlight},
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

/// A batch is large if it has at least its maximum size divided by this.
const LARGE_DIVISOR: usize = 4;
/// Maximum time for the consumers to end.
const STOP_TIME: Duration = Duration::from_secs(10);

pub(super) struct Intake {
    deliveries: mpsc::Receiver<(WorkQueue, Delivery)>,
    /// One per work queue. They end when the intake is stopped.
    consumers: JoinSet<()>,
    signups: Arc<SignupsInFlight<InFlight>>,
    batch_size: usize,
    /// Size of a batch that need not wait for others.
    large_size: usize,
    metrics: Arc<Metrics>,
    stop: Shutdown,
}

/// Messages that are handled together.
pub(super) struct Batch {
    pub(super) messages: Vec<InFlight>,
    pub(super) rejected: Vec<RejectedMessage>,
    /// Other messages of these signups wait until it is dropped.
    pub(super) signups: BatchSignups<InFlight>,
}

impl Intake {
    /// Starts a consumer on every work queue.
    pub(super) fn start(connection: &Arc<Connection>, pipeline: &Pipeline) -> Self {
        let (limit, stop) = (&pipeline.batch_limit, pipeline.shutdown.child());
        let batch_size = pipeline.config.batch_size.get();
        let window = usize::from(limit.window().get());
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
            signups: SignupsInFlight::new(),
            batch_size,
            // A queue delivers no more than its window.
            large_size: batch_size.min(window).div_ceil(LARGE_DIVISOR),
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
        let mut batch = BatchBuilder::new(&self.signups, self.batch_size);
        loop {
            if batch.len() == 0 && self.stop.is_draining() {
                return None;
            }
            self.fill(&mut batch);
            if batch.len() > 0 {
                self.metrics.batch_size.observe(batch.len() as f64);
                return Some(batch.batch);
            }
            tokio::select! {
                biased;
                () = self.stop.draining() => {}
                () = self.signups.ready() => {}
                delivery = self.deliveries.recv() => {
                    let (queue, delivery) = delivery?;
                    self.add(&mut batch, queue, delivery);
                }
                _ = self.consumers.join_next() => return None,
            }
        }
    }

    /// Whether enough deliveries have arrived for a large batch, which need not wait for others.
    pub(super) fn has_large_batch(&self) -> bool {
        self.deliveries.len() >= self.large_size
    }

    /// Adds the messages whose signup has left its batch, and then those that have arrived.
    fn fill(&mut self, batch: &mut BatchBuilder) {
        while batch.len() < self.batch_size
            && let Some(messages) = self.signups.next_ready()
        {
            for message in messages {
                batch.add(message);
            }
        }
        while batch.len() < self.batch_size
            && let Ok((queue, delivery)) = self.deliveries.try_recv()
        {
            self.add(batch, queue, delivery);
        }
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
        for message in self.signups.take() {
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
            Ok(message) => batch.add(message),
            Err(rejected) => batch.batch.rejected.push(*rejected),
        }
    }
}

struct BatchBuilder {
    batch: Batch,
    /// Maximum number of messages.
    size: usize,
    /// What the messages of each signup in the batch ask for, and their number.
    requests: HashMap<uuid::Uuid, (Request, usize)>,
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
    fn new(in_flight: &Arc<SignupsInFlight<InFlight>>, size: usize) -> Self {
        let signups = in_flight.batch();
        let batch = Batch { messages: Vec::new(), rejected: Vec::new(), signups };
        Self { batch, size, requests: HashMap::new() }
    }

    fn len(&self) -> usize {
        self.batch.messages.len() + self.batch.rejected.len()
    }

    /// Adds `message`, or lets it wait until the batch with its signup ends.
    fn add(&mut self, message: InFlight) {
        let (request, signup_id) = (Request::of(&message.arrival), message.arrival.signup_id());
        if self.joins(signup_id, request) {
            self.batch.messages.push(message);
        } else if let Some(message) = self.batch.signups.add(signup_id, message) {
            self.requests.insert(signup_id, (request, 1));
            self.batch.messages.push(message);
        }
    }

    /// Whether a message joins others of its signup in this batch.
    fn joins(&mut self, signup_id: uuid::Uuid, request: Request) -> bool {
        let is_full = self.len() >= self.size;
        let Some((other, number)) = self.requests.get_mut(&signup_id) else { return false };
        let joins = request != Request::Attempt
            && *other == request
            && *number < EARLIER_EVENTS_MAX
            && !is_full;
        *number += usize::from(joins);
        joins
    }
}
