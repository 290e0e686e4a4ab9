//! Customer.io's Track API (<https://docs.customer.io/integrations/api/track/>): jobs become batch
//! calls, responses become outcomes.
//!
//! Building operations ([`operation`]) and reading responses ([`response`]) are pure; the client
//! sends. It never retries a call: the broker's delay tiers do.

mod breaker;
mod client;
mod diagnose;
mod labels;
mod operation;
mod people;
#[cfg(any(test, fuzzing))]
pub mod property;
mod rate_limiter;
mod response;

use std::{num::NonZeroU32, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;

pub use breaker::{BreakerReason, BreakerState, BreakerStatus, Config as BreakerConfig, Permit};
pub use client::{
    Account, CustomerIo, Error, Mode, PreparedJob, PushResult, PushedJob, Replacement,
    RetainClaimed, check_url,
};
pub use diagnose::{check, check_mode};
pub use labels::{CallRateOf, CallStatus};
pub use rate_limiter::RateLimiter;

/// Where the account's data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Region {
    /// United States.
    Us,
    /// European Union.
    Eu,
}

impl Region {
    /// Whether `name` is Customer.io's name of this region.
    pub fn is(self, name: &str) -> bool {
        matches!((self, name), (Self::Us, "us") | (Self::Eu, "eu"))
    }

    const fn track_url(self) -> &'static str {
        match self {
            Self::Us => "https://track.customer.io",
            Self::Eu => "https://track-eu.customer.io",
        }
    }
}

/// The identifier of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identifier {
    /// `customer.id` if there is one, else `customer.email`.
    Auto,
    /// `customer.id`.
    Id,
    /// `customer.email`.
    Email,
}

/// Settings of the Track API client.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Track API site id. White space around it is ignored. Empty, like the key, for mock mode.
    pub site_id: String,
    /// Track API key. White space around it is ignored. Empty, like the site id, for mock mode.
    pub api_key: SecretString,
    /// Whether the service runs in mock mode if exactly one of site id and key is set. Otherwise it
    /// consumes nothing until both are.
    pub allow_mock: bool,
    /// Where the account's data is kept.
    pub region: Region,
    /// Base URL that replaces the region's, if it is not empty.
    pub track_url: String,
    /// The identifier of a person.
    pub identifier: Identifier,
    /// Maximum duration of a call, from the connection to the end of the response.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Maximum duration of a connection attempt.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Maximum requests per second, of all replicas together.
    pub requests_per_second: NonZeroU32,
    /// Maximum operations per call. A job needs at least two, and has all of its in one call.
    pub max_operations: usize,
}
