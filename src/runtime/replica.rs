//! The identity of this replica.

use std::sync::Arc;

use uuid::Uuid;

/// The identity of one replica.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Unique, and new at each start.
    pub id: Uuid,
    /// `HOST:PID`, for people. In a container, the host is usually the container or the pod.
    pub name: Arc<str>,
}

impl Replica {
    /// The identity of a replica that starts now in this process.
    pub fn start() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .or_else(|_| std::env::var("HOSTNAME"))
            .unwrap_or_else(|_| "localhost".to_owned());
        Self { id: Uuid::new_v4(), name: format!("{}:{}", host.trim(), std::process::id()).into() }
    }
}
