//! Tasks that run on one replica at a time. The replica that owns the task's advisory lock is the
//! leader; it loses the lock with its connection.

use std::sync::Arc;

use sqlx::{Connection, PgConnection};

use super::{Error, Ledger};
use crate::runtime::{
    metrics::{GaugeGuard, Metrics},
    text_enum::text_enum,
};

text_enum! {
    /// A task that runs on one replica at a time.
    LeaderTask {
        /// Republishing lost messages.
        Recovery = "recovery",
        /// Keeping the failure queue equal to the open failures.
        FailureQueue = "failure_queue",
        /// Comparing ledger, mirror and queues.
        Integrity = "integrity",
    }
}

impl LeaderTask {
    /// The key of its advisory lock
    /// (<https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>): any number
    /// that nothing else in the database uses.
    const fn key(self) -> i64 {
        match self {
            Self::Recovery => 0x6369_6f73_796e_6301,
            Self::FailureQueue => 0x6369_6f73_796e_6302,
            Self::Integrity => 0x6369_6f73_796e_6303,
        }
    }
}

/// The advisory lock of a task: owned while this replica leads, not owned while it stands by.
#[derive(Debug)]
pub struct LeaderLock {
    ledger: Ledger,
    task: LeaderTask,
    /// Reports whether this replica leads.
    metrics: Arc<Metrics>,
    /// The connection whose session owns the lock, and the report that it does.
    owner: Option<(PgConnection, GaugeGuard)>,
}

impl Ledger {
    /// A lock for `task`, not yet acquired. `metrics` reports whether this replica leads.
    pub fn leader_lock(&self, task: LeaderTask, metrics: Arc<Metrics>) -> LeaderLock {
        LeaderLock { ledger: self.clone(), task, metrics, owner: None }
    }
}

impl LeaderLock {
    /// Returns whether this replica leads: it still owns the lock, or has acquired it now.
    pub async fn try_acquire(&mut self) -> Result<bool, Error> {
        if let Some((owner, _)) = &mut self.owner
            && owner.ping().await.is_err()
        {
            self.owner = None;
        }
        if self.owner.is_none() {
            let mut connection = self
                .ledger
                .pool
                .acquire()
                .await
                .map_err(Error::doing("acquiring a leader lock"))?;
            let is_acquired = sqlx::query_scalar!(
                r#"SELECT pg_try_advisory_lock($1) AS "is_acquired!""#,
                self.task.key()
            )
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::doing("acquiring a leader lock"))?;
            // The connection leaves the pool, so that no other statement ends it or inherits the
            // lock.
            self.owner = is_acquired.then(|| {
                let leading = self.metrics.leading.with_label_values(&[self.task.as_str()]);
                (connection.detach(), GaugeGuard::new(&leading))
            });
        }
        Ok(self.owner.is_some())
    }

    /// Releases the lock, so that another replica can lead.
    pub async fn release(self) {
        if let Some((owner, _leading)) = self.owner {
            // A connection that is lost has released the lock already.
            let _ = owner.close().await;
        }
    }
}
