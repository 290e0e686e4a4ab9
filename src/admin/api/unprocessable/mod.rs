//! `/unprocessable`: messages that could not be parsed or validated.

pub(crate) mod dismiss;
pub(crate) mod list;
pub(crate) mod replay;
