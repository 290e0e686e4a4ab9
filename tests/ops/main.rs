//! Tests of what a platform team installs: the chart, the image, the compose file, the alerts, the
//! dashboard, and the commands in the documents. `./dev ops` installs the tools that they need, and
//! runs them.

#![expect(clippy::disallowed_methods, reason = "tests start now")]

mod alerts;
mod chart;
mod cluster;
mod combinations;
mod compose;
mod containers;
mod dashboard;
mod documents;
mod expressions;
mod helm;
mod objects;
mod prometheus;
mod references;
mod release;
mod schemas;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the suite uses more of it")]
mod support;
mod tools;
mod values;
