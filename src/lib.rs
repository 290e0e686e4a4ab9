//! Moves signups from RabbitMQ into Customer.io with at-least-once delivery; repeated calls are
//! harmless.
//!
//! A module names only modules in lower rows. `tests/architecture.rs` enforces it.
//!
//! ```text
//! 9  cli
//! 8  app
//! 7  config
//! 6  admin
//! 5  flows: sync  mirror  bulk_retry  bulk_action  recovery  integrity  feed  gauges  rate_limit
//! 4  ledger       broker       customerio
//! 3  retry        diagnosis
//! 2  job
//! 1  event
//! 0  runtime      simulator
//! ```

pub mod admin;
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod customerio;
pub mod diagnosis;
pub mod event;
pub mod flows;
pub mod job;
pub mod ledger;
pub mod retry;
pub mod runtime;
pub mod simulator;
