//! Conservation, watched all the time: whatever was taken in is in one place now, and ledger,
//! mirror and queues agree.
//!
//! It only looks. Recovery and the sweep mend what they can; what stays for longer than they need
//! is for people to see.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    broker::{self, FAILED_QUEUE, Link, MIRROR_QUEUE},
    ledger::{self, Balance, Drift, Drifted, Duty, Lead, Ledger, Suspects},
    runtime::{metrics::Metrics, shutdown::Lifecycle},
};

/// Settings of the watch.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often it looks.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

/// What is younger than this may be on its way from one place to the next.
const GRACE: Duration = Duration::from_secs(60);
/// Jobs of a kind that are named at most.
const SAMPLE: i32 = 50;

/// What can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The queues.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

/// Messages that are ready, by where they wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues {
    /// In the work queues: events, and jobs that are due.
    pub work: u32,
    /// In the delay tiers.
    pub tiers: u32,
    /// In the failure queue.
    pub failed: u32,
    /// On their way into the mirror.
    pub mirror: u32,
}

/// What was found at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// What was taken in, and where it is.
    pub balance: Balance,
    /// What the queues hold.
    pub queues: Queues,
    /// What is not as it should be.
    pub drifted: Vec<Drifted>,
}

/// Looks once. While `is_held`, no calls are made and jobs may be long due.
pub async fn look(ledger: &Ledger, link: &Link, is_held: bool) -> Result<Findings, Error> {
    let backlog = link.backlog().await?;
    let suspects = Suspects::among(backlog.events, backlog.jobs, is_held);
    let mut drifted = ledger.drifted(suspects, GRACE, SAMPLE).await?;
    let (waiting, waiting_jobs) = ledger.waiting(GRACE, SAMPLE).await?;
    let queues = Queues {
        work: backlog.total(),
        tiers: link.in_tiers().await?,
        failed: link.depth(FAILED_QUEUE).await?,
        mirror: link.depth(MIRROR_QUEUE).await?,
    };
    let balance = ledger.balance().await?;
    // What waits in the mirror's queue is mirrored in a moment.
    drifted.retain(|one| one.drift != Drift::NotMirrored || queues.mirror == 0);
    let mut note = |drift, count: i64, jobs: Vec<Uuid>| {
        if count != 0 {
            drifted.push(Drifted { drift, count: count.abs(), jobs });
        }
    };
    note(Drift::Balance, balance.taken_in() - balance.accounted_for(), Vec::new());
    note(Drift::Waiting, (waiting - i64::from(queues.tiers)).max(0), waiting_jobs);
    if queues.mirror == 0 {
        note(Drift::FailureQueue, balance.open_failures - i64::from(queues.failed), Vec::new());
    }
    Ok(Findings { balance, queues, drifted })
}

/// What watches.
#[derive(Debug)]
pub struct Watch {
    /// Settings.
    pub config: Config,
    /// Where the queues are looked at.
    pub link: Arc<Link>,
    /// Where the jobs are looked at.
    pub ledger: Ledger,
    /// Where it is told.
    pub metrics: Arc<Metrics>,
}

impl Watch {
    /// Looks now and then, on one replica at a time, until nothing new is to be taken.
    pub async fn run(self, is_held: impl Fn() -> bool, lifecycle: Lifecycle) {
        let mut lead = self.ledger.stand_by(Duty::Integrity);
        loop {
            tokio::select! {
                () = lifecycle.draining() => break,
                () = tokio::time::sleep(self.config.interval) => {}
            }
            if let Err(error) = self.tell(&mut lead, is_held()).await {
                tracing::warn!(%error, "holding what was taken in against what became of it \
                    failed, trying again");
            }
        }
        lead.end().await;
    }

    async fn tell(&self, lead: &mut Lead, is_held: bool) -> Result<(), Error> {
        if !lead.is_ours().await? {
            // Who does not lead tells nothing: what it found last may have been mended.
            self.metrics.drift.reset();
            return Ok(());
        }
        self.ledger.add_up().await?;
        let findings = look(&self.ledger, &self.link, is_held).await?;
        for &drift in Drift::ALL {
            let found = findings.drifted.iter().find(|one| one.drift == drift);
            self.metrics
                .drift
                .with_label_values(&[drift.as_str()])
                .set(found.map_or(0, |one| one.count));
            if let Some(Drifted { count, jobs, .. }) = found {
                let jobs: Vec<_> = jobs.iter().take(3).map(Uuid::to_string).collect();
                tracing::warn!(
                    drift = drift.as_str(),
                    count,
                    ?jobs,
                    "ledger, mirror and queues do not agree"
                );
            }
        }
        Ok(())
    }
}
