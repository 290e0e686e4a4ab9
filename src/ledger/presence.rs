//! The session that shows the other replicas that this process lives, and that owns its advisory
//! locks.
//!
//! A claim names the replica that made it ([`Presence::new_claim`]), and the session owns the lock
//! of that replica, in shared mode: a new session can own it while PostgreSQL has not noticed the
//! end of the one before. PostgreSQL releases the lock when the process ends, since its connection
//! is closed, and after a minute of silence. So a delivery whose job is claimed can tell whether
//! the owner is gone (lock_jobs.sql).

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::{sync::Mutex, time::timeout};
use uuid::Uuid;

use super::{Error, Ledger, pool::Connector};
use crate::runtime::{backoff::Backoff, shutdown::Shutdown};

/// Time between two pings of the session. A session that is lost is replaced within that time.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL ends the session, and releases its locks, if it hears nothing for a minute
/// (<https://www.postgresql.org/docs/current/runtime-config-client.html>).
const SESSION_LIMIT: &str = "SET idle_session_timeout = '60s'";

/// The session that owns the advisory locks of this process.
#[derive(Debug)]
pub(super) struct Presence {
    connector: Connector,
    /// Its first half is in every claim of this process.
    replica: Uuid,
    session: Mutex<LockSession>,
}

/// The session, if there is one. It is absent while a statement is executed, so that one that is
/// cancelled ends it.
#[derive(Debug, Default)]
struct LockSession {
    connection: Option<PgConnection>,
    /// Sessions so far. A lock is lost if its session had another number.
    number: u64,
    /// Whether it owns the lock of this replica. One that checks the lock has it for a moment.
    owns_replica: bool,
}

impl Presence {
    pub(super) fn new(connector: Connector, replica: Uuid) -> Self {
        Self { connector, replica, session: Mutex::default() }
    }

    /// A new claim. Its first half names this replica, its second half is random.
    pub(super) fn new_claim(&self) -> Uuid {
        let mut bytes = Uuid::new_v4().into_bytes();
        bytes[..8].copy_from_slice(&self.replica.as_bytes()[..8]);
        // The version tells a claim from that of a release that chose it at random.
        Uuid::new_v8(bytes)
    }

    /// The key of the lock of this replica: the first half of its claims.
    fn key(&self) -> i64 {
        (self.new_claim().as_u64_pair().0).cast_signed()
    }

    /// Makes sure that the session answers, or opens another one.
    async fn ensure(&self, session: &mut LockSession) -> sqlx::Result<()> {
        if let Some(mut connection) = session.connection.take()
            && matches!(timeout(ANSWER_TIMEOUT, connection.ping()).await, Ok(Ok(())))
        {
            session.connection = Some(connection);
        } else {
            let opened = timeout(ANSWER_TIMEOUT, self.connector.connect()).await;
            let mut connection = opened.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
            answer(sqlx::raw_sql(SESSION_LIMIT).execute(&mut connection)).await?;
            session.connection = Some(connection);
            session.number += 1;
            session.owns_replica = false;
        }
        if !session.owns_replica {
            session.owns_replica = try_lock(session, self.key(), LockMode::Shared).await?;
        }
        Ok(())
    }

    /// Returns the number of the session that owns the lock `key`, if that is the one called
    /// `owner` or if the lock is free.
    pub(super) async fn try_lock(&self, key: i64, owner: Option<u64>) -> sqlx::Result<Option<u64>> {
        let mut session = self.session.lock().await;
        self.ensure(&mut session).await?;
        let is_owned = owner == Some(session.number)
            || try_lock(&mut session, key, LockMode::Exclusive).await?;
        Ok(is_owned.then_some(session.number))
    }

    /// Releases the lock `key` of the session called `owner`.
    pub(super) async fn unlock(&self, key: i64, owner: u64) -> sqlx::Result<()> {
        let mut session = self.session.lock().await;
        if session.number == owner
            && let Some(mut connection) = session.connection.take()
        {
            let unlocked = sqlx::query!("SELECT pg_advisory_unlock($1) AS unlocked", key);
            answer(unlocked.fetch_one(&mut connection)).await?;
            session.connection = Some(connection);
        }
        Ok(())
    }

    /// Ends the session.
    pub(super) async fn end(&self) {
        if let Some(connection) = self.session.lock().await.connection.take() {
            // Otherwise PostgreSQL notices that the connection is closed.
            let _ = timeout(ANSWER_TIMEOUT, connection.close()).await;
        }
    }
}

/// Whether other sessions can own a lock at the same time.
#[derive(Clone, Copy)]
enum LockMode {
    Shared,
    Exclusive,
}

async fn try_lock(session: &mut LockSession, key: i64, mode: LockMode) -> sqlx::Result<bool> {
    let Some(mut connection) = session.connection.take() else { return Ok(false) };
    let locked = match mode {
        LockMode::Shared => {
            sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock_shared($1) AS "is_acquired!""#, key)
                .fetch_one(&mut connection)
        }
        LockMode::Exclusive => {
            sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "is_acquired!""#, key)
                .fetch_one(&mut connection)
        }
    };
    let is_acquired = answer(locked).await?;
    session.connection = Some(connection);
    Ok(is_acquired)
}

async fn answer<T>(statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(ANSWER_TIMEOUT, statement).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

impl Ledger {
    /// A new claim of this replica.
    pub fn new_claim(&self) -> Uuid {
        self.presence.new_claim()
    }

    /// Shows the other replicas that this one lives, and returns whether it does. That has to be so
    /// before the first claim.
    pub async fn appear(&self) -> Result<bool, Error> {
        let mut session = self.presence.session.lock().await;
        let ensured = self.presence.ensure(&mut session).await;
        ensured.map_err(Error::doing("opening the session for locks"))?;
        Ok(session.owns_replica)
    }

    /// Keeps the session alive, and opens another one when it is lost, until the second stage of
    /// the shutdown.
    pub async fn stay_present(self, shutdown: Shutdown) {
        let keep = async {
            let mut backoff = Backoff::default();
            loop {
                match self.appear().await {
                    Ok(true) => {
                        backoff.reset();
                        tokio::time::sleep(PING_INTERVAL).await;
                    }
                    Ok(false) => backoff.wait().await,
                    Err(error) => {
                        tracing::warn!(%error, "the session for locks was lost, retrying");
                        backoff.wait().await;
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.ended() => {}
            () = keep => {}
        }
    }
}
