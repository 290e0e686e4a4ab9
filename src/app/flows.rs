//! Builds the flows and starts them.

use std::sync::{Arc, OnceLock};

use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::{
    admin::ConnectedServices,
    broker::{Connection, Publisher, QueueMonitor, TopologyGuard},
    config::Config,
    customerio::CustomerIo,
    flows::{
        bulk_action::BulkActions,
        bulk_retry::BulkRetries,
        feed::OutcomeFeed,
        gauges::QueueGauges,
        integrity::{IntegrityCheck, LastComparison},
        mirror::{Mirror, Sweeper},
        outbox::Outbox,
        recovery::Recovery,
        retention::Retention,
        sync::{BatchLimit, BatchProgress, PARKED_AT_A_TIME, Pipeline},
    },
    job::OutboxSender,
    ledger::Ledger,
    runtime::{metrics::Metrics, shutdown::Shutdown, tasks::Tasks},
};

/// The parts that the flows are built from.
pub(super) struct FlowContext {
    pub(super) ledger: Ledger,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
    pub(super) consuming: Arc<Connection>,
    pub(super) publishing: Arc<Connection>,
    pub(super) publisher: Publisher,
    pub(super) customerio: Arc<CustomerIo>,
}

impl FlowContext {
    /// Starts every flow, and makes the services that need RabbitMQ available to the endpoints.
    pub(super) fn start(self, config: Config, connected: &OnceLock<ConnectedServices>) -> Tasks {
        let mut flows = Tasks::default();
        self.start_background(&config, &mut flows);
        let Self { ledger, metrics, shutdown, consuming, publishing, publisher, customerio } = self;
        let outcomes = OutcomeFeed::default();
        flows.spawn("outcome feed", outcomes.clone().run(consuming.clone(), shutdown.clone()));
        let mirror = Mirror {
            config: config.mirror,
            connection: consuming.clone(),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
        };
        flows.spawn("mirror", mirror.run(shutdown.clone()));
        let (outbox, owed) = OutboxSender::channel();
        let publisher_of_outbox = Outbox {
            config: config.outcomes,
            ledger: ledger.clone(),
            publisher: publisher.clone(),
            ladder: config.retry.delays.clone(),
            metrics: metrics.clone(),
        };
        flows.spawn("outbox", publisher_of_outbox.run(owed, shutdown.clone()));
        let (shutdown_of_publisher, shutdown_of_guard) = (shutdown.clone(), shutdown.clone());
        let batch_limit = BatchLimit::new(
            config.sync.batches_in_flight.get(),
            config.sync.batches_in_flight_max.get(),
            config.broker.prefetch.get(),
        );
        let pipeline = Arc::new(Pipeline {
            config: config.sync,
            ladder: config.retry.delays,
            ledger,
            publisher: publisher.clone(),
            outbox,
            customerio,
            metrics,
            shutdown,
            processing: TaskTracker::new(),
            parking: Semaphore::new(PARKED_AT_A_TIME),
            batch_limit,
            progress: BatchProgress::default(),
            database_is_away: watch::Sender::default(),
            is_consuming: watch::Sender::default(),
        });
        flows.spawn("pipeline", pipeline.clone().run(consuming.clone()));
        flows.spawn("publisher heartbeat", publisher.clone().check_idle(shutdown_of_publisher));
        let topology = TopologyGuard::new(consuming.clone());
        flows.spawn("topology", topology.clone().run(shutdown_of_guard));
        let queues = QueueMonitor::new(consuming.clone());
        let connections = vec![consuming, publishing];
        connected.get_or_init(|| ConnectedServices {
            connections,
            publisher,
            pipeline,
            outcomes,
            queues,
            topology,
        });
        flows
    }

    /// Starts the flows that act at intervals, on one replica at a time.
    fn start_background(&self, config: &Config, flows: &mut Tasks) {
        let calls_are_paused = {
            let customerio = self.customerio.clone();
            move || !customerio.breaker().is_closed()
        };
        let calls_are_scarce = {
            let (rate_limiter, calls_are_paused) =
                (self.customerio.rate_limiter().clone(), calls_are_paused.clone());
            move || rate_limiter.is_saturated() || calls_are_paused()
        };
        let bulk_retries = BulkRetries {
            config: config.bulk_retry.clone(),
            connection: self.publishing.clone(),
            ledger: self.ledger.clone(),
            publisher: self.publisher.clone(),
        };
        flows.spawn("bulk retries", bulk_retries.run(calls_are_scarce, self.shutdown.clone()));
        let bulk_actions = BulkActions {
            replays_per_second: config.bulk_retry.jobs_per_second,
            ledger: self.ledger.clone(),
            publisher: self.publisher.clone(),
        };
        flows.spawn("bulk actions", bulk_actions.run(self.shutdown.clone()));
        let sweeper = Sweeper {
            config: config.mirror.clone(),
            metrics: self.metrics.clone(),
            connection: self.consuming.clone(),
            publisher: self.publisher.clone(),
            ledger: self.ledger.clone(),
        };
        flows.spawn("sweep", sweeper.run(self.shutdown.clone()));
        let queue_gauges = QueueGauges {
            config: config.metrics.clone(),
            connection: self.consuming.clone(),
            metrics: self.metrics.clone(),
        };
        flows.spawn("queue gauges", queue_gauges.run(self.shutdown.clone()));
        let integrity = IntegrityCheck {
            config: config.integrity.clone(),
            connection: self.consuming.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
            last_comparison: LastComparison::default(),
        };
        flows.spawn("integrity", integrity.run(calls_are_paused.clone(), self.shutdown.clone()));
        let recovery = Recovery {
            config: config.recovery.clone(),
            connection: self.publishing.clone(),
            publisher: self.publisher.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
        };
        flows.spawn("recovery", recovery.run(calls_are_paused, self.shutdown.clone()));
        let retention = Retention {
            config: config.retention.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
        };
        flows.spawn("retention", retention.run(self.shutdown.clone()));
    }
}
