//! Jobs that an operator runs now: the same pipeline, without deliveries.

use std::{ops::AddAssign, sync::Arc};

use uuid::Uuid;

use super::{
    Pipeline,
    batch::Claimed,
    inbound::{Envelope, InFlight},
};
use crate::{
    job::{SyncPhase, Verdict},
    ledger::{self, Arrival, ReadyJob, Source},
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

impl ProcessCounts {
    pub(super) fn add(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Complete => self.succeeded += 1,
            Verdict::Retry { .. } => self.retrying += 1,
            Verdict::Fail { .. } => self.failed += 1,
        }
    }

    fn total(self) -> usize {
        self.succeeded + self.failed + self.retrying
    }
}

impl AddAssign for ProcessCounts {
    fn add_assign(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.retrying += other.retrying;
    }
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
    async fn process_all(&self, ready: Vec<ReadyJob>) -> ProcessCounts {
        let mut counts = ProcessCounts::default();
        for &phase in SyncPhase::ALL {
            let of_phase: Vec<_> = ready.iter().filter(|job| job.message.phase == phase).collect();
            for batch in of_phase.chunks(self.config.batch_size.get()) {
                self.process_batch(batch, &mut counts).await;
            }
        }
        counts
    }

    /// Runs jobs until each has been attempted, or can't be.
    async fn process_batch(&self, batch: &[&ReadyJob], counts: &mut ProcessCounts) {
        let request = |job: &&ReadyJob| InFlight {
            arrival: Arrival {
                source: Source::Operator { message: job.message, id: Uuid::new_v4() },
                redelivered: false,
                trace: TraceContext::default(),
            },
            envelope: Envelope::of_operator(job.trace.clone()),
        };
        let progress = self.progress.begin();
        let mut messages: Vec<_> = batch.iter().map(request).collect();
        while !messages.is_empty() {
            // Jobs that are not run now run when the breaker closes.
            let Some(permit) = self.customerio.try_permit() else { return };
            let rest = messages.split_off(permit.limit().min(messages.len()));
            let Some(Claimed { claim, jobs, .. }) = self.claim(messages).await else { return };
            // A job that was not claimed is owned by a message in flight.
            let result = self.call(claim, jobs, &permit, &progress).await;
            // Of several jobs of one person, one is sent at a time.
            messages = if result.counts.total() > 0 { result.again } else { Vec::new() };
            messages.extend(rest);
            *counts += result.counts;
        }
    }
}
