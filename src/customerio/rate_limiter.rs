//! Paces the calls: so many a second, for as long as that is granted.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

/// How late a call may be and still not cost those after it their time. Timers are not exact.
const SLACK: Duration = Duration::from_millis(10);
/// Less than this is no share: a call every quarter of an hour.
const LEAST: f64 = 0.001;

/// What this process may use of the calls a second.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    calls_per_second: f64,
    until: Instant,
}

impl Share {
    /// When the next call is due, if one is while the share lasts.
    fn next(self, last: Option<Instant>, now: Instant) -> Option<Instant> {
        if self.calls_per_second < LEAST {
            return None;
        }
        // The slack is made up for, so that no second holds more calls than it may.
        let gap = (Duration::from_secs(1) + SLACK).div_f64(self.calls_per_second);
        let due = last.map_or(now, |last| (last + gap).max(now - SLACK));
        (due.max(now) < self.until).then_some(due)
    }
}

/// The calls a second that may be made now. Without a grant none are made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    share: Arc<watch::Sender<Option<Share>>>,
    /// When the last call was due. Whoever waits for a turn holds the lock, so that the first to
    /// come goes first.
    last: Arc<Mutex<Option<Instant>>>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { share: Arc::new(watch::Sender::new(None)), last: Arc::default() }
    }

    /// Grants so many calls a second until then. What was granted before is void.
    pub fn grant(&self, calls_per_second: f64, until: Instant) {
        self.share.send_replace(Some(Share { calls_per_second, until }));
    }

    /// Whether somebody waits for a turn.
    pub fn is_exhausted(&self) -> bool {
        self.last.try_lock().is_err()
    }

    /// Waits until a call may be made, and counts it.
    pub(super) async fn turn(&self) {
        let mut last = self.last.lock().await;
        let mut share = self.share.subscribe();
        loop {
            let granted = *share.borrow_and_update();
            let now = Instant::now();
            let next = granted.and_then(|share| share.next(*last, now));
            if let Some(due) = next.filter(|due| *due <= now) {
                *last = Some(due);
                return;
            }
            let is_due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = is_due => {}
                _ = share.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn turns_within(budget: &Budget, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut turns = 0;
        while tokio::time::timeout_at(end, budget.turn()).await.is_ok() {
            turns += 1;
        }
        turns
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_holds_no_more_calls_than_are_granted() {
        let budget = Budget::new();
        for granted in [1.0, 7.0, 900.0] {
            budget.grant(granted, Instant::now() + 60 * SECOND);
            tokio::time::sleep(5 * SECOND).await;
            let made = turns_within(&budget, SECOND).await;
            assert!(
                made as f64 <= granted + 1.0 && made as f64 >= granted * 0.97,
                "{made} of {granted}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_called_without_a_grant_or_after_it() {
        let budget = Budget::new();
        assert_eq!(turns_within(&budget, SECOND).await, 0);
        budget.grant(10.0, Instant::now() + SECOND);
        let made = turns_within(&budget, 10 * SECOND).await;
        assert!((9..=10).contains(&made), "{made}");
        budget.grant(0.0, Instant::now() + SECOND);
        assert_eq!(turns_within(&budget, SECOND).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_when_more_is_granted() {
        let budget = Budget::new();
        budget.grant(0.01, Instant::now() + 600 * SECOND);
        budget.turn().await;
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.turn().await }
        });
        tokio::time::sleep(SECOND).await;
        assert!(budget.is_exhausted());
        budget.grant(1.0, Instant::now() + 600 * SECOND);
        tokio::time::timeout(2 * SECOND, waiting).await.expect("in time").expect("no panic");
        assert!(!budget.is_exhausted());
    }
}
