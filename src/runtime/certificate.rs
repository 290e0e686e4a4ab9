//! Certificates: when those of a PEM file expire, and the fix of an error of TLS.

#![expect(clippy::disallowed_methods, reason = "an edge: certificates expire by the clock")]

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_cert::{Certificate, der::Decode};

use super::{check::CheckResult, metrics::ServerConnection};

/// Time before the expiry of a certificate from which the check warns.
const EXPIRY_WARNING: TimeDelta = TimeDelta::days(30);
/// Alerts (RFC 8446, section 6.2) of a server that refuses a client's certificate, or misses one.
const REFUSALS_OF_CLIENTS: [&str; 9] = [
    "certificaterequired",
    "unknownca",
    "badcertificate",
    "unsupportedcertificate",
    "certificaterevoked",
    "certificateexpired",
    "certificateunknown",
    "accessdenied",
    "handshakefailure",
];
/// Name of the check.
const CHECK: &str = "certificates";

/// Why a file contains no usable certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// There is no PEM section of this kind.
    #[error("it contains no certificate in PEM format")]
    Missing,
    /// A section could not be parsed.
    #[error("its certificate {number} can't be parsed: {why}")]
    Malformed {
        /// Position in the file, from 1.
        number: usize,
        /// The parser's message.
        why: String,
    },
}

/// Returns when each certificate of a PEM file expires (`notAfter`, RFC 5280, section 4.1.2.5), in
/// the order of the file. Skips sections of other kinds. Fails if there is no certificate, or if
/// one can't be parsed.
pub fn expiry(pem: &[u8]) -> Result<Vec<DateTime<Utc>>, CertificateProblem> {
    let mut times = Vec::new();
    for (index, section) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let malformed = |why: String| CertificateProblem::Malformed { number: index + 1, why };
        let der = section.map_err(|error| malformed(error.to_string()))?;
        let certificate =
            Certificate::from_der(&der).map_err(|error| malformed(error.to_string()))?;
        times.push(certificate.tbs_certificate.validity.not_after.to_system_time().into());
    }
    if times.is_empty() { Err(CertificateProblem::Missing) } else { Ok(times) }
}

/// The files with certificates and keys that the settings name. An empty path counts as absent.
#[derive(Debug, Clone, Default)]
pub struct CertificateFiles {
    /// `tls.ca_file`.
    pub authorities: PathBuf,
    /// `broker.client_certificate` and `broker.client_key`.
    pub broker: (PathBuf, PathBuf),
    /// `database.client_certificate` and `database.client_key`.
    pub database: (PathBuf, PathBuf),
}

impl CertificateFiles {
    /// Checks that each file can be read and parsed, and when it expires.
    pub fn check(&self) -> Vec<CheckResult> {
        let is_set = |(_, path): &(&str, &PathBuf)| !path.as_os_str().is_empty();
        let certificates = [
            ("tls.ca_file", &self.authorities),
            ("broker.client_certificate", &self.broker.0),
            ("database.client_certificate", &self.database.0),
        ];
        let keys =
            [("broker.client_key", &self.broker.1), ("database.client_key", &self.database.1)];
        let certificates = certificates.into_iter().filter(is_set);
        let mut results: Vec<_> = certificates
            .map(|(setting, path)| check_certificate(setting, path, Utc::now()))
            .collect();
        let keys = keys.into_iter().filter(is_set);
        results.extend(keys.filter_map(|(setting, path)| check_key(setting, path)));
        if results.is_empty() {
            results.push(CheckResult::passed(CHECK, "no certificate files are configured"));
        }
        results
    }

    /// When the first certificate expires that a connection to this server uses. `None` if no file
    /// is configured, or if none can be read.
    pub fn first_expiry(&self, connection: ServerConnection) -> Option<DateTime<Utc>> {
        let client = match connection {
            ServerConnection::Consume | ServerConnection::Publish => Some(&self.broker.0),
            ServerConnection::Database => Some(&self.database.0),
            ServerConnection::CustomerIo => None,
        };
        let files = client.into_iter().chain([&self.authorities]);
        let files = files.filter_map(|path| std::fs::read(path).ok());
        files.filter_map(|pem| expiry(&pem).ok()).flatten().min()
    }
}

fn check_certificate(setting: &str, path: &Path, now: DateTime<Utc>) -> CheckResult {
    let file = path.display();
    let pem = match std::fs::read(path) {
        Ok(pem) => pem,
        Err(error) => return unreadable(setting, path, &error),
    };
    let times = match expiry(&pem) {
        Ok(times) => times,
        Err(problem) => {
            let fix = format!("set {setting} to a file with certificates in PEM format");
            return CheckResult::failed(CHECK, format!("{setting}: {file}: {problem}"), fix);
        }
    };
    let first = times.iter().min().copied().unwrap_or_default();
    let date = first.format("%Y-%m-%d");
    let renew = format!("renew the certificate in {file}");
    if first <= now {
        CheckResult::failed(CHECK, format!("{setting}: {file} expired on {date}"), renew)
    } else if first - now < EXPIRY_WARNING {
        CheckResult::warning(CHECK, format!("{setting}: {file} expires on {date}"), renew)
    } else {
        CheckResult::passed(CHECK, format!("{setting}: {file} expires on {date}"))
    }
}

/// A key has no expiry; only a problem is reported.
fn check_key(setting: &str, path: &Path) -> Option<CheckResult> {
    match std::fs::read(path) {
        Err(error) => Some(unreadable(setting, path, &error)),
        Ok(pem) if PrivateKeyDer::from_pem_slice(&pem).is_ok() => None,
        Ok(_) => {
            let file = path.display();
            let detail = format!("{setting}: {file} contains no private key in PEM format");
            let fix = format!("set {setting} to a file with an unencrypted private key (PEM)");
            Some(CheckResult::failed(CHECK, detail, fix))
        }
    }
}

fn unreadable(setting: &str, path: &Path, error: &std::io::Error) -> CheckResult {
    let detail = format!("{setting}: {} can't be read: {error}", path.display());
    let fix = format!("let the user of the service read the file, or correct {setting}");
    CheckResult::failed(CHECK, detail, fix)
}

/// Returns the fix of an error of TLS with `server`, by the text of rustls
/// (<https://docs.rs/rustls/latest/rustls/enum.CertificateError.html>). `None` if it is another
/// error. `ca` names the settings that add a certification authority, and `client` those with the
/// client's certificate, if the server may ask for one.
pub fn tls_fix(error: &str, server: &str, ca: &str, client: Option<&str>) -> Option<String> {
    let error = error.to_lowercase();
    let is = |part: &str| error.contains(part);
    if is("corrupt message") || is("does not support tls") {
        return Some(format!(
            "{server} does not speak TLS on this port: correct the port, enable TLS there, or use \
             a URL without TLS"
        ));
    }
    let is_alert = error
        .split("received fatal alert: ")
        .nth(1)
        .is_some_and(|alert| REFUSALS_OF_CLIENTS.iter().any(|refusal| alert.starts_with(refusal)));
    if let Some(client) = client.filter(|_| is_alert) {
        return Some(format!(
            "set {client} to a certificate of an authority that {server} trusts, and its key"
        ));
    }
    if !is("certificate") && !is("tls") {
        return None;
    }
    let fix = if is("unknownissuer") || is("unknown issuer") {
        format!("set {ca} to the certificate of the authority that signed that of {server}")
    } else if is("not valid yet") || is("notvalidyet") {
        format!("correct the clock of this machine, or the certificate of {server}")
    } else if is("expired") {
        format!("renew the certificate of {server}")
    } else if is("not valid for name") || is("notvalidforname") {
        format!("use a host name that the certificate of {server} contains")
    } else {
        format!("correct the certificate of {server}, or {ca}")
    };
    Some(fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRED: &[u8] = include_bytes!("../../tests/certificates/expired.pem");
    const VALID: &[u8] = include_bytes!("../../tests/certificates/valid.pem");

    #[test]
    fn every_certificate_of_a_file_has_its_expiry() {
        let both = [EXPIRED, b"# a comment\n", VALID].concat();
        let times = expiry(&both).expect("valid PEM");
        let times: Vec<_> = times.iter().map(DateTime::to_rfc3339).collect();
        assert_eq!(times, ["2021-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"]);
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        assert_eq!(expiry(b""), Err(CertificateProblem::Missing));
        assert_eq!(expiry(b"not PEM"), Err(CertificateProblem::Missing));
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(expiry(broken), Err(CertificateProblem::Malformed { number: 1, .. })));
    }

    #[test]
    fn the_check_warns_thirty_days_before_the_expiry() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, VALID).expect("written");
        let label = |now: &str| {
            let now = now.parse().expect("a time");
            let line = check_certificate("tls.ca_file", &path, now).to_string();
            line.split(' ').next().map(str::to_owned)
        };
        assert_eq!(label("2098-12-01T00:00:00Z").as_deref(), Some("ok"));
        assert_eq!(label("2098-12-03T00:00:00Z").as_deref(), Some("warn"));
        assert_eq!(label("2099-01-01T00:00:00Z").as_deref(), Some("FAIL"));
        let missing = check_certificate("tls.ca_file", Path::new("/nowhere"), Utc::now());
        assert!(missing.to_string().contains("/nowhere can't be read"), "{missing}");
    }

    #[test]
    fn an_error_of_tls_has_a_fix_that_names_the_settings() {
        let fix = |error| {
            tls_fix(error, "PostgreSQL", "tls.ca_file", Some("the key")).unwrap_or_default()
        };
        assert!(fix("invalid peer certificate: UnknownIssuer").starts_with("set tls.ca_file"));
        assert!(fix("invalid peer certificate: certificate expired: …").starts_with("renew"));
        assert!(fix("received corrupt message of type InvalidContentType").contains("the port"));
        assert!(fix("received fatal alert: CertificateRequired").starts_with("set the key to"));
        assert_eq!(fix("connection refused"), "");
    }
}
