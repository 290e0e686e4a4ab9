//! Checks continuously that nothing is lost or duplicated: everything that was received is in
//! exactly one place, and ledger, mirror and queues agree.
//!
//! The check changes nothing. Recovery and the sweep fix what they can; a discrepancy that outlasts
//! them needs a person.

#![expect(clippy::disallowed_methods, reason = "an edge: a comparison has a time and a duration")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    broker::{self, Connection, FAILED_QUEUE, MIRROR_QUEUE},
    ledger::{
        self, Balance, Drift, DriftEntry, LeaderLock, LeaderTask, Ledger, LostMessageScope,
        WaitingMessages,
    },
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Settings of the integrity check.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time between checks.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

/// A state younger than this may be about to change, and is not reported.
const GRACE_PERIOD: Duration = Duration::from_secs(60);
/// A comparison that takes at least this long, and finds nothing, is reused for [`REUSE_FACTOR`]
/// times its duration, up to [`REUSE_MAX`].
const SLOW_COMPARISON: Duration = Duration::from_millis(500);
const REUSE_FACTOR: u32 = 50;
const REUSE_MAX: Duration = Duration::from_mins(5);
/// Maximum jobs that are listed per kind of discrepancy.
const SAMPLE_JOBS_MAX: i32 = 50;

/// Why the check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The queues could not be counted.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

/// Messages that are ready, by queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepths {
    /// In the work queues: events, and jobs that are due.
    pub work: u32,
    /// In the delay tiers.
    pub tiers: u32,
    /// In the failure queue.
    pub failed: u32,
    /// In the mirror's queue.
    pub mirror: u32,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegrityReport {
    /// The balance, from kept counts.
    pub balance: Balance,
    /// The depths of the queues.
    pub queues: QueueDepths,
    /// When the open jobs and failures were compared.
    pub compared_at: DateTime<Utc>,
    /// The discrepancies.
    pub drifted: Vec<DriftEntry>,
}

/// The last comparison of open jobs and failures with each other and with the queues. It reads each
/// of them, so one that took long and found nothing is reused for a multiple of its duration.
#[derive(Debug, Default)]
pub struct LastComparison(Mutex<Option<Comparison>>);

#[derive(Debug, Clone)]
struct Comparison {
    made_at: DateTime<Utc>,
    began: Instant,
    ended: Instant,
    took: Duration,
    /// The overdue jobs that it looked for.
    scope: Option<LostMessageScope>,
    drifted: Vec<DriftEntry>,
    /// Whether nothing was found, including what is not reported yet.
    is_clean: bool,
}

impl Comparison {
    /// Whether it answers a check of `scope` that began at `asked`.
    fn is_reusable(&self, scope: Option<LostMessageScope>, asked: Instant) -> bool {
        let reused_for = (self.took * REUSE_FACTOR).min(REUSE_MAX);
        let is_recent =
            self.is_clean && self.took >= SLOW_COMPARISON && self.ended.elapsed() < reused_for;
        self.scope == scope && (is_recent || self.began >= asked)
    }
}

/// Checks once. While calls are paused, jobs become overdue without a loss.
pub async fn check(
    ledger: &Ledger,
    connection: &Connection,
    calls_are_paused: bool,
    last: &LastComparison,
) -> Result<IntegrityReport, Error> {
    let backlog = connection.backlog().await?;
    let waiting = WaitingMessages { events: backlog.events, jobs: backlog.jobs };
    let scope = LostMessageScope::for_backlog(waiting, calls_are_paused);
    let comparison = last.get_or(scope, || compare(ledger, connection, scope)).await?;
    let queues = QueueDepths {
        work: backlog.total(),
        tiers: connection.messages_in_tiers().await?,
        failed: connection.depth(FAILED_QUEUE).await?,
        mirror: connection.depth(MIRROR_QUEUE).await?,
    };
    let balance = ledger.balance().await?;
    let mut drifted = comparison.drifted;
    let mut note = |drift, count: i64| {
        if count != 0 {
            drifted.push(DriftEntry { drift, count: count.abs(), jobs: Vec::new() });
        }
    };
    note(Drift::Balance, balance.received() - balance.accounted_for());
    if queues.mirror == 0 {
        note(Drift::FailureQueue, balance.open_failures - i64::from(queues.failed));
    }
    Ok(IntegrityReport { balance, queues, compared_at: comparison.made_at, drifted })
}

impl LastComparison {
    /// The last comparison if it can be reused, or else a new one.
    async fn get_or<F>(
        &self,
        scope: Option<LostMessageScope>,
        compare: impl FnOnce() -> F,
    ) -> Result<Comparison, Error>
    where
        F: Future<Output = Result<Comparison, Error>>,
    {
        let asked = Instant::now();
        // Those that wait here use the result of the one that compares next.
        let mut last = self.0.lock().await;
        if let Some(reusable) = last.as_ref().filter(|last| last.is_reusable(scope, asked)) {
            return Ok(reusable.clone());
        }
        let comparison = compare().await?;
        *last = Some(comparison.clone());
        Ok(comparison)
    }
}

/// Compares open jobs and failures with each other and with the queues.
async fn compare(
    ledger: &Ledger,
    connection: &Connection,
    scope: Option<LostMessageScope>,
) -> Result<Comparison, Error> {
    let (made_at, began) = (Utc::now(), Instant::now());
    let mut drifted = ledger.drifted(scope, GRACE_PERIOD, SAMPLE_JOBS_MAX).await?;
    let (waiting, jobs) = ledger.waiting(GRACE_PERIOD, SAMPLE_JOBS_MAX).await?;
    let took = began.elapsed();
    let count = waiting - i64::from(connection.messages_in_tiers().await?);
    if count > 0 {
        drifted.push(DriftEntry { drift: Drift::Waiting, count, jobs });
    }
    let is_clean = drifted.is_empty();
    if connection.depth(MIRROR_QUEUE).await? > 0 {
        // A failure in the mirror's queue is about to be mirrored.
        drifted.retain(|one| one.drift != Drift::NotMirrored);
    }
    Ok(Comparison { made_at, began, ended: Instant::now(), took, scope, drifted, is_clean })
}

/// Compares ledger, mirror and queues.
#[derive(Debug)]
pub struct IntegrityCheck {
    /// Settings.
    pub config: Config,
    /// Counts the messages in the queues.
    pub connection: Arc<Connection>,
    /// Reads the jobs.
    pub ledger: Ledger,
    /// Publishes the discrepancies.
    pub metrics: Arc<Metrics>,
    /// What the last check has compared.
    pub last_comparison: LastComparison,
}

impl IntegrityCheck {
    /// Checks at intervals, on one replica at a time, until shutdown.
    pub async fn run(self, calls_are_paused: impl Fn() -> bool, shutdown: Shutdown) {
        let mut leader = self.ledger.leader_lock(LeaderTask::Integrity, self.metrics.clone());
        loop {
            tokio::select! {
                () = shutdown.draining() => break,
                () = tokio::time::sleep(self.config.interval) => {}
            }
            if let Err(error) = self.check_as_leader(&mut leader, calls_are_paused()).await {
                // The last result may be outdated.
                self.metrics.drift.reset();
                tracing::warn!(%error, "the integrity check failed, retrying");
            }
        }
        leader.release().await;
    }

    async fn check_as_leader(
        &self,
        leader: &mut LeaderLock,
        calls_are_paused: bool,
    ) -> Result<(), Error> {
        if !leader.try_acquire().await? {
            // Only the leader reports: the last result of this replica may be outdated.
            self.metrics.drift.reset();
            return Ok(());
        }
        self.ledger.sum_counts().await?;
        let (connection, last) = (&self.connection, &self.last_comparison);
        let report = check(&self.ledger, connection, calls_are_paused, last).await?;
        for &drift in Drift::ALL {
            let found = report.drifted.iter().find(|one| one.drift == drift);
            self.metrics
                .drift
                .with_label_values(&[drift.as_str()])
                .set(found.map_or(0, |one| one.count));
            if let Some(DriftEntry { count, jobs, .. }) = found {
                let jobs: Vec<_> = jobs.iter().take(3).map(Uuid::to_string).collect();
                tracing::warn!(
                    drift = drift.as_str(),
                    count,
                    ?jobs,
                    "integrity check: {drift}, {count} jobs or messages"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Option<LostMessageScope> = Some(LostMessageScope::All);

    fn ago(time: Duration) -> Instant {
        Instant::now().checked_sub(time).expect("the machine runs for longer")
    }

    fn comparison(took: Duration, age: Duration) -> Comparison {
        let (began, ended) = (ago(took + age), ago(age));
        let made_at = Utc::now();
        let drifted = Vec::new();
        Comparison { made_at, began, ended, took, scope: ALL, drifted, is_clean: true }
    }

    #[test]
    fn a_slow_comparison_without_a_discrepancy_is_reused_for_fifty_times_its_duration() {
        let (fast, slow) = (Duration::from_millis(499), Duration::from_secs(1));
        let is_reusable = |one: &Comparison| one.is_reusable(ALL, Instant::now());
        assert!(!is_reusable(&comparison(fast, Duration::ZERO)));
        assert!(is_reusable(&comparison(slow, Duration::from_secs(49))));
        assert!(!is_reusable(&comparison(slow, Duration::from_secs(50))));
        assert!(!is_reusable(&comparison(slow * 30, Duration::from_secs(300))));
        let found = Comparison { is_clean: false, ..comparison(slow, Duration::ZERO) };
        assert!(!is_reusable(&found));
        assert!(found.is_reusable(ALL, found.began), "by a check that waited for it");
    }

    #[test]
    fn a_comparison_that_looked_for_fewer_overdue_jobs_is_not_reused() {
        let narrow =
            Comparison { scope: None, ..comparison(Duration::from_secs(1), Duration::ZERO) };
        assert!(!narrow.is_reusable(ALL, narrow.began));
        assert!(narrow.is_reusable(None, narrow.began));
    }

    #[tokio::test]
    async fn a_comparison_is_repeated_only_if_the_last_one_cannot_be_reused() {
        let last = LastComparison::default();
        let slow = comparison(Duration::from_secs(1), Duration::ZERO);
        *last.0.lock().await = Some(slow.clone());
        let reused = last.get_or(ALL, async || panic!("compared again")).await.expect("no error");
        assert_eq!(reused.made_at, slow.made_at);
        *last.0.lock().await = Some(comparison(Duration::from_secs(1), Duration::from_secs(60)));
        let new = comparison(Duration::ZERO, Duration::ZERO);
        let made = last.get_or(ALL, async || Ok(new.clone())).await.expect("no error");
        assert_eq!(made.made_at, new.made_at);
    }
}
