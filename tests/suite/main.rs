//! Tests of the service's behaviour against real RabbitMQ and PostgreSQL servers.
//!
//! Each test has its own database and virtual host. `./dev test` starts the servers and runs the
//! tests.

#![expect(clippy::disallowed_methods, reason = "tests start now")]

mod access;
mod bad_actors;
mod bad_input;
mod bulk;
mod bulk_actions;
mod calls;
mod claims;
mod clients;
mod command_line;
mod contracts;
mod crashes;
mod doctor;
mod environment;
mod event_time;
mod failures;
mod feed;
mod integrity;
mod ladder;
mod ledger;
mod long_outage;
mod metrics;
mod migrations;
mod mock_mode;
mod original_properties;
mod outage;
mod outbox;
mod page;
mod permissions;
mod probes;
mod profiles;
mod quarantine;
mod random_properties;
mod rate_limit;
mod recovery;
mod retention;
mod scale;
mod secrets;
mod silence;
#[path = "../support/mod.rs"]
mod support;
mod sync;
mod tls;
mod topology;
mod traces;
mod undecodable;
