//! Circuit breaker for Customer.io: stops calls while they would fail, so that an outage costs few
//! jobs a retry.
//!
//! It opens after a run of failed calls, when half of the last calls failed, on refused
//! credentials, and on `Retry-After`. Then one job at a time probes, with growing pauses. In a long
//! outage, and while the credentials are refused, a harmless request goes first. After a successful
//! probe, and when the process starts, the rate ramps up from one job per call.
//!
//! A refusal of the credentials or of the address fails the job of its call. After three in a row,
//! or if the account's region is not the configured one, no further job is risked: the breaker
//! stays open until the settings change, an operator closes it, or the service restarts.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use utoipa::ToSchema;

use crate::runtime::text_enum::text_enum;

/// Settings of the circuit breaker.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Failed calls in a row that open it.
    pub failures_in_a_row: NonZeroU32,
    /// Time until the first probe. Each failed probe doubles it.
    #[serde(with = "humantime_serde")]
    pub probe_after: Duration,
    /// Maximum time between probes.
    #[serde(with = "humantime_serde")]
    pub probe_interval_max: Duration,
}

text_enum! {
    /// Whether calls go through.
    BreakerState {
        /// Calls go through.
        Closed = "closed",
        /// No calls are made.
        Open = "open",
        /// One probe is in flight; no other calls are made.
        HalfOpen = "half_open",
    }
}

text_enum! {
    /// Why the circuit breaker is not closed.
    BreakerReason {
        /// Too many calls failed.
        Outage = "outage",
        /// Customer.io refused the credentials, or the region is wrong.
        Credentials = "credentials",
        /// Customer.io asked for a pause (`Retry-After`).
        RetryAfter = "retry_after",
    }
}

/// The result of a call, as far as it matters to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallResult {
    /// Customer.io answered, even if it refused jobs.
    Answered,
    /// There was no answer, or one after which a retry may succeed.
    Failed,
    /// The credentials or the address were refused.
    Refused {
        /// Whether the call carried a single job, which has failed.
        failed_job: bool,
    },
    /// The account's region is not the configured one.
    WrongRegion,
}

/// The state of the circuit breaker, for the admin API, the metrics and the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BreakerStatus {
    /// Whether calls go through.
    pub state: BreakerState,
    /// Why it is not closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<BreakerReason>,
    /// When it opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

impl BreakerStatus {
    /// Whether calls go through.
    pub fn is_closed(&self) -> bool {
        self.state == BreakerState::Closed
    }
}

/// Maximum number of past calls that are remembered. The breaker opens when half of this number
/// failed.
const WINDOW_CALLS: usize = 50;
/// Number of probes at the start of an outage that use a job at once. Later ones send a harmless
/// request first, so that a long outage does not exhaust the retries of the few jobs that wait.
const JOB_PROBES_FIRST: u32 = 6;
/// Number of later probes in a row that send a harmless request first. The one after them uses
/// a job in any case: perhaps only the harmless request gets no answer.
const REQUEST_PROBES: u32 = 60;
/// Jobs per batch at which the ramp ends.
const RAMP_JOBS_MAX: usize = 256;
/// Jobs in a row that are refused for the credentials or the address, after which no further one is
/// risked.
const REFUSED_JOBS_MAX: u32 = 3;
/// Maximum pause, whatever `Retry-After` says.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CircuitState {
    /// Calls go through, with at most `ramp` jobs per batch.
    Closed { ramp: usize },
    /// Open, or half-open while `is_probing`.
    Open {
        reason: BreakerReason,
        since: DateTime<Utc>,
        probe_at: Instant,
        pause: Duration,
        is_probing: bool,
        /// Probes since it opened.
        probes: u32,
    },
}

/// The decisions. They take the time as an argument.
#[derive(Debug)]
struct BreakerCore {
    config: Config,
    state: CircuitState,
    failures_in_a_row: u32,
    /// Whether each of the last calls failed, oldest first.
    window: VecDeque<bool>,
    /// Jobs in a row that were refused for the credentials or the address.
    refused_jobs: u32,
    /// Whether no further job is risked.
    is_halted: bool,
}

/// The breaker's answer to a request for a permit.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Allow {
        limit: usize,
    },
    Probe {
        /// Whether a request for the region, which costs no job an attempt, goes first.
        region_request_first: bool,
    },
    /// Wait until this time, if there is one, or until the state changes.
    Wait(Option<Instant>),
}

impl BreakerCore {
    fn new(config: Config) -> Self {
        Self {
            config,
            // A wrong key or address fails few jobs.
            state: CircuitState::Closed { ramp: 1 },
            failures_in_a_row: 0,
            window: VecDeque::new(),
            refused_jobs: 0,
            is_halted: false,
        }
    }

    fn admit(&mut self, now: Instant) -> Admission {
        match &mut self.state {
            CircuitState::Closed { ramp } => Admission::Allow { limit: *ramp },
            CircuitState::Open { .. } if self.is_halted => Admission::Wait(None),
            CircuitState::Open { is_probing: true, .. } => Admission::Wait(None),
            CircuitState::Open { probe_at, .. } if *probe_at > now => {
                Admission::Wait(Some(*probe_at))
            }
            CircuitState::Open { is_probing, reason, probes, .. } => {
                *is_probing = true;
                *probes += 1;
                let region_request_first = match reason {
                    BreakerReason::Credentials => true,
                    BreakerReason::Outage => {
                        *probes > JOB_PROBES_FIRST
                            && !(*probes - JOB_PROBES_FIRST).is_multiple_of(REQUEST_PROBES + 1)
                    }
                    // Customer.io itself named the time of the next call.
                    BreakerReason::RetryAfter => false,
                };
                Admission::Probe { region_request_first }
            }
        }
    }

    fn record(&mut self, result: CallResult, is_probe: bool, now: Instant, time: DateTime<Utc>) {
        match result {
            CallResult::Answered => self.refused_jobs = 0,
            CallResult::Refused { failed_job: true } => self.refused_jobs += 1,
            CallResult::Refused { failed_job: false } | CallResult::Failed => {}
            CallResult::WrongRegion => self.is_halted = true,
        }
        self.is_halted |= self.refused_jobs >= REFUSED_JOBS_MAX;
        match (self.state, result) {
            (CircuitState::Closed { ramp }, CallResult::Answered) => {
                self.failures_in_a_row = 0;
                self.remember(false);
                let ramp = if ramp >= RAMP_JOBS_MAX { usize::MAX } else { ramp * 2 };
                self.state = CircuitState::Closed { ramp };
            }
            (CircuitState::Closed { .. }, CallResult::Failed) => {
                self.failures_in_a_row += 1;
                self.remember(true);
                let failed = self.window.iter().filter(|failed| **failed).count();
                if self.failures_in_a_row >= self.config.failures_in_a_row.get()
                    || failed * 2 >= WINDOW_CALLS
                {
                    self.open(BreakerReason::Outage, self.config.probe_after, now, time);
                }
            }
            (CircuitState::Closed { .. }, CallResult::Refused { .. } | CallResult::WrongRegion) => {
                self.open(BreakerReason::Credentials, self.config.probe_after, now, time);
            }
            (CircuitState::Open { .. }, CallResult::Answered) if is_probe => {
                self.failures_in_a_row = 0;
                self.window.clear();
                self.state = CircuitState::Closed { ramp: 1 };
            }
            (CircuitState::Open { since, pause, probe_at, .. }, _) if is_probe => {
                let pause = (pause * 2).min(self.config.probe_interval_max);
                let reason = match result {
                    CallResult::Refused { .. } | CallResult::WrongRegion => {
                        BreakerReason::Credentials
                    }
                    // The answer to the probe contained a Retry-After.
                    _ if probe_at > now => BreakerReason::RetryAfter,
                    _ => BreakerReason::Outage,
                };
                self.open(reason, pause, now, since);
            }
            // Calls that were in flight when it opened.
            (CircuitState::Open { .. }, _) => {}
        }
    }

    fn remember(&mut self, failed: bool) {
        if self.window.len() == WINDOW_CALLS {
            self.window.pop_front();
        }
        self.window.push_back(failed);
    }

    fn open(&mut self, reason: BreakerReason, pause: Duration, now: Instant, since: DateTime<Utc>) {
        let (probes, paused_until) = match self.state {
            CircuitState::Closed { .. } => (0, now),
            CircuitState::Open { probes, probe_at, .. } => (probes, probe_at),
        };
        let probe_at = paused_until.max(now + pause);
        self.state =
            CircuitState::Open { reason, since, probe_at, pause, is_probing: false, probes };
    }

    /// Pauses calls for at least `wait`, as `Retry-After` asks.
    fn pause(&mut self, wait: Duration, now: Instant, time: DateTime<Utc>) {
        let until = now + wait.min(PAUSE_MAX);
        match &mut self.state {
            CircuitState::Open { probe_at, .. } => *probe_at = until.max(*probe_at),
            CircuitState::Closed { .. } => {
                self.open(BreakerReason::RetryAfter, self.config.probe_after, now, time);
                if let CircuitState::Open { probe_at, .. } = &mut self.state {
                    *probe_at = until;
                }
            }
        }
    }

    /// Closes the breaker, and ends a pause.
    fn close(&mut self) {
        self.failures_in_a_row = 0;
        self.refused_jobs = 0;
        self.is_halted = false;
        self.window.clear();
        self.state = CircuitState::Closed { ramp: 1 };
    }

    /// Allows a probe now: the settings have changed.
    fn probe_now(&mut self, now: Instant) {
        self.refused_jobs = 0;
        self.is_halted = false;
        if let CircuitState::Open { probe_at, reason: BreakerReason::Credentials, .. } =
            &mut self.state
        {
            *probe_at = now;
        }
    }

    /// A probe made no call, so another may start.
    fn release_probe(&mut self) {
        if let CircuitState::Open { is_probing, .. } = &mut self.state {
            *is_probing = false;
        }
    }

    fn status(&self) -> BreakerStatus {
        match self.state {
            CircuitState::Closed { .. } => {
                BreakerStatus { state: BreakerState::Closed, reason: None, since: None }
            }
            CircuitState::Open { reason, since, is_probing, .. } => BreakerStatus {
                state: if is_probing { BreakerState::HalfOpen } else { BreakerState::Open },
                reason: Some(reason),
                since: Some(since),
            },
        }
    }
}

/// The circuit breaker, shared by all batches.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    core: Mutex<BreakerCore>,
    status: watch::Sender<BreakerStatus>,
    /// Counts the changes that a request for a permit may wait for.
    changes: watch::Sender<u64>,
    /// The end of the last pause that Customer.io asked this replica for.
    paused_until: watch::Sender<Option<Instant>>,
}

/// The permission to call. A probe's permit must be used or dropped before another probe can start.
#[derive(Debug)]
pub struct Permit<'a> {
    breaker: &'a CircuitBreaker,
    limit: usize,
    is_probe: bool,
    /// Whether a call was made with it.
    is_used: AtomicBool,
}

impl<'a> Permit<'a> {
    fn new(breaker: &'a CircuitBreaker, limit: usize, is_probe: bool) -> Self {
        Self { breaker, limit, is_probe, is_used: AtomicBool::new(false) }
    }
}

#[expect(clippy::disallowed_methods, reason = "an edge: the decisions take the time")]
impl Permit<'_> {
    /// Maximum jobs that it permits calls for.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether it still permits a call: the breaker has not opened meanwhile.
    pub fn is_valid(&self) -> bool {
        self.is_probe || self.breaker.status().is_closed()
    }

    pub(super) fn record(&self, result: CallResult) {
        self.is_used.store(true, Ordering::Relaxed);
        self.breaker.change(|core| core.record(result, self.is_probe, Instant::now(), Utc::now()));
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.is_probe && !self.is_used.load(Ordering::Relaxed) {
            self.breaker.change(BreakerCore::release_probe);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an edge: the decisions take the time")]
impl CircuitBreaker {
    pub(super) fn new(config: Config) -> Self {
        let core = BreakerCore::new(config);
        let status = watch::Sender::new(core.status());
        Self {
            core: Mutex::new(core),
            status,
            changes: watch::Sender::new(0),
            paused_until: watch::Sender::new(None),
        }
    }

    fn core(&self) -> MutexGuard<'_, BreakerCore> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut BreakerCore)) {
        let mut core = self.core();
        change(&mut core);
        self.publish(&core);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Publishes the state. The caller owns the lock on `core`, so an older state never replaces a
    /// newer one.
    fn publish(&self, core: &BreakerCore) {
        let status = core.status();
        self.status.send_if_modified(|current| {
            let is_new = *current != status;
            if is_new {
                log_change(current, &status);
                *current = status;
            }
            is_new
        });
    }

    /// Waits for a permit. Also returns whether Customer.io must answer a harmless request before a
    /// job is risked.
    pub(super) async fn permit(&self) -> (Permit<'_>, bool) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let admission = self.admit();
            let until = match admission {
                Admission::Allow { limit } => return (Permit::new(self, limit, false), false),
                Admission::Probe { region_request_first } => {
                    return (Permit::new(self, 1, true), region_request_first);
                }
                Admission::Wait(until) => until,
            };
            let is_due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = is_due => {}
                _ = changes.changed() => {}
            }
        }
    }

    fn admit(&self) -> Admission {
        let mut core = self.core();
        let admission = core.admit(Instant::now());
        // Admitting a probe makes the breaker half-open; no waiter has to be woken.
        self.publish(&core);
        admission
    }

    /// Returns a permit if the breaker is closed.
    pub(super) fn try_permit(&self) -> Option<Permit<'_>> {
        match self.core().state {
            CircuitState::Closed { ramp } => Some(Permit::new(self, ramp, false)),
            CircuitState::Open { .. } => None,
        }
    }

    /// Closes the breaker, and ends a pause.
    pub(super) fn close(&self) {
        self.change(BreakerCore::close);
    }

    /// Allows a probe now: the settings have changed.
    pub(super) fn probe_now(&self) {
        self.change(|core| core.probe_now(Instant::now()));
    }

    /// Whether no further job is risked until the settings change or an operator closes it.
    pub(super) fn is_halted(&self) -> bool {
        self.core().is_halted
    }

    /// Pauses calls because a response to this replica contained a `Retry-After`.
    pub(super) fn retry_after(&self, wait: Duration) {
        let wait = wait.min(PAUSE_MAX);
        self.pause(wait);
        self.paused_until.send_replace(Some(Instant::now() + wait));
    }

    pub(super) fn watch_paused_until(&self) -> watch::Receiver<Option<Instant>> {
        self.paused_until.subscribe()
    }

    pub(super) fn pause(&self, wait: Duration) {
        self.change(|core| core.pause(wait, Instant::now(), Utc::now()));
    }

    pub(super) fn status(&self) -> BreakerStatus {
        self.status.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<BreakerStatus> {
        self.status.subscribe()
    }

    /// Time until the next probe. `None` while the breaker is closed or half-open, and if no job is
    /// risked.
    pub(super) fn probe_in(&self) -> Option<Duration> {
        let core = self.core();
        match core.state {
            CircuitState::Closed { .. } | CircuitState::Open { is_probing: true, .. } => None,
            CircuitState::Open { .. } if core.is_halted => None,
            CircuitState::Open { probe_at, .. } => {
                Some(probe_at.saturating_duration_since(Instant::now()))
            }
        }
    }
}

/// Logs that the breaker opened, closed, or stays open for another reason. Probes are not logged.
fn log_change(before: &BreakerStatus, after: &BreakerStatus) {
    let since = after.since.map(|since| since.to_rfc3339());
    match after.reason {
        _ if before.reason == after.reason => {}
        Some(reason) => tracing::warn!(
            state = after.state.as_str(),
            reason = reason.as_str(),
            since,
            "the circuit breaker for Customer.io is open ({reason}); calls are paused"
        ),
        None => tracing::warn!(
            state = after.state.as_str(),
            "the circuit breaker for Customer.io is closed; calls resume"
        ),
    }
}

#[cfg(test)]
mod tests;
