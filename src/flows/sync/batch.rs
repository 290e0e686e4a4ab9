//! One batch, from its deliveries to their acknowledgement.
//!
//! The order is the guarantee: commit the claim, call, commit how it ended together with the
//! messages that must follow, and only then acknowledge. A crash before the second commit leads to
//! a redelivery that the ledger can answer; after it, the messages are on record
//! (`flows/outbox.rs`). A message whose claim was lost is claimed again: the ledger knows whether
//! it is still needed.
//!
//! Messages that need no call are handled aside ([`super::aside`]), so that no batch waits for
//! them.

#![expect(clippy::disallowed_methods, reason = "an edge: the latency of a job")]

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{
    Pipeline,
    aside::SkipReason,
    claim::BatchClaim,
    inbound::{Envelope, InFlight, RejectedMessage},
    intake::Batch,
    process::ProcessCounts,
    progress::ProgressGuard,
};
use crate::{
    broker::{AckResult, Acker, capped},
    customerio::{Permit, PushResult, PushedJob},
    event::Rejected,
    job::{
        Attempt, ClaimedJob, Failure, Job, JobReport, MessageOrigin, OutboxRow, Reason, Status,
        Verdict,
    },
    ledger::{self, ClaimOutcome, ClaimRest, SettledBatch, Settlement},
    retry,
    runtime::{
        backoff::{retry_for, retry_forever},
        text_enum::text_enum,
        trace::{KeyValue, TraceSpan},
    },
};

/// Maximum time to claim the jobs of a batch. If the database is away for longer, the messages are
/// requeued.
const CLAIM_TIME: Duration = Duration::from_mins(1);
/// Maximum time until the intake stops.
const REQUEUE_WAIT: Duration = Duration::from_secs(15);
/// Results that arrive within this time of each other are settled in one transaction: the calls of
/// a batch often end at the same time.
const SETTLE_TOGETHER: Duration = Duration::from_millis(50);
/// Maximum results that wait to be settled.
const RESULTS_WAITING_MAX: usize = 64;

text_enum! {
    /// The result of an attempt, for metrics.
    AttemptResult {
        /// Accepted by Customer.io.
        Completed = "completed",
        /// Followed by a retry.
        Retried = "retried",
        /// Failed without a further retry.
        Failed = "failed",
    }
}

/// A claimed job, with the message that claimed it.
pub(super) struct ClaimedMessage {
    pub(super) job: ClaimedJob,
    pub(super) message: InFlight,
}

/// The messages of a batch after the claim.
pub(super) struct Claimed {
    pub(super) claim: BatchClaim,
    /// Those that own a job, by its id.
    pub(super) jobs: HashMap<Uuid, ClaimedMessage>,
    /// Those that need no call.
    pub(super) others: Vec<(ClaimOutcome, InFlight)>,
}

/// Why the jobs of a batch are not claimed.
enum ClaimError {
    /// The database refuses the data of a message.
    Refused(ledger::Error),
    /// The database was away for too long.
    Unavailable,
}

/// The result of the claimed jobs of a batch.
#[derive(Default)]
pub(super) struct BatchResult {
    /// The jobs that were attempted and recorded.
    pub(super) counts: ProcessCounts,
    /// The duration of the longest call.
    longest_call: Duration,
    /// The messages of the jobs that were not: the breaker opened, another job of the person goes
    /// first, or the claim was lost. They own no claim.
    pub(super) again: Vec<InFlight>,
}

impl Pipeline {
    pub(super) async fn run_batch(self: &Arc<Self>, batch: Batch) {
        let Batch { messages, rejected, signups } = batch;
        for RejectedMessage { envelope, why } in rejected {
            self.park_aside(envelope, why);
        }
        self.run_messages(messages).await;
        drop(signups);
    }

    /// Runs the messages in as many portions as the circuit breaker permits: all at once while it
    /// is closed, except for those of one person.
    async fn run_messages(self: &Arc<Self>, mut messages: Vec<InFlight>) {
        let progress = self.progress.begin();
        let delivered_at = messages.iter().filter_map(|one| one.envelope.delivered_at()).min();
        let defer_at = delivered_at.unwrap_or_else(Instant::now) + self.config.hold;
        loop {
            // RabbitMQ delivers the others again.
            messages.retain(|message| message.envelope.is_current());
            if messages.is_empty() {
                return;
            }
            let permit = tokio::select! {
                biased;
                () = self.shutdown.draining() => return self.requeue(messages).await,
                permit = self.customerio.permit() => permit,
                () = tokio::time::sleep_until(defer_at) => return self.defer(messages).await,
            };
            progress.advance();
            let rest = messages.split_off(permit.limit().min(messages.len()));
            messages = self.run_permitted(messages, &permit, &progress).await;
            messages.extend(rest);
        }
    }

    /// Claims the jobs and handles each message as its job requires. Returns the messages that have
    /// to be claimed again.
    fn run_permitted<'a>(
        self: &'a Arc<Self>,
        mut messages: Vec<InFlight>,
        permit: &'a Permit<'_>,
        progress: &'a ProgressGuard<'_>,
    ) -> BoxFuture<'a, Vec<InFlight>> {
        Box::pin(async move {
            match self.claim_in_ledger(&messages).await {
                Ok(batch) => {
                    progress.advance();
                    let claimed = join(batch, messages);
                    self.run_claimed(claimed, permit, progress).await
                }
                Err(ClaimError::Unavailable) => {
                    self.database_is_away.send_replace(true);
                    self.requeue(messages).await;
                    Vec::new()
                }
                // It was parsed as valid: isolate the message.
                Err(ClaimError::Refused(_)) if messages.len() > 1 => {
                    let rest = messages.split_off(messages.len() / 2);
                    let mut again = self.run_permitted(messages, permit, progress).await;
                    again.extend(self.run_permitted(rest, permit, progress).await);
                    again
                }
                Err(ClaimError::Refused(error)) => {
                    for InFlight { envelope, .. } in messages {
                        let why = Rejected::new("$", format!("it can't be stored: {error}"));
                        self.park_aside(envelope, why);
                    }
                    Vec::new()
                }
            }
        })
    }

    async fn run_claimed(
        self: &Arc<Self>,
        Claimed { claim, jobs, others }: Claimed,
        permit: &Permit<'_>,
        progress: &ProgressGuard<'_>,
    ) -> Vec<InFlight> {
        for (outcome, message) in others {
            self.handle_aside(outcome, message.envelope);
        }
        if jobs.is_empty() {
            claim.end();
            return Vec::new();
        }
        self.call(claim, jobs, permit, progress).await.again
    }

    async fn claim_in_ledger(
        &self,
        messages: &[InFlight],
    ) -> Result<(BatchClaim, Vec<ClaimOutcome>), ClaimError> {
        let id = self.ledger.new_claim();
        let (ledger, confirmed_at) = (self.ledger.clone(), std::time::Instant::now());
        // Dropped on an error: the commit may have happened.
        let mut claim = BatchClaim { ledger, id, confirmed_at, has_ended: false };
        let claimed = retry_for(CLAIM_TIME, "claiming jobs", ledger::Error::is_transient, || {
            self.ledger.claim(id, messages)
        });
        match claimed.await {
            Ok(batch) => {
                self.batch_limit.record_claim(confirmed_at.elapsed());
                claim.confirmed_at = batch.confirmed_at;
                Ok((claim, batch.outcomes))
            }
            Err(error) if error.is_transient() => Err(ClaimError::Unavailable),
            Err(error) => {
                claim.end();
                Err(ClaimError::Refused(error))
            }
        }
    }

    /// Claims the jobs of operators' requests. `None` if that is not possible now.
    pub(super) async fn claim(&self, messages: Vec<InFlight>) -> Option<Claimed> {
        match self.claim_in_ledger(&messages).await {
            Ok(batch) => Some(join(batch, messages)),
            Err(ClaimError::Refused(error)) => {
                tracing::error!(%error, "claiming the jobs that an operator runs failed");
                None
            }
            Err(ClaimError::Unavailable) => None,
        }
    }

    /// Stores the messages without a call, and lets their jobs wait on a delay tier.
    async fn defer(self: &Arc<Self>, messages: Vec<InFlight>) {
        let batch = match self.claim_in_ledger(&messages).await {
            Ok(batch) => batch,
            Err(ClaimError::Unavailable) => {
                self.database_is_away.send_replace(true);
                return self.requeue(messages).await;
            }
            Err(ClaimError::Refused(error)) => {
                // The message that the database refuses is isolated when calls resume.
                tracing::warn!(%error, "deferring messages failed, requeuing them");
                return requeue(messages).await;
            }
        };
        let Claimed { claim, jobs, others } = join(batch, messages);
        claim.release().await;
        for (outcome, message) in others {
            self.handle_aside(outcome, message.envelope);
        }
        for ClaimedMessage { job, message } in jobs.into_values() {
            self.defer_aside(job.job, message.envelope);
        }
    }

    /// Requeues messages after the intake has stopped. Otherwise RabbitMQ delivers them to this
    /// process again at once, and before 4.3 it counts another delivery.
    async fn requeue(&self, messages: Vec<InFlight>) {
        let mut is_consuming = self.is_consuming.subscribe();
        let stopped = is_consuming.wait_for(|is_consuming| !is_consuming);
        if tokio::time::timeout(REQUEUE_WAIT, stopped).await.is_err() {
            tracing::warn!("the intake did not stop within {REQUEUE_WAIT:?}");
        }
        requeue(messages).await;
    }

    /// Calls, decides, settles and acknowledges. The result of each call is settled when it has
    /// ended, and the claim is renewed meanwhile.
    pub(super) async fn call(
        &self,
        claim: BatchClaim,
        mut jobs: HashMap<Uuid, ClaimedMessage>,
        permit: &Permit<'_>,
        progress: &ProgressGuard<'_>,
    ) -> BatchResult {
        let prepare = |one: &ClaimedMessage| {
            self.customerio.prepare(&one.job, one.message.envelope.span.link())
        };
        let prepared = jobs.values().map(prepare).collect();
        let (ended, mut results) = mpsc::channel(RESULTS_WAITING_MAX);
        let pushing = async {
            // Waits for the rate limiter and for people are no calls.
            let calls = OnceLock::new();
            let retain_claimed = |jobs| -> BoxFuture<'_, _> {
                Box::pin(async {
                    let claimed = claim.retain_claimed(jobs).await;
                    calls.get_or_init(|| self.batch_limit.begin_calls());
                    claimed
                })
            };
            self.customerio.push(prepared, permit, &retain_claimed, ended).await
        };
        let mut batch = BatchResult::default();
        let started = Instant::now();
        let settling = async {
            while let Some(pushed) = next_results(&mut results).await {
                self.settle(&claim, pushed, &mut jobs, &mut batch).await;
                progress.advance();
            }
        };
        tokio::select! {
            _ = async { tokio::join!(pushing, settling) } => {}
            never = claim.keep() => match never {},
        }
        self.batch_limit.record_calls(started.elapsed(), batch.longest_call);
        if batch.again.is_empty() {
            claim.end();
        } else {
            // The attempted jobs are settled, so the claim owns only these.
            claim.release().await;
        }
        batch
    }

    /// Records the attempts among the results, and acknowledges their messages.
    async fn settle(
        &self,
        claim: &BatchClaim,
        pushed: Vec<PushedJob>,
        jobs: &mut HashMap<Uuid, ClaimedMessage>,
        batch: &mut BatchResult,
    ) {
        let mut attempted = HashMap::new();
        let mut settlements = Vec::new();
        for PushedJob { job_id, result } in pushed {
            let Some(ClaimedMessage { job, message }) = jobs.remove(&job_id) else { continue };
            match result {
                PushResult::Attempted { contact_id, attempt } => {
                    batch.longest_call = batch.longest_call.max(attempt.duration);
                    let origin = Some(message.envelope.origin().into());
                    settlements.push(self.decide(job.job, contact_id, origin, attempt));
                    attempted.insert(job_id, message);
                }
                PushResult::ClaimLost => {
                    self.count_skipped(SkipReason::ClaimLost, &message.envelope);
                    batch.again.push(message);
                }
                PushResult::NotSent => batch.again.push(message),
            }
        }
        if settlements.is_empty() {
            return;
        }
        let is_last = jobs.is_empty() && batch.again.is_empty();
        let rest = if is_last { ClaimRest::Empty } else { ClaimRest::Jobs };
        let settled =
            retry_forever("settling jobs", || self.ledger.settle(claim.id, &settlements, rest));
        let SettledBatch { recorded, outbox } = settled.await;
        let span_of =
            |(job_id, message): (&Uuid, &InFlight)| (*job_id, message.envelope.span.clone());
        self.outbox.send(with_spans(outbox, &attempted.iter().map(span_of).collect()));
        let mut finished = Vec::new();
        for settlement in settlements {
            let Some(message) = attempted.remove(&settlement.job.id) else { continue };
            let is_recorded = recorded.contains(&settlement.job.id);
            let recording = async { record_attempt(&settlement, is_recorded, &message.envelope) };
            message.envelope.span.within(recording).await;
            if is_recorded {
                self.count_attempt(&settlement);
                batch.counts.add(&settlement.verdict);
                finished.push(message.envelope);
            } else {
                batch.again.push(message);
            }
        }
        acknowledge_all(finished).await;
    }

    fn decide(
        &self,
        job: Job,
        contact_id: Option<String>,
        origin: Option<MessageOrigin>,
        mut attempt: Attempt,
    ) -> Settlement {
        if let Some(failure) = attempt.outcome.failure_mut() {
            failure.message = capped(&failure.message);
        }
        let verdict =
            retry::decide(attempt.outcome.clone(), job.attempt, job.max_attempts, &self.ladder);
        Settlement { job, contact_id, origin, attempt, verdict }
    }

    fn count_attempt(&self, settlement: &Settlement) {
        let result = match &settlement.verdict {
            Verdict::Complete => AttemptResult::Completed,
            Verdict::Retry { tier, .. } => {
                self.metrics.retries.with_label_values(&[tier.as_str()]).inc();
                AttemptResult::Retried
            }
            Verdict::Fail { reason, failure } => {
                self.count_failure(*reason, failure);
                AttemptResult::Failed
            }
        };
        let phase = settlement.job.phase.as_str();
        self.metrics.jobs.with_label_values(&[phase, result.as_str()]).inc();
        if settlement.verdict == Verdict::Complete && !settlement.attempt.mock {
            let since = chrono::Utc::now() - settlement.job.created_at;
            let seconds = since.to_std().unwrap_or_default().as_secs_f64();
            self.metrics.event_to_accepted.with_label_values(&[phase]).observe(seconds);
        }
    }

    fn count_failure(&self, reason: Reason, failure: &Failure) {
        let labels = [reason.as_str(), failure.error_type.as_str()];
        self.metrics.failures.with_label_values(&labels).inc();
    }
}

/// Joins the messages of a batch with the outcomes of their claim.
fn join((claim, outcomes): (BatchClaim, Vec<ClaimOutcome>), messages: Vec<InFlight>) -> Claimed {
    assert_eq!(outcomes.len(), messages.len(), "one outcome per message");
    let mut claimed = Claimed { claim, jobs: HashMap::new(), others: Vec::new() };
    for (outcome, message) in outcomes.into_iter().zip(messages) {
        match outcome {
            ClaimOutcome::Claimed(job) => {
                claimed.jobs.insert(job.job.id, ClaimedMessage { job: *job, message });
            }
            other => claimed.others.push((other, message)),
        }
    }
    claimed
}

/// Waits for the results of a call, and of those that end shortly after it. `None` after the last.
async fn next_results(results: &mut mpsc::Receiver<Vec<PushedJob>>) -> Option<Vec<PushedJob>> {
    let mut pushed = results.recv().await?;
    let until = Instant::now() + SETTLE_TOGETHER;
    while let Ok(Some(more)) = tokio::time::timeout_at(until, results.recv()).await {
        pushed.extend(more);
    }
    Some(pushed)
}

/// The rows with the spans of the messages that led to their reports.
pub(super) fn with_spans(
    mut rows: Vec<OutboxRow>,
    spans: &HashMap<Uuid, TraceSpan>,
) -> Vec<OutboxRow> {
    for row in &mut rows {
        let of_report = |report: &JobReport| {
            let job = report.job.id;
            Some((job, spans.get(&job)?.clone()))
        };
        row.spans = row.reports.iter().filter_map(of_report).collect();
    }
    rows
}

pub(super) async fn acknowledge(envelope: Envelope) {
    acknowledge_all(vec![envelope]).await;
}

async fn acknowledge_all(mut envelopes: Vec<Envelope>) {
    let ackers = envelopes.iter_mut().filter_map(|envelope| envelope.acker.take()).collect();
    if Acker::ack_all(ackers).await == AckResult::ChannelClosed {
        tracing::debug!(
            "the channel of a delivery is closed; the message will be redelivered and answered \
             from the ledger"
        );
    }
}

async fn requeue(messages: Vec<InFlight>) {
    for message in messages {
        message.envelope.requeue().await;
    }
}

/// Logs one line per attempt, and records the same in the span of its message. Neither contains an
/// address, a name or a body.
fn record_attempt(settlement: &Settlement, is_recorded: bool, envelope: &Envelope) {
    let Settlement { job, attempt, verdict, .. } = settlement;
    let error_type = attempt.outcome.failure().map(|failure| failure.error_type.as_str());
    let mut wait = None;
    let (outcome, message) = match verdict {
        _ if !is_recorded => (
            SkipReason::ClaimLost.as_str(),
            "sync attempt ended after its claim was lost".to_owned(),
        ),
        Verdict::Complete => (Status::Completed.as_str(), "sync attempt completed".to_owned()),
        Verdict::Retry { wait: time, .. } => {
            wait = Some(time.as_secs_f64());
            ("retrying", format!("sync attempt failed, retrying in {time:?}"))
        }
        Verdict::Fail { reason, .. } => {
            (Status::Failed.as_str(), format!("sync attempt failed ({reason}), no further retry"))
        }
    };
    envelope.span.add(|| job_attributes(job));
    envelope.record_outcome(outcome);
    if let Some(error_type) = error_type {
        envelope.span.fail(error_type);
    }
    tracing::info!(
        job_id = %job.id,
        signup_id = %job.signup_id,
        sync_phase = job.phase.as_str(),
        run = job.run,
        attempt = job.attempt,
        outcome,
        status = attempt.http_status,
        mock = attempt.mock.then_some(true),
        error_type,
        retry_in_seconds = wait,
        duration_ms = attempt.duration.as_secs_f64() * 1000.0,
        "{message}"
    );
}

fn job_attributes(job: &Job) -> Vec<KeyValue> {
    vec![
        KeyValue::new("customerio_sync.job.id", job.id.to_string()),
        KeyValue::new("customerio_sync.job.phase", job.phase.as_str()),
        KeyValue::new("customerio_sync.job.run", i64::from(job.run)),
        KeyValue::new("customerio_sync.job.attempt", i64::from(job.attempt)),
    ]
}
