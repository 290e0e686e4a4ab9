//! Faults that are scripted, and when each strikes.

use std::{
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// A scripted fault, as JSON: `{"kind":"status","status":503,"calls":3}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Every call takes this much longer.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// A status instead of an answer, for the next `calls` calls, for a `share` of all calls, or
    /// for all.
    Status {
        /// The status.
        status: u16,
        /// For so many calls.
        calls: Option<u64>,
        /// For this share of calls, 0 to 1.
        share: Option<f64>,
        /// A `Retry-After` header.
        retry_after: Option<String>,
        /// The body.
        #[serde(default)]
        body: String,
        /// Whether what was sent is taken all the same.
        #[serde(default)]
        taken: bool,
    },
    /// The connection is reset after the request was read, for the next `calls` calls or for all.
    Reset {
        /// For so many calls.
        calls: Option<u64>,
        /// Whether what was sent is taken all the same.
        #[serde(default)]
        taken: bool,
    },
    /// A 200 whose body never ends, for the next `calls` calls or for all.
    Endless {
        /// For so many calls.
        calls: Option<u64>,
        /// Whether what was sent is taken all the same.
        #[serde(default)]
        taken: bool,
    },
    /// A 200 whose body breaks off, for the next `calls` calls or for all.
    Truncated {
        /// For so many calls.
        calls: Option<u64>,
        /// Whether what was sent is taken all the same.
        #[serde(default)]
        taken: bool,
    },
    /// Items of this person are refused.
    Refuse {
        /// The `id` or `email` that the item identifies the person by.
        identifier: String,
        /// The field that the refusal names.
        #[serde(default)]
        field: String,
        /// What the refusal says.
        #[serde(default = "refusal")]
        message: String,
        /// Whether a batch with such an item is refused whole, with a 400.
        #[serde(default)]
        whole: bool,
    },
    /// More calls than this in a second are answered 429 with a `Retry-After`.
    RateLimit {
        /// Calls.
        per_second: u32,
        /// Seconds.
        retry_after: u64,
    },
}

fn refusal() -> String {
    "refused by the simulator".to_owned()
}

impl FromStr for Fault {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Why items of a person are refused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RefusedPerson {
    pub(super) field: String,
    pub(super) message: String,
    pub(super) whole: bool,
}

/// What a fault does to a call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    Status { status: StatusCode, retry_after: Option<String>, body: String },
    Reset,
    Endless,
    Truncated,
}

/// A fault that struck a call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Struck {
    pub(super) effect: Effect,
    /// Whether what was sent is taken before.
    pub(super) taken: bool,
}

/// The faults, in the order in which they were scripted; the first that strikes is the one that a
/// call meets.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Script>);

#[derive(Debug, Default)]
struct Script {
    faults: Vec<Fault>,
    second: Option<(Instant, u32)>,
    calls: u64,
}

impl Faults {
    pub(super) fn add(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    pub(super) fn clear(&self) {
        *self.lock() = Script::default();
    }

    pub(super) fn list(&self) -> Vec<Fault> {
        self.lock().faults.clone()
    }

    /// What the next call meets, after which delay.
    pub(super) fn next(&self) -> (Duration, Option<Struck>) {
        let mut script = self.lock();
        let latency = script
            .faults
            .iter()
            .map(|fault| if let Fault::Latency { ms } = fault { *ms } else { 0 })
            .sum();
        (Duration::from_millis(latency), script.effect())
    }

    /// Why items of this person are refused.
    pub(super) fn refusal(&self, identifier: &str) -> Option<RefusedPerson> {
        self.lock().faults.iter().find_map(|fault| match fault {
            Fault::Refuse { identifier: refused, field, message, whole }
                if refused == identifier =>
            {
                Some(RefusedPerson {
                    field: field.clone(),
                    message: message.clone(),
                    whole: *whole,
                })
            }
            _ => None,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Script {
    fn effect(&mut self) -> Option<Struck> {
        self.calls += 1;
        self.faults.retain(|fault| fault.calls() != Some(0));
        let Self { faults, second, calls } = self;
        faults.iter_mut().find_map(|fault| fault.strike(second, *calls))
    }
}

impl Fault {
    fn calls(&self) -> Option<u64> {
        match self {
            Self::Status { calls, .. }
            | Self::Reset { calls, .. }
            | Self::Endless { calls, .. }
            | Self::Truncated { calls, .. } => *calls,
            _ => None,
        }
    }

    fn strike(&mut self, second: &mut Option<(Instant, u32)>, call: u64) -> Option<Struck> {
        match self {
            Self::Latency { .. } | Self::Refuse { .. } => None,
            Self::Status { status, calls, share, retry_after, body, taken } => {
                // Evenly spread, so that a share of 0.1 is every tenth call.
                let is_in_share = share.is_none_or(|share| {
                    (call as f64 * share).floor() > ((call - 1) as f64 * share).floor()
                });
                let status =
                    StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (is_in_share && spend(calls)).then(|| Struck {
                    effect: Effect::Status {
                        status,
                        retry_after: retry_after.clone(),
                        body: body.clone(),
                    },
                    taken: *taken,
                })
            }
            Self::Reset { calls, taken } => {
                spend(calls).then_some(Struck { effect: Effect::Reset, taken: *taken })
            }
            Self::Endless { calls, taken } => {
                spend(calls).then_some(Struck { effect: Effect::Endless, taken: *taken })
            }
            Self::Truncated { calls, taken } => {
                spend(calls).then_some(Struck { effect: Effect::Truncated, taken: *taken })
            }
            Self::RateLimit { per_second, retry_after } => {
                let (start, count) = second.get_or_insert_with(|| (Instant::now(), 0));
                if start.elapsed() >= Duration::from_secs(1) {
                    (*start, *count) = (Instant::now(), 0);
                }
                *count += 1;
                (*count > *per_second).then(|| Struck {
                    effect: Effect::Status {
                        status: StatusCode::TOO_MANY_REQUESTS,
                        retry_after: Some(retry_after.to_string()),
                        body: String::new(),
                    },
                    taken: false,
                })
            }
        }
    }
}

/// Takes one of the calls that are left, if the number is limited.
fn spend(calls: &mut Option<u64>) -> bool {
    match calls {
        None => true,
        Some(0) => false,
        Some(left) => {
            *left -= 1;
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(fault: &str, calls: usize) -> usize {
        let faults = Faults::default();
        faults.add(fault.parse().expect("a valid fault"));
        (0..calls).filter(|_| faults.next().1.is_some()).count()
    }

    #[test]
    fn a_fault_strikes_as_often_as_it_says() {
        assert_eq!(statuses(r#"{"kind":"status","status":503,"calls":3}"#, 10), 3);
        assert_eq!(statuses(r#"{"kind":"status","status":503,"share":0.1}"#, 1000), 100);
        assert_eq!(statuses(r#"{"kind":"status","status":503}"#, 10), 10);
        assert_eq!(statuses(r#"{"kind":"reset","calls":2}"#, 10), 2);
        assert_eq!(statuses(r#"{"kind":"rate_limit","per_second":4,"retry_after":1}"#, 10), 6);
    }

    #[test]
    fn an_unknown_fault_is_refused() {
        assert!(r#"{"kind":"earthquake"}"#.parse::<Fault>().is_err());
    }
}
