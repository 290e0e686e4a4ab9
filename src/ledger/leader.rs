//! Tasks that run on one replica at a time. The replica that owns the task's advisory lock is the
//! leader; it loses the lock with its connection.

use sqlx::{Connection, PgConnection};

use super::{Error, Ledger};

/// A task that runs on one replica at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderTask {
    /// Republishing lost messages.
    Recovery,
    /// Keeping the failure queue equal to the open failures.
    FailureQueue,
    /// Comparing ledger, mirror and queues.
    Integrity,
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
    /// The connection whose session owns the lock.
    owner: Option<PgConnection>,
}

impl Ledger {
    /// A lock for `task`, not yet acquired.
    pub fn leader_lock(&self, task: LeaderTask) -> LeaderLock {
        LeaderLock { ledger: self.clone(), task, owner: None }
    }
}

impl LeaderLock {
    /// Returns whether this replica leads: it still owns the lock, or has acquired it now.
    pub async fn try_acquire(&mut self) -> Result<bool, Error> {
        if let Some(owner) = &mut self.owner
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
            self.owner = is_acquired.then(|| connection.detach());
        }
        Ok(self.owner.is_some())
    }

    /// Releases the lock, so that another replica can lead.
    pub async fn release(self) {
        if let Some(owner) = self.owner {
            // A connection that is lost has released the lock already.
            let _ = owner.close().await;
        }
    }
}
