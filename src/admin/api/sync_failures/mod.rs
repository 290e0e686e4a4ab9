//! `/sync-failures`: lists, retries and dismisses open failures.

pub(crate) mod dismiss;
pub(crate) mod list;
pub(crate) mod retry;
