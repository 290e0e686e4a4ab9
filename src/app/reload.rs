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
    customerio::{self, Account, CustomerIo},
    ledger::Ledger,
    runtime::{shutdown::Shutdown, tls},
};

/// Time between two reads of the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The parts that use what the files contain.
pub(super) struct Reload {
    pub(super) ledger: Ledger,
    pub(super) address: Arc<Address>,
    pub(super) customerio: Arc<CustomerIo>,
    pub(super) tokens: LiveTokens,
    pub(super) shutdown: Shutdown,
}

/// The files, and what of them is in use.
struct Files {
    secrets: Vec<WatchedFile>,
    customerio: customerio::Config,
    tls: tls::Config,
    /// The content of `tls.ca_file` that calls to Customer.io use.
    authorities: Option<Vec<u8>>,
    last_problem: Option<String>,
}

struct WatchedFile {
    file: SecretFile,
    /// The secret that is in use.
    used: SecretString,
    /// The last problem that was logged.
    last_problem: Option<String>,
}

impl Reload {
    /// Reads the files at each interval, until shutdown.
    pub(super) fn run(self, config: &Config) -> impl Future<Output = ()> + use<> {
        let watch = |file: &SecretFile| WatchedFile {
            used: file.secret.clone(),
            file: file.clone(),
            last_problem: None,
        };
        let mut files = Files {
            secrets: config.secret_files.iter().map(watch).collect(),
            customerio: config.customerio.clone(),
            tls: config.tls.clone(),
            authorities: config.tls.authorities().unwrap_or_default(),
            last_problem: None,
        };
        async move {
            loop {
                tokio::select! {
                    () = self.shutdown.draining() => return,
                    () = tokio::time::sleep(RELOAD_INTERVAL) => {}
                }
                for watched in &mut files.secrets {
                    self.read(watched, &mut files.customerio, &files.tls).await;
                }
                self.read_authorities(&mut files).await;
            }
        }
    }

    /// Reads one file, and uses its secret if it is new and accepted.
    async fn read(
        &self,
        watched: &mut WatchedFile,
        customerio: &mut customerio::Config,
        tls: &tls::Config,
    ) {
        let (variable, key, path) =
            (&watched.file.variable, watched.file.key, watched.file.path.display());
        let problem = match watched.file.read() {
            Ok(secret) if secret.expose_secret() == watched.used.expose_secret() => None,
            Ok(secret) => match self.apply(key, &secret, customerio, tls).await {
                Ok(()) => {
                    tracing::info!(key, "the new value in the file of {variable} is in use");
                    watched.used = secret;
                    None
                }
                Err(problem) => Some(problem),
            },
            Err(problem) => Some(problem),
        };
        if problem.is_some() && problem != watched.last_problem {
            tracing::warn!(
                key,
                problem,
                "the value in {path} ({variable}) can't be used, the previous one stays in use"
            );
        }
        watched.last_problem = problem;
    }

    /// Uses a new secret. The error is the reason why it is not used.
    async fn apply(
        &self,
        key: &str,
        secret: &SecretString,
        customerio: &mut customerio::Config,
        tls: &tls::Config,
    ) -> Result<(), String> {
        match key {
            "database.url" => {
                self.ledger.replace_url(secret).await.map_err(|error| error.to_string())
            }
            "broker.url" => {
                self.address.replace_url(secret).await.map_err(|error| error.to_string())
            }
            "http.admin_tokens" => {
                let tokens = secret.expose_secret().parse();
                self.tokens.replace(tokens.map_err(|error| format!("{key}: {error}"))?);
                Ok(())
            }
            _ => {
                // Both credentials may change; the pair is accepted when both have been read.
                if key == "customerio.site_id" {
                    customerio.site_id = secret.expose_secret().to_owned();
                } else {
                    customerio.api_key = secret.clone();
                }
                self.replace_customerio(customerio, tls).await
            }
        }
    }

    async fn read_authorities(&self, files: &mut Files) {
        let problem = match files.tls.authorities() {
            Ok(authorities) if authorities == files.authorities => None,
            Ok(authorities) => match self.replace_customerio(&files.customerio, &files.tls).await {
                Ok(()) => {
                    tracing::info!("calls use the new certification authorities");
                    files.authorities = authorities;
                    None
                }
                Err(problem) => Some(problem),
            },
            Err(error) => Some(error.to_string()),
        };
        if problem.is_some() && problem != files.last_problem {
            tracing::warn!(
                problem,
                "the new tls.ca_file can't be used for calls, the previous one stays in use"
            );
        }
        files.last_problem = problem;
    }

    async fn replace_customerio(
        &self,
        config: &customerio::Config,
        tls: &tls::Config,
    ) -> Result<(), String> {
        match self.customerio.replace(config, tls).await {
            Ok(Account::Accepted { .. }) => Ok(()),
            Ok(Account::Refused) => Err("Customer.io refuses it".to_owned()),
            Ok(Account::Mock) => Err("a credential is missing".to_owned()),
            Ok(Account::NoAnswer(reason)) => Err(reason),
            Ok(Account::Other { status }) => Err(format!("Customer.io answered with {status}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
