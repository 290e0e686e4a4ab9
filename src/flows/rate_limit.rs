//! Keeps the calls of all replicas together within the rate limit. Each replica leases its part of
//! the rate in the database, uses no more, and makes no call without a lease. A `Retry-After` that
//! one replica received reaches the others the same way, and so does the state of its circuit
//! breaker, for operators.

#![expect(clippy::disallowed_methods, reason = "an edge: a lease starts before its request")]

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::{
    customerio::CustomerIo,
    ledger::{CallRateLease, CallRateRequest, Error, Ledger, ReplicaBreaker},
    runtime::{heartbeat::Heartbeat, replica::Replica, shutdown::Shutdown},
};

/// Time between renewals. When a replica starts or stops, the leases adapt within three of these
/// intervals.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(500);
/// Duration of a lease. The rate of a killed replica is unused for that long.
const LEASE_DURATION: Duration = Duration::from_secs(2);

/// This replica's lease.
struct CurrentLease {
    replica: Uuid,
    /// Calls per second that all replicas may make together.
    total: f64,
    calls_per_second: f64,
    ends: Instant,
    /// End of a pause that the other replicas do not know of yet.
    unpublished_pause: Option<Instant>,
    /// When an operator had last closed the circuit breakers. `None` before the first renewal.
    resumed_at: Option<Option<DateTime<Utc>>>,
}

/// Renews this replica's lease, which is a write to the database, until the second stage of the
/// shutdown: calls in flight need it.
pub async fn run(
    replica: Replica,
    total: NonZeroU32,
    customerio: Arc<CustomerIo>,
    ledger: Ledger,
    last_write: Heartbeat,
    shutdown: Shutdown,
) {
    let mut lease = CurrentLease {
        replica: replica.id,
        total: total.get().into(),
        calls_per_second: 0.0,
        ends: Instant::now(),
        unpublished_pause: None,
        resumed_at: None,
    };
    let mut pauses = customerio.watch_paused_until();
    let mut renewals = tokio::time::interval(RENEWAL_INTERVAL);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.ended() => break,
            Ok(()) = pauses.changed() => lease.unpublished_pause = *pauses.borrow_and_update(),
            _ = renewals.tick() => {}
        }
        // The lease starts before the request to the database, so that it ends here first.
        let now = Instant::now();
        match tokio::time::timeout(LEASE_DURATION, lease.renew(&ledger, now)).await {
            Ok(Ok(CallRateLease { calls_per_second, paused_for, resumed_at })) => {
                last_write.beat();
                if !paused_for.is_zero() {
                    customerio.pause(paused_for);
                }
                if lease.is_resumed(resumed_at) {
                    customerio.close_breaker();
                }
                (lease.calls_per_second, lease.ends) = (calls_per_second, now + LEASE_DURATION);
                customerio.rate_limiter().grant(calls_per_second, lease.ends);
                report_breaker(&replica, &customerio, &ledger).await;
            }
            Ok(Err(error)) => {
                last_write.fail(&error);
                tracing::warn!(
                    %error,
                    "renewing the lease on the call rate failed, retrying; no call is made \
                        without it"
                );
            }
            Err(_) => {
                last_write.fail("no answer");
                tracing::warn!(
                    "renewing the lease on the call rate took longer than {LEASE_DURATION:?}, \
                     retrying; no call is made without it"
                );
            }
        }
    }
    if let Err(error) = ledger.release_call_lease(lease.replica).await {
        tracing::debug!(%error, "the lease on the call rate was not released and will expire");
    }
}

/// Reports this replica's circuit breaker to the others. If that fails, they show an earlier state
/// until the next renewal.
async fn report_breaker(replica: &Replica, customerio: &CustomerIo, ledger: &Ledger) {
    let status = customerio.breaker();
    // A time that differs by a fraction of a second at each renewal would be written each time.
    let next_probe_at = customerio.probe_in().map(|wait| (Utc::now() + wait).round_subsecs(0));
    let breaker = ReplicaBreaker {
        replica: replica.id,
        name: replica.name.to_string(),
        state: status.state.to_string(),
        reason: status.reason.map(|reason| reason.to_string()),
        since: status.since,
        next_probe_at,
    };
    match tokio::time::timeout(2 * RENEWAL_INTERVAL, ledger.report_breaker(&breaker)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "reporting the circuit breaker failed"),
        Err(_) => tracing::debug!("reporting the circuit breaker took too long"),
    }
}

impl CurrentLease {
    /// Whether an operator has closed the circuit breakers since the last renewal.
    fn is_resumed(&mut self, resumed_at: Option<DateTime<Utc>>) -> bool {
        self.resumed_at.replace(resumed_at).is_some_and(|before| before < resumed_at)
    }

    async fn renew(&mut self, ledger: &Ledger, now: Instant) -> Result<CallRateLease, Error> {
        if let Some(until) = self.unpublished_pause {
            ledger.pause_calls(until.saturating_duration_since(now)).await?;
            self.unpublished_pause = None;
        }
        let current = if now < self.ends { self.calls_per_second } else { 0.0 };
        let request = CallRateRequest {
            replica: self.replica,
            total: self.total,
            current,
            lease: LEASE_DURATION,
        };
        ledger.renew_call_lease(&request).await
    }
}
