//! Bounds the guessing of tokens: after so many wrong ones from an address, none from there is
//! looked at for a while.
//!
//! Sessions are not counted: they are signed, and one that has expired is no guess. Each replica
//! counts for itself.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Wrong tokens of an address that are looked at in a [`WINDOW`]. A client with an outdated token
/// that asks every few seconds stays below.
const ALLOWED: u32 = 30;
/// It begins with an address's first wrong token.
const WINDOW: Duration = Duration::from_mins(1);
/// Addresses that are remembered at most. The others share one place.
const ADDRESSES: usize = 10_000;
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Who presented wrong tokens of late.
#[derive(Debug, Default)]
pub struct Guesses(Mutex<HashMap<IpAddr, Window>>);

#[derive(Debug)]
struct Window {
    ends: Instant,
    wrong: u32,
}

impl Guesses {
    /// How long no token of `peer` is looked at, if it has presented too many wrong ones.
    pub(crate) fn shut_out(&self, peer: IpAddr) -> Option<Duration> {
        let windows = self.windows();
        let window = windows.get(&network(peer)).or_else(|| windows.get(&OTHERS))?;
        let left = window.ends.saturating_duration_since(Instant::now());
        (window.wrong >= ALLOWED && !left.is_zero()).then_some(left)
    }

    /// Counts a wrong token.
    pub(crate) fn note_wrong(&self, peer: IpAddr) {
        let (mut windows, now) = (self.windows(), Instant::now());
        let mut from = network(peer);
        if windows.len() >= ADDRESSES && !windows.contains_key(&from) {
            windows.retain(|_, window| window.ends > now);
            if windows.len() >= ADDRESSES {
                from = OTHERS;
            }
        }
        let window = windows.entry(from).or_insert(Window { ends: now + WINDOW, wrong: 0 });
        if window.ends <= now {
            *window = Window { ends: now + WINDOW, wrong: 0 };
        }
        window.wrong += 1;
        if window.wrong == ALLOWED {
            tracing::warn!(%peer, "{ALLOWED} wrong tokens within {WINDOW:?}: none from there is \
                looked at until that is over");
        } else {
            tracing::info!(%peer, "a wrong token was presented");
        }
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<IpAddr, Window>> {
        // A count that is a little off is better than none.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom an address belongs to: in IPv6, whoever has one has the other addresses of its /64, too
/// (<https://www.rfc-editor.org/rfc/rfc6177>).
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

    fn guess(guesses: &Guesses, peer: IpAddr, times: u32) {
        for _ in 0..times {
            guesses.note_wrong(peer);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_too_often_is_shut_out_for_a_while_and_nobody_else_is() {
        let (guesses, peer, other) =
            (Guesses::default(), [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        guess(&guesses, peer, ALLOWED - 1);
        assert_eq!(guesses.shut_out(peer), None);
        tokio::time::advance(WINDOW / 4).await;
        guess(&guesses, peer, 1);
        assert_eq!((guesses.shut_out(peer), guesses.shut_out(other)), (Some(WINDOW / 4 * 3), None));
        tokio::time::advance(WINDOW / 4 * 3).await;
        assert_eq!(guesses.shut_out(peer), None);
        guess(&guesses, peer, 1);
        assert_eq!(guesses.shut_out(peer), None, "a new window has begun");
    }

    #[test]
    fn neighbours_in_ipv6_are_one_and_ipv4_is_ipv4_however_it_is_written() {
        let guesses = Guesses::default();
        let shut_out = |peer: &str| guesses.shut_out(peer.parse().expect("an address")).is_some();
        guess(&guesses, "2001:db8::1".parse().expect("an address"), ALLOWED);
        assert!(shut_out("2001:db8::2:ffff") && !shut_out("2001:db8:0:1::1"));
        guess(&guesses, "::ffff:10.0.0.1".parse().expect("an address"), ALLOWED);
        assert!(shut_out("10.0.0.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let guesses = Guesses::default();
        let address = |number: usize| {
            IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).expect("small")))
        };
        for number in 0..ADDRESSES * 2 {
            guess(&guesses, address(number), 1);
        }
        assert_eq!(guesses.windows().len(), ADDRESSES + 1);
        assert!(
            guesses.shut_out(address(0)).is_none()
                && guesses.shut_out(address(ADDRESSES)).is_some()
        );
        tokio::time::advance(WINDOW).await;
        assert!(guesses.shut_out(address(ADDRESSES)).is_none());
        guess(&guesses, address(ADDRESSES), 1);
        assert_eq!(guesses.windows().len(), 1);
    }
}
