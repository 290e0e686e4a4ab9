//! The claim on the jobs of one batch. It is renewed while the batch works, and checked when a call
//! is due.

#![expect(clippy::disallowed_methods, reason = "an edge: a claim is confirmed now")]

use std::{
    collections::HashSet,
    convert::Infallible,
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::{
    ledger::Ledger,
    runtime::backoff::{retry_for, retry_forever},
};

/// A claim confirmed longer ago than this is checked again before the call.
///
/// Between claim and call a job may wait for the rate limiter. Meanwhile a new event may have
/// restarted the job.
const CLAIM_RECHECK_AFTER: Duration = Duration::from_secs(1);

/// Maximum time to release a claim in the background. After that, it expires.
const RELEASE_TIME: Duration = Duration::from_mins(5);

/// The claim of a batch. If it is dropped before it ends, because a task failed, its jobs are
/// released in the background.
#[derive(Debug)]
pub(super) struct BatchClaim {
    pub(super) ledger: Ledger,
    pub(super) id: Uuid,
    /// The claim was confirmed by the database after this moment.
    pub(super) confirmed_at: Instant,
    pub(super) has_ended: bool,
}

impl BatchClaim {
    /// Ends a claim whose jobs are all settled.
    pub(super) fn end(mut self) {
        self.has_ended = true;
    }

    /// Releases the jobs that are still claimed. No attempt is spent.
    pub(super) async fn release(mut self) {
        self.has_ended = true;
        retry_forever("releasing claims", || self.ledger.release(self.id)).await;
    }

    /// Returns those of `jobs` that this claim still owns, and renews their lease.
    pub(super) async fn retain_claimed(&self, jobs: Vec<Uuid>) -> HashSet<Uuid> {
        let mut confirmed_at = self.confirmed_at;
        let mut claimed = HashSet::from_iter(jobs);
        // A slow answer may be outdated, so check again.
        while confirmed_at.elapsed() > CLAIM_RECHECK_AFTER && !claimed.is_empty() {
            let jobs: Vec<_> = claimed.into_iter().collect();
            confirmed_at = Instant::now();
            claimed = retry_forever("renewing claims", || self.ledger.renew(self.id, &jobs)).await;
        }
        claimed
    }

    /// Renews the lease at intervals, as long as it runs.
    pub(super) async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(self.ledger.renewal_interval()).await;
            retry_forever("renewing claims", || self.ledger.renew_all(self.id)).await;
        }
    }
}

impl Drop for BatchClaim {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (ledger, id) = (self.ledger.clone(), self.id);
        tokio::spawn(async move {
            let released =
                retry_for(RELEASE_TIME, "releasing claims", |_| true, || ledger.release(id));
            if let Err(error) = released.await {
                tracing::warn!(%error, "the claims of a batch were not released; they will expire");
            }
        });
    }
}
