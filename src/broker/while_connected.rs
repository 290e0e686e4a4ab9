//! Waits for what lapin promises no longer than the connection lives.
//!
//! A request that is made in the moment in which its connection dies may be forgotten: lapin 4.12.3
//! rejects what is pending once, and what comes after that stays pending for ever. Whoever waited
//! for it would hold its messages for as long.

use std::{pin::pin, time::Duration};

use lapin::{Channel, ConnectionState, ErrorKind};
use tokio::time::timeout;

use super::Error;

/// How often a wait looks whether its connection is there still.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits for `promised`. `None`: it was lost, and has not come within [`LOOK_EVERY`] of that being
/// seen.
pub(super) async fn unless_lost<T>(
    is_lost: impl Fn() -> bool,
    promised: impl Future<Output = T>,
) -> Option<T> {
    let mut promised = pin!(promised);
    let mut was_lost = false;
    loop {
        match timeout(LOOK_EVERY, &mut promised).await {
            Ok(kept) => return Some(kept),
            Err(_) if was_lost => return None,
            Err(_) => was_lost = is_lost(),
        }
    }
}

/// Makes a request on `channel`, which fails when the channel is lost.
pub(super) async fn request<T>(
    channel: &Channel,
    doing: &'static str,
    promised: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    let kept = unless_lost(|| !channel.status().connected(), promised).await;
    kept.unwrap_or_else(|| Err(lost())).map_err(Error::doing(doing))
}

/// The error of what was lost.
pub(super) fn lost() -> lapin::Error {
    ErrorKind::InvalidConnectionState(ConnectionState::Error).into()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_is_waited_for() {
        let slow = tokio::time::sleep(Duration::from_secs(3600));
        assert_eq!(unless_lost(|| false, slow).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_forgotten_is_given_up_when_the_connection_is_gone() {
        let looks = Cell::new(0);
        let is_lost = || {
            looks.set(looks.get() + 1);
            looks.get() > 100
        };
        assert_eq!(unless_lost(is_lost, pending::<()>()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_right_after_the_loss_counts() {
        let late = tokio::time::sleep(LOOK_EVERY * 3 / 2);
        assert_eq!(unless_lost(|| true, late).await, Some(()));
    }
}
