//! `/jobs/{jobId}`: one job.

pub(crate) mod reveal;
pub(crate) mod show;
