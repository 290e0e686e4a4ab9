//! The flows: each moves messages or rows from one edge to another, and none names another.

pub mod bulk_action;
pub mod bulk_retry;
pub mod feed;
pub mod gauges;
pub mod integrity;
pub mod mirror;
pub mod outbox;
pub mod rate_limit;
pub mod recovery;
pub mod retention;
pub mod sync;
