//! Tasks that run on one replica at a time. The replica that owns the task's advisory lock is the
//! leader; it loses the lock with its session (presence.rs).

use std::sync::Arc;

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
        /// Deleting what is older than its retention.
        Retention = "retention",
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
            Self::Retention => 0x6369_6f73_796e_6304,
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
    /// The session that owns the lock, and the report that it does.
    owner: Option<(u64, GaugeGuard)>,
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
        let owner = self.owner.take();
        let session = owner.as_ref().map(|(session, _)| *session);
        let locked = self.ledger.presence.try_lock(self.task.key(), session).await;
        let locked = locked.map_err(Error::doing("acquiring a leader lock"))?;
        self.owner = locked.map(|session| match owner {
            Some((_, leading)) => (session, leading),
            None => {
                let leading = self.metrics.leading.with_label_values(&[self.task.as_str()]);
                (session, GaugeGuard::new(&leading))
            }
        });
        Ok(self.owner.is_some())
    }

    /// Releases the lock, so that another replica can lead.
    pub async fn release(self) {
        if let Some((session, _leading)) = self.owner {
            // A session that is lost has released the lock already.
            let _ = self.ledger.presence.unlock(self.task.key(), session).await;
        }
    }
}
