//! Leaving Customer.io alone for as long as it asked.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// The longest time that calls are held, whatever was asked.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Until when calls are held.
#[derive(Debug)]
pub(super) struct Hold(watch::Sender<Instant>);

impl Default for Hold {
    fn default() -> Self {
        Self(watch::Sender::new(Instant::now()))
    }
}

impl Hold {
    /// Holds all calls for `wait` from now, or longer if that was asked before.
    pub(super) fn extend(&self, wait: Duration) {
        let until = Instant::now() + wait.min(LONGEST);
        self.0.send_if_modified(|current| {
            let is_later = until > *current;
            if is_later {
                *current = until;
            }
            is_later
        });
    }

    /// For how long calls are held from now.
    pub(super) fn rest(&self) -> Option<Duration> {
        let until = *self.0.borrow();
        until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
    }

    /// Whether calls are held now.
    pub(super) fn is_on(&self) -> bool {
        self.rest().is_some()
    }

    /// Waits until calls are no longer held.
    pub(super) async fn over(&self) {
        while self.is_on() {
            let until = *self.0.borrow();
            tokio::time::sleep_until(until).await;
        }
    }
}
