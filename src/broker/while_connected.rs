//! Waits for lapin only while the connection lives.
//!
//! lapin 4.12.3 rejects pending requests once, when the connection dies. A request made just after
//! that never completes, and a task that waited for it would keep its messages unacknowledged
//! forever.

use std::{pin::pin, time::Duration};

use lapin::{Channel, ConnectionState, ErrorKind};
use tokio::time::timeout;

use super::Error;

/// Time between two checks of the connection.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits for `response`. Returns `None` if the connection is lost and the response has not arrived
/// within [`CHECK_INTERVAL`] after that was noticed.
pub(super) async fn while_connected<T>(
    is_disconnected: impl Fn() -> bool,
    response: impl Future<Output = T>,
) -> Option<T> {
    let mut response = pin!(response);
    let mut was_disconnected = false;
    loop {
        match timeout(CHECK_INTERVAL, &mut response).await {
            Ok(response) => return Some(response),
            Err(_) if was_disconnected => return None,
            Err(_) => was_disconnected = is_disconnected(),
        }
    }
}

/// Waits for the response to a request on `channel`. Fails when the channel is lost.
pub(super) async fn request<T>(
    channel: &Channel,
    doing: &'static str,
    response: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    let response = while_connected(|| !channel.status().connected(), response).await;
    response.unwrap_or_else(|| Err(connection_lost())).map_err(Error::doing(doing))
}

/// The error of a request whose connection was lost.
pub(super) fn connection_lost() -> lapin::Error {
    ErrorKind::InvalidConnectionState(ConnectionState::Error).into()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_response_is_awaited() {
        let slow = tokio::time::sleep(Duration::from_secs(3600));
        assert_eq!(while_connected(|| false, slow).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_request_ends_with_its_connection() {
        let checks = Cell::new(0);
        let is_disconnected = || {
            checks.set(checks.get() + 1);
            checks.get() > 100
        };
        assert_eq!(while_connected(is_disconnected, pending::<()>()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_right_after_the_loss_counts() {
        let late = tokio::time::sleep(CHECK_INTERVAL * 3 / 2);
        assert_eq!(while_connected(|| true, late).await, Some(()));
    }
}
