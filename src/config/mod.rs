//! Gathers the settings of all modules: compiled-in defaults, then a file, then the environment.
//!
//! `config/default.toml` lists every key with its default and is the reference. A key that it does
//! not list is unknown, and the value of an environment variable has the type of the default.

mod limits;
mod source;

use std::path::Path;

use figment::Figment;
use secrecy::ExposeSecret;
use serde::Deserialize;

use crate::{
    admin, broker, customerio,
    flows::{bulk_retry, gauges, integrity, mirror, outbox, recovery, retention, sync},
    ledger, retry,
    runtime::{certificate::CertificateFiles, shutdown, telemetry, tls},
};
pub use source::SecretFile;
use source::{SettingsSource, check_keys, is_hidden, read_environment, read_toml, rename_keys};

const DEFAULTS: &str = include_str!("../../config/default.toml");

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PostgreSQL.
    pub database: ledger::Config,
    /// The connections to RabbitMQ.
    pub broker: broker::Config,
    /// The exchanges and queues in RabbitMQ.
    pub topology: broker::TopologyConfig,
    /// The delay tiers.
    pub retry: retry::Config,
    /// The client of the Track API.
    pub customerio: customerio::Config,
    /// The circuit breaker for Customer.io.
    pub breaker: customerio::BreakerConfig,
    /// The sync pipeline.
    pub sync: sync::Config,
    /// The mirror of the failure queue.
    pub mirror: mirror::Config,
    /// Recovery of lost messages and abandoned jobs.
    pub recovery: recovery::Config,
    /// The outcomes.
    pub outcomes: outbox::Config,
    /// The integrity check.
    pub integrity: integrity::Config,
    /// Deleting what is old.
    pub retention: retention::Config,
    /// Bulk retries.
    pub bulk_retry: bulk_retry::Config,
    /// The counts for the metrics.
    pub metrics: gauges::Config,
    /// The HTTP server.
    pub http: admin::Config,
    /// Logs and traces.
    pub telemetry: telemetry::Config,
    /// Shutdown.
    pub lifecycle: shutdown::Config,
    /// Certificates that all connections use.
    pub tls: tls::Config,
    /// Files that contain secrets.
    #[serde(skip)]
    pub secret_files: Vec<SecretFile>,
    /// Old keys that were used: each with its source and its present name.
    #[serde(skip)]
    pub renamed: Vec<RenamedKey>,
}

/// A key of an earlier release that a source uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenamedKey {
    /// The old key.
    pub key: &'static str,
    /// The present key.
    pub present: &'static str,
    /// The file or the environment variable.
    pub from: String,
}

/// An error in the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A key that does not exist.
    #[error("unknown key {key:?} in {from}; config/default.toml lists every key")]
    UnknownKey {
        /// The key.
        key: String,
        /// The file or the environment variable.
        from: String,
    },
    /// A value that its key does not allow.
    #[error("bad value for {key:?} in {from}: {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// The file or the environment variable.
        from: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// A file that can't be read or parsed.
    #[error("reading {from}: {problem}")]
    Unreadable {
        /// The file.
        from: String,
        /// The error.
        problem: String,
    },
    /// A required key that is not set.
    #[error("{variable} is required; for example {example}")]
    Missing {
        /// Its conventional variable.
        variable: &'static str,
        /// An example of a value.
        example: &'static str,
    },
}

impl Config {
    /// Reads the settings: defaults, `file`, `environment`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let defaults = read_toml("the defaults", DEFAULTS)?;
        let (mut sources, mut renamed) = (Vec::new(), Vec::new());
        if let Some(path) = file {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| Error::Unreadable {
                from: name.clone(),
                problem: error.to_string(),
            })?;
            let mut source = read_toml(&name, &text)?;
            rename_keys(&mut source, &mut renamed);
            check_keys(&mut source.values, &defaults.values, "", &name)?;
            sources.push(source);
        }
        let environment = read_environment(environment, &defaults.values, &mut renamed)?;
        sources.extend(environment.sources);
        let figment = sources.iter().fold(Figment::from(&defaults), Figment::merge);
        let config: Self = figment.extract().map_err(|error| bad_value(&error, &sources))?;
        let config = config.with_trimmed_secrets();
        limits::check(&config).map_err(|(key, problem)| Error::BadValue {
            key: key.to_owned(),
            from: name_of_source(&sources, key),
            problem,
        })?;
        Ok(Self { renamed, secret_files: environment.secret_files, ..config })
    }

    /// A secret that was pasted with a line break would be refused.
    fn with_trimmed_secrets(mut self) -> Self {
        for secret in [&mut self.database.url, &mut self.broker.url, &mut self.customerio.api_key] {
            *secret = secret.expose_secret().trim().into();
        }
        self.customerio.site_id = self.customerio.site_id.trim().to_owned();
        self
    }

    /// Logs a warning for each old key that is used.
    pub fn warn_of_renamed_keys(&self) {
        for RenamedKey { key, present, from } in &self.renamed {
            tracing::warn!(key, present, from, "the key {key:?} in {from} is now {present:?}");
        }
    }

    /// The files with certificates and keys.
    pub fn certificate_files(&self) -> CertificateFiles {
        let Self { tls, broker, database, .. } = self;
        CertificateFiles {
            authorities: tls.ca_file.clone(),
            broker: (broker.client_certificate.clone(), broker.client_key.clone()),
            database: (database.client_certificate.clone(), database.client_key.clone()),
        }
    }

    /// Fails if the database URL is not set.
    pub fn require_database(&self) -> Result<(), Error> {
        let example = "postgres://user:password@localhost:5432/customerio_sync";
        require(!self.database.url.expose_secret().is_empty(), "DATABASE_URL", example)
    }

    /// Fails if the AMQP URL is not set.
    pub fn require_broker(&self) -> Result<(), Error> {
        let example = "amqp://user:password@localhost:5672/%2f";
        require(!self.broker.url.expose_secret().is_empty(), "AMQP_URL", example)
    }
}

fn require(is_set: bool, variable: &'static str, example: &'static str) -> Result<(), Error> {
    if is_set { Ok(()) } else { Err(Error::Missing { variable, example }) }
}

/// The source whose value for `key` applies.
fn name_of_source(sources: &[SettingsSource], key: &str) -> String {
    let last = sources.iter().rev().find(|source| source.sets(key));
    last.map_or_else(|| "the defaults".to_owned(), |source| source.name.clone())
}

fn bad_value(error: &figment::Error, sources: &[SettingsSource]) -> Error {
    let key = error.path.join(".");
    let problem = match &error.kind {
        // The parser quotes the value that it found.
        figment::error::Kind::InvalidType(..) if is_hidden(&key) => "expected a string".to_owned(),
        kind => kind.to_string(),
    };
    Error::BadValue { from: name_of_source(sources, &key), key, problem }
}

#[cfg(test)]
mod tests {
    use super::{source::PREFIX, *};
    use std::{io::Write, time::Duration};

    fn load(file: Option<&str>, environment: &[(&str, &str)]) -> Result<Config, Error> {
        let path = file.map(|text| {
            let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
            file.write_all(text.as_bytes()).expect("it can be written");
            file
        });
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(path.as_ref().map(|file| file.path()), environment)
    }

    fn problem(file: Option<&str>, environment: &[(&str, &str)]) -> String {
        load(file, environment).expect_err("the settings are wrong").to_string()
    }

    #[test]
    fn the_defaults_are_complete() {
        let config = load(None, &[]).expect("the defaults are valid");
        assert_eq!(config.retry.delays.max_attempts(), 5);
        assert_eq!(config.lifecycle.grace, Duration::from_secs(25));
        assert_eq!(config.http.addr.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = "[sync]\nbatch_size = 7\nbatches_in_flight = 2";
        let config =
            load(Some(file), &[("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "9")]).expect("valid");
        assert_eq!((config.sync.batch_size.get(), config.sync.batches_in_flight.get()), (9, 2));
    }

    #[test]
    fn the_conventional_variables_are_read() {
        let config = load(None, &[("RETRY_DELAYS", "200ms,1s"), ("CUSTOMERIO_API_KEY", "0012")])
            .expect("valid");
        assert_eq!(config.retry.delays.max_attempts(), 2);
        assert_eq!(config.customerio.api_key.expose_secret(), "0012", "digits stay text");
        let both = [("RETRY_DELAYS", "1s"), ("CUSTOMERIO_SYNC__RETRY__DELAYS", "2s,3s")];
        assert_eq!(load(None, &both).expect("valid").retry.delays.max_attempts(), 2);
        assert!(load(None, &[("RETRY_DELAYS", "")]).is_ok(), "an empty variable counts as absent");
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_its_source() {
        let message = problem(None, &[("CUSTOMERIO_SYNC__SYNC__BATCHSIZE", "9")]);
        assert_eq!(
            message,
            "unknown key \"sync.batchsize\" in the environment variable \
                CUSTOMERIO_SYNC__SYNC__BATCHSIZE; \
             config/default.toml lists every key"
        );
        let message = problem(Some("[sink]\nbatch_size = 7"), &[]);
        assert!(message.starts_with("unknown key \"sink\" in /"), "{message}");
    }

    #[test]
    fn a_bad_value_is_an_error_that_names_key_and_source() {
        let cases = [
            (
                ("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "many"),
                "sync.batch_size",
                "expected a whole number",
            ),
            (("CUSTOMERIO_SYNC__BROKER__PREFETCH", "99999"), "broker.prefetch", "u16"),
            (
                ("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "yes"),
                "topology.declare",
                "expected true or false",
            ),
            (("RETRY_DELAYS", "soon"), "retry.delays", "expected one such as 200ms"),
            (("CUSTOMERIO_REGION", "moon"), "customerio.region", "`us` or `eu`"),
            (("HTTP_ADDR", "here"), "http.addr", "socket address"),
            (("LOG_FORMAT", "xml"), "telemetry.format", "xml"),
        ];
        for ((variable, value), key, expected) in cases {
            let message = problem(None, &[(variable, value)]);
            for part in [key, variable, expected] {
                assert!(message.contains(part), "{message:?} should name {part}");
            }
        }
        let message = problem(Some("[sync]\nbatch_size = \"x\""), &[]);
        assert!(message.contains("sync.batch_size") && message.contains("in /"), "{message}");
        let message = problem(Some("[sync\n"), &[]);
        assert!(message.starts_with("reading /"), "{message}");
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_float() {
        let file = Some("[broker]\nprefetch = 800.0\n[customerio]\nmax_operations = 2e+02");
        let config = load(file, &[("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "7.0")]).expect("valid");
        assert_eq!((config.broker.prefetch.get(), config.sync.batch_size.get()), (800, 7));
        assert_eq!(config.customerio.max_operations, 200);
        let message = problem(Some("[broker]\nprefetch = 800.5"), &[]);
        assert!(message.starts_with("bad value for \"broker.prefetch\" in /"), "{message}");
        assert!(message.ends_with("found 800.5, expected a whole number"), "{message}");
    }

    #[test]
    fn a_value_that_cannot_work_is_an_error_that_names_key_and_source() {
        for (key, value) in [
            ("database.max_connections", "0"),
            ("database.acquire_timeout", "0s"),
            ("database.claim_lease", "10s"),
            ("database.claim_lease", "999years"),
            ("broker.heartbeat", "500ms"),
            ("broker.connect_timeout", "0s"),
            ("broker.prefetch", "0"),
            ("broker.publish_channels", "3000"),
            ("broker.client_key", "/key.pem"),
            ("topology.delivery_limit", "1"),
            ("retry.delays", "0s"),
            ("customerio.timeout", "0s"),
            ("customerio.timeout", "5m"),
            ("customerio.connect_timeout", "0s"),
            ("customerio.requests_per_second", "0"),
            ("customerio.max_operations", "1"),
            ("breaker.failures_in_a_row", "0"),
            ("breaker.probe_after", "0s"),
            ("breaker.probe_interval_max", "0s"),
            ("sync.batch_size", "0"),
            ("sync.batches_in_flight", "0"),
            ("sync.hold", "0s"),
            ("mirror.batch_size", "0"),
            ("mirror.compare_interval", "0s"),
            ("mirror.sweep_interval", "0s"),
            ("recovery.interval", "0s"),
            ("recovery.overdue_after", "0s"),
            ("recovery.resend_after", "0s"),
            ("recovery.batch_size", "0"),
            ("outcomes.max_age", "0s"),
            ("integrity.interval", "0s"),
            ("bulk_retry.jobs_per_second", "0"),
            ("http.request_timeout", "0s"),
            ("http.header_timeout", "0s"),
            ("http.connections", "0"),
            ("lifecycle.grace", "0s"),
        ] {
            let variable = format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"));
            let message = problem(None, &[(&variable, value)]);
            let is_about_key = message.contains(key)
                || (key, message.contains("claim_lease")) == ("customerio.timeout", true)
                || (key, message.contains("client_certificate")) == ("broker.client_key", true);
            assert!(is_about_key, "{key}={value}: {message}");
            assert!(message.contains("expected"), "{message}");
        }
    }

    #[test]
    fn a_secret_can_be_read_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        writeln!(file, "  postgres://u:hush@h/d ").expect("it can be written");
        let path = file.path().to_str().expect("UTF-8");
        let config = load(None, &[("DATABASE_URL_FILE", path)]).expect("valid");
        assert_eq!(config.database.url.expose_secret(), "postgres://u:hush@h/d");
        let [secret_file] = &config.secret_files[..] else { panic!("expected one file") };
        assert_eq!((secret_file.key, secret_file.path.as_path()), ("database.url", file.path()));

        for direct in ["DATABASE_URL", "CUSTOMERIO_SYNC__DATABASE__URL"] {
            let both = [("DATABASE_URL_FILE", path), (direct, "postgres://u:hush@h/d")];
            let message = problem(None, &both);
            assert!(
                message.contains("DATABASE_URL_FILE") && !message.contains("hush"),
                "{message}"
            );
        }
        let message = problem(None, &[("CUSTOMERIO_API_KEY_FILE", "/nonexistent/key")]);
        for part in ["/nonexistent/key", "CUSTOMERIO_API_KEY_FILE"] {
            assert!(message.contains(part), "{message}");
        }
        let empty = tempfile::NamedTempFile::new().expect("a temporary file");
        let message =
            problem(None, &[("CUSTOMERIO_API_KEY_FILE", empty.path().to_str().expect("UTF-8"))]);
        assert!(message.contains("empty"), "{message}");
    }

    #[test]
    fn an_error_in_the_settings_contains_no_secret() {
        let files = [
            "[database]\nurl = 123454321",
            "[http]\nadmin_tokens = 123454321",
            "[customerio]\napi_key = \"123454321\" x",
            "[customerio]\nsite_id = [123454321]",
            "[broker]\nurl = \"amqp:u:123454321@h\"",
            "[broker]\nmanagement_api = 123454321",
            "[customerio]\ntrack_url = 123454321",
            "[telemetry]\notlp_endpoint = 123454321",
        ];
        for file in files {
            let message = problem(Some(file), &[]);
            assert!(!message.contains("123454321"), "{message}");
        }
        let variables = [
            ("DATABASE_URL", "postgres:u:123454321@h"),
            ("AMQP_URL", "amqp://u:123454321@h/"),
            ("ADMIN_TOKENS", "ann:owner:123454321"),
            ("CUSTOMERIO_TRACK_URL", "https:u:123454321"),
        ];
        for variable in variables {
            let message = problem(None, &[variable]);
            assert!(!message.contains("123454321"), "{message}");
        }
    }

    #[test]
    fn a_key_of_an_earlier_release_sets_the_present_one() {
        let file = "[gate]\nprobe_after = \"2s\"\nprobe_at_least_every = \"3s\"\n\
            [breaker]\nprobe_after = \"5s\"";
        let variable = "CUSTOMERIO_SYNC__RECOVERY__SEND_AGAIN_AFTER";
        let config = load(Some(file), &[(variable, "7s")]).expect("valid");
        assert_eq!(config.breaker.probe_after, Duration::from_secs(5), "the present key wins");
        assert_eq!(config.breaker.probe_interval_max, Duration::from_secs(3));
        assert_eq!(config.recovery.resend_after, Duration::from_secs(7));
        let renamed: Vec<_> = config.renamed.iter().map(|one| (one.key, one.present)).collect();
        assert_eq!(
            renamed,
            [
                ("gate.probe_after", "breaker.probe_after"),
                ("gate.probe_at_least_every", "breaker.probe_interval_max"),
                ("recovery.send_again_after", "recovery.resend_after"),
            ]
        );
        assert!(problem(Some("[gate]\nsomething = 1"), &[]).contains("gate"));
        assert!(load(Some("[gate]\n# probe_after = \"2s\""), &[]).is_ok(), "an empty section");
        let both = [
            ("CUSTOMERIO_SYNC__BREAKER__PROBE_AFTER", "5s"),
            ("CUSTOMERIO_SYNC__GATE__PROBE_AFTER", "2s"),
        ];
        let config = load(None, &both).expect("valid");
        assert_eq!(config.breaker.probe_after, Duration::from_secs(5), "the present key wins");
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = load(
            None,
            &[("CUSTOMERIO_API_KEY", "hush"), ("DATABASE_URL", "postgres://u:hush@h/d")],
        );
        let printed = format!("{:?}", config.expect("valid"));
        assert!(!printed.contains("hush"), "{printed}");
    }
}
