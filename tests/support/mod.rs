//! What the test suites share: a world per test, with its own database, virtual host and simulator,
//! and servers and processes that a test can stop.

mod api;
mod certificates;
mod collector;
mod events;
mod forwarder;
mod https;
mod ledger;
mod metrics;
mod postgres;
mod process;
mod rabbitmq;
mod raw_publisher;
mod service;
mod simulator;
mod temp_server;
mod track_api;
mod wait;
mod world;

use std::path::Path;

pub(crate) use certificates::{Authority, CertificateFiles, SERVER_NAMES};
pub(crate) use collector::{CollectedSpan, Collector};
pub(crate) use events::{confirmed, contact, submitted};
pub(crate) use forwarder::{Forwarder, address, authority};
pub(crate) use https::HttpsFront;
pub(crate) use ledger::{arrival, completion};
pub(crate) use metrics::{Documented, Labels, documented_metrics, metric_value};
pub(crate) use process::{Process, program, program_at};
pub(crate) use rabbitmq::{Received, publish_on};
pub(crate) use raw_publisher::{RawProperties, RawPublisher, long_string, short_string};
pub(crate) use service::Service;
pub(crate) use temp_server::TempServer;
pub(crate) use track_api::{claimed_jobs, client, push};
pub(crate) use wait::{wait_for, wait_up_to};
pub(crate) use world::{SHORT_LADDER, Servers, World, http_client};

/// A free address.
pub(crate) fn free_addr() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
}

/// Replaces a file at once, so that no reader finds half of it.
pub(crate) fn replace_file(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).expect("written");
    std::fs::rename(new, path).expect("renamed");
}

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
