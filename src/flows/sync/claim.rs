//! The claim on a batch's jobs, and whether it holds still when their call's turn has come.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::{customerio::Holder, ledger::Ledger, runtime::backoff::until_done};

/// A claim that was seen to hold so long ago is looked at again before a call. Between claim and
/// call a job may have to wait for its share of the calls; meanwhile its message may have been
/// delivered elsewhere, or a new event may have started it afresh, and it may have ended.
const SEEN_LATELY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Claim {
    pub(super) ledger: Ledger,
    pub(super) id: Uuid,
    pub(super) held_at: Instant,
}

impl Claim {
    /// Gives back what nothing was done with: no attempt is spent.
    pub(super) async fn give_back(&self) {
        let given_back =
            until_done("giving claims back", |_| true, || self.ledger.release(self.id));
        given_back.await.expect("every error is tried again");
    }
}

impl Holder for Claim {
    fn still_held(&self, jobs: Vec<Uuid>) -> BoxFuture<'_, HashSet<Uuid>> {
        Box::pin(async move {
            let mut held_at = self.held_at;
            let mut held = HashSet::from_iter(jobs);
            // An answer that was long on its way tells of a time that is over, too.
            while held_at.elapsed() > SEEN_LATELY && !held.is_empty() {
                let jobs: Vec<_> = held.into_iter().collect();
                held_at = Instant::now();
                let renewed =
                    until_done("renewing claims", |_| true, || self.ledger.renew(self.id, &jobs));
                held = renewed.await.expect("every error is tried again");
            }
            held
        })
    }
}
