//! Parts of responses that several endpoints share.

pub(crate) mod customer;
pub(crate) mod diagnosis;
