//! Servers that belong to one test.

use std::ops::Deref;

use test_servers::{Server, make_reachable};

/// A server in a temporary folder. It stops when it is dropped.
pub(crate) struct TempServer<S: Server> {
    server: S,
    _folder: tempfile::TempDir,
}

impl<S: Server> TempServer<S> {
    /// A server that is not started.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        make_reachable(folder.path()).expect("the folder is ours");
        Self { server: S::new(folder.path().join("server")), _folder: folder }
    }

    /// A server that is running.
    pub(crate) fn started() -> Self {
        let server = Self::new();
        server.start();
        server
    }

    pub(crate) fn start(&self) {
        tokio::task::block_in_place(|| self.server.start()).expect("the server starts");
    }

    pub(crate) fn stop(&self) {
        tokio::task::block_in_place(|| self.server.stop()).expect("the server stops");
    }

    pub(crate) fn restart(&self) {
        self.stop();
        self.start();
    }

    pub(crate) fn url(&self) -> String {
        self.server.url().expect("the server was started")
    }
}

impl<S: Server> Deref for TempServer<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.server
    }
}

impl<S: Server> Drop for TempServer<S> {
    fn drop(&mut self) {
        if let Err(error) = self.server.stop() {
            eprintln!("a server was not stopped: {error}");
        }
    }
}
