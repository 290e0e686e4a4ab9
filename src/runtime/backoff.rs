//! Retries with growing pauses, for connections and for the database. The one module that uses the
//! crate `backoff`.
//!
//! Calls to Customer.io are not retried here: their retries are the broker's delay tiers.

#![expect(clippy::disallowed_methods, reason = "an edge: retries are limited in time")]

use std::{fmt::Display, time::Duration};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};
use tokio::time::Instant;

/// Growing pauses: 100 ms at first, at most 5 s, with jitter, so that replicas do not retry at the
/// same moment.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

impl Default for Backoff {
    fn default() -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(Duration::from_millis(100))
                .with_max_interval(Duration::from_secs(5))
                .with_max_elapsed_time(None)
                .build(),
        )
    }
}

impl Backoff {
    /// Waits for the next, longer, pause.
    pub async fn wait(&mut self) {
        // Without a maximum elapsed time there is always a next pause.
        tokio::time::sleep(self.0.next_backoff().unwrap_or(self.0.max_interval)).await;
    }

    /// Starts over with the shortest pause.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Runs `operation` until it succeeds. Each failure is logged once, as "`what` failed".
pub async fn retry_forever<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &'static str,
    mut operation: impl FnMut() -> F,
) -> T {
    let mut backoff = Backoff::default();
    loop {
        match operation().await {
            Ok(value) => return value,
            Err(error) => tracing::warn!(%error, "{what} failed, retrying"),
        }
        backoff.wait().await;
    }
}

/// Runs `operation` until it succeeds, or fails with an error that is not transient, or has failed
/// for as long as `limit`. Then the error is returned. Each transient failure is logged once, as
/// "`what` failed".
pub async fn retry_for<T, E: Display, F: Future<Output = Result<T, E>>>(
    limit: Duration,
    what: &'static str,
    is_transient: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, E> {
    let until = Instant::now() + limit;
    let mut backoff = Backoff::default();
    loop {
        match operation().await {
            Err(error) if is_transient(&error) && Instant::now() < until => {
                tracing::warn!(%error, "{what} failed, retrying");
            }
            result => return result,
        }
        backoff.wait().await;
    }
}
