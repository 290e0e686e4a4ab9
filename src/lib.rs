//! Moves signups from RabbitMQ into Customer.io: nothing lost, nothing doubled.

pub mod broker;
pub mod customerio;
pub mod event;
pub mod job;
pub mod ledger;
pub mod lifecycle;
pub mod metrics;
pub mod mirror;
pub mod reconnect;
pub mod retry;
pub mod sync;
pub mod trace;
