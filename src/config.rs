//! Gathers the settings of all modules: compiled-in defaults, then a file, then the environment.
//!
//! `config/default.toml` lists every key with its default and is the reference. A key that it does
//! not list is unknown, and the value of an environment variable has the type of the default.

use std::path::Path;

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Num, Value},
};
use secrecy::ExposeSecret;
use serde::Deserialize;

use crate::{
    admin, broker, customerio,
    flows::{bulk_retry, integrity, mirror, recovery, sync},
    ledger, retry,
    runtime::{shutdown, telemetry},
};

const DEFAULTS: &str = include_str!("../config/default.toml");

/// Prefix of the environment variables that name a key.
const PREFIX: &str = "CUSTOMERIO_SYNC__";

/// Conventional environment variables, and the keys that they set.
const CONVENTIONAL: [(&str, &str); 12] = [
    ("DATABASE_URL", "database.url"),
    ("AMQP_URL", "broker.url"),
    ("CUSTOMERIO_SITE_ID", "customerio.site_id"),
    ("CUSTOMERIO_API_KEY", "customerio.api_key"),
    ("CUSTOMERIO_REGION", "customerio.region"),
    ("CUSTOMERIO_TRACK_URL", "customerio.track_url"),
    ("HTTP_ADDR", "http.addr"),
    ("ADMIN_TOKENS", "http.admin_tokens"),
    ("RETRY_DELAYS", "retry.delays"),
    ("RUST_LOG", "telemetry.log"),
    ("LOG_FORMAT", "telemetry.format"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
];

/// Keys of earlier releases, and their present names. An old key sets the present one, so that one
/// file works with both releases during an upgrade or a rollback. If both are set, the current one
/// wins.
const RENAMED: [(&str, &str); 4] = [
    ("gate.failures_in_a_row", "breaker.failures_in_a_row"),
    ("gate.probe_after", "breaker.probe_after"),
    ("gate.probe_at_least_every", "breaker.probe_interval_max"),
    ("recovery.send_again_after", "recovery.resend_after"),
];

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
    /// The integrity check.
    pub integrity: integrity::Config,
    /// Bulk retries.
    pub bulk_retry: bulk_retry::Config,
    /// The HTTP server.
    pub http: admin::Config,
    /// Logs and traces.
    pub telemetry: telemetry::Config,
    /// Shutdown.
    pub lifecycle: shutdown::Config,
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

/// One source of settings, with the name that errors use.
struct SettingsSource {
    name: String,
    values: Dict,
}

impl Provider for SettingsSource {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
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
            check_keys(&source.values, &defaults.values, "", &name)?;
            sources.push(source);
        }
        sources.extend(read_environment(environment, &defaults.values, &mut renamed)?);
        let figment = sources.into_iter().fold(Figment::from(defaults), Figment::merge);
        let config: Self = figment.extract().map_err(bad_value)?;
        Ok(Self { renamed, ..config })
    }

    /// Logs a warning for each old key that is used.
    pub fn warn_of_renamed_keys(&self) {
        for RenamedKey { key, present, from } in &self.renamed {
            tracing::warn!(key, present, from, "the key {key:?} in {from} is now {present:?}");
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

fn read_toml(name: &str, text: &str) -> Result<SettingsSource, Error> {
    let values = Figment::from(Toml::string(text)).extract::<Dict>().map_err(|error| {
        Error::Unreadable { from: name.to_owned(), problem: error.kind.to_string() }
    })?;
    Ok(SettingsSource { name: name.to_owned(), values })
}

/// Rejects keys that the defaults do not have.
fn check_keys(values: &Dict, known: &Dict, prefix: &str, from: &str) -> Result<(), Error> {
    for (key, value) in values {
        let path = format!("{prefix}{key}");
        match (value, known.get(key)) {
            (Value::Dict(_, values), Some(Value::Dict(_, known))) => {
                check_keys(values, known, &format!("{path}."), from)?
            }
            (_, Some(_)) => {}
            (_, None) => return Err(Error::UnknownKey { key: path, from: from.to_owned() }),
        }
    }
    Ok(())
}

/// Reads the settings in the environment, the conventional variables first. An empty variable
/// counts as absent.
fn read_environment(
    environment: impl IntoIterator<Item = (String, String)>,
    defaults: &Dict,
    renamed: &mut Vec<RenamedKey>,
) -> Result<Vec<SettingsSource>, Error> {
    let mut sources = Vec::new();
    for (name, text) in environment {
        let conventional = CONVENTIONAL.iter().find(|(variable, _)| *variable == name);
        let key = match (conventional, name.strip_prefix(PREFIX)) {
            _ if text.is_empty() => continue,
            (Some((_, key)), _) => (*key).to_owned(),
            (None, Some(rest)) => rest.to_lowercase().replace("__", "."),
            (None, None) => continue,
        };
        let from = format!("the environment variable {name}");
        let (key, is_present) = match RENAMED.iter().find(|(old, _)| *old == key) {
            Some(&(old, present)) => {
                renamed.push(RenamedKey { key: old, present, from: from.clone() });
                (present.to_owned(), false)
            }
            None => (key, true),
        };
        let default = find(defaults, &key)
            .ok_or_else(|| Error::UnknownKey { key: key.clone(), from: from.clone() })?;
        let value = parse_as(default, &text).map_err(|problem| Error::BadValue {
            key: key.clone(),
            from: from.clone(),
            problem,
        })?;
        let nested = figment::util::nest(&key, value);
        sources.push((
            (conventional.is_none(), is_present),
            SettingsSource { name: from, values: nested.into_dict().unwrap_or_default() },
        ));
    }
    // The specific variable wins over the conventional one, and the present name over an old one.
    sources.sort_by_key(|(rank, _)| *rank);
    Ok(sources.into_iter().map(|(_, source)| source).collect())
}

/// Moves the values of old keys to the present ones, unless those are set.
fn rename_keys(source: &mut SettingsSource, renamed: &mut Vec<RenamedKey>) {
    for (old, present) in RENAMED {
        let Some(value) = take(&mut source.values, old) else { continue };
        renamed.push(RenamedKey { key: old, present, from: source.name.clone() });
        let (section, key) = present.split_once('.').expect("a key has a section");
        let section = source.values.entry(section.to_owned()).or_insert_with(|| Dict::new().into());
        if let Value::Dict(_, values) = section {
            values.entry(key.to_owned()).or_insert(value);
        }
    }
    // A file may contain an old section whose keys are all commented out.
    for (section, _) in RENAMED.iter().filter_map(|(old, _)| old.split_once('.')) {
        if source.values.get(section).and_then(Value::as_dict).is_some_and(Dict::is_empty) {
            source.values.remove(section);
        }
    }
}

/// Removes the value of a key.
fn take(values: &mut Dict, key: &str) -> Option<Value> {
    let (section, key) = key.split_once('.')?;
    let Value::Dict(_, in_section) = values.get_mut(section)? else { return None };
    in_section.remove(key)
}

fn find<'a>(values: &'a Dict, key: &str) -> Option<&'a Value> {
    let (section, key) = key.split_once('.')?;
    values.get(section)?.as_dict()?.get(key)
}

/// Converts `text` to the type of the default.
fn parse_as(default: &Value, text: &str) -> Result<Value, String> {
    match default {
        Value::Num(..) => {
            let number: i64 =
                text.parse().map_err(|_| format!("found {text:?}, expected a whole number"))?;
            Ok(Value::from(Num::I64(number)))
        }
        Value::Bool(..) => match text {
            "true" => Ok(Value::from(true)),
            "false" => Ok(Value::from(false)),
            _ => Err(format!("found {text:?}, expected true or false")),
        },
        _ => Ok(Value::from(text)),
    }
}

fn bad_value(error: figment::Error) -> Error {
    Error::BadValue {
        key: error.path.join("."),
        from: error
            .metadata
            .as_ref()
            .map_or_else(|| "the settings".to_owned(), |metadata| metadata.name.to_string()),
        problem: error.kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert!(message.contains("sync.batch_size"), "{message}");
        let message = problem(Some("[sync\n"), &[]);
        assert!(message.starts_with("reading /"), "{message}");
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
