//! The service as a process of its own whose probes a test reads.

use std::net::SocketAddr;

use serde_json::Value;

use super::{Process, World, free_addr, http_client, wait_for};

/// A running service.
pub(crate) struct Service {
    pub(crate) process: Process,
    addr: SocketAddr,
    http: reqwest::Client,
}

impl World {
    /// Starts the service as a process of its own, whose address is known.
    pub(crate) fn serve(&self) -> Service {
        self.serve_with(&[])
    }

    /// Starts the service as a process of its own, with further settings.
    pub(crate) fn serve_with(&self, further: &[(&str, String)]) -> Service {
        Service::at(|settings| self.spawn_with(settings), further)
    }
}

impl Service {
    /// Starts the process with an address that the service will listen on.
    pub(crate) fn at(
        spawn: impl FnOnce(&[(&str, String)]) -> Process,
        further: &[(&str, String)],
    ) -> Self {
        let addr = free_addr();
        let mut settings = vec![("HTTP_ADDR", addr.to_string())];
        settings.extend_from_slice(further);
        Self { process: spawn(&settings), addr, http: http_client() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Returns the status and the JSON of a response, or nothing while nobody listens.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, Value)> {
        let response = self.http.get(self.url(path)).send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, serde_json::from_str(&response.text().await.ok()?).ok()?))
    }

    pub(crate) async fn wait_until_ready(&self) {
        wait_for("the service to be ready", || async {
            self.get("/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }

    /// Waits for a reason in `/readyz` that contains all `parts`. The service is alive meanwhile.
    pub(crate) async fn wait_for_reason(&self, parts: &[&str]) -> String {
        let what = format!("a reason that contains {parts:?}");
        let reason = wait_for(&what, || async {
            let (status, body) = self.get("/readyz").await?;
            let mut reasons = body["reasons"].as_array()?.iter().filter_map(Value::as_str);
            let found = reasons.find(|reason| parts.iter().all(|part| reason.contains(part)))?;
            (status == 503).then(|| found.to_owned())
        })
        .await;
        let (status, _) = self.get("/healthz").await.expect("the service listens");
        assert_eq!(status, 200, "waiting is not a defect: {reason}");
        reason
    }
}
