//! The sessions of browsers: the salt that all replicas share, and the sessions that were ended.
//!
//! Both are in PostgreSQL. The salt is read once and kept. While there are tokens, each replica
//! reads every second which sessions the others ended. Sessions are first accepted when both are
//! known; from then on they are checked without the database.

#![expect(clippy::disallowed_methods, reason = "an edge: expired sessions are forgotten")]

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use crate::{
    admin::http::{
        auth::{BrowserSession, LiveTokens},
        problem::Problem,
    },
    ledger::{self, Ledger, SessionSalt},
};

/// Time between two reads of the sessions that other replicas ended.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum duration of one read.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Failed reads in a row after which a warning is logged.
const FAILURES_BEFORE_WARNING: u32 = 5;
/// Each read repeats this part of the previous one: a row may become visible later than one with a
/// later time.
const READ_OVERLAP: TimeDelta = TimeDelta::minutes(1);
/// Maximum rows per statement of a read.
const READ_ROWS_MAX: usize = 1000;
/// Maximum ended sessions in memory. Beyond it, those that expire first are forgotten.
const ENDED_SESSIONS_MAX: usize = 100_000;

/// The salt of the sessions, and the sessions that were ended.
#[derive(Debug, Default)]
pub struct Sessions {
    /// Set once the ended sessions were read as well.
    salt: OnceLock<SessionSalt>,
    /// When each ended session would have expired.
    ended: Mutex<HashMap<Uuid, DateTime<Utc>>>,
    /// Notified when a session is added to `ended`.
    changes: watch::Sender<()>,
    /// When the latest ended session that was read was ended. Locked by the one that reads.
    read_until: tokio::sync::Mutex<DateTime<Utc>>,
}

impl Sessions {
    /// The salt, or a 503 if the database has not answered yet.
    pub(crate) async fn salt(&self, ledger: &Ledger) -> Result<&SessionSalt, Problem> {
        if self.salt.get().is_none() {
            match timeout(READ_TIMEOUT, self.read(ledger)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "reading the sessions failed"),
                Err(_) => tracing::warn!("reading the sessions took longer than {READ_TIMEOUT:?}"),
            }
        }
        self.salt.get().ok_or_else(|| {
            Problem::unavailable(
                "sessions can't be created or checked until the database has answered once; retry \
                    when /readyz returns 200, or send Authorization: Bearer TOKEN",
            )
        })
    }

    /// Whether the session was ended on any replica, as far as this one knows.
    pub(crate) fn is_ended(&self, id: Uuid) -> bool {
        self.ended().contains_key(&id)
    }

    /// Ends a session: on this replica at once, and on the others within two seconds.
    pub(crate) async fn end(
        &self,
        session: &BrowserSession,
        ledger: &Ledger,
    ) -> Result<(), ledger::Error> {
        self.add([(session.id, session.expires_at)]);
        ledger.end_session(session.id, session.expires_at).await
    }

    /// A receiver that is notified when a session ends.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Reads which sessions other replicas end, until it is dropped.
    pub(crate) async fn follow(&self, tokens: &LiveTokens, ledger: &Ledger) {
        let mut ticks = interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0_u32;
        loop {
            ticks.tick().await;
            if !tokens.current().are_required {
                continue;
            }
            let problem = match timeout(READ_TIMEOUT, self.read(ledger)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {READ_TIMEOUT:?}")),
            };
            let Some(problem) = problem else {
                failures = 0;
                continue;
            };
            failures = failures.saturating_add(1);
            if failures == FAILURES_BEFORE_WARNING {
                tracing::warn!(
                    %problem,
                    "reading which sessions were ended fails; until it succeeds, a logout on \
                        another replica has no effect on this one"
                );
            }
        }
    }

    async fn read(&self, ledger: &Ledger) -> Result<(), ledger::Error> {
        let mut read_until = self.read_until.lock().await;
        let (mut ended_at, mut id) = (*read_until - READ_OVERLAP, Uuid::nil());
        loop {
            let limit = i64::try_from(READ_ROWS_MAX).unwrap_or(i64::MAX);
            let rows = ledger.sessions_ended_after(ended_at, id, limit).await?;
            self.add(rows.iter().map(|row| (row.id, row.expires_at)));
            if let Some(last) = rows.last() {
                (ended_at, id) = (last.ended_at, last.id);
                *read_until = ended_at.max(*read_until);
            }
            if rows.len() < READ_ROWS_MAX {
                break;
            }
        }
        if self.salt.get().is_none() {
            let salt = ledger.session_salt().await?;
            self.salt.get_or_init(|| salt);
        }
        Ok(())
    }

    fn add(&self, sessions: impl IntoIterator<Item = (Uuid, DateTime<Utc>)>) {
        let now = Utc::now();
        let mut ended = self.ended();
        let mut has_changed = false;
        for (id, expires_at) in sessions {
            has_changed |= expires_at > now && ended.insert(id, expires_at).is_none();
        }
        if !has_changed {
            return;
        }
        ended.retain(|_, expires_at| *expires_at > now);
        while ended.len() > ENDED_SESSIONS_MAX {
            let first = ended.iter().min_by_key(|(_, expires_at)| **expires_at);
            let Some(id) = first.map(|(id, _)| *id) else { break };
            ended.remove(&id);
        }
        drop(ended);
        self.changes.send_replace(());
    }

    fn ended(&self) -> MutexGuard<'_, HashMap<Uuid, DateTime<Utc>>> {
        // The map is complete after each insertion.
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_session_is_remembered_until_it_expires() {
        let (sessions, now) = (Sessions::default(), Utc::now());
        let (id, expired) = (Uuid::new_v4(), Uuid::new_v4());
        let mut changes = sessions.watch();
        sessions.add([(id, now + TimeDelta::hours(1)), (expired, now)]);
        assert!(sessions.is_ended(id) && !sessions.is_ended(expired));
        assert!(changes.has_changed().expect("the sessions exist"));
        changes.mark_unchanged();
        sessions.add([(id, now + TimeDelta::hours(1))]);
        assert!(!changes.has_changed().expect("the sessions exist"), "a repeat is no change");
    }

    #[test]
    fn the_number_of_remembered_sessions_is_bounded() {
        let (sessions, now) = (Sessions::default(), Utc::now());
        let (first, last) = (Uuid::new_v4(), Uuid::new_v4());
        sessions.add([(first, now + TimeDelta::minutes(1))]);
        let others = (0..ENDED_SESSIONS_MAX - 1).map(|_| Uuid::new_v4());
        sessions.add(others.map(|id| (id, now + TimeDelta::hours(1))));
        sessions.add([(last, now + TimeDelta::hours(2))]);
        assert_eq!(sessions.ended().len(), ENDED_SESSIONS_MAX);
        assert!(!sessions.is_ended(first) && sessions.is_ended(last));
    }
}
