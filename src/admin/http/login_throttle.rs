//! Slows down the guessing of tokens: a wrong token is answered later, the more of them the address
//! has presented.
//!
//! A right token is never delayed or refused, since many clients may share one address. Sessions do
//! not count: they are signed, and an expired session is not a guess. Each replica counts
//! separately.

#![expect(clippy::disallowed_methods, reason = "an edge: windows start when a token is refused")]

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

/// Delay of the response to the first wrong token of an address. Each further one is answered later
/// by the same amount.
const DELAY_STEP: Duration = Duration::from_millis(50);
/// Maximum delay of a response.
const DELAY_MAX: Duration = Duration::from_secs(3);
/// Maximum responses that are delayed at the same time. Further wrong tokens are refused at once.
const DELAYED_MAX: usize = 64;
/// Time after which a wrong token no longer counts. It starts again with each wrong token.
const WINDOW: Duration = Duration::from_mins(1);
/// Wrong tokens per address that are logged, until it has presented none for [`WINDOW`].
const LOGGED_MAX: u32 = 30;
/// Maximum addresses that are counted separately. All others share one count.
const ADDRESSES_MAX: usize = 10_000;
/// Key of the shared count.
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Wrong tokens per address.
#[derive(Debug)]
pub struct LoginThrottle {
    counts: Mutex<HashMap<IpAddr, FailureCount>>,
    /// One permit per delayed response.
    delayed: Semaphore,
}

#[derive(Debug)]
struct FailureCount {
    ends: Instant,
    failures: u32,
}

/// Too many responses are delayed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyDelayed {
    /// Time after which the client may send another token.
    pub(crate) retry_after: Duration,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self { counts: Mutex::default(), delayed: Semaphore::new(DELAYED_MAX) }
    }
}

impl LoginThrottle {
    /// Counts a wrong token of `peer`, and waits until it may be answered.
    pub(crate) async fn delay(&self, peer: IpAddr) -> Result<(), TooManyDelayed> {
        let delay = self.count(peer);
        let Ok(_permit) = self.delayed.try_acquire() else {
            return Err(TooManyDelayed { retry_after: DELAY_MAX });
        };
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Counts a wrong token, and returns the delay of its response.
    fn count(&self, peer: IpAddr) -> Duration {
        let (mut counts, now) = (self.counts(), Instant::now());
        let mut key = network(peer);
        if counts.len() >= ADDRESSES_MAX && !counts.contains_key(&key) {
            counts.retain(|_, count| count.ends > now);
            if counts.len() >= ADDRESSES_MAX {
                key = OTHERS;
            }
        }
        let count = counts.entry(key).or_insert(FailureCount { ends: now, failures: 0 });
        if count.ends <= now {
            count.failures = 0;
        }
        count.ends = now + WINDOW;
        count.failures = count.failures.saturating_add(1);
        match count.failures {
            LOGGED_MAX => tracing::warn!(
                %peer,
                "{LOGGED_MAX} wrong tokens; further ones are not logged until there are none for \
                    {WINDOW:?}"
            ),
            failures if failures < LOGGED_MAX => {
                tracing::info!(%peer, "a wrong token was refused");
            }
            _ => {}
        }
        DELAY_STEP.saturating_mul(count.failures).min(DELAY_MAX)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, FailureCount>> {
        // An inexact count is better than none.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
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
    use futures_util::future::join_all;

    use super::*;

    fn delay(login_throttle: &LoginThrottle, peer: &str) -> Duration {
        login_throttle.count(peer.parse().expect("an address"))
    }

    #[tokio::test(start_paused = true)]
    async fn each_wrong_token_is_answered_later_up_to_a_limit() {
        let login_throttle = LoginThrottle::default();
        assert_eq!(delay(&login_throttle, "10.0.0.1"), DELAY_STEP);
        assert_eq!(delay(&login_throttle, "10.0.0.1"), DELAY_STEP * 2);
        assert_eq!(delay(&login_throttle, "10.0.0.2"), DELAY_STEP, "another address");
        for _ in 0..100 {
            delay(&login_throttle, "10.0.0.1");
        }
        assert_eq!(delay(&login_throttle, "10.0.0.1"), DELAY_MAX);
        tokio::time::advance(WINDOW).await;
        assert_eq!(delay(&login_throttle, "10.0.0.1"), DELAY_STEP, "a new window has started");
    }

    #[tokio::test(start_paused = true)]
    async fn responses_beyond_the_limit_are_not_delayed_but_refused() {
        let login_throttle = LoginThrottle::default();
        let peer = [10, 0, 0, 1].into();
        let guesses = join_all((0..DELAYED_MAX + 3).map(|_| login_throttle.delay(peer))).await;
        let refused = guesses.iter().filter(|guess| guess.is_err()).count();
        assert_eq!(refused, 3);
        assert_eq!(login_throttle.delay(peer).await, Ok(()), "the others have been answered");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_ipv4() {
        let login_throttle = LoginThrottle::default();
        delay(&login_throttle, "2001:db8::1");
        assert_eq!(delay(&login_throttle, "2001:db8::2:ffff"), DELAY_STEP * 2);
        assert_eq!(delay(&login_throttle, "2001:db8:0:1::1"), DELAY_STEP);
        delay(&login_throttle, "::ffff:10.0.0.1");
        assert_eq!(delay(&login_throttle, "10.0.0.1"), DELAY_STEP * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_counted_addresses_is_bounded() {
        let login_throttle = LoginThrottle::default();
        let address = |number: usize| {
            IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).expect("small")))
        };
        for number in 0..ADDRESSES_MAX * 2 {
            login_throttle.count(address(number));
        }
        assert_eq!(login_throttle.counts().len(), ADDRESSES_MAX + 1);
        assert_eq!(login_throttle.count(address(ADDRESSES_MAX)), DELAY_MAX);
        assert_eq!(login_throttle.count(address(0)), DELAY_STEP * 2);
        tokio::time::advance(WINDOW).await;
        assert_eq!(login_throttle.count(address(ADDRESSES_MAX * 2)), DELAY_STEP);
        assert_eq!(login_throttle.counts().len(), 1);
    }
}
