//! Whether the batches in flight make progress, for `/healthz`.

#![expect(clippy::disallowed_methods, reason = "an edge: the age of the last progress")]

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// When each batch in flight made progress last.
#[derive(Debug, Default)]
pub struct BatchProgress {
    batches: Mutex<HashMap<u64, Instant>>,
    next: AtomicU64,
}

/// The progress of one batch, until it is dropped.
pub(super) struct ProgressGuard<'a> {
    progress: &'a BatchProgress,
    id: u64,
}

impl BatchProgress {
    /// Time without progress of the batch that has had none for longest. Zero without a batch.
    pub fn longest_pause(&self) -> Duration {
        self.batches().values().map(Instant::elapsed).max().unwrap_or_default()
    }

    /// Counts the time up to now as progress of every batch: it had to wait for something else.
    pub fn excuse(&self) {
        for last in self.batches().values_mut() {
            *last = Instant::now();
        }
    }

    pub(super) fn begin(&self) -> ProgressGuard<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.batches().insert(id, Instant::now());
        ProgressGuard { progress: self, id }
    }

    fn batches(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressGuard<'_> {
    /// Records progress.
    pub(super) fn advance(&self) {
        self.progress.batches().insert(self.id, Instant::now());
    }
}

impl Drop for ProgressGuard<'_> {
    fn drop(&mut self) {
        self.progress.batches().remove(&self.id);
    }
}
