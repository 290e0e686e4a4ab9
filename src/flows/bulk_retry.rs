//! Runs bulk retries at a bounded rate, after live traffic.
//!
//! Every replica runs this; the ledger lets one at a time take a step. A crash between the commit
//! of a step and the confirm of its messages leaves pending jobs without a message, as after a
//! manual retry; recovery publishes them.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::Deserialize;

use crate::{
    broker::{Connection, Message, Publisher},
    ledger::{BulkStep, Ledger},
    runtime::{backoff::Backoff, shutdown::Shutdown},
};

/// Settings of bulk retries.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Maximum jobs that are restarted per second, by all replicas together.
    pub jobs_per_second: NonZeroU32,
    /// Messages in the work queues above which bulk retries wait for live traffic.
    pub backlog: u32,
}

/// Time between two polls for a bulk retry, or for the backlog to drain.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Steps per second, unless a step would have fewer than one job.
const STEPS_PER_SECOND: u32 = 5;

impl Config {
    /// The maximum jobs per step, and the time between two steps.
    fn step(&self) -> (i64, Duration) {
        let rate = self.jobs_per_second.get();
        let jobs = (rate / STEPS_PER_SECOND).max(1);
        (jobs.into(), Duration::from_secs(1) * jobs / rate)
    }
}

/// Runs bulk retries.
#[derive(Debug)]
pub struct BulkRetries {
    /// Settings.
    pub config: Config,
    /// Counts the messages in the work queues.
    pub connection: Arc<Connection>,
    /// Restarts the jobs.
    pub ledger: Ledger,
    /// Publishes the restarted jobs.
    pub publisher: Publisher,
}

impl BulkRetries {
    /// Takes steps until shutdown. While `calls_are_scarce` returns true, live traffic goes first.
    pub async fn run(self, calls_are_scarce: impl Fn() -> bool, shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        let (jobs_max, pace) = self.config.step();
        while !shutdown.is_draining() {
            if calls_are_scarce() {
                wait(&shutdown, pace).await;
                continue;
            }
            match self.ledger.bulk_step(jobs_max, pace).await {
                Ok(BulkStep::Idle) => wait(&shutdown, POLL_INTERVAL).await,
                Ok(BulkStep::Restarted(jobs)) => {
                    backoff.reset();
                    let messages: Vec<_> = jobs.iter().map(Message::job).collect();
                    join_all(messages.iter().map(|message| self.publisher.publish(message))).await;
                    wait(&shutdown, pace).await;
                    self.wait_for_live_traffic(&shutdown).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a step of a bulk retry failed, retrying");
                    tokio::select! {
                        () = shutdown.draining() => {}
                        () = backoff.wait() => {}
                    }
                }
            }
        }
    }

    /// Waits while the work queues contain more than the backlog. If they can't be counted, it does
    /// not wait.
    async fn wait_for_live_traffic(&self, shutdown: &Shutdown) {
        while !shutdown.is_draining()
            && matches!(
                self.connection.backlog().await,
                Ok(backlog) if backlog.total() > self.config.backlog
            )
        {
            wait(shutdown, POLL_INTERVAL).await;
        }
    }
}

async fn wait(shutdown: &Shutdown, time: Duration) {
    tokio::select! {
        () = shutdown.draining() => {}
        () = tokio::time::sleep(time) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_keep_the_rate() {
        let step = |jobs_per_second: u32| {
            let jobs_per_second = jobs_per_second.try_into().expect("not zero");
            Config { jobs_per_second, backlog: 0 }.step()
        };
        assert_eq!(step(50), (10, Duration::from_millis(200)));
        assert_eq!(step(2), (1, Duration::from_millis(500)));
        assert_eq!(step(1000), (200, Duration::from_millis(200)));
    }
}
