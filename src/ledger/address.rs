//! Where PostgreSQL is and how to log in.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::{Config, Error};
use crate::runtime::tls;

const EXPECTED: &str = "expected postgres://user:password@host:5432/database";

/// The certificates for a URL. PostgreSQL's driver reads the files at each connection, so renewed
/// ones apply.
#[derive(Debug, Clone)]
pub(super) struct DatabaseAddress {
    ca_file: PathBuf,
    client_certificate: PathBuf,
    client_key: PathBuf,
}

impl DatabaseAddress {
    pub(super) fn new(config: &Config, tls: &tls::Config) -> Self {
        Self {
            ca_file: tls.ca_file.clone(),
            client_certificate: config.client_certificate.clone(),
            client_key: config.client_key.clone(),
        }
    }

    /// The options of a connection. Parameters of the URL, such as `sslrootcert`, win over the
    /// settings.
    pub(super) fn options(&self, url: &SecretString) -> Result<PgConnectOptions, Error> {
        let parsed = parse(url).map_err(Error::Url)?;
        let sets = |names: &[&str]| parsed.query_pairs().any(|(one, _)| names.contains(&&*one));
        // The driver's error may quote the parameter that it refuses.
        let options = PgConnectOptions::from_str(parsed.as_str())
            .map_err(|_| Error::Url(format!("a parameter is not valid; {EXPECTED}")))?;
        // Numbers travel in binary, so the setting has no effect, and PgBouncer refuses it.
        let mut options = options.extra_float_digits(None);
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        if is_set(&self.ca_file) && !sets(&["sslrootcert", "ssl-root-cert", "ssl-ca"]) {
            options = options.ssl_root_cert(&self.ca_file);
        }
        if is_set(&self.client_certificate) && !sets(&["sslcert", "ssl-cert"]) {
            options =
                options.ssl_client_cert(&self.client_certificate).ssl_client_key(&self.client_key);
        }
        Ok(options)
    }
}

/// Describes what is wrong with the URL. The text contains no part of it: it has a password.
pub fn check_url(config: &Config) -> Result<(), String> {
    if config.url.expose_secret().is_empty() {
        return Ok(());
    }
    let address = DatabaseAddress::new(config, &tls::Config::default());
    match address.options(&config.url) {
        Ok(_) => Ok(()),
        Err(Error::Url(problem)) => Err(problem),
        Err(_) => Err(EXPECTED.to_owned()),
    }
}

/// Parses a connection URI
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).
fn parse(url: &SecretString) -> Result<Url, String> {
    let url = Url::parse(url.expose_secret().trim())
        .map_err(|error| format!("it can't be parsed ({error}); {EXPECTED}"))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(format!("the scheme is neither postgres nor postgresql; {EXPECTED}"));
    }
    if url.cannot_be_a_base() {
        return Err(format!("// is missing after the scheme; {EXPECTED}"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_malformed_url_contains_no_part_of_it() {
        for (url, expected) in [
            ("postgres:user:s3cret@host/db", "//"),
            ("user:s3cret@host/db", "scheme"),
            ("mysql://user:s3cret@host/db", "scheme"),
            ("postgres://user:s3cret@host:port/db", "port"),
            ("postgres://user:x@host/db?sslmode=s3cret", "parameter"),
            ("s3cret", "parsed"),
        ] {
            let config = Config {
                url: url.into(),
                client_certificate: PathBuf::new(),
                client_key: PathBuf::new(),
                max_connections: 1,
                http_connections: 1,
                acquire_timeout: std::time::Duration::from_secs(1),
                migrate: true,
                claim_lease: std::time::Duration::from_secs(1),
            };
            let problem = check_url(&config).expect_err(url);
            assert!(problem.contains(expected) && !problem.contains("s3cret"), "{problem}");
        }
    }
}
