//! The leases that replicas have on the call rate, the state of their circuit breakers, and the
//! pause of calls that all of them share.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    pool::Session,
};

/// The part of the call rate that a replica may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallRateLease {
    /// Calls per second.
    pub calls_per_second: f64,
    /// Time until calls may resume; zero if they are not paused.
    pub paused_for: Duration,
    /// When an operator last closed the circuit breakers.
    pub resumed_at: Option<DateTime<Utc>>,
}

/// A request for a lease.
#[derive(Debug, Clone, Copy)]
pub struct CallRateRequest {
    /// The replica.
    pub replica: Uuid,
    /// Calls per second that all replicas may make together.
    pub total: f64,
    /// Calls per second that the replica uses now.
    pub current: f64,
    /// Duration of the lease.
    pub lease: Duration,
}

/// The circuit breaker of a replica, as the replica reported it with its last renewal. Texts, since
/// a newer release may have written them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaBreaker {
    /// The replica.
    pub replica: Uuid,
    /// Its name, for people.
    pub name: String,
    /// Whether calls go through.
    pub state: String,
    /// Why it is not closed.
    pub reason: Option<String>,
    /// When it opened.
    pub since: Option<DateTime<Utc>>,
    /// When the next probe is due.
    pub next_probe_at: Option<DateTime<Utc>>,
}

impl Ledger {
    /// Renews the lease of a replica. The leases of all replicas never exceed the total rate.
    pub async fn renew_call_lease(
        &self,
        request: &CallRateRequest,
    ) -> Result<CallRateLease, Error> {
        let row = sqlx::query!(
            r#"
            SELECT renew_call_share($1, $2, $3, make_interval(secs => $4)) AS "granted!",
                COALESCE(
                    (SELECT EXTRACT(EPOCH FROM ends_at - clock_timestamp()) FROM call_hold), 0
                )::float8 AS "paused_for!",
                (SELECT resumed_at FROM call_hold) AS resumed_at
            "#,
            request.replica,
            request.total,
            request.current,
            request.lease.as_secs_f64(),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("renewing the lease on the call rate"))?;
        Ok(CallRateLease {
            calls_per_second: row.granted,
            paused_for: Duration::from_secs_f64(row.paused_for.max(0.0)),
            resumed_at: row.resumed_at,
        })
    }

    /// Pauses the calls of all replicas for `wait` from now, or longer if a longer pause is in
    /// effect.
    pub async fn pause_calls(&self, wait: Duration) -> Result<(), Error> {
        sqlx::query!(
            r#"
            INSERT INTO call_hold AS h (ends_at)
            VALUES (now() + make_interval(secs => $1))
            ON CONFLICT (is_only) DO UPDATE SET ends_at = GREATEST(h.ends_at, excluded.ends_at)
            "#,
            wait.as_secs_f64(),
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("pausing all calls"))?;
        Ok(())
    }

    /// Checks that the database accepts writes, by a write that changes nothing.
    pub async fn check_writes(&self) -> Result<(), Error> {
        self.pause_calls(Duration::ZERO).await
    }

    /// Ends a pause, and lets all replicas close their circuit breakers.
    pub async fn resume_calls(&self, actor: &str) -> Result<(), Error> {
        let doing = "closing the circuit breakers";
        let mut transaction = self.pool.begin().await.map_err(Error::doing(doing))?;
        sqlx::query!(
            r#"
            INSERT INTO call_hold (ends_at, resumed_at)
            VALUES (now(), now())
            ON CONFLICT (is_only) DO UPDATE
            SET ends_at = excluded.ends_at, resumed_at = excluded.resumed_at
            "#
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing(doing))?;
        let entry = AuditEntry {
            action: AuditAction::BreakerClosed,
            signup_id: None,
            details: serde_json::json!({}),
        };
        audit::insert(&mut transaction, actor, &[entry]).await?;
        transaction.commit().await.map_err(Error::doing(doing))
    }

    /// Releases the lease of `replica`, so that the others can use its rate.
    pub async fn release_call_lease(&self, replica: Uuid) -> Result<(), Error> {
        sqlx::query!("DELETE FROM call_shares WHERE replica = $1", replica)
            .execute(&self.pool)
            .await
            .map_err(Error::doing("releasing the lease on the call rate"))?;
        Ok(())
    }

    /// Reports the circuit breaker of a replica to the others, beside its lease. Nothing is written
    /// if it has not changed, or if the replica has no lease.
    pub async fn report_breaker(&self, breaker: &ReplicaBreaker) -> Result<(), Error> {
        sqlx::query!(
            r#"
            UPDATE call_shares
            SET replica_name = $2, breaker_state = $3, breaker_reason = $4, breaker_since = $5,
                breaker_next_probe_at = $6
            WHERE replica = $1
                AND (
                    replica_name, breaker_state, breaker_reason, breaker_since,
                    breaker_next_probe_at
                ) IS DISTINCT FROM (
                    $2::text, $3::text, $4::text, $5::timestamptz, $6::timestamptz
                )
            "#,
            breaker.replica,
            breaker.name,
            breaker.state,
            breaker.reason.as_deref(),
            breaker.since,
            breaker.next_probe_at,
        )
        .execute(&self.pool)
        .await
        .map_err(Error::doing("reporting the circuit breaker"))?;
        Ok(())
    }
}

/// The circuit breakers of the replicas that have a lease and have reported theirs.
pub(super) async fn live_breakers(connection: &mut Session) -> Result<Vec<ReplicaBreaker>, Error> {
    sqlx::query_as!(
        ReplicaBreaker,
        r#"
        SELECT replica, replica_name AS "name!", breaker_state AS "state!",
            breaker_reason AS reason, breaker_since AS since,
            breaker_next_probe_at AS next_probe_at
        FROM call_shares
        WHERE expires_at > now() AND replica_name IS NOT NULL AND breaker_state IS NOT NULL
        ORDER BY replica
        "#
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("reading the circuit breakers of the replicas"))
}
