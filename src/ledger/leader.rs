//! Work that one replica at a time does: whoever holds the lock leads, and loses it with its
//! connection.

use sqlx::{Connection, PgConnection};

use super::{Error, Ledger};

/// What is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Sending lost messages again.
    Recovery,
    /// Keeping the failure queue in line with the mirror.
    FailureQueue,
    /// Holding what was taken in against what became of it.
    Integrity,
}

impl Duty {
    /// The key of its advisory lock
    /// (<https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>). Any number
    /// that nothing else in the database uses.
    const fn key(self) -> i64 {
        match self {
            Self::Recovery => 0x6369_6f73_796e_6301,
            Self::FailureQueue => 0x6369_6f73_796e_6302,
            Self::Integrity => 0x6369_6f73_796e_6303,
        }
    }
}

/// The lead of a duty, or the wish for it. The lock is held for as long as its connection lives.
#[derive(Debug)]
pub struct Lead {
    ledger: Ledger,
    duty: Duty,
    lock: Option<PgConnection>,
}

impl Ledger {
    /// Stands by for `duty`.
    pub fn stand_by(&self, duty: Duty) -> Lead {
        Lead { ledger: self.clone(), duty, lock: None }
    }
}

impl Lead {
    /// Whether this replica leads: it holds the lock still, or has taken it now because nobody did.
    pub async fn is_ours(&mut self) -> Result<bool, Error> {
        if let Some(lock) = &mut self.lock
            && lock.ping().await.is_err()
        {
            self.lock = None;
        }
        if self.lock.is_none() {
            let mut connection =
                self.ledger.pool.acquire().await.map_err(Error::doing("taking the lead"))?;
            let is_ours = sqlx::query_scalar!(
                r#"SELECT pg_try_advisory_lock($1) AS "is_ours!""#,
                self.duty.key()
            )
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::doing("taking the lead"))?;
            // It leaves the pool, so that nobody else ends it or holds the lock by accident.
            self.lock = is_ours.then(|| connection.detach());
        }
        Ok(self.lock.is_some())
    }

    /// Lets another replica lead.
    pub async fn end(self) {
        if let Some(lock) = self.lock {
            // A connection that is gone has given the lock back already.
            let _ = lock.close().await;
        }
    }
}
