//! Limits the batches in flight according to the latency of Customer.io.
//!
//! A batch works (claim, encode, settle) and waits for its calls. While calls are fast,
//! `sync.batches_in_flight` batches keep the service, PostgreSQL and RabbitMQ busy. A batch that
//! works for W and waits for L works for W / (W + L) of its time. So (W + L) / W times as many
//! batches keep as many at work on average (Little's law). Batches that start together also wait
//! together, so more are in flight. A latency that has increased shows before the calls end: all
//! batches in flight wait for them.
//!
//! A batch that would be small waits for the others to get out of its way, and starts with what has
//! arrived meanwhile ([`BatchLimit::wait_for_others`]).

#![expect(clippy::disallowed_methods, reason = "an edge: how long calls have taken so far")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::broker::WindowLimit;

/// Weight of a new value in the averages.
const WEIGHT: f64 = 0.2;
/// Batches that wait, per batch that Little's law requires to wait.
const WAITING_FACTOR: f64 = 2.0;
/// Less work than this is not measured with enough precision, in seconds.
const WORK_MIN: f64 = 0.005;
/// Interval at which a batch that may not start yet checks whether all others wait for calls.
const IDLE_CHECK: Duration = Duration::from_millis(10);

/// Maximum time that a small batch waits for others.
const OTHERS_WAIT: Duration = Duration::from_millis(10);
/// Interval at which a batch that waits checks whether it has become large.
const LARGE_CHECK: Duration = Duration::from_millis(1);

/// Limits the batches in flight, and the deliveries that are held for them.
#[derive(Debug)]
pub struct BatchLimit {
    /// Batches in flight while calls are fast.
    min: usize,
    max: usize,
    permits: Arc<Semaphore>,
    /// Unacknowledged deliveries per queue while calls are fast.
    prefetch: u16,
    window: WindowLimit,
    state: Mutex<LimitState>,
    /// Notified when a batch ends or begins its calls.
    progress: Notify,
}

#[derive(Debug, Default)]
struct LimitState {
    /// Permits that exist.
    granted: usize,
    /// Averages, in seconds.
    claim: f64,
    settle: f64,
    call: f64,
    /// When the calls of each batch began, in this order.
    calling: BTreeMap<u64, Instant>,
    calls_begun: u64,
}

/// The calls of a batch, until it is dropped.
pub(super) struct CallsGuard<'a> {
    limit: &'a BatchLimit,
    number: u64,
}

impl Drop for CallsGuard<'_> {
    fn drop(&mut self) {
        self.limit.state().calling.remove(&self.number);
    }
}

impl BatchLimit {
    /// At least `min` batches, and at most `max`. `prefetch` deliveries per queue are held for
    /// `min` batches.
    pub fn new(min: usize, max: usize, prefetch: u16) -> Self {
        Self {
            min,
            max: max.max(min),
            permits: Arc::new(Semaphore::new(min)),
            prefetch,
            window: WindowLimit::new(prefetch),
            state: Mutex::new(LimitState { granted: min, ..LimitState::default() }),
            progress: Notify::new(),
        }
    }

    /// The unacknowledged deliveries per queue, which grow with the batches in flight.
    pub(super) fn window(&self) -> WindowLimit {
        self.window.clone()
    }

    /// Maximum unacknowledged deliveries per queue.
    pub(super) fn deliveries_max(&self) -> usize {
        usize::from(self.prefetch) * self.window_factor(self.max)
    }

    /// Waits until another batch may start. It is in flight until the permit is dropped.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        loop {
            self.adjust();
            let permit = self.permits.clone().acquire_owned();
            match timeout(IDLE_CHECK, permit).await {
                Ok(permit) => return permit.expect("the semaphore is never closed"),
                Err(_) => self.note_idle_time(),
            }
        }
    }

    /// Waits until no other batch is working or the caller's is large, for at most [`OTHERS_WAIT`].
    /// The caller holds a permit.
    ///
    /// Each batch costs a fixed number of statements. Small batches that run side by side slow each
    /// other down by more than the wait for the next batch costs a message.
    pub(super) async fn wait_for_others(&self, is_large: impl Fn() -> bool) {
        let waiting = async {
            loop {
                let progress = self.progress.notified();
                if is_large() || !self.another_is_working() {
                    return;
                }
                let _ = timeout(LARGE_CHECK, progress).await;
            }
        };
        let _ = timeout(OTHERS_WAIT, waiting).await;
    }

    /// Whether a batch other than the caller's is in flight and not in its calls. The calls of
    /// operators have no permit; while they are in flight, this may miss a batch.
    fn another_is_working(&self) -> bool {
        let state = self.state();
        let in_flight = state.granted.saturating_sub(self.permits.available_permits());
        in_flight > 1 + state.calling.len()
    }

    /// Ends a batch: returns its permit, or withdraws it if fewer batches are wanted.
    pub(super) fn end(&self, permit: OwnedSemaphorePermit) {
        let mut state = self.state();
        if state.granted > self.wanted(&state) {
            state.granted -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
        self.progress.notify_waiters();
    }

    /// Records the time that a claim took.
    pub(super) fn record_claim(&self, took: Duration) {
        let mut state = self.state();
        state.claim = average(state.claim, took);
    }

    /// Records that the calls of a batch begin.
    pub(super) fn begin_calls(&self) -> CallsGuard<'_> {
        let mut state = self.state();
        state.calls_begun += 1;
        let number = state.calls_begun;
        state.calling.insert(number, Instant::now());
        self.progress.notify_waiters();
        CallsGuard { limit: self, number }
    }

    /// If all batches in flight wait for their calls, they take at least as long as the oldest.
    fn note_idle_time(&self) {
        let mut state = self.state();
        if state.calling.len() >= state.granted
            && let Some((_, oldest)) = state.calling.first_key_value()
        {
            state.call = state.call.max(oldest.elapsed().as_secs_f64());
        }
    }

    /// Records the time from the first call of a batch until all are settled, and the duration of
    /// the longest call.
    pub(super) fn record_calls(&self, took: Duration, longest: Duration) {
        let mut state = self.state();
        state.settle = average(state.settle, took.saturating_sub(longest));
        state.call = average(state.call, longest);
    }

    /// Grants and withdraws permits. One that is in use is withdrawn later.
    fn adjust(&self) {
        let mut state = self.state();
        let wanted = self.wanted(&state);
        if wanted > state.granted {
            self.permits.add_permits(wanted - state.granted);
            state.granted = wanted;
        } else {
            state.granted -= self.permits.forget_permits(state.granted - wanted);
        }
        self.adjust_window(wanted);
    }

    /// Each change replaces the consumers. So the window grows in powers of two, and narrows only
    /// when a quarter of it suffices.
    fn adjust_window(&self, batches: usize) {
        let needed = usize::from(self.prefetch).saturating_mul(self.window_factor(batches));
        let needed = u16::try_from(needed).unwrap_or(u16::MAX);
        let current = self.window.get();
        if needed > current || needed <= current / 4 || needed == self.prefetch {
            self.window.set(needed);
        }
    }

    fn wanted(&self, state: &LimitState) -> usize {
        let work = (state.claim + state.settle).max(WORK_MIN);
        let wanted =
            (self.min as f64 * (work + WAITING_FACTOR * state.call) / work).round() as usize;
        wanted.clamp(self.min, self.max)
    }

    fn window_factor(&self, batches: usize) -> usize {
        batches.div_ceil(self.min).next_power_of_two()
    }

    fn state(&self) -> MutexGuard<'_, LimitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first value counts alone.
fn average(before: f64, value: Duration) -> f64 {
    let value = value.as_secs_f64();
    if before == 0.0 { value } else { before + WEIGHT * (value - before) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Duration = Duration::from_millis(50);

    /// Records batches with calls of this duration, and returns the number of permits.
    fn permits_with(limit: &BatchLimit, call: Duration) -> usize {
        for _ in 0..100 {
            limit.record_claim(WORK);
            limit.record_calls(WORK + call, call);
        }
        limit.adjust();
        limit.permits.available_permits()
    }

    #[test]
    fn batches_that_wait_for_slow_calls_come_on_top() {
        let limit = BatchLimit::new(4, 32, 800);
        assert_eq!(permits_with(&limit, Duration::from_millis(1)), 4);
        assert_eq!(limit.window().get(), 800);
        assert_eq!(permits_with(&limit, Duration::from_millis(100)), 12);
        assert_eq!(limit.window().get(), 3200);
        assert_eq!(permits_with(&limit, Duration::from_secs(10)), 32);
        assert_eq!(limit.window().get(), 6400);
        assert_eq!(usize::from(limit.window().get()), limit.deliveries_max());
        assert_eq!(permits_with(&limit, Duration::from_millis(1)), 4);
        assert_eq!(limit.window().get(), 800);
    }

    #[tokio::test]
    async fn a_permit_in_use_is_withdrawn_when_its_batch_ends() {
        let limit = BatchLimit::new(1, 4, 100);
        permits_with(&limit, Duration::from_secs(10));
        let used = [limit.permit().await, limit.permit().await];
        assert_eq!(permits_with(&limit, Duration::ZERO), 0);
        for permit in used {
            limit.end(permit);
        }
        assert_eq!(limit.permits.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn batches_start_when_all_others_wait_for_slow_calls() {
        let limit = BatchLimit::new(2, 8, 100);
        let _in_flight = [limit.permit().await, limit.permit().await];
        let _first = limit.begin_calls();
        timeout(Duration::from_secs(10), limit.permit()).await.expect_err("the second one works");
        let second = limit.begin_calls();
        drop(timeout(2 * IDLE_CHECK, limit.permit()).await.expect("the others wait"));
        drop(second);
        assert_eq!(limit.state().calling.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_batch_waits_for_one_that_works_but_not_for_long() {
        let limit = BatchLimit::new(3, 3, 100);
        let waits = async |is_large: bool| {
            let began = Instant::now();
            limit.wait_for_others(|| is_large).await;
            began.elapsed()
        };
        let first = limit.permit().await;
        assert_eq!(waits(false).await, Duration::ZERO, "there is no other");
        let second = limit.permit().await;
        assert!(waits(false).await >= OTHERS_WAIT, "another one works");
        assert_eq!(waits(true).await, Duration::ZERO, "the batch is large");
        let (waited, calls) = tokio::join!(waits(false), async { limit.begin_calls() });
        assert_eq!(waited, Duration::ZERO, "the other one waits for calls");
        drop(calls);
        let (waited, ()) = tokio::join!(waits(false), async { limit.end(first) });
        assert_eq!(waited, Duration::ZERO, "the other one has ended");
        drop(second);
    }
}
