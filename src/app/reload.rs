//! Reads the files with secrets, and the file with certification authorities, again while the
//! service runs.
//!
//! A new address or credential is used after its server has accepted it once; until then the old
//! one stays in use, and the new one is tried at each interval. A new list of tokens applies at
//! once. Certificates for PostgreSQL and RabbitMQ are read at each connection.

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use crate::{
    admin::LiveTokens,
    broker::Address,
    config::{Config, SecretFile},
    customerio::{self, CustomerIo, Mode, Replacement},
    ledger::Ledger,
    runtime::{
        certificate::CertificateFiles,
        metrics::{Metrics, ServerConnection},
        shutdown::Shutdown,
        tls,
    },
};

/// Time between two reads of the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// The keys of the credentials of Customer.io.
const SITE_ID: &str = "customerio.site_id";
const API_KEY: &str = "customerio.api_key";

/// The parts that use what the files contain.
pub(super) struct Reload {
    pub(super) ledger: Ledger,
    pub(super) address: Arc<Address>,
    pub(super) customerio: Arc<CustomerIo>,
    pub(super) tokens: LiveTokens,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
}

/// A file with a secret, and what of it is in use.
struct WatchedFile {
    file: SecretFile,
    /// The secret that is in use.
    used: SecretString,
    /// The last problem that was logged.
    last_problem: Option<String>,
}

impl WatchedFile {
    /// Returns the secret if it has changed. The error is the reason why it can't be read.
    fn changed(&self) -> Result<Option<SecretString>, String> {
        let secret = self.file.read()?;
        let is_used = secret.expose_secret() == self.used.expose_secret();
        Ok((!is_used).then_some(secret))
    }

    /// Records whether the changed secret is in use, and logs a problem that is new.
    fn record(&mut self, result: Result<Option<SecretString>, String>) {
        let SecretFile { variable, key, path, .. } = &self.file;
        let problem = result.map(|used| {
            if let Some(used) = used {
                tracing::info!(key, "the new value in the file of {variable} is in use");
                self.used = used;
            }
        });
        let problem = problem.err();
        if problem.is_some() && problem != self.last_problem {
            tracing::warn!(
                key,
                problem,
                "the value in {} ({variable}) can't be used, the previous one stays in use",
                path.display()
            );
        }
        self.last_problem = problem;
    }
}

impl Reload {
    /// Reads the files at each interval, until shutdown. Each server has a loop of its own, so that
    /// one that does not answer delays no other.
    pub(super) fn run(self, config: &Config) -> impl Future<Output = ()> + use<> {
        let of_key = |key: &'static str| -> Vec<WatchedFile> {
            let files = config.secret_files.iter().filter(|file| file.key == key);
            let watch = |file: &SecretFile| WatchedFile {
                used: file.secret.clone(),
                file: file.clone(),
                last_problem: None,
            };
            files.map(watch).collect()
        };
        let [database, broker, tokens] =
            ["database.url", "broker.url", "http.admin_tokens"].map(of_key);
        let calls = Calls {
            credentials: [SITE_ID, API_KEY].map(of_key).into_iter().flatten().collect(),
            config: config.customerio.clone(),
            tls: config.tls.clone(),
            authorities: config.tls.authorities().unwrap_or_default(),
            last_problem: None,
        };
        let certificates = config.certificate_files();
        async move {
            let reading = async {
                tokio::join!(
                    self.watch(database),
                    self.watch(broker),
                    self.watch(tokens),
                    self.watch_calls(calls),
                    self.report_expiry(certificates),
                );
            };
            tokio::select! {
                () = self.shutdown.draining() => {}
                () = reading => {}
            }
        }
    }

    /// Reads files at each interval, and uses a new secret. Never ends.
    async fn watch(&self, mut files: Vec<WatchedFile>) {
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            for watched in &mut files {
                let result = match watched.changed() {
                    Ok(Some(secret)) => {
                        self.apply(watched.file.key, &secret).await.map(|()| Some(secret))
                    }
                    unchanged => unchanged,
                };
                watched.record(result);
            }
        }
    }

    /// Uses a new secret. The error is the reason why it is not used.
    async fn apply(&self, key: &str, secret: &SecretString) -> Result<(), String> {
        match key {
            "database.url" => {
                self.ledger.replace_url(secret).await.map_err(|error| error.to_string())
            }
            "broker.url" => {
                self.address.replace_url(secret).await.map_err(|error| error.to_string())
            }
            _ => {
                let tokens = secret.expose_secret().parse();
                let problem = |error| format!("http.admin_tokens: {error}");
                self.tokens.replace(tokens.map_err(problem)?);
                Ok(())
            }
        }
    }

    /// Reads the credentials of Customer.io, and the certification authorities, at each interval.
    async fn watch_calls(&self, mut calls: Calls) {
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            self.read_credentials(&mut calls).await;
            self.read_authorities(&mut calls).await;
        }
    }

    /// Uses new credentials. Both may have changed, and are accepted or refused together.
    async fn read_credentials(&self, calls: &mut Calls) {
        let mut candidate = calls.config.clone();
        let changed: Vec<_> = calls.credentials.iter().map(WatchedFile::changed).collect();
        for (watched, changed) in calls.credentials.iter().zip(&changed) {
            match changed {
                Ok(Some(secret)) if watched.file.key == SITE_ID => {
                    candidate.site_id = secret.expose_secret().to_owned();
                }
                Ok(Some(secret)) => candidate.api_key = secret.clone(),
                Ok(None) | Err(_) => {}
            }
        }
        let has_changed = changed.iter().any(|changed| matches!(changed, Ok(Some(_))));
        let replaced =
            if has_changed { self.replace(&candidate, &calls.tls).await } else { Ok(()) };
        if replaced.is_ok() {
            calls.config = candidate;
        }
        for (watched, changed) in calls.credentials.iter_mut().zip(changed) {
            watched.record(changed.and_then(|changed| match changed {
                Some(secret) => replaced.clone().map(|()| Some(secret)),
                None => Ok(None),
            }));
        }
    }

    async fn read_authorities(&self, calls: &mut Calls) {
        let result = match calls.tls.authorities() {
            Ok(authorities) if authorities == calls.authorities => Ok(()),
            Ok(authorities) => {
                let replaced = if self.makes_calls() {
                    self.replace(&calls.config, &calls.tls).await
                } else {
                    Ok(())
                };
                replaced.map(|()| {
                    tracing::info!("calls use the new certification authorities");
                    calls.authorities = authorities;
                })
            }
            Err(error) => Err(error.to_string()),
        };
        let problem = result.err();
        if problem.is_some() && problem != calls.last_problem {
            tracing::warn!(
                problem,
                "the new tls.ca_file can't be used for calls, the previous one stays in use"
            );
        }
        calls.last_problem = problem;
    }

    fn makes_calls(&self) -> bool {
        self.customerio.mode() == Mode::Live && self.customerio.missing_credential().is_none()
    }

    async fn replace(&self, config: &customerio::Config, tls: &tls::Config) -> Result<(), String> {
        match self.customerio.replace(config, tls).await {
            Ok(Replacement::InUse) => Ok(()),
            Ok(Replacement::Refused) => Err("Customer.io refuses it".to_owned()),
            Ok(Replacement::NoAnswer(reason)) => Err(reason),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reports at each interval when the configured certificates expire.
    async fn report_expiry(&self, certificates: CertificateFiles) {
        loop {
            for &connection in ServerConnection::ALL {
                if let Some(expiry) = certificates.first_expiry(connection) {
                    self.metrics.connections.set_certificate_expiry(connection, expiry.timestamp());
                }
            }
            tokio::time::sleep(RELOAD_INTERVAL).await;
        }
    }
}

/// The files that calls to Customer.io depend on, and what of them is in use.
struct Calls {
    credentials: Vec<WatchedFile>,
    /// With the credentials that are in use.
    config: customerio::Config,
    tls: tls::Config,
    /// The content of `tls.ca_file` that is in use.
    authorities: Option<Vec<u8>>,
    /// The last problem of `tls.ca_file` that was logged.
    last_problem: Option<String>,
}
