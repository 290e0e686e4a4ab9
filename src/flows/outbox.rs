//! Publishes the messages of the outbox.
//!
//! Rows that this replica has just committed are published from memory. At intervals, rows that
//! are due, or whose replica is gone, are taken over. A message that RabbitMQ refuses, as it does
//! when the queue of a subscriber is full, is repeated after as long as it has waited already, up
//! to a limit. If RabbitMQ does not answer, the kind of message is paused, and then one row is
//! published as a probe. The kinds do not wait for each other.

#![expect(clippy::disallowed_methods, reason = "an edge: pauses start now")]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, timeout},
};

use crate::{
    broker::{Message, PublishAnswer, Publisher},
    job::{AttemptId, JobReport, MessageKind, OutboxRow},
    ledger::{self, Ledger},
    retry::Ladder,
    runtime::{metrics::Metrics, shutdown::Shutdown},
};

/// Settings of the outcomes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time after which an outcome that RabbitMQ does not confirm is dropped.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

/// Time between two checks for rows to take over.
const TAKE_OVER_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two checks for outcomes that are too old.
const DROP_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum time to publish a message. It ends before its row is due.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time for the database to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum rows of a kind whose messages are published at the same time.
const ROWS_IN_FLIGHT_MAX: usize = 16;
/// The first pause of a kind if RabbitMQ does not answer. Each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Maximum time between two publishes of an outcome.
const OUTCOME_REPEAT_MAX: Duration = Duration::from_secs(300);
/// Maximum time between two publishes of a retry or a failure.
const REPEAT_MAX: Duration = Duration::from_secs(5);

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

/// A row whose messages were published once.
struct PublishedRow {
    kind: MessageKind,
    started: Instant,
    /// Whether RabbitMQ has answered for every message.
    is_answered: bool,
    /// Whether a message was routed to no queue.
    is_unroutable: bool,
}

/// The state of a kind.
#[derive(Debug, Default)]
struct KindState {
    in_flight: usize,
    /// The last pause, if RabbitMQ has not answered since.
    pause: Option<Duration>,
    paused_until: Option<Instant>,
}

impl KindState {
    /// How many more rows may be published now.
    fn capacity(&self, now: Instant) -> usize {
        let rows_max = match self.paused_until {
            None => ROWS_IN_FLIGHT_MAX,
            Some(until) if until <= now => 1,
            Some(_) => 0,
        };
        rows_max.saturating_sub(self.in_flight)
    }

    /// Whether a row that was just committed is published now. The probe is one of the others.
    fn accepts_new(&self, now: Instant) -> bool {
        self.paused_until.is_none() && self.capacity(now) > 0
    }

    /// Records a row that was published. Returns whether a pause begins. Rows that were in flight
    /// when a pause began do not extend it.
    fn record(&mut self, row: &PublishedRow, now: Instant) -> bool {
        self.in_flight -= 1;
        if row.is_answered {
            (self.pause, self.paused_until) = (None, None);
            return false;
        }
        let begins = self.paused_until.is_none_or(|until| row.started >= until);
        if begins {
            let pause = self.pause.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX));
            (self.pause, self.paused_until) = (Some(pause), Some(now + pause));
        }
        begins
    }
}

impl Outbox {
    /// Publishes the rows that arrive, and those to take over, until no further row arrives.
    pub async fn run(self, mut rows: mpsc::Receiver<OutboxRow>, shutdown: Shutdown) {
        let outbox = Arc::new(self);
        let mut kinds: HashMap<MessageKind, KindState> = HashMap::new();
        let (mut publishing, mut taking) = (JoinSet::new(), JoinSet::new());
        // These end with this function.
        let (mut dropping, mut declaring) = (JoinSet::new(), JoinSet::new());
        dropping.spawn(outbox.clone().drop_old_outcomes());
        let mut take_over = tokio::time::interval(TAKE_OVER_INTERVAL);
        take_over.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_ended = false;
        while !has_ended || !publishing.is_empty() {
            let ready = tokio::select! {
                row = rows.recv(), if !has_ended => {
                    has_ended = row.is_none();
                    // Without capacity, a row is taken over when it is due.
                    let accepts = |row: &OutboxRow| {
                        kinds.entry(row.kind).or_default().accepts_new(Instant::now())
                    };
                    row.filter(accepts).into_iter().collect()
                }
                Some(Ok(taken)) = taking.join_next() => taken,
                Some(Ok(published)) = publishing.join_next() => {
                    let published: PublishedRow = published;
                    let state = kinds.entry(published.kind).or_default();
                    let pause_begins = state.record(&published, Instant::now());
                    while declaring.try_join_next().is_some() {}
                    // An exchange, a queue or a binding may be gone.
                    if (pause_begins || published.is_unroutable) && declaring.is_empty() {
                        declaring.spawn(outbox.clone().restore_topology());
                    }
                    Vec::new()
                }
                _ = take_over.tick(), if taking.is_empty() && !shutdown.is_draining() => {
                    let now = Instant::now();
                    let mut capacity = |kind| kinds.entry(kind).or_default().capacity(now);
                    let wanted = MessageKind::ALL.iter().map(|&kind| (kind, capacity(kind)));
                    taking.spawn(outbox.clone().take(wanted.collect()));
                    Vec::new()
                }
            };
            for row in ready {
                kinds.entry(row.kind).or_default().in_flight += 1;
                publishing.spawn(outbox.clone().publish(row));
            }
        }
    }

    /// Takes over up to as many rows of each kind as are wanted.
    async fn take(self: Arc<Self>, wanted: Vec<(MessageKind, usize)>) -> Vec<OutboxRow> {
        let mut taken = Vec::new();
        for (kind, rows) in wanted.into_iter().filter(|(_, rows)| *rows > 0) {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            let rows = answered("taking over the outbox", self.ledger.take_outbox(kind, rows));
            taken.extend(rows.await.unwrap_or_default());
        }
        taken
    }

    /// Publishes the messages of a row once, and records in the row what is left of it.
    async fn publish(self: Arc<Self>, row: OutboxRow) -> PublishedRow {
        let started = Instant::now();
        let published = match row.kind {
            MessageKind::Outcomes => self.publish_outcomes(&row).await,
            MessageKind::Retries | MessageKind::Failures => {
                join_all(row.reports.iter().map(|report| self.publish_one(&row, report)))
                    .await
                    .into_iter()
                    .flatten()
                    .collect()
            }
        };
        let any = |answer| published.iter().any(|(_, one)| *one == answer);
        let (is_answered, is_unroutable) =
            (!any(PublishAnswer::None), any(PublishAnswer::Unroutable));
        let is_confirmed =
            |answer: &(AttemptId, PublishAnswer)| answer.1 == PublishAnswer::Confirmed;
        let unconfirmed = published.into_iter().filter(|one| !is_confirmed(one));
        let left: Vec<_> = unconfirmed.map(|(attempt_id, _)| attempt_id).collect();
        // If that fails, the messages are published again, with the same message ids.
        if left.is_empty() {
            answered("deleting from the outbox", self.ledger.finish_outbox(row.id)).await;
        } else {
            let repeat_max = match row.kind {
                MessageKind::Outcomes => OUTCOME_REPEAT_MAX,
                MessageKind::Retries | MessageKind::Failures => REPEAT_MAX,
            };
            let kept = self.ledger.keep_in_outbox(row.id, &left, repeat_max);
            answered("keeping messages in the outbox", kept).await;
        }
        PublishedRow { kind: row.kind, started, is_answered, is_unroutable }
    }

    async fn publish_outcomes(&self, row: &OutboxRow) -> Vec<(AttemptId, PublishAnswer)> {
        let outcome = |report: &JobReport| {
            let message = Message::of_report(row.kind, report, &self.ladder)?;
            let span = row.spans.get(&report.job.id).cloned();
            Some((report.job.attempt_id(), (message, span)))
        };
        let (ids, outcomes): (Vec<_>, Vec<_>) = row.reports.iter().filter_map(outcome).unzip();
        let until = tokio::time::Instant::now() + PUBLISH_TIMEOUT;
        let answers = self.publisher.publish_outcomes_once(&outcomes, until).await;
        ids.into_iter().zip(answers).collect()
    }

    /// Publishes the message of a report. `None` if the report requires none.
    async fn publish_one(
        &self,
        row: &OutboxRow,
        report: &JobReport,
    ) -> Option<(AttemptId, PublishAnswer)> {
        let message = Message::of_report(row.kind, report, &self.ladder)?;
        let published = self.publisher.publish_once(&message, PUBLISH_TIMEOUT);
        let answer = match row.spans.get(&report.job.id) {
            Some(span) => span.within(published).await,
            None => published.await,
        };
        Some((report.job.attempt_id(), answer))
    }

    async fn restore_topology(self: Arc<Self>) {
        let _ = timeout(PUBLISH_TIMEOUT, self.publisher.restore_topology()).await;
    }

    async fn drop_old_outcomes(self: Arc<Self>) {
        loop {
            tokio::time::sleep(DROP_INTERVAL).await;
            let dropped = self.ledger.drop_old_outcomes(self.config.max_age);
            let dropped = answered("dropping old outcomes", dropped).await.unwrap_or_default();
            if dropped > 0 {
                tracing::error!(
                    dropped,
                    max_age = ?self.config.max_age,
                    "outcomes that RabbitMQ has not confirmed were dropped"
                );
                self.metrics.outcomes_dropped.inc_by(dropped.unsigned_abs());
            }
        }
    }
}

/// The answer of the database. `None`, after a warning, if there is none in time.
async fn answered<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, ledger::Error>>,
) -> Option<T> {
    match timeout(DATABASE_TIMEOUT, answer).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => tracing::warn!(%error, "{what} failed"),
        Err(_) => tracing::warn!("{what} took longer than {DATABASE_TIMEOUT:?}"),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unanswered(started: Instant) -> PublishedRow {
        let kind = MessageKind::Outcomes;
        PublishedRow { kind, started, is_answered: false, is_unroutable: false }
    }

    #[test]
    fn a_kind_without_an_answer_is_paused_for_longer_each_time_and_then_probed() {
        let mut now = Instant::now();
        let mut state = KindState::default();
        assert_eq!(state.capacity(now), ROWS_IN_FLIGHT_MAX);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            state.in_flight += 1;
            assert!(state.record(&unanswered(now), now));
            assert_eq!(state.capacity(now), 0);
            let until = state.paused_until.expect("paused");
            pauses.push((until - now).as_millis());
            now = until;
            assert_eq!(state.capacity(now), 1, "one row is the probe");
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 5000, 5000]);
        state.in_flight += 1;
        state.record(&PublishedRow { is_answered: true, ..unanswered(now) }, now);
        assert_eq!(state.capacity(now), ROWS_IN_FLIGHT_MAX);
    }

    #[test]
    fn rows_that_were_in_flight_extend_no_pause() {
        let start = Instant::now();
        let mut state = KindState { in_flight: 3, ..KindState::default() };
        let ends = [1, 4, 7].map(|seconds| start + Duration::from_secs(seconds));
        let begins = ends.map(|end| state.record(&unanswered(start), end));
        assert_eq!(begins, [true, false, false]);
        assert_eq!(state.pause, Some(PAUSE_MIN));
    }
}
