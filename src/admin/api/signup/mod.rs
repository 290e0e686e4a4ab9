//! `/{signupId}`: one signup.

pub(crate) mod retry;
