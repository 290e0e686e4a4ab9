//! Limits the calls per second to the rate that was granted, for as long as the grant lasts.

#![expect(clippy::disallowed_methods, reason = "an edge: calls wait for their time")]

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

/// A call this late does not delay the calls behind it: timers are not exact.
const LATENESS_MAX: Duration = Duration::from_millis(10);
/// Rates below this, about one call per quarter of an hour, count as zero.
const CALLS_PER_SECOND_MIN: f64 = 0.001;

/// The rate that this process may use, and until when.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Grant {
    calls_per_second: f64,
    until: Instant,
}

impl Grant {
    /// When the next call is due, if that is before the grant ends.
    fn next(self, last: Option<Instant>, now: Instant) -> Option<Instant> {
        if self.calls_per_second < CALLS_PER_SECOND_MIN {
            return None;
        }
        // The gap makes up for late calls, so that no second contains more calls than granted.
        let gap = (Duration::from_secs(1) + LATENESS_MAX).div_f64(self.calls_per_second);
        let due = last.map_or(now, |last| (last + gap).max(now - LATENESS_MAX));
        (due.max(now) < self.until).then_some(due)
    }
}

/// Limits calls per second. Without a grant no call is allowed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    grant: Arc<watch::Sender<Option<Grant>>>,
    /// When the last call was due. A waiting call keeps the lock, so that calls proceed in the
    /// order of arrival.
    last: Arc<Mutex<Option<Instant>>>,
}

impl RateLimiter {
    pub(super) fn new() -> Self {
        Self { grant: Arc::new(watch::Sender::new(None)), last: Arc::default() }
    }

    /// Grants `calls_per_second` until `until`. It replaces the previous grant.
    pub fn grant(&self, calls_per_second: f64, until: Instant) {
        self.grant.send_replace(Some(Grant { calls_per_second, until }));
    }

    /// The calls per second that are granted now; 0 without a grant.
    pub fn calls_per_second(&self) -> f64 {
        let granted = *self.grant.borrow();
        let granted = granted.filter(|grant| Instant::now() < grant.until);
        granted.map_or(0.0, |grant| grant.calls_per_second)
    }

    /// Whether a call is waiting.
    pub fn is_saturated(&self) -> bool {
        self.last.try_lock().is_err()
    }

    /// Waits until a call is allowed, and counts it.
    pub(super) async fn acquire(&self) {
        let mut last = self.last.lock().await;
        let mut grant = self.grant.subscribe();
        loop {
            let granted = *grant.borrow_and_update();
            let now = Instant::now();
            let next = granted.and_then(|grant| grant.next(*last, now));
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
                _ = grant.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn calls_within(rate_limiter: &RateLimiter, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut calls = 0;
        while tokio::time::timeout_at(end, rate_limiter.acquire()).await.is_ok() {
            calls += 1;
        }
        calls
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_calls_than_granted() {
        let rate_limiter = RateLimiter::new();
        for granted in [1.0, 7.0, 900.0] {
            rate_limiter.grant(granted, Instant::now() + 60 * SECOND);
            tokio::time::sleep(5 * SECOND).await;
            let made = calls_within(&rate_limiter, SECOND).await;
            assert!(
                made as f64 <= granted + 1.0 && made as f64 >= granted * 0.97,
                "{made} of {granted}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_call_is_allowed_without_a_grant_or_after_it() {
        let rate_limiter = RateLimiter::new();
        assert_eq!(calls_within(&rate_limiter, SECOND).await, 0);
        rate_limiter.grant(10.0, Instant::now() + SECOND);
        let made = calls_within(&rate_limiter, 10 * SECOND).await;
        assert!((9..=10).contains(&made), "{made}");
        rate_limiter.grant(0.0, Instant::now() + SECOND);
        assert_eq!(calls_within(&rate_limiter, SECOND).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_proceeds_when_more_is_granted() {
        let rate_limiter = RateLimiter::new();
        rate_limiter.grant(0.01, Instant::now() + 600 * SECOND);
        rate_limiter.acquire().await;
        let waiting = tokio::spawn({
            let rate_limiter = rate_limiter.clone();
            async move { rate_limiter.acquire().await }
        });
        tokio::time::sleep(SECOND).await;
        assert!(rate_limiter.is_saturated());
        rate_limiter.grant(1.0, Instant::now() + 600 * SECOND);
        tokio::time::timeout(2 * SECOND, waiting).await.expect("in time").expect("no panic");
        assert!(!rate_limiter.is_saturated());
    }
}
