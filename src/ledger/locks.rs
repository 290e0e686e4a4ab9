//! The lock order of the ledger, and the locks on signups.
//!
//! Transactions that lock several rows acquire the locks in this order, so that one waits for the
//! other and they do not deadlock:
//!
//! 1. rows of `signups`, by `id`;
//! 2. rows of `signup_customerio_sync_jobs`, by `signup_id` (a batch has at most one job per
//!    signup; the two jobs of one signup are covered by the lock on the signup);
//! 3. rows of any other table.
//!
//! A transaction that changes jobs and signups locks the signups first: with [`signups`], with
//! `lock_signups.sql`, or by an update of them ([`set_synced`](super::flags::set_synced)). A claim
//! inserts new signups last, by `id`: no transaction that waits for an insert owns a lock that the
//! inserting one still waits for. A statement that locks jobs alone either orders them by
//! `signup_id` or skips locked rows. A step of a bulk retry or a bulk action locks its own row
//! first, which only its steps and its cancellation lock. `tests/lock_order.rs` checks the SQL.
//! PostgreSQL resolves the deadlocks that are left, such as those over the order in which one
//! `UPDATE` visits its rows, by aborting one transaction, which is then retried.

use uuid::Uuid;

use super::{Error, pool::Session};

/// Locks signups until the end of the transaction.
pub(super) async fn signups(connection: &mut Session, ids: &[Uuid]) -> Result<(), Error> {
    sqlx::query!("SELECT id FROM signups WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE", ids)
        .fetch_all(connection)
        .await
        .map_err(Error::doing("locking signups"))?;
    Ok(())
}

/// Locks the signups of jobs until the end of the transaction.
pub(super) async fn signups_of_jobs(connection: &mut Session, jobs: &[Uuid]) -> Result<(), Error> {
    sqlx::query!(
        r#"
        SELECT id
        FROM signups
        WHERE id IN (SELECT signup_id FROM signup_customerio_sync_jobs WHERE id = ANY($1))
        ORDER BY id
        FOR NO KEY UPDATE
        "#,
        jobs
    )
    .fetch_all(connection)
    .await
    .map_err(Error::doing("locking the signups of jobs"))?;
    Ok(())
}
