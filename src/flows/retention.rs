//! Deletes what is older than its retention. One replica at a time does this.
//!
//! Attempts and the audit log are partitioned by month: a month whose rows are all old is dropped.
//! Everything else is deleted in small steps, with pauses between them that leave most of the
//! time to the sync. No step waits for a lock for long; what it can't lock is left for the next
//! pass.

#![expect(clippy::disallowed_methods, reason = "an edge: steps are timed")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{
    ledger::{self, History, LeaderLock, LeaderTask, Ledger},
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Settings of retention. Zero keeps everything forever.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Age of an attempt at which it is deleted.
    #[serde(with = "humantime_serde")]
    pub attempts: Duration,
    /// Age of an entry of the audit log at which it is deleted.
    #[serde(with = "humantime_serde")]
    pub audit: Duration,
    /// Time after which a resolved failure is deleted.
    #[serde(with = "humantime_serde")]
    pub failures: Duration,
    /// Time after which a signup is deleted whose jobs are all completed or dismissed.
    #[serde(with = "humantime_serde")]
    pub jobs: Duration,
}

/// Time between two passes.
const PASS_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum age of a resolved failure that is deleted. Until a sweep has removed its message from
/// the failure queue, the message would be mirrored again.
const FAILURES_AGE_MIN: Duration = Duration::from_secs(300);
/// Maximum rows per step.
const ROWS_MAX: u16 = 1000;
/// The pause after a step, in durations of the step.
const PAUSE_FACTOR: u32 = 4;
/// Maximum duration of a pass. The rest is left for the next one.
const PASS_MAX: Duration = Duration::from_secs(50);

/// Deletes what is old.
#[derive(Debug)]
pub struct Retention {
    /// Settings.
    pub config: Config,
    /// Deletes.
    pub ledger: Ledger,
    /// Counts failed passes, and reports whether this replica leads.
    pub metrics: Arc<Metrics>,
}

/// What a pass deleted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Deleted {
    partitions: i64,
    attempts: i64,
    audit: i64,
    failures: i64,
    jobs: i64,
}

impl Retention {
    /// Makes a pass at intervals until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut leader = self.ledger.leader_lock(LeaderTask::Retention, self.metrics.clone());
        while !shutdown.is_draining() {
            if let Err(error) = self.pass_as_leader(&mut leader, &shutdown).await {
                tracing::warn!(%error, "it is unknown which replica deletes old rows, retrying");
            }
            tokio::select! {
                () = shutdown.draining() => {}
                () = tokio::time::sleep(PASS_INTERVAL) => {}
            }
        }
        leader.release().await;
    }

    async fn pass_as_leader(
        &self,
        leader: &mut LeaderLock,
        shutdown: &Shutdown,
    ) -> Result<(), ledger::Error> {
        if !leader.try_acquire().await? {
            return Ok(());
        }
        let (mut deleted, mut has_error) = (Deleted::default(), false);
        match self.ledger.add_history_partitions().await {
            Ok(0) => {}
            Ok(added) => tracing::info!(added, "partitions for the next months were added"),
            Err(error) => {
                has_error = true;
                tracing::warn!(%error, "adding partitions failed, retrying");
            }
        }
        tokio::select! {
            () = shutdown.draining() => {}
            _ = tokio::time::timeout(PASS_MAX, self.pass(&mut deleted, &mut has_error)) => {}
        }
        if has_error {
            self.metrics.retention_failed_passes.inc();
        }
        if deleted != Deleted::default() {
            tracing::info!(?deleted, "old rows were deleted");
        }
        Ok(())
    }

    /// Deletes until nothing old is left. An error with one kind of row does not prevent deleting
    /// the others.
    async fn pass(&self, deleted: &mut Deleted, has_error: &mut bool) {
        let Deleted { partitions, attempts, audit, failures, jobs } = deleted;
        let Config { attempts: attempts_age, audit: audit_age, .. } = self.config;
        let mut note = |result: Result<(), ledger::Error>| {
            if let Err(error) = result {
                *has_error = true;
                tracing::warn!(%error, "deleting old rows failed, retrying");
            }
        };
        note(self.expire(History::Attempts, attempts_age, partitions, attempts).await);
        note(self.expire(History::Audit, audit_age, partitions, audit).await);
        note(self.expire_failures(failures).await);
        note(self.expire_jobs(jobs).await);
    }

    async fn expire_failures(&self, deleted: &mut i64) -> Result<(), ledger::Error> {
        let age = self.config.failures.max(FAILURES_AGE_MIN);
        while !self.config.failures.is_zero() {
            let began = Instant::now();
            let rows = self.ledger.expire_failures(age, ROWS_MAX.into()).await?;
            *deleted += rows;
            if rows == 0 {
                break;
            }
            pause(began).await;
        }
        Ok(())
    }

    async fn expire_jobs(&self, deleted: &mut i64) -> Result<(), ledger::Error> {
        let mut cursor = None;
        while !self.config.jobs.is_zero() {
            let began = Instant::now();
            let (rows, next) =
                self.ledger.expire_jobs(self.config.jobs, cursor, ROWS_MAX.into()).await?;
            *deleted += rows;
            if next.is_none() {
                break;
            }
            cursor = next;
            pause(began).await;
        }
        Ok(())
    }

    async fn expire(
        &self,
        history: History,
        retention: Duration,
        partitions: &mut i64,
        rows: &mut i64,
    ) -> Result<(), ledger::Error> {
        while !retention.is_zero() {
            let began = Instant::now();
            let expired = self.ledger.expire_history(history, retention, ROWS_MAX.into()).await?;
            *partitions += i64::from(expired.0);
            *rows += i64::from(expired.1);
            if expired == (0, 0) {
                break;
            }
            pause(began).await;
        }
        Ok(())
    }
}

/// Leaves the database to others for a multiple of the time since `began`.
async fn pause(began: Instant) {
    tokio::time::sleep(began.elapsed() * PAUSE_FACTOR).await;
}
