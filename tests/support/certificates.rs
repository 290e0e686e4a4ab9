//! Certificates for tests of TLS, as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// The names that a server of a test is reached by.
pub(crate) const SERVER_NAMES: [&str; 3] = ["127.0.0.1", "localhost", "::1"];

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// The files of a certificate and its private key.
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(Vec::new(), name, 2040);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its certificate, in PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes the certificate of a server with these names to `NAME.pem` and `NAME.key`.
    pub(crate) fn issue(&self, folder: &Path, name: &str, hosts: &[&str]) -> CertificateFiles {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        self.write(params(hosts, name, 2040), folder, name)
    }

    /// Writes the certificate of a server that expired years ago.
    pub(crate) fn issue_expired(&self, folder: &Path, name: &str) -> CertificateFiles {
        let hosts = SERVER_NAMES.map(str::to_owned).to_vec();
        self.write(params(hosts, name, 2021), folder, name)
    }

    /// Writes the certificate of a client. PostgreSQL takes its role from `common_name`.
    pub(crate) fn issue_client(
        &self,
        folder: &Path,
        name: &str,
        common_name: &str,
    ) -> CertificateFiles {
        self.write(params(Vec::new(), common_name, 2040), folder, name)
    }

    fn write(&self, mut params: CertificateParams, folder: &Path, name: &str) -> CertificateFiles {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let files = CertificateFiles {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }
}

/// A certificate for these hosts that is valid from 2020 to the start of a year.
fn params(hosts: Vec<String>, common_name: &str, ends: i32) -> CertificateParams {
    let mut params = CertificateParams::new(hosts).expect("valid names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(ends, 1, 1));
    params
}
