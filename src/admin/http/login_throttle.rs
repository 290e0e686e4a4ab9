//! Limits guessing of tokens: after too many wrong tokens from one address, further tokens from it
//! are refused unchecked for a while.
//!
//! Sessions do not count: they are signed, and an expired session is not a guess. Each replica
//! counts separately.

#![expect(clippy::disallowed_methods, reason = "an edge: windows start when a token is refused")]

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Maximum wrong tokens per address and [`WINDOW`]. A client with an outdated token that sends a
/// request every few seconds stays below it.
const FAILURES_MAX: u32 = 30;
/// Duration of a window. It starts with the first wrong token.
const WINDOW: Duration = Duration::from_mins(1);
/// Maximum addresses that are counted separately. All others share one window.
const ADDRESSES_MAX: usize = 10_000;
/// Key of the shared window.
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Wrong tokens per address.
#[derive(Debug, Default)]
pub struct LoginThrottle(Mutex<HashMap<IpAddr, Window>>);

#[derive(Debug)]
struct Window {
    ends: Instant,
    failures: u32,
}

impl LoginThrottle {
    /// Returns how long tokens of `peer` are refused unchecked. `None` if they are checked.
    pub(crate) fn blocked_for(&self, peer: IpAddr) -> Option<Duration> {
        let windows = self.windows();
        let window = windows.get(&network(peer)).or_else(|| windows.get(&OTHERS))?;
        let left = window.ends.saturating_duration_since(Instant::now());
        (window.failures >= FAILURES_MAX && !left.is_zero()).then_some(left)
    }

    /// Counts a wrong token.
    pub(crate) fn record_failure(&self, peer: IpAddr) {
        let (mut windows, now) = (self.windows(), Instant::now());
        let mut key = network(peer);
        if windows.len() >= ADDRESSES_MAX && !windows.contains_key(&key) {
            windows.retain(|_, window| window.ends > now);
            if windows.len() >= ADDRESSES_MAX {
                key = OTHERS;
            }
        }
        let window = windows.entry(key).or_insert(Window { ends: now + WINDOW, failures: 0 });
        if window.ends <= now {
            *window = Window { ends: now + WINDOW, failures: 0 };
        }
        window.failures += 1;
        if window.failures == FAILURES_MAX {
            tracing::warn!(
                %peer,
                "{FAILURES_MAX} wrong tokens within {WINDOW:?}; further tokens are refused until \
                    the window ends"
            );
        } else {
            tracing::info!(%peer, "a wrong token was refused");
        }
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<IpAddr, Window>> {
        // An inexact count is better than none.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the network that is counted as one client: the IPv4 address, or the /64 of an IPv6
/// address, since a site has at least that (<https://www.rfc-editor.org/rfc/rfc6177>).
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(login_throttle: &LoginThrottle, peer: IpAddr, times: u32) {
        for _ in 0..times {
            login_throttle.record_failure(peer);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_wrong_tokens_block_their_address_for_a_while() {
        let (login_throttle, peer, other) =
            (LoginThrottle::default(), [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        guess(&login_throttle, peer, FAILURES_MAX - 1);
        assert_eq!(login_throttle.blocked_for(peer), None);
        tokio::time::advance(WINDOW / 4).await;
        guess(&login_throttle, peer, 1);
        assert_eq!(
            (login_throttle.blocked_for(peer), login_throttle.blocked_for(other)),
            (Some(WINDOW / 4 * 3), None)
        );
        tokio::time::advance(WINDOW / 4 * 3).await;
        assert_eq!(login_throttle.blocked_for(peer), None);
        guess(&login_throttle, peer, 1);
        assert_eq!(login_throttle.blocked_for(peer), None, "a new window has started");
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_ipv4() {
        let login_throttle = LoginThrottle::default();
        let blocked_for =
            |peer: &str| login_throttle.blocked_for(peer.parse().expect("an address")).is_some();
        guess(&login_throttle, "2001:db8::1".parse().expect("an address"), FAILURES_MAX);
        assert!(blocked_for("2001:db8::2:ffff") && !blocked_for("2001:db8:0:1::1"));
        guess(&login_throttle, "::ffff:10.0.0.1".parse().expect("an address"), FAILURES_MAX);
        assert!(blocked_for("10.0.0.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_windows_is_bounded() {
        let login_throttle = LoginThrottle::default();
        let address = |number: usize| {
            IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).expect("small")))
        };
        for number in 0..ADDRESSES_MAX * 2 {
            guess(&login_throttle, address(number), 1);
        }
        assert_eq!(login_throttle.windows().len(), ADDRESSES_MAX + 1);
        assert!(
            login_throttle.blocked_for(address(0)).is_none()
                && login_throttle.blocked_for(address(ADDRESSES_MAX)).is_some()
        );
        tokio::time::advance(WINDOW).await;
        assert!(login_throttle.blocked_for(address(ADDRESSES_MAX)).is_none());
        guess(&login_throttle, address(ADDRESSES_MAX), 1);
        assert_eq!(login_throttle.windows().len(), 1);
    }
}
