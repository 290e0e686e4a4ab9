//! The parts that all endpoints share: connections, authentication, request parsing, problem
//! details.

pub(crate) mod auth;
pub(crate) mod extract;
pub(crate) mod login_throttle;
pub(crate) mod middleware;
pub(crate) mod problem;
pub(crate) mod requests;
pub(crate) mod server;
pub(crate) mod session;
