//! Customer.io's Track API (<https://docs.customer.io/integrations/api/track/>): jobs become batch
//! calls, answers become outcomes.
//!
//! What is sent ([`operation`]) and what an answer means ([`response`]) are pure; the client only
//! carries. It never tries a call again by itself: the broker's tiers do.

mod breaker;
mod client;
mod operation;
#[cfg(any(test, fuzzing))]
pub mod property;
mod rate_limiter;
mod response;

use std::{num::NonZeroU32, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;

pub use breaker::{Config as GateConfig, GateReason, GateView, Pass};
pub use client::{Account, CustomerIo, Error, Holder, Pushed};
pub use rate_limiter::Budget;

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
    /// Whether Customer.io calls it so.
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

/// What a person is identified by.
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

/// Settings of the calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Track API site id; empty: mock mode.
    pub site_id: String,
    /// Track API key; empty: mock mode.
    pub api_key: SecretString,
    /// Where the account's data is kept.
    pub region: Region,
    /// Base URL in place of the region's; empty: the region's.
    pub track_url: String,
    /// What a person is identified by.
    pub identifier: Identifier,
    /// How long a call may take, from the connection to the end of the answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long a connection attempt may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Requests a second at most, of all replicas together.
    pub requests_per_second: NonZeroU32,
    /// Operations in one call at most; a job is two.
    pub max_operations: usize,
}
