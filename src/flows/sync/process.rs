//! Jobs that an operator runs now: the same pipeline, without deliveries.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    Pipeline,
    batch::{BatchResult, InFlightJob},
    inbound::Envelope,
};
use crate::{
    job::{Ending, JobMessage, SyncPhase},
    ledger::{self, Arrival, ClaimOutcome, Source},
    runtime::trace::TraceContext,
};

/// Number of jobs, by how their attempt ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessCounts {
    /// Accepted by Customer.io.
    pub succeeded: usize,
    /// Failed; no further attempt is made.
    pub failed: usize,
    /// Waiting for a retry.
    pub retrying: usize,
}

/// Why no job was run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The circuit breaker is not closed.
    #[error(
        "the circuit breaker is open, see breaker in stats; the jobs run automatically when it \
            closes"
    )]
    BreakerOpen,
    /// The service is stopping.
    #[error("the service is stopping; no job was changed")]
    Stopping,
    /// The jobs could not be listed.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

impl Pipeline {
    /// Runs at most `limit` jobs that are ready, and waits for them. A job whose message is in
    /// flight is left to that message. The jobs are finished even if the caller stops waiting.
    pub async fn process(self: &Arc<Self>, limit: i64) -> Result<ProcessCounts, ProcessError> {
        if self.shutdown.is_draining() {
            return Err(ProcessError::Stopping);
        }
        if !self.customerio.breaker().is_closed() {
            return Err(ProcessError::BreakerOpen);
        }
        let ready = self.ledger.ready(limit).await?;
        let pipeline = self.clone();
        let processing = self.processing.spawn(async move { pipeline.process_all(ready).await });
        processing.await.map_err(|_| ProcessError::Stopping)
    }

    /// Runs the jobs in batches. As with deliveries, no two jobs of a batch belong to one signup.
    async fn process_all(&self, ready: Vec<JobMessage>) -> ProcessCounts {
        let mut counts = ProcessCounts::default();
        for &phase in SyncPhase::ALL {
            let of_phase: Vec<_> = ready.iter().filter(|message| message.phase == phase).collect();
            for batch in of_phase.chunks(self.config.batch_size.get()) {
                for ending in self.process_batch(batch).await {
                    match ending {
                        Ending::Completed { .. } => counts.succeeded += 1,
                        Ending::Retrying { .. } => counts.retrying += 1,
                        Ending::Failed { .. } => counts.failed += 1,
                    }
                }
            }
        }
        counts
    }

    /// Runs jobs until each has been attempted, or can't be.
    async fn process_batch(&self, batch: &[&JobMessage]) -> Vec<Ending> {
        let request = |message: &&JobMessage| Arrival {
            source: Source::Operator { message: **message, id: Uuid::new_v4() },
            redelivered: false,
            trace: TraceContext::default(),
        };
        let mut arrivals: Vec<_> = batch.iter().map(request).collect();
        let mut endings = Vec::new();
        while !arrivals.is_empty() {
            let result = self.process_arrivals(std::mem::take(&mut arrivals)).await;
            // Of several jobs of one person, one is sent at a time.
            if !result.endings.is_empty() {
                arrivals = result.not_sent.into_iter().map(|(arrival, _)| arrival).collect();
            }
            endings.extend(result.endings);
        }
        endings
    }

    async fn process_arrivals(&self, arrivals: Vec<Arrival>) -> BatchResult {
        // Jobs that are not run now run when the breaker closes.
        let Some(permit) = self.customerio.try_permit() else { return BatchResult::default() };
        let (claim, outcomes) = match self.claim(&arrivals, &permit).await {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return BatchResult::default(),
            Err(error) => {
                tracing::error!(%error, "claiming the jobs that an operator runs failed");
                return BatchResult::default();
            }
        };
        // A job that was not claimed is owned by a message in flight.
        let claimed =
            outcomes.into_iter().zip(arrivals).filter_map(|(outcome, arrival)| match outcome {
                ClaimOutcome::Claimed(job) => {
                    let envelope = Envelope::of_operator(&job.job);
                    Some(InFlightJob { job: *job, arrival, envelope })
                }
                _ => None,
            });
        self.call(&claim, claimed.collect(), &permit).await
    }
}
