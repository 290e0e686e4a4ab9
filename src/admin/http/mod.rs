//! The parts that all endpoints share: connections, authentication, request parsing, problem
//! details.

pub(crate) mod auth;
pub(crate) mod client_access;
pub(crate) mod connections;
pub(crate) mod extract;
pub(crate) mod login_throttle;
pub(crate) mod mask;
pub(crate) mod middleware;
pub(crate) mod problem;
pub(crate) mod requests;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod session_store;
pub(crate) mod stream;
