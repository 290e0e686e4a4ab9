//! Moves signups from RabbitMQ into Customer.io: nothing lost, nothing doubled.
//!
//! A module names only modules in lower rows:
//!
//! ```text
//! 8  cli
//! 7  app        telemetry
//! 6  config
//! 5  admin      simulator
//! 4  sync       mirror     feed        bulk      recovery    budget    integrity
//! 3  ledger     broker     customerio
//! 2  retry      diagnosis
//! 1  job
//! 0  event      trace      reconnect   metrics   lifecycle
//! ```

pub mod admin;
pub mod app;
pub mod broker;
pub mod budget;
pub mod bulk;
pub mod cli;
pub mod config;
pub mod customerio;
pub mod diagnosis;
pub mod event;
pub mod feed;
pub mod integrity;
pub mod job;
pub mod ledger;
pub mod lifecycle;
pub mod metrics;
pub mod mirror;
pub mod reconnect;
pub mod recovery;
pub mod retry;
pub mod simulator;
pub mod sync;
pub mod telemetry;
pub mod trace;
