//! Checks continuously that nothing is lost or duplicated: everything that was received is in
//! exactly one place, and ledger, mirror and queues agree.
//!
//! The check changes nothing. Recovery and the sweep fix what they can; a discrepancy that outlasts
//! them needs a person.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
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
    /// Everything that was received, and where it is.
    pub balance: Balance,
    /// The depths of the queues.
    pub queues: QueueDepths,
    /// The discrepancies.
    pub drifted: Vec<DriftEntry>,
}

/// Checks once. While calls are paused, jobs become overdue without a loss.
pub async fn check(
    ledger: &Ledger,
    connection: &Connection,
    calls_are_paused: bool,
) -> Result<IntegrityReport, Error> {
    let backlog = connection.backlog().await?;
    let waiting = WaitingMessages { events: backlog.events, jobs: backlog.jobs };
    let scope = LostMessageScope::for_backlog(waiting, calls_are_paused);
    let mut drifted = ledger.drifted(scope, GRACE_PERIOD, SAMPLE_JOBS_MAX).await?;
    let (in_tiers, waiting_jobs) = ledger.waiting(GRACE_PERIOD, SAMPLE_JOBS_MAX).await?;
    let queues = QueueDepths {
        work: backlog.total(),
        tiers: connection.messages_in_tiers().await?,
        failed: connection.depth(FAILED_QUEUE).await?,
        mirror: connection.depth(MIRROR_QUEUE).await?,
    };
    let balance = ledger.balance().await?;
    // A failure in the mirror's queue is about to be mirrored.
    drifted.retain(|one| one.drift != Drift::NotMirrored || queues.mirror == 0);
    let mut note = |drift, count: i64, jobs: Vec<Uuid>| {
        if count != 0 {
            drifted.push(DriftEntry { drift, count: count.abs(), jobs });
        }
    };
    note(Drift::Balance, balance.received() - balance.accounted_for(), Vec::new());
    note(Drift::Waiting, (in_tiers - i64::from(queues.tiers)).max(0), waiting_jobs);
    if queues.mirror == 0 {
        note(Drift::FailureQueue, balance.open_failures - i64::from(queues.failed), Vec::new());
    }
    Ok(IntegrityReport { balance, queues, drifted })
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
        let report = check(&self.ledger, &self.connection, calls_are_paused).await?;
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
