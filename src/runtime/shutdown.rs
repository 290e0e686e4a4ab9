//! How the process stops: first it takes nothing new, then, when the grace time is over, it drops
//! what is left.
//!
//! Whatever is dropped is delivered again by the broker, so nothing depends on the second stage
//! being reached or not.

use std::time::Duration;

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Settings of stopping.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How long work in hand may go on after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// The two stages of stopping, shared by all tasks.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Lifecycle {
    /// Begins to stop: nothing new is taken.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends what is still going on.
    pub fn end(&self) {
        self.draining.cancel();
        self.ended.cancel();
    }

    /// Whether nothing new may be taken.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until nothing new may be taken.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Waits until everything has to end.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn stop_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
