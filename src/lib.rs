//! Moves signups from RabbitMQ into Customer.io: nothing lost, nothing doubled.

pub mod event;
pub mod job;
pub mod retry;
