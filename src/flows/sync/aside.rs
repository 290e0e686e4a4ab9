//! Messages that need no call: answered from the ledger, parked, or sent back to a delay tier.
//!
//! Each is handled by a task of its own, which no batch waits for: RabbitMQ may confirm slowly, or
//! not at all while it blocks publishers. Their number is limited by the prefetch, since they stay
//! unacknowledged.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    Pipeline,
    batch::{acknowledge, with_spans},
    inbound::Envelope,
};
use crate::{
    broker::Message,
    event::Rejected,
    job::{ErrorType, Job, JobReport, Reason},
    ledger::ClaimOutcome,
    runtime::{backoff::retry_forever, text_enum::text_enum},
};

/// Minimum time that a deferred job waits on a delay tier.
const DEFERRED_WAIT_MIN: Duration = Duration::from_mins(10);

text_enum! {
    /// Why a delivery needed no call, for metrics.
    SkipReason {
        /// A redelivery of a message whose attempt is recorded. What must follow is published
        /// again.
        Settled = "settled",
        /// The job is completed.
        AlreadyCompleted = "already_completed",
        /// A newer message or event of the job has been received.
        Superseded = "superseded",
        /// The job is not due; its message waits on a tier.
        NotDue = "not_due",
        /// Another message owns the job; this one waits on a tier.
        InFlight = "in_flight",
        /// Another message took the job over before its call was due. This one is claimed again.
        ClaimLost = "claim_lost",
        /// Calls are paused for long; the message waits on a tier.
        Deferred = "deferred",
    }
}

impl Pipeline {
    /// Handles a message that needs no call.
    pub(super) fn handle_aside(self: &Arc<Self>, outcome: ClaimOutcome, envelope: Envelope) {
        self.spawn_aside(envelope, |pipeline, envelope| async move {
            pipeline.handle_unclaimed(outcome, envelope).await;
        });
    }

    /// Lets the job of a message wait on a delay tier.
    pub(super) fn defer_aside(self: &Arc<Self>, job: Job, envelope: Envelope) {
        self.spawn_aside(envelope, |pipeline, envelope| async move {
            pipeline.publish_wait(&job, DEFERRED_WAIT_MIN).await;
            pipeline.skip(SkipReason::Deferred, envelope).await;
        });
    }

    /// Parks an unprocessable message.
    pub(super) fn park_aside(self: &Arc<Self>, envelope: Envelope, why: Rejected) {
        self.spawn_aside(envelope, |pipeline, envelope| async move {
            pipeline.park(envelope, why).await;
        });
    }

    fn spawn_aside<F>(
        self: &Arc<Self>,
        envelope: Envelope,
        handle: impl FnOnce(Arc<Self>, Envelope) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let (pipeline, span) = (self.clone(), envelope.span.clone());
        self.processing.spawn(async move { span.within(handle(pipeline, envelope)).await });
    }

    async fn handle_unclaimed(&self, outcome: ClaimOutcome, envelope: Envelope) {
        let why = match outcome {
            ClaimOutcome::Claimed(_) => unreachable!("claimed jobs are sent to Customer.io"),
            ClaimOutcome::Settled(report) => {
                // A replica of the release before may have settled it, without a row in the outbox.
                let report = JobReport { origin: Some(envelope.origin().into()), ..*report };
                let spans = HashMap::from([(report.job.id, envelope.span.clone())]);
                let owe = || self.ledger.owe(report.clone());
                let rows = retry_forever("writing the outbox", owe).await;
                self.outbox.send(with_spans(rows, &spans));
                SkipReason::Settled
            }
            ClaimOutcome::AlreadyCompleted => SkipReason::AlreadyCompleted,
            ClaimOutcome::Superseded => SkipReason::Superseded,
            ClaimOutcome::NotDue { job, wait } => {
                self.publish_wait(&job, wait).await;
                SkipReason::NotDue
            }
            ClaimOutcome::InFlight { job } => {
                self.publish_wait(&job, Duration::ZERO).await;
                SkipReason::InFlight
            }
            ClaimOutcome::Unknown => {
                let why = Rejected::new("job_id", "there is no such job for this signup and phase");
                return self.park(envelope, why).await;
            }
        };
        self.skip(why, envelope).await;
    }

    async fn skip(&self, why: SkipReason, envelope: Envelope) {
        self.count_skipped(why, &envelope);
        acknowledge(envelope).await;
    }

    pub(super) fn count_skipped(&self, why: SkipReason, envelope: &Envelope) {
        envelope.record_outcome(why.as_str());
        self.metrics.skipped.with_label_values(&[why.as_str()]).inc();
    }

    /// Publishes a message that makes the job wait on the shortest sufficient tier.
    async fn publish_wait(&self, job: &Job, wait: Duration) {
        let tier = self.ladder.waiting_for(wait);
        self.publisher.publish(&Message::retry(job, tier, None)).await;
    }

    async fn park(&self, mut envelope: Envelope, why: Rejected) {
        // Each may be large, and the publisher copies it.
        let _turn = self.parking.acquire().await.expect("the semaphore is never closed");
        let reason = Reason::Unprocessable.as_str();
        envelope.record_outcome(reason);
        envelope.span.fail(reason);
        // Only the path is logged: the value that was found there may be a person's name.
        tracing::warn!(
            path = why.path,
            "a message is unprocessable, publishing it to the failure queue"
        );
        let labels = [reason, ErrorType::Other.as_str()];
        self.metrics.failures.with_label_values(&labels).inc();
        self.publisher.publish(&envelope.unprocessable(&why)).await;
        acknowledge(envelope).await;
    }
}
