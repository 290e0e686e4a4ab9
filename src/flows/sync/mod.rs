//! The main flow: messages become calls, calls become end states or retries.
//!
//! Deliveries are gathered into batches ([`intake`]); each batch is opened, pushed, decided,
//! settled, told and acknowledged ([`batch`]), several side by side. A permit is taken before a
//! batch is gathered and held until it is done.

mod batch;
mod claim;
mod inbound;
mod intake;
mod process;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    broker::{Link, Publisher},
    customerio::CustomerIo,
    ledger::Ledger,
    retry::Ladder,
    runtime::{metrics::Metrics, shutdown::Lifecycle},
};
use batch::Flow;
use intake::Intake;
pub use process::{NotProcessed, Processed, Processor};

/// Settings of the main flow.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Deliveries in one batch at most.
    pub batch_size: NonZeroUsize,
    /// Batches under way at the same time at most.
    pub batches_in_flight: NonZeroUsize,
    /// How long a message is held while no calls are made, before its job waits on a delay tier.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
}

/// The main flow, ready to run.
#[derive(Debug)]
pub struct MainFlow {
    flow: Arc<Flow>,
    config: Config,
    prefetch: u16,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
}

/// What the main flow works with.
#[derive(Debug)]
pub struct Sync {
    /// Settings.
    pub config: Config,
    /// Unacknowledged deliveries at most, a queue.
    pub prefetch: u16,
    /// The delay tiers.
    pub ladder: Ladder,
    /// The truth.
    pub ledger: Ledger,
    /// Where messages go out.
    pub publisher: Publisher,
    /// Who is called.
    pub customerio: Arc<CustomerIo>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Sync {
    /// Puts the flow together.
    pub fn into_flow(self, lifecycle: Lifecycle) -> MainFlow {
        let (config, prefetch, metrics) =
            (self.config.clone(), self.prefetch, self.metrics.clone());
        MainFlow {
            flow: Arc::new(Flow::new(self, lifecycle.clone())),
            config,
            prefetch,
            metrics,
            lifecycle,
        }
    }
}

impl MainFlow {
    /// Runs jobs when an operator asks for it.
    pub fn processor(&self) -> Processor {
        Processor::new(self.flow.clone())
    }

    /// Takes messages from all work queues until nothing new is to be taken, then finishes what is
    /// in hand.
    pub async fn run(self, link: Arc<Link>) {
        let Self { flow, config, prefetch, metrics, lifecycle } = self;
        let permits = Arc::new(Semaphore::new(config.batches_in_flight.get()));
        let mut intake =
            Intake::start(&link, prefetch, config.batch_size.get(), &lifecycle, metrics);
        let mut batches = JoinSet::new();
        loop {
            let permit =
                permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            let Some(items) = intake.next_batch(&lifecycle).await else { break };
            let flow = flow.clone();
            batches.spawn(async move {
                flow.run(items).await;
                drop(permit);
            });
            while let Some(ended) = batches.try_join_next() {
                report_panic(ended);
            }
        }
        intake.give_back_rest().await;
        while let Some(ended) = batches.join_next().await {
            report_panic(ended);
        }
        flow.orders().close();
        flow.orders().wait().await;
    }
}

/// The deliveries of a batch that panicked stay unacknowledged and come again when the connection
/// ends.
fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a batch ended unexpectedly; its messages will be delivered again");
    }
}
