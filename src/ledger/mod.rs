//! The record of every signup and job, in PostgreSQL. One file per operation.
//!
//! The ledger returns named cases; `Err` means that it could not read or could not record. No
//! transaction spans a network call: a job is claimed, its call is made, and it is settled under
//! its claim.

/// One column of a batch, as an array parameter of a statement.
///
/// All arrays of a statement have the same length. A statement with many of them unnests them in a
/// `SELECT` list: in `FROM`, PostgreSQL would store the elements of each array before it reads
/// them.
macro_rules! column {
    ($items:ident, $item:ident => $value:expr) => {
        $items.iter().map(|$item| $value).collect::<Vec<_>>()
    };
}

mod address;
mod arrival;
mod audit;
mod bulk;
mod bulk_action;
mod call_rate;
mod claim;
mod counts;
mod decode;
mod detail;
mod diagnose;
mod dismiss;
mod failures;
mod flags;
mod integrity;
mod leader;
mod locks;
mod message_selection;
mod mock;
mod open_work;
mod outbox;
mod parked;
mod pool;
mod pooler;
mod presence;
mod recover;
mod restart;
mod retention;
mod row;
mod schema;
mod search;
mod selection;
mod sessions;
mod settle;
mod stats;
mod unprocessable;
mod working_set;

use std::{path::PathBuf, sync::Arc, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::runtime::{replica::Replica, tls};
use address::DatabaseAddress;
pub use address::check_url;
use diagnose::CONNECTING;
pub use diagnose::{POOLER_FIX, POOLER_PROBLEM};
use pool::{Connector, Pool};
use presence::Presence;

pub use arrival::{Arrival, EARLIER_EVENTS_MAX, Source};
pub use audit::{AuditAction, SERVICE};
pub use bulk::{BulkRetry, BulkStatus, BulkStep, Cancellation};
pub use bulk_action::{
    ActionCancellation, BulkAction, BulkActionStep, BulkKind, ReplayLimits, ReplayStep,
};
pub use call_rate::{CallRateLease, CallRateRequest, ReplicaBreaker};
pub use claim::{ClaimOutcome, ClaimedBatch};
pub use detail::{JobDetail, SignupFlags, StoredAttempt, StoredAudit, StoredJob};
pub use failures::{FailedMessage, FailureResolution, MessageJob};
pub use integrity::{Balance, Drift, DriftEntry};
pub use leader::{LeaderLock, LeaderTask};
pub use message_selection::{MessagePreview, MessageSelection, MessageSource, message_text};
pub use open_work::OpenWork;
pub use parked::{OpenFailures, ParkedFailure};
pub use recover::{LostMessageScope, ReadyJob, RecoveryLimits, Unmirrored, WaitingMessages};
pub use retention::{History, SignupCursor};
pub use schema::Schema;
pub use search::{FailedJob, FailureGroup, FailurePage};
pub use selection::{Preview, SearchMatch, Selection, search_text, signature_text};
pub use sessions::{EndedSession, SessionSalt};
pub use settle::{ClaimRest, SettledBatch, Settlement};
pub use stats::{ActivityMinute, LiveCounts, Overview, RecentSignups, Stats};
pub use unprocessable::{
    MessageReadLimits, MessageResolution, OpenMessage, Resolved, UnprocessableMessage,
};

/// Settings of the database.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `postgres://…`; PostgreSQL 14 or newer.
    pub url: SecretString,
    /// PEM file with the client's certificate chain. Empty for none.
    pub client_certificate: PathBuf,
    /// PEM file with the client's private key.
    pub client_key: PathBuf,
    /// Maximum connections of the flows.
    pub max_connections: u32,
    /// Maximum connections of the endpoints and of the counts for the metrics.
    pub http_connections: u32,
    /// Maximum time to wait for a connection of the pool.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// Whether `serve` applies the migrations.
    pub migrate: bool,
    /// Age of a claim after which another message may take it over.
    #[serde(with = "humantime_serde")]
    pub claim_lease: Duration,
}

/// An error of the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed.
    #[error("{doing}: {source}")]
    Statement {
        /// The operation that failed.
        doing: &'static str,
        /// The error of the driver or of the database.
        source: sqlx::Error,
    },
    /// The URL is malformed. The text contains no part of it.
    #[error("the database URL is malformed: {0}")]
    Url(String),
    /// The migrations could not be applied.
    #[error("applying the migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

impl Error {
    fn doing(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Statement { doing, source }
    }

    /// Whether the same statement may succeed later. If the database refuses the data
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>, classes 22, 23 and 54),
    /// or if a row can't be decoded, the error is permanent.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Statement { source: sqlx::Error::Database(error), .. } => !error
                .code()
                .is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class))),
            Self::Statement { source: sqlx::Error::ColumnDecode { .. }, .. } => false,
            Self::Statement { .. } => true,
            Self::Url(_) | Self::Migrate(_) => false,
        }
    }
}

/// A handle to the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: Pool,
    /// The session that owns the advisory locks of this process.
    presence: Arc<Presence>,
    address: DatabaseAddress,
    acquire_timeout: Duration,
    claim_lease: Duration,
    max_attempts: i32,
    /// This replica, as the leases on the call rate and the rows of the outbox name it.
    replica: Uuid,
}

impl Ledger {
    /// Creates the connection pool. Connections are opened on demand. New jobs get `max_attempts`
    /// retries. Fails if the URL is malformed.
    pub fn new(config: &Config, tls: &tls::Config, max_attempts: i32) -> Result<Self, Error> {
        let address = DatabaseAddress::new(config, tls);
        let connector = Connector::new(address.options(&config.url)?);
        Ok(Self {
            pool: Pool::new(connector.clone(), config.max_connections, config.acquire_timeout),
            presence: Arc::new(Presence::new(connector, Uuid::nil())),
            address,
            acquire_timeout: config.acquire_timeout,
            claim_lease: config.claim_lease,
            max_attempts,
            replica: Uuid::nil(),
        })
    }

    /// A handle with at most `connections` connections of its own, so that its statements and those
    /// of the flows do not wait for each other's connections.
    pub fn with_own_connections(&self, connections: u32) -> Self {
        let connector = self.pool.connector().clone();
        Self { pool: Pool::new(connector, connections, self.acquire_timeout), ..self.clone() }
    }

    /// Time between two renewals of the claims of a batch that takes long.
    pub fn renewal_interval(&self) -> Duration {
        self.claim_lease / 5
    }

    /// The handle of a replica, which publishes the messages of the rows that it writes.
    pub fn of_replica(self, replica: &Replica) -> Self {
        let connector = self.pool.connector().clone();
        let presence = Arc::new(Presence::new(connector, replica.id));
        Self { replica: replica.id, presence, ..self }
    }

    /// Uses `url` for new connections, after PostgreSQL has accepted it once. Until then, the URL
    /// in use stays.
    pub async fn replace_url(&self, url: &SecretString) -> Result<(), Error> {
        let options = self.address.options(url)?;
        self.connect(&options)
            .await?
            .close()
            .await
            .map_err(Error::doing("closing a connection"))?;
        self.pool.connector().set_options(options);
        Ok(())
    }

    /// Opens a connection outside the pool.
    async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, Error> {
        let connecting = PgConnection::connect_with(options);
        let connected = tokio::time::timeout(self.acquire_timeout, connecting).await;
        connected.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(Error::doing(CONNECTING))
    }

    /// Checks that the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query_scalar!("SELECT 1 AS one")
            .fetch_one(&self.pool)
            .await
            .map_err(Error::doing("pinging the database"))?;
        Ok(())
    }

    /// Ends the session for locks, and closes the connections: the idle ones now, the others after
    /// their statements.
    pub async fn close(&self) {
        self.presence.end().await;
        self.pool.close();
    }
}
