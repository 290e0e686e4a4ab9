//! `/sync-failures`: the open failures, and what is done with many of them.

pub(crate) mod dismiss;
pub(crate) mod list;
pub(crate) mod retry;
