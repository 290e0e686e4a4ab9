//! Certificates for TLS, and the cryptography that all TLS clients of the process use.
//!
//! Files are read when a connection is made, or again while the service runs, so that a renewed
//! certificate needs no restart.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Settings that all TLS connections share.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file with certification authorities that are trusted in addition to the system's. Empty
    /// for none.
    pub ca_file: PathBuf,
}

/// A file with certificates or a key that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("reading the certificate file {path}: {source}")]
pub struct UnreadableFile {
    path: PathBuf,
    source: std::io::Error,
}

impl Config {
    /// Reads the additional certification authorities, in PEM. `None` if no file is configured.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, UnreadableFile> {
        read_optional(&self.ca_file)
    }
}

/// Reads a PEM file. `None` if the path is empty.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, UnreadableFile> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let read = std::fs::read(path);
    read.map(Some).map_err(|source| UnreadableFile { path: path.to_owned(), source })
}

/// Selects the cryptography library for all TLS clients of the process. Call it before the first
/// client is built; further calls have no effect.
pub fn install_crypto_provider() {
    // It fails only if a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
