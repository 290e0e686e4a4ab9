//! The claim on the jobs of one batch, and whether it is still valid when their call is due.

#![expect(clippy::disallowed_methods, reason = "an edge: a claim is confirmed now")]

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::{ledger::Ledger, runtime::backoff::retry_forever};

/// A claim confirmed longer ago than this is checked again before the call.
///
/// Between claim and call a job may wait for the rate limiter. Meanwhile its message may have been
/// redelivered to another replica, or a new event may have restarted the job.
const CLAIM_RECHECK_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct BatchClaim {
    pub(super) ledger: Ledger,
    pub(super) id: Uuid,
    /// The claim was confirmed by the database after this moment.
    pub(super) confirmed_at: Instant,
}

impl BatchClaim {
    /// Releases the jobs that are still claimed. No attempt is spent.
    pub(super) async fn release(&self) {
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
}
