//! The shares that replicas have of the calls a second.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Ledger};

impl Ledger {
    /// Renews the share of `replica`, which uses `current` calls a second now, of `all` calls a second for `lease`.
    /// Answers what it may use from now on; the shares of all replicas are never more than `all` together.
    pub async fn renew_call_share(&self, replica: Uuid, all: f64, current: f64, lease: Duration) -> Result<f64, Error> {
        sqlx::query_scalar!(
            r#"SELECT renew_call_share($1, $2, $3, make_interval(secs => $4)) AS "granted!""#,
            replica,
            all,
            current,
            lease.as_secs_f64(),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::doing("renewing the share of the calls"))
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
