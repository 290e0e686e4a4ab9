//! One batch from its deliveries to their acknowledgement.
//!
//! The order is the guarantee: commit the claim, call, commit how it ended, publish what follows
//! and wait for the confirms, and only then acknowledge. A crash between any two of these leads to
//! a redelivery that the ledger knows how to answer.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Span;
use uuid::Uuid;

use super::{
    Sync,
    claim::Claim,
    inbound::{Envelope, Item},
};
use crate::{
    broker::{Acknowledged, Message, capped},
    customerio::{self, Pass, Pushed},
    event::Rejected,
    job::{Attempt, Ending, Failure, Job, Outcome, Reason, Report, Work},
    ledger::{self, Arrival, Opened, Settled, Settlement},
    retry::{self, Verdict},
    runtime::{backoff::until_done, shutdown::Lifecycle, trace},
};

/// How long a job waits at least that was put off.
const PUT_OFF: Duration = Duration::from_mins(10);

#[derive(Debug)]
pub(super) struct Flow {
    sync: Sync,
    lifecycle: Lifecycle,
    /// What operators wanted to be run and is under way.
    orders: TaskTracker,
}

/// A job that was claimed, with what it came in.
pub(super) struct Claimed {
    work: Work,
    arrival: Arrival,
    envelope: Envelope,
    span: Span,
}

/// What became of jobs that were claimed.
#[derive(Default)]
pub(super) struct Called {
    /// How those ended that were tried and whose claim held.
    pub(super) endings: Vec<Ending>,
    /// The messages of those whose turn is not yet: the gate shut first, and their claims were
    /// given back.
    not_yet: Vec<(Arrival, Envelope)>,
}

impl Flow {
    pub(super) fn new(sync: Sync, lifecycle: Lifecycle) -> Self {
        Self { sync, lifecycle, orders: TaskTracker::new() }
    }

    pub(super) fn ledger(&self) -> &ledger::Ledger {
        &self.sync.ledger
    }

    pub(super) fn orders(&self) -> &TaskTracker {
        &self.orders
    }

    pub(super) fn batch_size(&self) -> usize {
        self.sync.config.batch_size.get()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.lifecycle.is_draining()
    }

    pub(super) fn customerio(&self) -> &customerio::CustomerIo {
        &self.sync.customerio
    }

    pub(super) async fn run(&self, items: Vec<Item>) {
        let mut arrived = Vec::with_capacity(items.len());
        let mut rejected = Vec::new();
        for Item { envelope, read } in items {
            match read {
                Ok(arrival) => arrived.push((arrival, envelope)),
                Err(why) => rejected.push((envelope, why)),
            }
        }
        let park = join_all(
            rejected.into_iter().map(|(envelope, why)| self.park_unprocessable(envelope, why)),
        );
        tokio::join!(park, self.open_all(arrived));
    }

    /// Works the messages off in as many portions as Customer.io's gate lets through: all at once,
    /// unless it is shut.
    async fn open_all(&self, mut arrived: Vec<(Arrival, Envelope)>) {
        let delivered_at = arrived.iter().filter_map(|(_, envelope)| envelope.delivered_at()).min();
        let held_until = delivered_at.unwrap_or_else(Instant::now) + self.sync.config.hold;
        while !arrived.is_empty() {
            let pass = tokio::select! {
                biased;
                () = self.lifecycle.draining() => return give_back(arrived.into_iter().map(|(_,
                envelope)| envelope)).await,
                pass = self.sync.customerio.pass() => pass,
                () = tokio::time::sleep_until(held_until) => return self.put_off(arrived).await,
            };
            let rest = arrived.split_off(pass.limit().min(arrived.len()));
            let mut not_yet = self.open(arrived, &pass).await;
            not_yet.extend(rest);
            arrived = not_yet;
        }
    }

    /// Claims the jobs and takes each message where its job leads it. Answers the messages whose
    /// turn is not yet: the gate shut meanwhile.
    fn open<'a>(
        &'a self,
        arrived: Vec<(Arrival, Envelope)>,
        pass: &'a Pass<'_>,
    ) -> BoxFuture<'a, Vec<(Arrival, Envelope)>> {
        Box::pin(async move {
            let (arrivals, mut envelopes): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
            match self.claim(&arrivals, pass).await {
                Ok(Some((claim, opened))) => {
                    let opened = opened.into_iter().zip(envelopes).zip(arrivals);
                    let opened =
                        opened.map(|((opened, envelope), arrival)| (opened, envelope, arrival));
                    self.follow(&claim, opened, pass).await
                }
                Ok(None) => arrivals.into_iter().zip(envelopes).collect(),
                // The database refuses something that was read as valid: find the one that it
                // refuses.
                Err(_) if arrivals.len() > 1 => {
                    let rest = envelopes.split_off(envelopes.len() / 2);
                    let mut arrivals = arrivals;
                    let rest_arrivals = arrivals.split_off(envelopes.len());
                    let mut not_yet =
                        self.open(arrivals.into_iter().zip(envelopes).collect(), pass).await;
                    not_yet.extend(
                        self.open(rest_arrivals.into_iter().zip(rest).collect(), pass).await,
                    );
                    not_yet
                }
                Err(error) => {
                    for envelope in envelopes {
                        self.park_unprocessable(
                            envelope,
                            Rejected::new("$", format!("it can't be stored: {error}")),
                        )
                        .await;
                    }
                    Vec::new()
                }
            }
        })
    }

    /// Claims, unless the gate has shut meanwhile: then claims that would lead to calls are given
    /// back. `None`: not yet.
    pub(super) async fn claim(
        &self,
        arrivals: &[Arrival],
        pass: &Pass<'_>,
    ) -> Result<Option<(Claim, Vec<Opened>)>, ledger::Error> {
        let (claim, opened) = self.open_in_ledger(arrivals).await?;
        let calls = opened.iter().any(|opened| matches!(opened, Opened::Claimed(_)));
        if !calls || pass.holds() {
            return Ok(Some((claim, opened)));
        }
        claim.give_back().await;
        Ok(None)
    }

    async fn open_in_ledger(
        &self,
        arrivals: &[Arrival],
    ) -> Result<(Claim, Vec<Opened>), ledger::Error> {
        let (ledger, is_transient, id) =
            (&self.sync.ledger, ledger::Error::is_transient, Uuid::new_v4());
        let batch = until_done("opening jobs", is_transient, || ledger.open(id, arrivals)).await?;
        Ok((Claim { ledger: ledger.clone(), id, held_at: batch.held_at }, batch.opened))
    }

    /// Takes messages into the ledger without a call, and lets their jobs wait on a tier.
    async fn put_off(&self, arrived: Vec<(Arrival, Envelope)>) {
        let (arrivals, envelopes): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
        let opened = match self.open_in_ledger(&arrivals).await {
            Ok((claim, opened)) => {
                claim.give_back().await;
                opened
            }
            // What the database refuses is found out when calls are made again.
            Err(error) => {
                tracing::warn!(%error, "messages are held no longer and can't be put off; they \
                    are given back");
                return give_back(envelopes.into_iter()).await;
            }
        };
        join_all(opened.into_iter().zip(envelopes).map(async |(opened, envelope)| match opened {
            Opened::Claimed(work) => {
                self.wait(&work.job, PUT_OFF).await;
                self.skipped("put_off", envelope).await;
            }
            other => self.without_call(other, envelope).await,
        }))
        .await;
    }

    async fn follow(
        &self,
        claim: &Claim,
        opened: impl Iterator<Item = (Opened, Envelope, Arrival)>,
        pass: &Pass<'_>,
    ) -> Vec<(Arrival, Envelope)> {
        let mut claimed = Vec::new();
        let mut others = Vec::new();
        for (opened, envelope, arrival) in opened {
            match opened {
                Opened::Claimed(work) => claimed.push(Claimed::new(*work, arrival, envelope)),
                other => others.push((other, envelope)),
            }
        }
        let others = join_all(
            others.into_iter().map(|(opened, envelope)| self.without_call(opened, envelope)),
        );
        let (_, called) = tokio::join!(others, self.call(claim, claimed, pass));
        called.not_yet
    }

    /// Messages that need no call.
    async fn without_call(&self, opened: Opened, envelope: Envelope) {
        let why = match opened {
            Opened::Claimed(_) => unreachable!("claimed jobs are called for"),
            Opened::Settled(report) => {
                self.tell(&report, &envelope).await;
                "settled"
            }
            Opened::AlreadyCompleted => "already_completed",
            Opened::Superseded => "superseded",
            Opened::NotDue { job, wait } => {
                self.wait(&job, wait).await;
                "not_due"
            }
            Opened::InFlight { job } => {
                self.wait(&job, Duration::ZERO).await;
                "in_flight"
            }
            Opened::Unknown => {
                let why = Rejected::new("job_id", "there is no such job for this signup and phase");
                return self.park_unprocessable(envelope, why).await;
            }
        };
        self.skipped(why, envelope).await;
    }

    async fn skipped(&self, why: &str, envelope: Envelope) {
        self.sync.metrics.skipped.with_label_values(&[why]).inc();
        acknowledge(envelope).await;
    }

    /// Calls, decides, settles, tells, acknowledges.
    pub(super) async fn call(
        &self,
        claim: &Claim,
        claimed: Vec<Claimed>,
        pass: &Pass<'_>,
    ) -> Called {
        if claimed.is_empty() {
            return Called::default();
        }
        let (works, rest): (Vec<_>, Vec<_>) = claimed
            .into_iter()
            .map(|one| (one.work, (one.arrival, one.envelope, one.span)))
            .unzip();
        let pushed = self.sync.customerio.push(&works, pass, claim).await;
        let (mut settlements, mut called) = (Vec::new(), Vec::new());
        let (mut lost, mut not_yet) = (Vec::new(), Vec::new());
        for ((work, pushed), (arrival, envelope, span)) in works.iter().zip(pushed).zip(rest) {
            match pushed {
                Pushed::Tried { contact_id, attempt } => {
                    settlements.push(self.decide(work, contact_id, attempt));
                    called.push((envelope, span));
                }
                Pushed::Lost => lost.push(envelope),
                Pushed::Held => not_yet.push((arrival, envelope)),
            }
        }
        // Whoever has the job now has a message for it.
        let lost = join_all(lost.into_iter().map(|envelope| self.skipped("claim_lost", envelope)));
        let (_, endings) = tokio::join!(lost, self.settle(claim, settlements, called));
        if !not_yet.is_empty() {
            // What was tried is settled, so these are all that the claim is on.
            claim.give_back().await;
        }
        Called { endings, not_yet }
    }

    async fn settle(
        &self,
        claim: &Claim,
        settlements: Vec<Settlement>,
        called: Vec<(Envelope, Span)>,
    ) -> Vec<Ending> {
        if settlements.is_empty() {
            return Vec::new();
        }
        let ledger = &self.sync.ledger;
        let settled =
            until_done("settling jobs", |_| true, || ledger.settle(claim.id, settlements.clone()));
        let settled = settled.await.expect("every error is tried again");
        let settled = settled.into_iter().zip(settlements).zip(called);
        let concluded = join_all(settled.map(|((settled, settlement), (envelope, span))| {
            self.conclude(settled, settlement, envelope, span)
        }));
        concluded.await.into_iter().flatten().collect()
    }

    fn decide(&self, work: &Work, contact_id: Option<String>, mut attempt: Attempt) -> Settlement {
        if let Outcome::Retryable { failure, .. } | Outcome::Refused(failure) = &mut attempt.outcome
        {
            failure.message = capped(&failure.message);
        }
        let job = work.job.clone();
        let verdict = retry::decide(
            attempt.outcome.clone(),
            job.attempt,
            job.max_attempts,
            &self.sync.ladder,
        );
        Settlement { job, contact_id, attempt, verdict }
    }

    async fn conclude(
        &self,
        settled: Settled,
        settlement: Settlement,
        envelope: Envelope,
        span: Span,
    ) -> Option<Ending> {
        let ending = match settled {
            Settled::Written(mut report) => {
                self.count(&settlement);
                log(&settlement, report.ending_name());
                report.job.traceparent =
                    trace::traceparent(&span, report.job.traceparent.as_deref());
                self.tell(&report, &envelope).await;
                Some(report.ending)
            }
            Settled::ClaimLost => {
                log(&settlement, "claim_lost");
                None
            }
        };
        acknowledge(envelope).await;
        ending
    }

    /// Publishes what follows from how a try ended.
    async fn tell(&self, report: &Report, envelope: &Envelope) {
        match &report.ending {
            Ending::Completed { .. } => {}
            Ending::Retrying { failure, wait } => {
                let tier = self.sync.ladder.waiting_for(*wait);
                self.sync.metrics.retries.with_label_values(&[&tier.name]).inc();
                self.sync
                    .publisher
                    .publish(&Message::retry(&report.job, tier, Some(failure)))
                    .await;
            }
            Ending::Failed { reason, failure, at } => {
                self.count_failure(*reason, failure);
                let parked = Message::failed(&report.job, *reason, failure, *at, envelope.origin());
                self.sync.publisher.publish(&parked).await;
            }
        }
        if let Some(outcome) = Message::outcome(report) {
            self.sync.publisher.publish(&outcome).await;
        }
    }

    /// Lets a message wait on the shortest tier that is long enough.
    async fn wait(&self, job: &Job, wait: Duration) {
        let tier = self.sync.ladder.waiting_for(wait);
        self.sync.publisher.publish(&Message::retry(job, tier, None)).await;
    }

    async fn park_unprocessable(&self, envelope: Envelope, why: Rejected) {
        // The path alone: what was found there may be somebody's name.
        tracing::warn!(
            path = why.path,
            "a message can't be understood, parking it in the failure queue"
        );
        self.sync
            .metrics
            .failures
            .with_label_values(&[Reason::Unprocessable.as_str(), "other"])
            .inc();
        self.sync.publisher.publish(&envelope.unprocessable(&why)).await;
        acknowledge(envelope).await;
    }

    fn count(&self, settlement: &Settlement) {
        let outcome = match settlement.verdict {
            Verdict::Complete => "completed",
            Verdict::Retry { .. } => "retried",
            Verdict::Fail { .. } => "failed",
        };
        let phase = settlement.job.phase.as_str();
        self.sync.metrics.jobs.with_label_values(&[phase, outcome]).inc();
        if settlement.verdict == Verdict::Complete {
            let since = chrono::Utc::now() - settlement.job.created_at;
            let seconds = since.to_std().unwrap_or_default().as_secs_f64();
            self.sync.metrics.event_to_accepted.with_label_values(&[phase]).observe(seconds);
        }
    }

    fn count_failure(&self, reason: Reason, failure: &Failure) {
        self.sync
            .metrics
            .failures
            .with_label_values(&[reason.as_str(), failure.error_type.as_str()])
            .inc();
    }
}

async fn acknowledge(envelope: Envelope) {
    let Some(receipt) = envelope.receipt else { return };
    if receipt.ack().await == Acknowledged::ChannelGone {
        tracing::debug!(
            "the channel of a delivery is gone; it will be delivered again and answered from the \
                ledger"
        );
    }
}

async fn give_back(envelopes: impl Iterator<Item = Envelope>) {
    for envelope in envelopes {
        envelope.give_back().await;
    }
}

impl Claimed {
    pub(super) fn new(work: Work, arrival: Arrival, envelope: Envelope) -> Self {
        let span = attempt_span(&work.job, arrival.traceparent.as_deref());
        Self { work, arrival, envelope, span }
    }
}

fn attempt_span(job: &Job, traceparent: Option<&str>) -> Span {
    let span = tracing::info_span!(
        target: "otel",
        "sync attempt",
        job_id = %job.id,
        sync_phase = job.phase.as_str(),
        attempt = job.attempt,
    );
    trace::continue_from(&span, traceparent.or(job.traceparent.as_deref()));
    span
}

/// The one line of an attempt. It holds no address, name or body.
fn log(settlement: &Settlement, ending: &'static str) {
    let Settlement { job, attempt, .. } = settlement;
    let error_type = match &attempt.outcome {
        Outcome::Accepted => None,
        Outcome::Retryable { failure, .. } | Outcome::Refused(failure) => {
            Some(failure.error_type.as_str())
        }
    };
    tracing::info!(
        job_id = %job.id,
        signup_id = %job.signup_id,
        sync_phase = job.phase.as_str(),
        run = job.run,
        attempt = job.attempt,
        outcome = ending,
        status = attempt.http_status,
        error_type,
        duration_ms = attempt.duration.as_secs_f64() * 1000.0,
        "attempt"
    );
}
