//! The gate in front of Customer.io: shut while calls are of no use, so that an outage costs no job
//! its retries.
//!
//! It opens the circuit after a run of failed calls, at refused credentials, or when Customer.io
//! asks to be left alone. Then one job at a time probes, with growing pauses; in an outage that
//! lasts, after a question whether there is an answer at all. When one goes through, the flow ramps
//! up.

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

/// Settings of the gate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Calls that fail in a row before it shuts.
    pub failures_in_a_row: NonZeroU32,
    /// Time until the first probe; each failed probe doubles it.
    #[serde(with = "humantime_serde")]
    pub probe_after: Duration,
    /// Time between probes at most.
    #[serde(with = "humantime_serde")]
    pub probe_at_least_every: Duration,
}

text_enum! {
    /// Why no calls are made.
    GateReason {
        /// Calls failed one after the other.
        Outage = "outage",
        /// Customer.io refused the credentials, or the region is wrong.
        Credentials = "credentials",
        /// Customer.io asked to be left alone (`Retry-After`).
        Asked = "asked",
    }
}

/// How a call went, as far as the gate looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Called {
    /// Customer.io answered, with whatever.
    Answered,
    /// It did not, or said that it can't now.
    Failed,
    /// It does not accept the credentials.
    Refused,
}

/// Whether calls are made, for those who look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateView {
    /// Whether calls go through.
    pub is_shut: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<GateReason>,
    /// Since when not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

/// Calls that are looked back at; it shuts when half of them failed.
const WINDOW: usize = 50;
/// So many probes of an outage are a job's. In one that lasts, they would exhaust the retries of
/// the few jobs there may be.
const JOBS_FIRST: u32 = 6;
/// So many probes after these ask first whether Customer.io answers at all, and risk no job while
/// it does not. The next is a job's in any case: it may be the question alone that finds no answer.
const QUESTIONS: u32 = 60;
/// A ramp that has come so far is over.
const RAMP_ENDS: usize = 256;
/// The longest time that Customer.io is left alone, whatever it asked for.
const LONGEST_HOLD: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls go through, so many jobs in a batch at most.
    Passing { ramp: usize },
    Shut {
        reason: GateReason,
        since: DateTime<Utc>,
        probe_at: Instant,
        pause: Duration,
        is_probing: bool,
        /// Probes since it shut.
        probes: u32,
    },
}

/// The decisions, without a clock.
#[derive(Debug)]
struct Core {
    config: Config,
    state: State,
    failures: u32,
    /// Whether each of the last calls failed.
    window: VecDeque<bool>,
}

/// What somebody who wants to call is told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Go {
        limit: usize,
    },
    Probe {
        /// Whether a question that costs no job a try comes first.
        asks_first: bool,
    },
    /// Until then, or until something changes.
    Wait(Option<Instant>),
}

impl Core {
    fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Passing { ramp: usize::MAX },
            failures: 0,
            window: VecDeque::new(),
        }
    }

    fn ask(&mut self, now: Instant) -> Told {
        match &mut self.state {
            State::Passing { ramp } => Told::Go { limit: *ramp },
            State::Shut { is_probing: true, .. } => Told::Wait(None),
            State::Shut { probe_at, .. } if *probe_at > now => Told::Wait(Some(*probe_at)),
            State::Shut { is_probing, reason, probes, .. } => {
                *is_probing = true;
                *probes += 1;
                let asks_first = match reason {
                    GateReason::Credentials => true,
                    GateReason::Outage => {
                        *probes > JOBS_FIRST
                            && !(*probes - JOBS_FIRST).is_multiple_of(QUESTIONS + 1)
                    }
                    // It said itself when to come again.
                    GateReason::Asked => false,
                };
                Told::Probe { asks_first }
            }
        }
    }

    fn record(&mut self, called: Called, is_probe: bool, now: Instant, time: DateTime<Utc>) {
        match (self.state, called) {
            (State::Passing { ramp }, Called::Answered) => {
                self.failures = 0;
                self.remember(false);
                let ramp = if ramp >= RAMP_ENDS { usize::MAX } else { ramp * 2 };
                self.state = State::Passing { ramp };
            }
            (State::Passing { .. }, Called::Failed) => {
                self.failures += 1;
                self.remember(true);
                let failed = self.window.iter().filter(|failed| **failed).count();
                if self.failures >= self.config.failures_in_a_row.get() || failed * 2 >= WINDOW {
                    self.shut(GateReason::Outage, self.config.probe_after, now, time);
                }
            }
            (State::Passing { .. }, Called::Refused) => {
                self.shut(GateReason::Credentials, self.config.probe_after, now, time);
            }
            (State::Shut { .. }, Called::Answered) if is_probe => {
                self.failures = 0;
                self.window.clear();
                self.state = State::Passing { ramp: 1 };
            }
            (State::Shut { since, pause, probe_at, .. }, _) if is_probe => {
                let pause = (pause * 2).min(self.config.probe_at_least_every);
                let reason = match called {
                    Called::Refused => GateReason::Credentials,
                    // The probe's answer asked for it.
                    _ if probe_at > now => GateReason::Asked,
                    _ => GateReason::Outage,
                };
                self.shut(reason, pause, now, since);
            }
            // Calls that were under way when it shut.
            (State::Shut { .. }, _) => {}
        }
    }

    fn remember(&mut self, failed: bool) {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(failed);
    }

    fn shut(&mut self, reason: GateReason, pause: Duration, now: Instant, since: DateTime<Utc>) {
        let (probes, held_until) = match self.state {
            State::Passing { .. } => (0, now),
            State::Shut { probes, probe_at, .. } => (probes, probe_at),
        };
        let probe_at = held_until.max(now + pause);
        self.state = State::Shut { reason, since, probe_at, pause, is_probing: false, probes };
    }

    /// Customer.io asked to be left alone.
    fn hold(&mut self, wait: Duration, now: Instant, time: DateTime<Utc>) {
        let until = now + wait.min(LONGEST_HOLD);
        match &mut self.state {
            State::Shut { probe_at, .. } => *probe_at = until.max(*probe_at),
            State::Passing { .. } => {
                self.shut(GateReason::Asked, self.config.probe_after, now, time);
                if let State::Shut { probe_at, .. } = &mut self.state {
                    *probe_at = until;
                }
            }
        }
    }

    /// A probe made no call: another may.
    fn probe_came_to_nothing(&mut self) {
        if let State::Shut { is_probing, .. } = &mut self.state {
            *is_probing = false;
        }
    }

    fn view(&self) -> GateView {
        match self.state {
            State::Passing { .. } => GateView { is_shut: false, reason: None, since: None },
            State::Shut { reason, since, .. } => {
                GateView { is_shut: true, reason: Some(reason), since: Some(since) }
            }
        }
    }
}

/// The gate, shared by all batches.
#[derive(Debug)]
pub(super) struct Gate {
    core: Mutex<Core>,
    view: watch::Sender<GateView>,
    /// Counts changes that somebody may wait for.
    changes: watch::Sender<u64>,
    /// Until when Customer.io has asked this replica to be left alone, the last time it did.
    asked: watch::Sender<Option<Instant>>,
}

/// The leave to call. That of a probe has to be used or dropped before another can probe.
#[derive(Debug)]
pub struct Pass<'a> {
    gate: &'a Gate,
    limit: usize,
    is_probe: bool,
    /// Whether a call was made with it.
    is_used: AtomicBool,
}

impl<'a> Pass<'a> {
    fn new(gate: &'a Gate, limit: usize, is_probe: bool) -> Self {
        Self { gate, limit, is_probe, is_used: AtomicBool::new(false) }
    }
}

impl Pass<'_> {
    /// Jobs that may be called for with it at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether it is of use still: the gate did not shut meanwhile.
    pub fn holds(&self) -> bool {
        self.is_probe || !self.gate.view().is_shut
    }

    pub(super) fn record(&self, called: Called) {
        self.is_used.store(true, Ordering::Relaxed);
        self.gate.change(|core| core.record(called, self.is_probe, Instant::now(), Utc::now()));
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe && !self.is_used.load(Ordering::Relaxed) {
            self.gate.change(Core::probe_came_to_nothing);
        }
    }
}

impl Gate {
    pub(super) fn new(config: Config) -> Self {
        let core = Core::new(config);
        let view = watch::Sender::new(core.view());
        Self {
            core: Mutex::new(core),
            view,
            changes: watch::Sender::new(0),
            asked: watch::Sender::new(None),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Core)) {
        let mut core = self.core();
        change(&mut core);
        let view = core.view();
        self.view.send_if_modified(|current| {
            let is_new = *current != view;
            if is_new {
                tracing::warn!(
                    is_shut = view.is_shut,
                    reason = view.reason.map(GateReason::as_str),
                    since = view.since.map(|since| since.to_rfc3339()),
                    "the gate to Customer.io"
                );
                *current = view;
            }
            is_new
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// Waits for the leave to call. Says, too, whether a question has to be answered before a job
    /// is risked for it.
    pub(super) async fn pass(&self) -> (Pass<'_>, bool) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let told = self.core().ask(Instant::now());
            let until = match told {
                Told::Go { limit } => return (Pass::new(self, limit, false), false),
                Told::Probe { asks_first } => return (Pass::new(self, 1, true), asks_first),
                Told::Wait(until) => until,
            };
            let in_time = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = in_time => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// The leave to call, if calls go through now.
    pub(super) fn try_pass(&self) -> Option<Pass<'_>> {
        match self.core().state {
            State::Passing { ramp } => Some(Pass::new(self, ramp, false)),
            State::Shut { .. } => None,
        }
    }

    /// Customer.io asked for it.
    pub(super) fn asked(&self, wait: Duration) {
        let wait = wait.min(LONGEST_HOLD);
        self.hold(wait);
        self.asked.send_replace(Some(Instant::now() + wait));
    }

    pub(super) fn watch_asked(&self) -> watch::Receiver<Option<Instant>> {
        self.asked.subscribe()
    }

    pub(super) fn hold(&self, wait: Duration) {
        self.change(|core| core.hold(wait, Instant::now(), Utc::now()));
    }

    pub(super) fn view(&self) -> GateView {
        self.view.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<GateView> {
        self.view.subscribe()
    }

    /// Time until the next probe.
    pub(super) fn probe_in(&self) -> Option<Duration> {
        match self.core().state {
            State::Passing { .. } => None,
            State::Shut { probe_at, .. } => {
                Some(probe_at.saturating_duration_since(Instant::now()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
