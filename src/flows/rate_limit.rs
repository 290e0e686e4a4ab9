//! Keeps all replicas together under the calls a second that are allowed: each leases its share in
//! the database, uses no more, and none at all when the lease is over. What Customer.io asks of one
//! replica, to be left alone for a while, is told to the others on the same way.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    customerio::CustomerIo,
    ledger::{CallShare, Error, Ledger},
    runtime::shutdown::Lifecycle,
};

/// How often a share is renewed. Shares follow replicas that come and go within three of these.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// How long a share lasts. That of a replica that was killed is lost to the others for as long.
const LEASE: Duration = Duration::from_secs(2);

/// What this replica has of the calls.
struct Lease {
    replica: Uuid,
    /// Calls a second that all replicas may make together.
    all: f64,
    share: f64,
    ends: Instant,
    /// Until when calls are to be held, while the others have not been told.
    untold: Option<Instant>,
}

/// Renews this replica's share of `all` calls a second until everything has to end: calls in hand
/// need it, too.
pub async fn run(
    all: NonZeroU32,
    customerio: Arc<CustomerIo>,
    ledger: Ledger,
    lifecycle: Lifecycle,
) {
    let mut lease = Lease {
        replica: Uuid::now_v7(),
        all: all.get().into(),
        share: 0.0,
        ends: Instant::now(),
        untold: None,
    };
    let mut asked = customerio.watch_asked();
    let mut renewals = tokio::time::interval(RENEW_EVERY);
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = lifecycle.ended() => break,
            Ok(()) = asked.changed() => lease.untold = *asked.borrow_and_update(),
            _ = renewals.tick() => {}
        }
        // The lease counts from before the database is asked, so that it ends here first.
        let now = Instant::now();
        match tokio::time::timeout(LEASE, lease.renew(&ledger, now)).await {
            Ok(Ok(CallShare { calls_per_second, held_for })) => {
                if !held_for.is_zero() {
                    customerio.hold(held_for);
                }
                (lease.share, lease.ends) = (calls_per_second, now + LEASE);
                customerio.budget().grant(lease.share, lease.ends);
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "no calls are made without a share; trying again")
            }
            Err(_) => tracing::warn!("renewing the share of the calls took too long; trying again"),
        }
    }
    if let Err(error) = ledger.give_call_share_up(lease.replica).await {
        tracing::debug!(%error, "the share of the calls ends with its lease");
    }
}

impl Lease {
    async fn renew(&mut self, ledger: &Ledger, now: Instant) -> Result<CallShare, Error> {
        if let Some(until) = self.untold {
            ledger.hold_calls(until.saturating_duration_since(now)).await?;
            self.untold = None;
        }
        let in_use = if now < self.ends { self.share } else { 0.0 };
        ledger.renew_call_share(self.replica, self.all, in_use, LEASE).await
    }
}
