//! The two stages of a shutdown: first the intake ends, then, after the grace period, everything
//! else.
//!
//! RabbitMQ redelivers the messages of unfinished work, so nothing depends on whether the second
//! stage is reached.

use std::time::Duration;

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Settings of the shutdown.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Maximum time for the work in flight after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// The two stages of the shutdown, shared by all tasks.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Shutdown {
    /// A shutdown that starts with this one, or earlier on its own.
    pub fn child(&self) -> Self {
        Self { draining: self.draining.child_token(), ended: self.ended.child_token() }
    }

    /// Starts the first stage: no new work is started.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Starts the second stage: everything that still runs ends.
    pub fn end(&self) {
        self.draining.cancel();
        self.ended.cancel();
    }

    /// Whether the shutdown has started.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits for the first stage.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Waits for the second stage.
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
