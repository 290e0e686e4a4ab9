//! Trying again with growing pauses, for connections and for the database. The one place that uses
//! `backoff`.
//!
//! Calls to Customer.io are not tried again here: their retries are the broker's tiers.

use std::{fmt::Display, time::Duration};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// Growing pauses: 100 ms at first, 5 s at most, each with jitter so that replicas don't knock at
/// the same moment.
#[derive(Debug)]
pub struct Pauses(ExponentialBackoff);

impl Default for Pauses {
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

impl Pauses {
    /// Waits for the next, longer, pause.
    pub async fn pause(&mut self) {
        // Without a maximal elapsed time there is always a next interval.
        tokio::time::sleep(self.0.next_backoff().unwrap_or(self.0.max_interval)).await;
    }

    /// Starts again with the shortest pause.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Runs `operation` until it succeeds or fails for a reason that `is_transient` denies. Each
/// failure is logged once.
pub async fn until_done<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &'static str,
    is_transient: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, E> {
    let mut pauses = Pauses::default();
    loop {
        match operation().await {
            Err(error) if is_transient(&error) => {
                tracing::warn!(%error, "{what} failed, trying again")
            }
            result => return result,
        }
        pauses.pause().await;
    }
}
