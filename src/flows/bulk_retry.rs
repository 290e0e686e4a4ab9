//! Works bulk retries off, at a bounded rate and behind live traffic.
//!
//! Every replica runs this; the ledger lets one at a time take a step. Between a step's commit and
//! the confirm of its messages a crash leaves pending jobs without a message, as after a manual
//! retry.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::Deserialize;

use crate::{
    broker::{Link, Message, Publisher},
    ledger::{self, Ledger, Step},
    runtime::{backoff::Pauses, shutdown::Lifecycle},
};

/// Settings of bulk retries.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Jobs that are started afresh a second at most, by all replicas together.
    pub jobs_per_second: NonZeroU32,
    /// Messages that may wait in the work queues; with more, live traffic goes first.
    pub backlog: u32,
}

/// How often it is looked whether there is a bulk retry, or whether live traffic has been worked
/// off.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Steps a second, unless that would be less than a job a step.
const STEPS_PER_SECOND: u32 = 5;

impl Config {
    /// Jobs a step at most, and the time from one step to the next.
    fn step(&self) -> (i64, Duration) {
        let rate = self.jobs_per_second.get();
        let jobs = (rate / STEPS_PER_SECOND).max(1);
        (jobs.into(), Duration::from_secs(1) * jobs / rate)
    }
}

/// Takes steps until nothing new is to be taken. While `are_calls_short` says that calls wait for
/// their turn, live traffic goes first.
pub async fn run(
    config: Config,
    are_calls_short: impl Fn() -> bool,
    link: Arc<Link>,
    ledger: Ledger,
    publisher: Publisher,
    lifecycle: Lifecycle,
) {
    let mut pauses = Pauses::default();
    let (most, pace) = config.step();
    while !lifecycle.is_draining() {
        if are_calls_short() {
            wait(&lifecycle, pace).await;
            continue;
        }
        match ledger.bulk_step(most, pace).await {
            Ok(Step::Idle) => wait(&lifecycle, LOOK_EVERY).await,
            Ok(Step::Started(jobs)) => {
                pauses.reset();
                let messages: Vec<_> = jobs.iter().map(Message::job).collect();
                join_all(messages.iter().map(|message| publisher.publish(message))).await;
                wait(&lifecycle, pace).await;
                let_live_traffic_go_first(&config, &link, &lifecycle).await;
            }
            Err(error) => {
                report(&error);
                tokio::select! {
                    () = lifecycle.draining() => {}
                    () = pauses.pause() => {}
                }
            }
        }
    }
}

async fn wait(lifecycle: &Lifecycle, time: Duration) {
    tokio::select! {
        () = lifecycle.draining() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// Waits while more than the backlog waits in the work queues. A broker that can't tell is not
/// waited for.
async fn let_live_traffic_go_first(config: &Config, link: &Link, lifecycle: &Lifecycle) {
    while !lifecycle.is_draining()
        && matches!(link.backlog().await, Ok(backlog) if backlog.total() > config.backlog)
    {
        wait(lifecycle, LOOK_EVERY).await;
    }
}

fn report(error: &ledger::Error) {
    tracing::warn!(%error, "a step of a bulk retry failed, trying again");
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
