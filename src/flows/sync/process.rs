//! Jobs that an operator wants to be run now: the same flow, without deliveries.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use uuid::Uuid;

use super::{
    batch::{Claimed, Flow},
    inbound::Envelope,
};
use crate::{
    customerio::GateView,
    job::{Ending, JobMessage, SyncPhase},
    ledger::{self, Arrival, Opened, Source},
};

/// How the jobs ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processed {
    /// Customer.io took them.
    pub succeeded: usize,
    /// They failed for good.
    pub failed: usize,
    /// They wait for their next try.
    pub retrying: usize,
}

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
pub enum NotProcessed {
    /// No calls are made now.
    #[error(
        "no calls to Customer.io are made now, see the gate in stats; the jobs run by themselves \
            when they are"
    )]
    GateIsShut,
    /// The service is stopping.
    #[error("the service is stopping; the jobs stay as they are")]
    Stopping,
    /// The jobs could not be found.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

/// Runs jobs when it is asked to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Processor(Arc<Flow>);

impl Processor {
    pub(super) fn new(flow: Arc<Flow>) -> Self {
        Self(flow)
    }

    /// Whether calls to Customer.io go through.
    pub fn gate(&self) -> GateView {
        self.0.customerio().gate()
    }

    /// Tells when that changes.
    pub fn watch_gate(&self) -> watch::Receiver<GateView> {
        self.0.customerio().watch_gate()
    }

    /// Time until the next probe, while no calls go through.
    pub fn probe_in(&self) -> Option<Duration> {
        self.0.customerio().probe_in()
    }

    /// Runs up to `limit` jobs that are ready, and waits for them. One that a delivery holds is
    /// left to it. The work goes on when the caller stops waiting.
    pub async fn run(&self, limit: i64) -> Result<Processed, NotProcessed> {
        if self.0.is_draining() {
            return Err(NotProcessed::Stopping);
        }
        if self.gate().is_shut {
            return Err(NotProcessed::GateIsShut);
        }
        let ready = self.0.ledger().ready(limit).await?;
        let flow = self.0.clone();
        let running = self.0.orders().spawn(async move { flow.process(ready).await });
        running.await.map_err(|_| NotProcessed::Stopping)
    }
}

impl Flow {
    /// Works off the jobs in batches as deliveries are: no two of a batch belong to one signup.
    async fn process(&self, ready: Vec<JobMessage>) -> Processed {
        let mut processed = Processed::default();
        for &phase in SyncPhase::ALL {
            let of_phase: Vec<_> = ready.iter().filter(|message| message.phase == phase).collect();
            for batch in of_phase.chunks(self.batch_size()) {
                for ending in self.process_batch(batch).await {
                    match ending {
                        Ending::Completed { .. } => processed.succeeded += 1,
                        Ending::Retrying { .. } => processed.retrying += 1,
                        Ending::Failed { .. } => processed.failed += 1,
                    }
                }
            }
        }
        processed
    }

    async fn process_batch(&self, batch: &[&JobMessage]) -> Vec<Ending> {
        let order = |message: &&JobMessage| Arrival {
            source: Source::Operator { message: **message, id: Uuid::new_v4() },
            redelivered: false,
            traceparent: None,
        };
        let arrivals: Vec<_> = batch.iter().map(order).collect();
        // What is not run now runs by itself when calls go through again.
        let Some(pass) = self.customerio().try_pass() else { return Vec::new() };
        let (claim, opened) = match self.claim(&arrivals, &pass).await {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return Vec::new(),
            Err(error) => {
                tracing::error!(%error, "jobs that an operator wants to be run can't be claimed");
                return Vec::new();
            }
        };
        // What is not ours is in other hands already.
        let claimed =
            opened.into_iter().zip(arrivals).filter_map(|(opened, arrival)| match opened {
                Opened::Claimed(work) => {
                    Some(Claimed::new(*work, arrival, Envelope::of_operator()))
                }
                _ => None,
            });
        self.call(&claim, claimed.collect(), &pass).await.endings
    }
}
