//! Publishes the messages of the outbox.
//!
//! Rows that this replica has just committed are published from memory. At intervals, rows that
//! are due, or whose replica has gone, are taken over. If RabbitMQ does not confirm the messages of
//! a kind, the kind is paused, longer each time, and then one row is published as a probe. The
//! kinds do not wait for each other: a subscriber that refuses outcomes delays no retry.

#![expect(clippy::disallowed_methods, reason = "an edge: pauses start now")]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    broker::{Message, Publisher},
    job::{AttemptId, JobReport, MessageKind, OutboxRow},
    ledger::Ledger,
    retry::Ladder,
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Settings of the outbox.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time after which an outcome that nobody accepts is dropped.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

/// Time between two checks for rows to take over.
const TAKE_OVER_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two checks for outcomes that are too old.
const DROP_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum time to publish the messages of a row. It ends before the row is due.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum rows of a kind whose messages are published at the same time.
const ROWS_IN_FLIGHT_MAX: usize = 64;
/// The first pause of a kind whose messages are not confirmed. Each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Publishes the messages of the outbox.
#[derive(Debug)]
pub struct Outbox {
    /// Settings.
    pub config: Config,
    /// Has the rows.
    pub ledger: Ledger,
    /// Publishes the messages.
    pub publisher: Publisher,
    /// The tiers of the retries.
    pub ladder: Ladder,
    /// Counts the dropped outcomes.
    pub metrics: Arc<Metrics>,
}

/// The state of a kind.
#[derive(Debug, Default)]
struct KindState {
    in_flight: usize,
    /// The last pause, if messages were not confirmed since.
    pause: Option<Duration>,
    paused_until: Option<Instant>,
}

impl KindState {
    /// How many more rows may be published now.
    fn capacity(&self, now: Instant) -> usize {
        let rows_max = match self.pause {
            None => ROWS_IN_FLIGHT_MAX,
            Some(_) if self.paused_until.is_none_or(|until| until <= now) => 1,
            Some(_) => 0,
        };
        rows_max.saturating_sub(self.in_flight)
    }

    fn record(&mut self, is_confirmed: bool, now: Instant) {
        self.in_flight -= 1;
        if is_confirmed {
            (self.pause, self.paused_until) = (None, None);
        } else if self.paused_until.is_none_or(|until| until <= now) {
            let pause = self.pause.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX));
            (self.pause, self.paused_until) = (Some(pause), Some(now + pause));
        }
    }
}

impl Outbox {
    /// Publishes the rows that arrive, and those to take over, until no further row arrives.
    pub async fn run(self, mut rows: mpsc::Receiver<OutboxRow>, shutdown: Shutdown) {
        let mut kinds: HashMap<MessageKind, KindState> = HashMap::new();
        let mut publishing = FuturesUnordered::new();
        let mut take_over = tokio::time::interval(TAKE_OVER_INTERVAL);
        let mut drop_old = tokio::time::interval(DROP_INTERVAL);
        let mut has_ended = false;
        while !has_ended || !publishing.is_empty() {
            tokio::select! {
                row = rows.recv(), if !has_ended => match row {
                    Some(row) => {
                        let state = kinds.entry(row.kind).or_default();
                        // Without capacity, the row is taken over when it is due.
                        if state.pause.is_none() && state.capacity(Instant::now()) > 0 {
                            state.in_flight += 1;
                            publishing.push(self.publish(row));
                        }
                    }
                    None => has_ended = true,
                },
                Some((kind, is_confirmed)) = publishing.next() => {
                    kinds.entry(kind).or_default().record(is_confirmed, Instant::now());
                }
                _ = take_over.tick(), if !shutdown.is_draining() => {
                    for &kind in MessageKind::ALL {
                        let state = kinds.entry(kind).or_default();
                        for row in self.take(kind, state.capacity(Instant::now())).await {
                            state.in_flight += 1;
                            publishing.push(self.publish(row));
                        }
                    }
                }
                _ = drop_old.tick(), if !shutdown.is_draining() => self.drop_old().await,
            }
        }
    }

    async fn take(&self, kind: MessageKind, rows: usize) -> Vec<OutboxRow> {
        if rows == 0 {
            return Vec::new();
        }
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        self.ledger.take_outbox(kind, rows).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "taking over the outbox failed, retrying");
            Vec::new()
        })
    }

    /// Publishes the messages of a row. Returns its kind, and whether all are confirmed.
    async fn publish(&self, row: OutboxRow) -> (MessageKind, bool) {
        let left = join_all(row.reports.iter().map(|report| self.publish_one(row.kind, report)));
        let left: Vec<_> = left.await.into_iter().flatten().collect();
        if !left.is_empty() {
            // Its exchange or its binding may be gone.
            let _ = timeout(PUBLISH_TIMEOUT, self.publisher.apply_topology()).await;
        }
        let recorded = if left.is_empty() {
            self.ledger.finish_outbox(row.id).await
        } else if left.len() < row.reports.len() {
            self.ledger.keep_in_outbox(row.id, &left).await
        } else {
            Ok(())
        };
        if let Err(error) = recorded {
            // The messages are published again, with the same message ids.
            tracing::warn!(%error, "recording confirmed messages failed");
        }
        (row.kind, left.is_empty())
    }

    /// Publishes the message of a report. Returns its attempt if the message is not confirmed.
    async fn publish_one(&self, kind: MessageKind, report: &JobReport) -> Option<AttemptId> {
        let message = Message::of_report(kind, report, &self.ladder)?;
        let published = timeout(PUBLISH_TIMEOUT, self.publisher.publish_once(&message)).await;
        (!published.unwrap_or(false)).then(|| report.job.attempt_id())
    }

    async fn drop_old(&self) {
        match self.ledger.drop_old_outcomes(self.config.max_age).await {
            Ok(0) => {}
            Ok(dropped) => {
                tracing::error!(
                    dropped,
                    max_age = ?self.config.max_age,
                    "outcomes that RabbitMQ has not confirmed were dropped"
                );
                self.metrics.outcomes_dropped.inc_by(dropped.unsigned_abs());
            }
            Err(error) => tracing::warn!(%error, "dropping old outcomes failed, retrying"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_is_not_confirmed_is_paused_for_longer_each_time_and_then_probed() {
        let mut now = Instant::now();
        let mut state = KindState::default();
        assert_eq!(state.capacity(now), ROWS_IN_FLIGHT_MAX);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            state.in_flight += 1;
            state.record(false, now);
            assert_eq!(state.capacity(now), 0);
            let until = state.paused_until.expect("paused");
            pauses.push((until - now).as_secs());
            now = until;
            assert_eq!(state.capacity(now), 1, "one row is the probe");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        state.in_flight += 1;
        state.record(true, now);
        assert_eq!(state.capacity(now), ROWS_IN_FLIGHT_MAX);
    }

    #[test]
    fn rows_in_flight_extend_no_pause() {
        let now = Instant::now();
        let mut state = KindState { in_flight: 3, ..KindState::default() };
        for _ in 0..3 {
            state.record(false, now);
        }
        assert_eq!(state.pause, Some(PAUSE_MIN));
    }
}
