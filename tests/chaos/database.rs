//! PostgreSQL: a primary and its standby, and proxies that lead clients to the primary.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use test_servers::{Postgres, Server as _};
use tokio::task::block_in_place;

use crate::{
    proxy::{Mode, Proxy},
    support::{TempServer, authority, wait_for},
};

/// Whether a commit waits until the standby has it
/// (<https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replication {
    Synchronous,
    Asynchronous,
}

/// A primary with a streaming standby.
pub(crate) struct Database {
    primary: TempServer<Postgres>,
    standby: TempServer<Postgres>,
    replication: Replication,
    /// What the standby reads from the primary passes through it.
    link: Proxy,
    /// Leads to the primary, for the test itself.
    entrance: Proxy,
}

impl Database {
    pub(crate) async fn start(replication: Replication) -> Self {
        let primary = TempServer::<Postgres>::started();
        let entrance = Proxy::start(vec![authority(&primary.url()).to_owned()]).await;
        let (standby, link) = attach_standby(&primary, replication).await;
        Self { primary, standby, replication, link, entrance }
    }

    /// Leads to the primary, also after a failover.
    pub(crate) fn url(&self) -> String {
        let url = self.primary.url();
        url.replace(authority(&url), &self.entrance.addr().to_string())
    }

    /// `host:port` of the primary, and of the standby, which clients reach while the primary is
    /// down.
    pub(crate) fn authorities(&self) -> Vec<String> {
        [&self.primary, &self.standby].map(|one| authority(&one.url()).to_owned()).into()
    }

    pub(crate) fn restart(&self) {
        self.primary.restart();
    }

    /// Kills the primary, and starts it again.
    pub(crate) fn crash(&self) {
        block_in_place(|| self.primary.kill()).expect("the server is running");
        self.primary.start();
    }

    /// Withholds from the standby what the primary writes from now on.
    pub(crate) fn hold_back_standby(&self) {
        self.link.set(Mode::Stall);
    }

    /// Kills the primary permanently, promotes the standby after `downtime`, and attaches a new
    /// standby.
    pub(crate) async fn fail_over(&mut self, downtime: Duration) {
        block_in_place(|| self.primary.kill()).expect("the server is running");
        self.link.cut();
        tokio::time::sleep(downtime).await;
        block_in_place(|| self.standby.promote()).expect("the standby is running");
        self.entrance.set_targets(vec![authority(&self.standby.url()).to_owned()]);
        let (standby, link) = attach_standby(&self.standby, self.replication).await;
        self.primary = std::mem::replace(&mut self.standby, standby);
        self.link = link;
    }
}

/// Starts a standby, and returns when it receives everything that the primary writes.
async fn attach_standby(
    primary: &TempServer<Postgres>,
    replication: Replication,
) -> (TempServer<Postgres>, Proxy) {
    let link = Proxy::start(vec![authority(&primary.url()).to_owned()]).await;
    let standby = TempServer::<Postgres>::new();
    block_in_place(|| standby.follow(link.addr().port())).expect("the primary is copied");
    standby.start();
    let mut connection = PgConnection::connect(&primary.url()).await.expect("PostgreSQL answers");
    if replication == Replication::Synchronous {
        for sql in ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"] {
            sqlx::query(sql).execute(&mut connection).await.expect("set");
        }
    }
    let state = match replication {
        Replication::Synchronous => "sync",
        Replication::Asynchronous => "async",
    };
    let connection = tokio::sync::Mutex::new(connection);
    wait_for("the standby to stream", || async {
        let sql = "SELECT count(*) FROM pg_stat_replication
            WHERE state = 'streaming' AND sync_state = $1";
        let connection = &mut *connection.lock().await;
        let count = sqlx::query_scalar::<_, i64>(sql).bind(state).fetch_one(connection).await;
        (count.expect("PostgreSQL answers") == 1).then_some(())
    })
    .await;
    (standby, link)
}
