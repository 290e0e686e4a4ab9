//! Waiting for a condition, with a limit.

use std::time::Duration;

/// Maximum time that a test waits for anything.
pub(super) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Calls `poll` until it returns a value.
pub(crate) async fn wait_for<T, F: Future<Output = Option<T>>>(
    what: &str,
    poll: impl FnMut() -> F,
) -> T {
    wait_up_to(WAIT_TIMEOUT, what, poll).await
}

/// As [`wait_for`], with another limit.
pub(crate) async fn wait_up_to<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut poll: impl FnMut() -> F,
) -> T {
    let polling = async {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            if let Some(value) = poll().await {
                return value;
            }
        }
    };
    tokio::time::timeout(limit, polling)
        .await
        .unwrap_or_else(|_| panic!("waited {limit:?} for {what}"))
}
