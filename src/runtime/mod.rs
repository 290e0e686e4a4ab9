//! Modules that every layer may use: shutdown, background tasks, backoff, metrics, logs and traces,
//! TLS and certificates, results of checks, enums with fixed texts, the identity of the replica.
//!
//! Nothing here names another module of this crate.

pub mod backoff;
pub mod certificate;
pub mod check;
pub mod heartbeat;
pub mod metrics;
mod otlp;
pub mod replica;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod text_enum;
pub mod tls;
pub mod trace;
