//! One batch, from its deliveries to their acknowledgement.
//!
//! The order is the guarantee: commit the claim, call, commit how it ended together with the
//! messages that must follow, and only then acknowledge. A crash before the second commit leads to
//! a redelivery that the ledger can answer; after it, the messages are on record
//! (`flows/outbox.rs`).

#![expect(clippy::disallowed_methods, reason = "an edge: the latency of a job")]

use std::{collections::HashMap, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Pipeline,
    claim::BatchClaim,
    inbound::{Envelope, InboundMessage},
};
use crate::{
    broker::{AckResult, Message, capped},
    customerio::{Permit, PushResult},
    event::Rejected,
    job::{
        Attempt, ClaimedJob, Ending, ErrorType, Failure, Job, JobReport, MessageOrigin, OutboxRow,
        Reason, Status,
    },
    ledger::{self, Arrival, ClaimOutcome, Settled, SettledBatch, Settlement},
    retry::{self, Verdict},
    runtime::{
        backoff::{retry_forever, retry_while},
        text_enum::text_enum,
        trace::{KeyValue, TraceSpan},
    },
};

/// Maximum unprocessable messages of a batch that are published at a time. Each may be large.
const PARKED_AT_A_TIME: usize = 4;
/// Minimum time that a deferred job waits on a delay tier.
const DEFERRED_WAIT_MIN: Duration = Duration::from_mins(10);

text_enum! {
    /// Why a delivery needed no call, for metrics.
    SkipReason {
        /// A repeat of a message whose attempt is recorded. What must follow is published again.
        Settled = "settled",
        /// The job is completed.
        AlreadyCompleted = "already_completed",
        /// A newer message or event of the job has been received.
        Superseded = "superseded",
        /// The job is not due; its message waits on a tier.
        NotDue = "not_due",
        /// Another message owns the job; this one waits on a tier.
        InFlight = "in_flight",
        /// Another message took the job over before its call was due.
        ClaimLost = "claim_lost",
        /// Calls are paused for long; the message waits on a tier.
        Deferred = "deferred",
    }
}

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
pub(super) struct InFlightJob {
    pub(super) job: ClaimedJob,
    pub(super) arrival: Arrival,
    pub(super) envelope: Envelope,
}

/// The endings of the claimed jobs of a batch.
#[derive(Default)]
pub(super) struct BatchResult {
    /// The endings of the jobs that were attempted under a valid claim.
    pub(super) endings: Vec<Ending>,
    /// The messages of the jobs that were not sent: the breaker opened, or another job of the
    /// person goes first. Their claims were released.
    pub(super) not_sent: Vec<(Arrival, Envelope)>,
}

impl Pipeline {
    pub(super) async fn run_batch(&self, messages: Vec<InboundMessage>) {
        let mut arrived = Vec::with_capacity(messages.len());
        let mut rejected = Vec::new();
        for InboundMessage { envelope, parsed } in messages {
            match parsed {
                Ok(arrival) => arrived.push((arrival, envelope)),
                Err(rejection) => rejected.push((envelope, rejection)),
            }
        }
        tokio::join!(self.park_all(rejected), self.run_arrivals(arrived));
    }

    /// Runs the messages in as many portions as the circuit breaker permits: all at once while it
    /// is closed, except for those of one person.
    async fn run_arrivals(&self, mut arrived: Vec<(Arrival, Envelope)>) {
        let delivered_at = arrived.iter().filter_map(|(_, envelope)| envelope.delivered_at()).min();
        let defer_at = delivered_at.unwrap_or_else(Instant::now) + self.config.hold;
        while !arrived.is_empty() {
            let permit = tokio::select! {
                biased;
                () = self.shutdown.draining() => return requeue(envelopes_of(arrived)).await,
                permit = self.customerio.permit() => permit,
                () = tokio::time::sleep_until(defer_at) => return self.defer(arrived).await,
            };
            let rest = arrived.split_off(permit.limit().min(arrived.len()));
            let mut not_sent = self.run_permitted(arrived, &permit).await;
            not_sent.extend(rest);
            arrived = not_sent;
        }
    }

    /// Claims the jobs and handles each message as its job requires. Returns the messages that were
    /// not sent.
    fn run_permitted<'a>(
        &'a self,
        arrived: Vec<(Arrival, Envelope)>,
        permit: &'a Permit<'_>,
    ) -> BoxFuture<'a, Vec<(Arrival, Envelope)>> {
        Box::pin(async move {
            let (arrivals, envelopes): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
            let claimed = self.claim(&arrivals, permit).await;
            let mut arrived: Vec<_> = arrivals.into_iter().zip(envelopes).collect();
            match claimed {
                Ok(Some((claim, outcomes))) => self.route(&claim, outcomes, arrived, permit).await,
                Ok(None) => arrived,
                // The database refuses data that was parsed as valid: isolate the message.
                Err(_) if arrived.len() > 1 => {
                    let rest = arrived.split_off(arrived.len() / 2);
                    let mut not_sent = self.run_permitted(arrived, permit).await;
                    not_sent.extend(self.run_permitted(rest, permit).await);
                    not_sent
                }
                Err(error) => {
                    for envelope in envelopes_of(arrived) {
                        let why = Rejected::new("$", format!("it can't be stored: {error}"));
                        self.park_unprocessable(envelope, why).await;
                    }
                    Vec::new()
                }
            }
        })
    }

    /// Claims the jobs. Returns `None` if the breaker opened meanwhile and a claim would lead to a
    /// call: then the claims are released.
    pub(super) async fn claim(
        &self,
        arrivals: &[Arrival],
        permit: &Permit<'_>,
    ) -> Result<Option<(BatchClaim, Vec<ClaimOutcome>)>, ledger::Error> {
        let (claim, outcomes) = self.claim_in_ledger(arrivals).await?;
        let calls = outcomes.iter().any(|outcome| matches!(outcome, ClaimOutcome::Claimed(_)));
        if !calls || permit.is_valid() {
            return Ok(Some((claim, outcomes)));
        }
        claim.release().await;
        Ok(None)
    }

    async fn claim_in_ledger(
        &self,
        arrivals: &[Arrival],
    ) -> Result<(BatchClaim, Vec<ClaimOutcome>), ledger::Error> {
        let (ledger, is_transient, id) =
            (&self.ledger, ledger::Error::is_transient, Uuid::new_v4());
        let batch =
            retry_while("claiming jobs", is_transient, || ledger.claim(id, arrivals)).await?;
        let confirmed_at = batch.confirmed_at;
        Ok((BatchClaim { ledger: ledger.clone(), id, confirmed_at }, batch.outcomes))
    }

    /// Stores the messages without a call, and lets their jobs wait on a delay tier.
    async fn defer(&self, arrived: Vec<(Arrival, Envelope)>) {
        let (arrivals, envelopes): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
        let outcomes = match self.claim_in_ledger(&arrivals).await {
            Ok((claim, outcomes)) => {
                claim.release().await;
                outcomes
            }
            // The message that the database refuses is isolated when calls resume.
            Err(error) => {
                tracing::warn!(%error, "deferring messages failed, requeuing them");
                return requeue(envelopes.into_iter()).await;
            }
        };
        join_all(outcomes.into_iter().zip(envelopes).map(
            async |(outcome, envelope)| match outcome {
                ClaimOutcome::Claimed(claimed) => self.defer_job(&claimed.job, envelope).await,
                other => self.handle_unclaimed(other, envelope).await,
            },
        ))
        .await;
    }

    async fn defer_job(&self, job: &Job, envelope: Envelope) {
        let span = envelope.span.clone();
        let deferred = async {
            self.publish_wait(job, DEFERRED_WAIT_MIN).await;
            self.skip(SkipReason::Deferred, envelope).await;
        };
        span.within(deferred).await;
    }

    /// Makes the calls for the jobs that were claimed, and handles the other messages without a
    /// call. Returns the messages that were not sent.
    async fn route(
        &self,
        claim: &BatchClaim,
        outcomes: Vec<ClaimOutcome>,
        arrived: Vec<(Arrival, Envelope)>,
        permit: &Permit<'_>,
    ) -> Vec<(Arrival, Envelope)> {
        let mut claimed = Vec::new();
        let mut others = Vec::new();
        for (outcome, (arrival, envelope)) in outcomes.into_iter().zip(arrived) {
            match outcome {
                ClaimOutcome::Claimed(job) => {
                    claimed.push(InFlightJob { job: *job, arrival, envelope });
                }
                other => others.push((other, envelope)),
            }
        }
        let others = join_all(
            others.into_iter().map(|(outcome, envelope)| self.handle_unclaimed(outcome, envelope)),
        );
        let (_, result) = tokio::join!(others, self.call(claim, claimed, permit));
        result.not_sent
    }

    /// Handles a message that needs no call.
    async fn handle_unclaimed(&self, outcome: ClaimOutcome, envelope: Envelope) {
        let span = envelope.span.clone();
        span.within(self.handle_unclaimed_in_span(outcome, envelope)).await;
    }

    async fn handle_unclaimed_in_span(&self, outcome: ClaimOutcome, envelope: Envelope) {
        let why = match outcome {
            ClaimOutcome::Claimed(_) => unreachable!("claimed jobs are sent to Customer.io"),
            ClaimOutcome::Settled(report) => {
                // A replica of the release before may have settled it, without a row in the outbox.
                let report = JobReport { origin: Some(envelope.origin().into()), ..*report };
                let rows = retry_forever("writing the outbox", || self.ledger.owe(&report)).await;
                let spans = HashMap::from([(report.job.id, envelope.span.clone())]);
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
                return self.park_unprocessable(envelope, why).await;
            }
        };
        self.skip(why, envelope).await;
    }

    async fn skip(&self, why: SkipReason, envelope: Envelope) {
        envelope.record_outcome(why.as_str());
        self.metrics.skipped.with_label_values(&[why.as_str()]).inc();
        acknowledge(envelope).await;
    }

    /// Calls, decides, settles and acknowledges.
    pub(super) async fn call(
        &self,
        claim: &BatchClaim,
        claimed: Vec<InFlightJob>,
        permit: &Permit<'_>,
    ) -> BatchResult {
        if claimed.is_empty() {
            return BatchResult::default();
        }
        let (jobs, rest): (Vec<_>, Vec<_>) =
            claimed.into_iter().map(|one| (one.job, (one.arrival, one.envelope))).unzip();
        let spans: Vec<_> = rest.iter().map(|(_, envelope)| envelope.span.link()).collect();
        let retain_claimed = |jobs| -> BoxFuture<'_, _> { Box::pin(claim.retain_claimed(jobs)) };
        let pushed = self.customerio.push(&jobs, &spans, permit, &retain_claimed).await;
        let (mut settlements, mut attempted) = (Vec::new(), Vec::new());
        let (mut lost, mut not_sent) = (Vec::new(), Vec::new());
        for ((job, pushed), (arrival, envelope)) in jobs.iter().zip(pushed).zip(rest) {
            match pushed {
                PushResult::Attempted { contact_id, attempt } => {
                    let origin = Some(envelope.origin().into());
                    settlements.push(self.decide(job, contact_id, origin, attempt));
                    attempted.push(envelope);
                }
                PushResult::ClaimLost => lost.push(envelope),
                PushResult::NotSent => not_sent.push((arrival, envelope)),
            }
        }
        // The new owner of the job has a message for it, so this one is not needed.
        let lost = lost.into_iter().map(|envelope| self.skip(SkipReason::ClaimLost, envelope));
        let lost = join_all(lost);
        let (_, endings) = tokio::join!(lost, self.settle(claim, settlements, attempted));
        if !not_sent.is_empty() {
            // The attempted jobs are settled, so the claim owns only these.
            claim.release().await;
        }
        BatchResult { endings, not_sent }
    }

    async fn settle(
        &self,
        claim: &BatchClaim,
        settlements: Vec<Settlement>,
        attempted: Vec<Envelope>,
    ) -> Vec<Ending> {
        if settlements.is_empty() {
            return Vec::new();
        }
        let SettledBatch { results, outbox } =
            retry_forever("settling jobs", || self.ledger.settle(claim.id, settlements.clone()))
                .await;
        let spans = settlements.iter().zip(&attempted);
        let spans: HashMap<_, _> =
            spans.map(|(one, envelope)| (one.job.id, envelope.span.clone())).collect();
        self.outbox.send(with_spans(outbox, &spans));
        let settled = results.into_iter().zip(settlements).zip(attempted);
        let finished = join_all(settled.map(|((settled, settlement), envelope)| {
            let span = envelope.span.clone();
            async move { span.within(self.finish(settled, settlement, envelope)).await }
        }));
        finished.await.into_iter().flatten().collect()
    }

    fn decide(
        &self,
        claimed: &ClaimedJob,
        contact_id: Option<String>,
        origin: Option<MessageOrigin>,
        mut attempt: Attempt,
    ) -> Settlement {
        if let Some(failure) = attempt.outcome.failure_mut() {
            failure.message = capped(&failure.message);
        }
        let job = claimed.job.clone();
        let verdict =
            retry::decide(attempt.outcome.clone(), job.attempt, job.max_attempts, &self.ladder);
        Settlement { job, contact_id, origin, attempt, verdict }
    }

    async fn finish(
        &self,
        settled: Settled,
        settlement: Settlement,
        envelope: Envelope,
    ) -> Option<Ending> {
        let ending = match settled {
            Settled::Written(report) => {
                self.count_attempt(&settlement);
                self.count_ending(&report.ending);
                record_attempt(&settlement, Some(&report.ending), &envelope);
                Some(report.ending)
            }
            Settled::ClaimLost => {
                record_attempt(&settlement, None, &envelope);
                None
            }
        };
        acknowledge(envelope).await;
        ending
    }

    fn count_ending(&self, ending: &Ending) {
        match ending {
            Ending::Completed { .. } => {}
            Ending::Retrying { wait, .. } => {
                let tier = self.ladder.waiting_for(*wait);
                self.metrics.retries.with_label_values(&[&tier.name]).inc();
            }
            Ending::Failed { reason, failure, .. } => self.count_failure(*reason, failure),
        }
    }

    /// Publishes a message that makes the job wait on the shortest sufficient tier.
    async fn publish_wait(&self, job: &Job, wait: Duration) {
        let tier = self.ladder.waiting_for(wait);
        self.publisher.publish(&Message::retry(job, tier, None)).await;
    }

    /// Parks unprocessable messages, a few at a time.
    async fn park_all(&self, rejected: Vec<(Envelope, Rejected)>) {
        let mut rejected = rejected.into_iter();
        while rejected.len() > 0 {
            let next = rejected.by_ref().take(PARKED_AT_A_TIME);
            join_all(next.map(|(envelope, why)| self.park_unprocessable(envelope, why))).await;
        }
    }

    async fn park_unprocessable(&self, envelope: Envelope, why: Rejected) {
        let span = envelope.span.clone();
        span.within(self.park_unprocessable_in_span(envelope, why)).await;
    }

    async fn park_unprocessable_in_span(&self, mut envelope: Envelope, why: Rejected) {
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

    fn count_attempt(&self, settlement: &Settlement) {
        let outcome = match settlement.verdict {
            Verdict::Complete => AttemptResult::Completed,
            Verdict::Retry { .. } => AttemptResult::Retried,
            Verdict::Fail { .. } => AttemptResult::Failed,
        };
        let phase = settlement.job.phase.as_str();
        self.metrics.jobs.with_label_values(&[phase, outcome.as_str()]).inc();
        if settlement.verdict == Verdict::Complete && !settlement.attempt.mock {
            let since = chrono::Utc::now() - settlement.job.created_at;
            let seconds = since.to_std().unwrap_or_default().as_secs_f64();
            self.metrics.event_to_accepted.with_label_values(&[phase]).observe(seconds);
        }
    }

    fn count_failure(&self, reason: Reason, failure: &Failure) {
        self.metrics
            .failures
            .with_label_values(&[reason.as_str(), failure.error_type.as_str()])
            .inc();
    }
}

/// The rows with the spans of the messages that led to their reports.
fn with_spans(mut rows: Vec<OutboxRow>, spans: &HashMap<Uuid, TraceSpan>) -> Vec<OutboxRow> {
    for row in &mut rows {
        let of_report = |report: &JobReport| {
            let job = report.job.id;
            Some((job, spans.get(&job)?.clone()))
        };
        row.spans = row.reports.iter().filter_map(of_report).collect();
    }
    rows
}

fn envelopes_of(arrived: Vec<(Arrival, Envelope)>) -> impl Iterator<Item = Envelope> {
    arrived.into_iter().map(|(_, envelope)| envelope)
}

async fn acknowledge(envelope: Envelope) {
    let Some(acker) = envelope.acker else { return };
    if acker.ack().await == AckResult::ChannelClosed {
        tracing::debug!(
            "the channel of a delivery is closed; the message will be redelivered and answered \
             from the ledger"
        );
    }
}

async fn requeue(envelopes: impl Iterator<Item = Envelope>) {
    for envelope in envelopes {
        envelope.requeue().await;
    }
}

/// Logs one line per attempt, and records the same in the span of its message. Neither contains an
/// address, a name or a body. If `ending` is `None`, the claim was lost.
fn record_attempt(settlement: &Settlement, ending: Option<&Ending>, envelope: &Envelope) {
    let Settlement { job, attempt, .. } = settlement;
    let error_type = attempt.outcome.failure().map(|failure| failure.error_type.as_str());
    let wait = match ending {
        Some(Ending::Retrying { wait, .. }) => Some(*wait),
        _ => None,
    };
    let (outcome, message) = match ending {
        Some(Ending::Completed { .. }) => {
            (Status::Completed.as_str(), "sync attempt completed".to_owned())
        }
        Some(Ending::Retrying { wait, .. }) => {
            ("retrying", format!("sync attempt failed, retrying in {wait:?}"))
        }
        Some(Ending::Failed { reason, .. }) => {
            (Status::Failed.as_str(), format!("sync attempt failed ({reason}), no further retry"))
        }
        None => (
            SkipReason::ClaimLost.as_str(),
            "sync attempt ended after its claim was lost".to_owned(),
        ),
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
        retry_in_seconds = wait.map(|wait| wait.as_secs_f64()),
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
