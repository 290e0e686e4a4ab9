//! Detection of a connection pooler that assigns a server connection per transaction.
//!
//! Prepared statements and advisory locks belong to a session, so they do not work through such a
//! pooler (<https://www.pgbouncer.org/features.html>).

use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::{Error, Ledger};

/// Number of comparisons. One suffices unless other clients use the same pooler meanwhile.
const ROUNDS: usize = 5;
/// Maximum time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

impl Ledger {
    /// Whether the connections go through a pooler that assigns server connections per transaction
    /// or per statement.
    ///
    /// Two connections are open at the same time. If they report the same server process, or one of
    /// them reports different ones, they have no session of their own.
    pub async fn has_transaction_pooler(&self) -> Result<bool, Error> {
        let options = self.pool.connector().options();
        let mut first = self.connect(&options).await?;
        let mut second = self.connect(&options).await?;
        let expected = (process(&mut first).await?, process(&mut second).await?);
        let mut is_pooled = expected.0 == expected.1;
        for _ in 0..ROUNDS {
            let found = (process(&mut first).await?, process(&mut second).await?);
            is_pooled |= found != expected;
        }
        // The server ends the sessions in any case.
        drop((first, second));
        Ok(is_pooled)
    }
}

async fn process(connection: &mut PgConnection) -> Result<i32, Error> {
    // Unprepared: a prepared statement may fail through such a pooler.
    let asked = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection);
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
    let row = answered.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    row.and_then(|row| row.try_get(0)).map_err(Error::doing("detecting a connection pooler"))
}
