//! When something worked last, for the probes.

#![expect(clippy::disallowed_methods, reason = "an edge: the age of the last success")]

use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Records when an operation succeeded last. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    last: Instant,
    /// The error of the last failure since then.
    problem: Option<String>,
}

impl Default for Heartbeat {
    /// A heartbeat that counts from now.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { last: Instant::now(), problem: None })))
    }
}

impl Heartbeat {
    /// Records a success.
    pub fn beat(&self) {
        *self.state() = State { last: Instant::now(), problem: None };
    }

    /// Records a failure.
    pub fn fail(&self, problem: impl Display) {
        self.state().problem = Some(problem.to_string());
    }

    /// Time since the last success.
    pub fn age(&self) -> Duration {
        self.state().last.elapsed()
    }

    /// Describes the last failure if there was no success within `limit`.
    pub fn overdue(&self, limit: Duration) -> Option<String> {
        let state = self.state();
        let age = state.last.elapsed();
        let problem = state.problem.as_deref().unwrap_or("no answer");
        (age > limit).then(|| format!("none for {} s: {problem}", age.as_secs()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
