//! The shares that replicas have of the calls a second, and how long all of them have to make none.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Ledger};

/// What a replica may use of the calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallShare {
    /// Calls a second.
    pub calls_per_second: f64,
    /// How long no calls are to be made; zero if they are.
    pub held_for: Duration,
}

impl Ledger {
    /// Renews the share of `replica`, which uses `current` calls a second now, of `all` calls a
    /// second for `lease`. Answers what it may use from now on; the shares of all replicas are
    /// never more than `all` together.
    pub async fn renew_call_share(
        &self,
        replica: Uuid,
        all: f64,
        current: f64,
        lease: Duration,
    ) -> Result<CallShare, Error> {
        let row = sqlx::query!(
            r#"
            SELECT renew_call_share($1, $2, $3, make_interval(secs => $4)) AS "granted!",
                COALESCE((SELECT EXTRACT(EPOCH FROM ends_at - clock_timestamp()) FROM call_hold),
                0)::float8 AS "held!"
            "#,
            replica,
            all,
            current,
            lease.as_secs_f64(),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("renewing the share of the calls"))?;
        Ok(CallShare {
            calls_per_second: row.granted,
            held_for: Duration::from_secs_f64(row.held.max(0.0)),
        })
    }

    /// Lets no replica call for `wait` from now on, or for longer if that was wanted before.
    pub async fn hold_calls(&self, wait: Duration) -> Result<(), Error> {
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
        .map_err(Error::doing("holding all calls"))?;
        Ok(())
    }

    /// Leaves the share of `replica` to the others.
    pub async fn give_call_share_up(&self, replica: Uuid) -> Result<(), Error> {
        sqlx::query!("DELETE FROM call_shares WHERE replica = $1", replica)
            .execute(&self.pool)
            .await
            .map_err(Error::doing("giving the share of the calls up"))?;
        Ok(())
    }
}
