//! Connections to PostgreSQL, and the limits of everything that is done with them.
//!
//! A connection can fall silent without being closed, for example when a proxy or a network path
//! stops forwarding. So every statement has a time limit, and a connection returns to the pool only
//! if its last statement was answered; otherwise it is closed. The server has limits as well, since
//! it does not notice a silent client, whose locks it would keep.
//!
//! The pool of sqlx is not used, because it pings a returned connection without a time limit.

use std::{
    fmt,
    io::{self, ErrorKind},
    ops::{Deref, DerefMut},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use deadpool::{
    Runtime,
    managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType},
};
use futures_util::{
    StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Connection, Describe, Either, Execute, Executor, PgConnection, Postgres, SqlStr,
    postgres::{PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::timeout;

/// Maximum duration of a statement, which PostgreSQL cancels after that. A statement that takes
/// longer sets its own limit ([`Transaction::limit_statements`]).
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Additional time for the answer. After that, the connection counts as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The settings of a session. PostgreSQL ends a session that has an open transaction and sends
/// nothing (<https://www.postgresql.org/docs/current/runtime-config-client.html>). The statements
/// are short, and compiling one takes longer than executing it; where rows are looked up by key
/// ([`Pool::begin_by_key`]), the estimated cost of a plan with a sequential scan is so high that
/// PostgreSQL up to 17 would compile it.
const SESSION_SETTINGS: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
    SET idle_in_transaction_session_timeout = '15s'; SET jit = off; \
    SET customerio_sync.writes_claims = 'on'";
/// Refuses a standby. Advisory locks work there and exclude nobody on the primary
/// (<https://www.postgresql.org/docs/current/hot-standby.html>).
const PRIMARY_CHECK: &str = "DO $$ BEGIN IF pg_is_in_recovery() THEN
    RAISE read_only_sql_transaction USING MESSAGE = 'the server is a standby';
    END IF; END $$";
/// A connection that was idle for longer is pinged before it is used.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Maximum time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is closed.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// A connection that is older is closed, so that a change of the server's address takes effect.
const AGE_MAX: Duration = Duration::from_mins(30);

/// SQLSTATEs after which a session is of no use: the server became a standby or stops, or rights
/// differ after a failover
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const ENDING_CODES: [&str; 5] = ["25006", "57P01", "57P02", "57P03", "42501"];

/// Opens connections. Its clones share the address.
#[derive(Debug, Clone)]
pub(super) struct Connector(Arc<ConnectorState>);

#[derive(Debug)]
struct ConnectorState {
    options: RwLock<Arc<PgConnectOptions>>,
    /// Connections that were opened before may be silent, because another one was.
    trusted_since: RwLock<Instant>,
}

impl Connector {
    #[expect(clippy::disallowed_methods, reason = "an edge: the age of connections")]
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self(Arc::new(ConnectorState {
            options: RwLock::new(Arc::new(options)),
            trusted_since: RwLock::new(Instant::now()),
        }))
    }

    pub(super) fn options(&self) -> Arc<PgConnectOptions> {
        self.0.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses `options` for new connections.
    pub(super) fn set_options(&self, options: PgConnectOptions) {
        *self.0.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }

    /// Opens a connection to the primary with the settings of a session.
    pub(super) async fn connect(&self) -> sqlx::Result<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options()).await?;
        sqlx::raw_sql(SESSION_SETTINGS).execute(&mut connection).await?;
        sqlx::raw_sql(PRIMARY_CHECK).execute(&mut connection).await?;
        Ok(connection)
    }

    /// Replaces all connections: one of them was silent, so the others may be.
    #[expect(clippy::disallowed_methods, reason = "an edge: the age of connections")]
    fn distrust(&self) {
        *self.0.trusted_since.write().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn trusts(&self, created: Instant) -> bool {
        created >= *self.0.trusted_since.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<PgConnection> {
        self.connect().await
    }

    async fn recycle(
        &self,
        connection: &mut PgConnection,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if !self.trusts(metrics.created) || metrics.age() > AGE_MAX {
            return Err(RecycleError::message("it is old"));
        }
        match metrics.last_used() {
            idle if idle > IDLE_MAX => Err(RecycleError::message("it was idle")),
            idle if idle > PING_AFTER => match timeout(PING_TIMEOUT, connection.ping()).await {
                Ok(answer) => Ok(answer?),
                Err(_) => {
                    self.distrust();
                    Err(RecycleError::message("it is silent"))
                }
            },
            _ => Ok(()),
        }
    }
}

/// A pool of connections. Cheap to clone. As an [`Executor`], it uses a connection for one
/// statement.
#[derive(Debug, Clone)]
pub(super) struct Pool(managed::Pool<Connector>);

impl Pool {
    /// A pool of at most `size` connections, for which callers wait at most `wait`.
    pub(super) fn new(connector: Connector, size: u32, wait: Duration) -> Self {
        let pool = managed::Pool::builder(connector)
            .max_size(usize::try_from(size).unwrap_or(usize::MAX))
            .wait_timeout(Some(wait))
            .create_timeout(Some(wait))
            .runtime(Runtime::Tokio1)
            .build();
        Self(pool.expect("the runtime is set"))
    }

    pub(super) fn connector(&self) -> &Connector {
        self.0.manager()
    }

    /// Waits for a connection.
    pub(super) async fn acquire(&self) -> sqlx::Result<Session> {
        let connection = self.0.get().await.map_err(|error| match error {
            PoolError::Timeout(TimeoutType::Wait) => sqlx::Error::PoolTimedOut,
            PoolError::Backend(error) => error,
            PoolError::Closed => sqlx::Error::PoolClosed,
            _ => no_answer("connecting"),
        })?;
        Ok(Session {
            connection: Some(connection),
            limit: STATEMENT_TIMEOUT + ANSWER_TIMEOUT,
            is_usable: true,
        })
    }

    /// Begins a transaction. If it does not end, its connection is closed.
    pub(super) async fn begin(&self) -> sqlx::Result<Transaction> {
        self.begin_with("BEGIN").await
    }

    /// Begins a transaction whose statements look up each row by its key. PostgreSQL would read all
    /// of a table that is short or has no statistics yet, once per batch
    /// (<https://www.postgresql.org/docs/current/runtime-config-query.html>).
    pub(super) async fn begin_by_key(&self) -> sqlx::Result<Transaction> {
        self.begin_with("BEGIN; SET LOCAL enable_seqscan = off").await
    }

    /// Begins a transaction with statements of its own.
    pub(super) async fn begin_with(&self, statements: &'static str) -> sqlx::Result<Transaction> {
        let mut transaction = Transaction { session: self.acquire().await?, has_ended: false };
        sqlx::raw_sql(statements).execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// Closes the idle connections. Those in use are closed when they return.
    pub(super) fn close(&self) {
        self.0.close();
    }
}

/// A connection of the pool, for a number of statements. It returns to the pool when it is dropped,
/// if every statement was answered.
pub(super) struct Session {
    /// Present until it is dropped.
    connection: Option<Object<Connector>>,
    /// Maximum time for the answer to a statement.
    limit: Duration,
    /// Whether the last statement was answered, without an error that ends the session.
    is_usable: bool,
}

impl Session {
    /// Waits for the answer to a statement, which is incomplete if this is cancelled.
    async fn run<'s, T, F>(&'s mut self, statement: F) -> sqlx::Result<T>
    where
        F: FnOnce(&'s mut PgConnection) -> BoxFuture<'s, sqlx::Result<T>>,
    {
        let Self { connection, limit, is_usable } = self;
        let connection = connection.as_mut().expect("present until it is dropped");
        let pool = Object::pool(connection);
        *is_usable = false;
        match timeout(*limit, statement(connection)).await {
            Ok(answer) => {
                *is_usable = answer.as_ref().err().is_none_or(keeps_session);
                answer
            }
            Err(_) => {
                if let Some(pool) = pool {
                    pool.manager().distrust();
                }
                Err(no_answer("executing a statement"))
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_usable
            && let Some(connection) = self.connection.take()
        {
            drop(Object::take(connection));
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

/// A transaction. If it is dropped before it has ended, its connection is closed, and PostgreSQL
/// rolls it back.
#[derive(Debug)]
pub(super) struct Transaction {
    session: Session,
    has_ended: bool,
}

impl Transaction {
    /// Commits it.
    pub(super) async fn commit(mut self) -> sqlx::Result<()> {
        sqlx::raw_sql("COMMIT").execute(&mut self.session).await?;
        self.has_ended = true;
        Ok(())
    }

    /// Rolls it back, and keeps its connection.
    pub(super) async fn rollback(mut self) -> sqlx::Result<()> {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.session).await?;
        self.has_ended = true;
        Ok(())
    }

    /// Sets the maximum duration of the further statements.
    pub(super) async fn limit_statements(&mut self, limit: Duration) -> sqlx::Result<()> {
        self.session.limit = limit + ANSWER_TIMEOUT;
        let limit = format!("{}ms", limit.as_millis());
        sqlx::query_scalar!("SELECT set_config('statement_timeout', $1, true)", limit)
            .fetch_one(&mut self.session)
            .await?;
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.session.is_usable &= self.has_ended;
    }
}

impl Deref for Transaction {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// The results of a statement, as sqlx reports them.
type Steps = Vec<Either<PgQueryResult, PgRow>>;

fn all_steps<'e>(
    steps: BoxFuture<'e, sqlx::Result<Steps>>,
) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>> {
    stream::once(steps)
        .map_ok(|steps| stream::iter(steps.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        all_steps(Box::pin(
            self.run(|connection| Box::pin(connection.fetch_many(query).try_collect())),
        ))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(self.run(|connection| connection.fetch_optional(query)))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(self.run(|connection| connection.prepare_with(sql, parameters)))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(self.run(|connection| connection.describe(sql)))
    }
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        all_steps(Box::pin(
            async move { self.acquire().await?.fetch_many(query).try_collect().await },
        ))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move { self.acquire().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.acquire().await?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.acquire().await?.describe(sql).await })
    }
}

/// Whether the session can be used after an error.
fn keeps_session(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            !error.code().is_some_and(|code| ENDING_CODES.contains(&&*code))
        }
        sqlx::Error::RowNotFound
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_) => true,
        _ => false,
    }
}

fn no_answer(doing: &str) -> sqlx::Error {
    let text = format!("PostgreSQL did not answer in time ({doing})");
    sqlx::Error::Io(io::Error::new(ErrorKind::TimedOut, text))
}
