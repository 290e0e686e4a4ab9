//! A small API server of Kubernetes: what Helm needs to install, test, upgrade, roll back and
//! uninstall a chart.
//!
//! It checks every object strictly, refuses changes of immutable fields, and runs the pods of Jobs
//! and of `helm test` as processes of the real program, with the pod's arguments and environment.
//! It schedules nothing: a Deployment is available at once, and runs no process.

mod api;
mod patch;
mod pods;
mod store;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use store::{Resource, Store};

pub(crate) use api::RESOURCES;

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "default";

/// A running API server.
pub(crate) struct Cluster {
    store: Arc<Store>,
    addr: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Cluster {
    /// Starts a server whose pods run these programs: image and path.
    pub(crate) async fn start(programs: BTreeMap<String, PathBuf>) -> Self {
        let store = Arc::new(Store::new(programs));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let router = api::router(Arc::clone(&store));
        let serving = async move { axum::serve(listener, router).await.expect("it serves") };
        Self { store, addr, server: tokio::spawn(serving) }
    }

    /// A file with which clients find the server.
    pub(crate) fn kubeconfig(&self) -> tempfile::NamedTempFile {
        let server = format!("http://{}", self.addr);
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": server } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "users": [{ "name": "test", "user": { "token": "test" } }] });
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), config.to_string()).expect("written");
        file
    }

    /// Creates a Secret.
    pub(crate) fn create_secret(&self, name: &str, entries: &[(&str, &str)]) {
        let entries: BTreeMap<_, _> = entries.iter().copied().collect();
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "stringData": entries });
        self.store.put(Resource::of_kind("Secret"), secret);
    }

    /// The objects of a kind, by name.
    pub(crate) fn objects(&self, kind: &str) -> BTreeMap<String, Value> {
        self.store.list(Resource::of_kind(kind))
    }

    /// The pods that ran, in order: name of the Job or the pod, exit status, and output.
    pub(crate) fn runs(&self) -> Vec<pods::Run> {
        self.store.runs()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}
