//! Scripted faults, and the calls that each affects.

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
    /// A delay of the next `calls` calls, or of all.
    Latency {
        /// Delay in milliseconds.
        ms: u64,
        /// Number of calls that it affects. Of several such delays, each call gets the first.
        calls: Option<u64>,
    },
    /// A response with this status, to the next `calls` calls, to a `share` of all calls, or to
    /// all calls.
    Status {
        /// HTTP status.
        status: u16,
        /// Number of calls that it affects.
        calls: Option<u64>,
        /// Path of the calls that it affects, such as `/api/v2/batch`. All if it is absent.
        path: Option<String>,
        /// Share of calls that it affects, 0 to 1.
        share: Option<f64>,
        /// Value of the `Retry-After` header.
        retry_after: Option<String>,
        /// Body of the response.
        #[serde(default)]
        body: String,
        /// Whether the simulator processes the request before the fault.
        #[serde(default)]
        taken: bool,
    },
    /// A connection reset after the request was read, for the next `calls` calls or for all.
    Reset {
        /// Number of calls that it affects.
        calls: Option<u64>,
        /// Whether the simulator processes the request before the fault.
        #[serde(default)]
        taken: bool,
    },
    /// A 200 whose body never ends, for the next `calls` calls or for all.
    Endless {
        /// Number of calls that it affects.
        calls: Option<u64>,
        /// Whether the simulator processes the request before the fault.
        #[serde(default)]
        taken: bool,
    },
    /// A 200 whose body is cut off, for the next `calls` calls or for all.
    Truncated {
        /// Number of calls that it affects.
        calls: Option<u64>,
        /// Whether the simulator processes the request before the fault.
        #[serde(default)]
        taken: bool,
    },
    /// A refusal of the items of one person.
    Refuse {
        /// The `id` or `email` that identifies the person in the item.
        identifier: String,
        /// Field that the refusal names.
        #[serde(default)]
        field: String,
        /// Message of the refusal.
        #[serde(default = "default_refusal")]
        message: String,
        /// Whether the whole batch with such an item is refused, with a 400.
        #[serde(default)]
        whole: bool,
    },
    /// A 429 with a `Retry-After`, to the calls beyond a limit per second.
    RateLimit {
        /// Maximum calls per second.
        per_second: u32,
        /// Seconds in the `Retry-After` header.
        retry_after: u64,
    },
}

fn default_refusal() -> String {
    "refused by the simulator".to_owned()
}

impl FromStr for Fault {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// A scripted refusal of the items of a person.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PersonRefusal {
    pub(super) field: String,
    pub(super) message: String,
    /// Whether the whole batch is refused.
    pub(super) refused_whole: bool,
}

/// Effect of a fault on a call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    Status { status: StatusCode, retry_after: Option<String>, body: String },
    Reset,
    Endless,
    Truncated,
}

/// A fault to inject into a call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Injection {
    pub(super) effect: Effect,
    /// Whether the simulator processes the request first.
    pub(super) processed: bool,
}

/// The scripted faults, in order. The first one that affects a call is injected into it.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Script>);

#[derive(Debug, Default)]
struct Script {
    faults: Vec<Fault>,
    /// Start of the current second and the calls in it, for [`Fault::RateLimit`].
    second: Option<(Instant, u32)>,
    /// Calls so far.
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

    /// Returns the delay of the next call, which has this path, and the fault to inject into it.
    pub(super) fn next(&self, path: &str) -> (Duration, Option<Injection>) {
        let mut script = self.lock();
        let latency = script.latency();
        (latency, script.injection(path))
    }

    /// Returns the refusal scripted for a person, if any.
    pub(super) fn refusal(&self, identifier: &str) -> Option<PersonRefusal> {
        self.lock().faults.iter().find_map(|fault| match fault {
            Fault::Refuse { identifier: refused, field, message, whole }
                if refused == identifier =>
            {
                Some(PersonRefusal {
                    field: field.clone(),
                    message: message.clone(),
                    refused_whole: *whole,
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
    fn latency(&mut self) -> Duration {
        let (mut latency, mut limited) = (0, None);
        for fault in &mut self.faults {
            match fault {
                Fault::Latency { ms, calls: None } => latency += *ms,
                Fault::Latency { ms, calls: calls @ Some(1..) } if limited.is_none() => {
                    spend(calls);
                    limited = Some(*ms);
                }
                _ => {}
            }
        }
        Duration::from_millis(latency + limited.unwrap_or_default())
    }

    fn injection(&mut self, path: &str) -> Option<Injection> {
        self.calls += 1;
        self.faults.retain(|fault| fault.calls() != Some(0));
        let Self { faults, second, calls } = self;
        faults.iter_mut().find_map(|fault| fault.injection(second, *calls, path))
    }
}

impl Fault {
    fn calls(&self) -> Option<u64> {
        match self {
            Self::Latency { calls, .. }
            | Self::Status { calls, .. }
            | Self::Reset { calls, .. }
            | Self::Endless { calls, .. }
            | Self::Truncated { calls, .. } => *calls,
            _ => None,
        }
    }

    fn injection(
        &mut self,
        second: &mut Option<(Instant, u32)>,
        call: u64,
        called: &str,
    ) -> Option<Injection> {
        match self {
            Self::Latency { .. } | Self::Refuse { .. } => None,
            Self::Status { path: Some(path), .. } if path != called => None,
            Self::Status { status, calls, share, retry_after, body, taken, .. } => {
                // Spread evenly: a share of 0.1 affects every tenth call.
                let is_in_share = share.is_none_or(|share| {
                    (call as f64 * share).floor() > ((call - 1) as f64 * share).floor()
                });
                let status =
                    StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (is_in_share && spend(calls)).then(|| Injection {
                    effect: Effect::Status {
                        status,
                        retry_after: retry_after.clone(),
                        body: body.clone(),
                    },
                    processed: *taken,
                })
            }
            Self::Reset { calls, taken } => {
                spend(calls).then_some(Injection { effect: Effect::Reset, processed: *taken })
            }
            Self::Endless { calls, taken } => {
                spend(calls).then_some(Injection { effect: Effect::Endless, processed: *taken })
            }
            Self::Truncated { calls, taken } => {
                spend(calls).then_some(Injection { effect: Effect::Truncated, processed: *taken })
            }
            Self::RateLimit { per_second, retry_after } => {
                let (start, count) = second.get_or_insert_with(|| (Instant::now(), 0));
                if start.elapsed() >= Duration::from_secs(1) {
                    (*start, *count) = (Instant::now(), 0);
                }
                *count += 1;
                (*count > *per_second).then(|| Injection {
                    effect: Effect::Status {
                        status: StatusCode::TOO_MANY_REQUESTS,
                        retry_after: Some(retry_after.to_string()),
                        body: String::new(),
                    },
                    processed: false,
                })
            }
        }
    }
}

/// Uses up one of the remaining calls. Returns false if none is left; an unlimited number never
/// runs out.
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

    /// Returns how many of the next `calls` calls a fault affects.
    fn affected(fault: &str, calls: usize) -> usize {
        let faults = Faults::default();
        faults.add(fault.parse().expect("a valid fault"));
        (0..calls).filter(|_| faults.next("/api/v2/batch").1.is_some()).count()
    }

    #[test]
    fn a_fault_affects_the_scripted_number_of_calls() {
        assert_eq!(affected(r#"{"kind":"status","status":503,"calls":3}"#, 10), 3);
        assert_eq!(affected(r#"{"kind":"status","status":503,"share":0.1}"#, 1000), 100);
        assert_eq!(affected(r#"{"kind":"status","status":503}"#, 10), 10);
        assert_eq!(affected(r#"{"kind":"reset","calls":2}"#, 10), 2);
        assert_eq!(affected(r#"{"kind":"rate_limit","per_second":4,"retry_after":1}"#, 10), 6);
    }

    #[test]
    fn an_unknown_fault_is_rejected() {
        assert!(r#"{"kind":"earthquake"}"#.parse::<Fault>().is_err());
    }
}
