//! `/unprocessable`: lists, replays and dismisses unprocessable messages.

pub(crate) mod dismiss;
pub(crate) mod dry_run;
pub(crate) mod list;
pub(crate) mod replay;
pub(crate) mod reveal;
