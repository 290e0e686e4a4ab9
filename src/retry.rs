//! Decides what happens to a job after an attempt: complete, retry on a tier, or fail. Pure: no
//! clock, no I/O.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;

use crate::job::{Outcome, Reason, Verdict};

/// Settings of the retry ladder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The delay tiers, first retry first.
    pub delays: Ladder,
}

/// One delay tier: a queue that returns its messages after `delay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Delay as written in the settings, such as `5s`. It is part of the exchange's and the queue's
    /// name.
    pub name: String,
    /// Time that a message stays in the queue.
    pub delay: Duration,
}

/// The delay tiers in the order in which a job climbs them. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Ladder(Vec<Tier>);

/// An invalid list of delays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LadderError {
    /// The list is empty.
    #[error("expected at least one duration, such as 5s,25s,125s")]
    Empty,
    /// An entry is not a duration.
    #[error("{0:?} is not a duration; expected one such as 200ms, 5s or 2m")]
    NotADuration(String),
    /// An entry is out of range, or longer than 32 bytes. RabbitMQ accepts whole milliseconds, here
    /// up to the maximum of an `i32` (24 days), and names of up to 255 bytes.
    #[error("{0:?} is out of range; expected 1ms to 24days")]
    OutOfRange(String),
    /// The list is longer than any useful ladder.
    #[error("{0} delays are too many; expected at most 20")]
    TooMany(usize),
}

impl FromStr for Ladder {
    type Err = LadderError;

    fn from_str(text: &str) -> Result<Self, LadderError> {
        let tiers = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(Tier::from_str)
            .collect::<Result<Vec<_>, _>>()?;
        match tiers.len() {
            0 => Err(LadderError::Empty),
            1..=20 => Ok(Self(tiers)),
            count => Err(LadderError::TooMany(count)),
        }
    }
}

impl TryFrom<String> for Ladder {
    type Error = LadderError;

    fn try_from(text: String) -> Result<Self, LadderError> {
        text.parse()
    }
}

impl FromStr for Tier {
    type Err = LadderError;

    fn from_str(text: &str) -> Result<Self, LadderError> {
        const MAX_DELAY: Duration = Duration::from_secs(24 * 24 * 3600);
        let delay = humantime::parse_duration(text)
            .map_err(|_| LadderError::NotADuration(text.to_owned()))?;
        if delay < Duration::from_millis(1) || delay > MAX_DELAY || text.len() > 32 {
            return Err(LadderError::OutOfRange(text.to_owned()));
        }
        Ok(Self { name: text.to_owned(), delay })
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Ladder {
    /// Returns the tiers, first retry first.
    pub fn tiers(&self) -> &[Tier] {
        &self.0
    }

    /// Returns the number of retries, which is the number of tiers.
    pub fn max_attempts(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    /// Returns the tier for a message that must wait at least `wait`: the shortest one that is long
    /// enough, else the longest.
    ///
    /// A message waits on such a tier if it arrives before its job is due, or while another message
    /// owns the claim on its job.
    pub fn waiting_for(&self, wait: Duration) -> &Tier {
        let long_enough =
            self.0.iter().filter(|tier| tier.delay >= wait).min_by_key(|tier| tier.delay);
        long_enough.unwrap_or_else(|| self.longest())
    }

    /// Returns the tier of the next retry after `attempt` scheduled ones, or `None` after the last
    /// tier.
    fn step(&self, attempt: i32, retry_after: Option<Duration>) -> Option<&Tier> {
        let own = self.0.get(usize::try_from(attempt).ok()?)?;
        Some(match retry_after {
            Some(wait) if wait > own.delay => self.waiting_for(wait),
            _ => own,
        })
    }

    fn longest(&self) -> &Tier {
        self.0.iter().max_by_key(|tier| tier.delay).expect("a ladder has at least one tier")
    }
}

/// Decides what happens to a job after `outcome`. `attempt` is the number of retries scheduled so
/// far, `max_attempts` its limit.
pub fn decide(outcome: Outcome, attempt: i32, max_attempts: i32, ladder: &Ladder) -> Verdict {
    match outcome {
        Outcome::Accepted => Verdict::Complete,
        Outcome::Refused(failure) => Verdict::Fail { reason: Reason::Permanent, failure },
        Outcome::Retryable { failure, retry_after } => match ladder.step(attempt, retry_after) {
            Some(Tier { name, delay }) if attempt < max_attempts => {
                Verdict::Retry { tier: name.clone(), wait: *delay, failure }
            }
            _ => Verdict::Fail { reason: Reason::Exhausted, failure },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Failure, FailureCause};

    fn ladder() -> Ladder {
        "5s,25s,125s,625s,3125s".parse().expect("the default ladder")
    }

    fn failure() -> Failure {
        Failure::new(FailureCause::ServerError, "503")
    }

    fn after_failure(attempt: i32, retry_after: Option<u64>) -> Verdict {
        let retry_after = retry_after.map(Duration::from_secs);
        decide(Outcome::Retryable { failure: failure(), retry_after }, attempt, 5, &ladder())
    }

    fn tier_of(verdict: Verdict) -> String {
        match verdict {
            Verdict::Retry { tier, .. } => tier,
            other => panic!("expected a retry, got {other:?}"),
        }
    }

    #[test]
    fn the_five_retries_climb_the_five_tiers() {
        let names: Vec<_> = (0..5).map(|attempt| tier_of(after_failure(attempt, None))).collect();
        assert_eq!(names, ["5s", "25s", "125s", "625s", "3125s"]);
        let total: Duration = ladder().tiers().iter().map(|tier| tier.delay).sum();
        assert_eq!(total, Duration::from_secs(3905));
    }

    #[test]
    fn a_failure_after_the_last_tier_exhausts_the_job() {
        assert_eq!(
            after_failure(5, None),
            Verdict::Fail { reason: Reason::Exhausted, failure: failure() }
        );
    }

    #[test]
    fn a_refusal_fails_at_once() {
        let verdict = decide(Outcome::Refused(failure()), 0, 5, &ladder());
        assert_eq!(verdict, Verdict::Fail { reason: Reason::Permanent, failure: failure() });
    }

    #[test]
    fn an_acceptance_completes_at_any_attempt() {
        assert_eq!(decide(Outcome::Accepted, 5, 5, &ladder()), Verdict::Complete);
    }

    #[test]
    fn retry_after_selects_a_longer_tier_but_never_a_shorter_one() {
        assert_eq!(tier_of(after_failure(0, Some(3))), "5s");
        assert_eq!(tier_of(after_failure(0, Some(5))), "5s");
        assert_eq!(tier_of(after_failure(0, Some(6))), "25s");
        assert_eq!(tier_of(after_failure(0, Some(600))), "625s");
        assert_eq!(tier_of(after_failure(2, Some(6))), "125s");
        assert_eq!(tier_of(after_failure(1, Some(99_999))), "3125s", "the longest tier");
    }

    #[test]
    fn a_wait_takes_the_shortest_tier_that_is_long_enough() {
        assert_eq!(ladder().waiting_for(Duration::ZERO).name, "5s");
        assert_eq!(ladder().waiting_for(Duration::from_secs(100)).name, "125s");
        assert_eq!(ladder().waiting_for(Duration::from_secs(9_999)).name, "3125s");
    }

    #[test]
    fn an_invalid_list_of_delays_is_rejected_with_an_example() {
        assert_eq!(" , ".parse::<Ladder>(), Err(LadderError::Empty));
        let error = "5s,soon".parse::<Ladder>().expect_err("soon is not a duration");
        assert_eq!(
            error.to_string(),
            r#""soon" is not a duration; expected one such as 200ms, 5s or 2m"#
        );
        assert_eq!("0s".parse::<Ladder>(), Err(LadderError::OutOfRange("0s".to_owned())));
        assert_eq!("100days".parse::<Ladder>(), Err(LadderError::OutOfRange("100days".to_owned())));
    }

    #[test]
    fn a_tier_keeps_its_name_as_written() {
        let ladder: Ladder = "200ms, 1s".parse().expect("two delays");
        let names: Vec<_> = ladder.tiers().iter().map(|tier| tier.name.as_str()).collect();
        assert_eq!(names, ["200ms", "1s"]);
    }
}
