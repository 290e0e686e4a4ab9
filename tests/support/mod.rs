//! What the test suites share: a world per test, with its own database, virtual host and simulator,
//! and servers and processes that a test can stop.

mod api;
mod collector;
mod events;
mod ledger;
mod postgres;
mod process;
mod rabbitmq;
mod simulator;
mod temp_server;
mod wait;
mod world;

use std::path::Path;

pub(crate) use collector::{CollectedSpan, Collector};
pub(crate) use events::{confirmed, contact, submitted};
pub(crate) use ledger::{arrival, completion};
pub(crate) use process::{Process, program};
pub(crate) use rabbitmq::{Received, publish_on};
pub(crate) use temp_server::TempServer;
pub(crate) use wait::wait_for;
pub(crate) use world::{SHORT_LADDER, Servers, World, http_client};

/// A free address.
pub(crate) fn free_addr() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
}

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
