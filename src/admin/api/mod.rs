//! The admin API: one file per operation or resource. `routes` in [`openapi`] lists the handler of
//! each path below [`PREFIX`].

pub(crate) mod asyncapi;
pub(crate) mod breaker;
pub(crate) mod bulk_actions;
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

/// Start of the paths of the admin API.
pub const PREFIX: &str = "/api/v1/signups/customerio";
