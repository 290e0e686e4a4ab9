//! Keeps all replicas together under the calls a second that are allowed: each leases its share in the database, uses no
//! more, and none at all when the lease is over.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{customerio::Budget, ledger::Ledger, lifecycle::Lifecycle};

/// How often a share is renewed. Shares follow replicas that come and go within three of these.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// How long a share lasts. That of a replica that was killed is lost to the others for as long.
const LEASE: Duration = Duration::from_secs(2);

/// Renews this replica's share of `all` calls a second until everything has to end: calls in hand need it, too.
pub async fn run(all: NonZeroU32, budget: Budget, ledger: Ledger, lifecycle: Lifecycle) {
    let replica = Uuid::now_v7();
    let (mut share, mut lease_ends) = (0.0, Instant::now());
    let mut renewals = tokio::time::interval(RENEW_EVERY);
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = lifecycle.ended() => break,
            _ = renewals.tick() => {}
        }
        // The lease counts from before the database is asked, so that it ends here first.
        let now = Instant::now();
        let in_use = if now < lease_ends { share } else { 0.0 };
        let renewing = ledger.renew_call_share(replica, all.get().into(), in_use, LEASE);
        match tokio::time::timeout(LEASE, renewing).await {
            Ok(Ok(granted)) => {
                (share, lease_ends) = (granted, now + LEASE);
                budget.grant(share, lease_ends);
            }
            Ok(Err(error)) => tracing::warn!(%error, "no calls are made without a share; trying again"),
            Err(_) => tracing::warn!("renewing the share of the calls took too long; trying again"),
        }
    }
    if let Err(error) = ledger.give_call_share_up(replica).await {
        tracing::debug!(%error, "the share of the calls ends with its lease");
    }
}
