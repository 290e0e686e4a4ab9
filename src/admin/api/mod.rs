//! The admin API: one file per endpoint, found by its path below [`PREFIX`].

pub(crate) mod asyncapi;
pub(crate) mod bulk_retries;
pub(crate) mod cleanup;
pub(crate) mod failure_groups;
pub(crate) mod integrity;
pub(crate) mod jobs;
pub(crate) mod openapi;
pub(crate) mod process;
pub(crate) mod publish;
pub(crate) mod signup;
pub(crate) mod stats;
pub(crate) mod sync_failures;
pub(crate) mod unprocessable;
pub(crate) mod view;
pub(crate) mod ws;

/// Where the admin API begins.
pub const PREFIX: &str = "/api/v1/signups/customerio";
