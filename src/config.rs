//! Gathers every module's settings: compiled-in defaults, then a file, then the environment.
//!
//! `config/default.toml` holds every key with its default and is the reference. A key that is not
//! in it is unknown, and a variable has the type of its default.

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

/// The start of the variables that name a key.
const PREFIX: &str = "CUSTOMERIO_SYNC__";

/// Variables that are conventional, and the keys they set.
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

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PostgreSQL.
    pub database: ledger::Config,
    /// RabbitMQ's connections.
    pub broker: broker::Config,
    /// RabbitMQ's exchanges and queues.
    pub topology: broker::TopologyConfig,
    /// The ladder.
    pub retry: retry::Config,
    /// The calls.
    pub customerio: customerio::Config,
    /// When calls are held back.
    pub gate: customerio::GateConfig,
    /// The main flow.
    pub sync: sync::Config,
    /// The mirror of the failure queue.
    pub mirror: mirror::Config,
    /// Jobs that nobody works on any more.
    pub recovery: recovery::Config,
    /// The watch over conservation.
    pub integrity: integrity::Config,
    /// Bulk retries.
    pub bulk_retry: bulk_retry::Config,
    /// The HTTP server.
    pub http: admin::Config,
    /// Logs and traces.
    pub telemetry: telemetry::Config,
    /// Stopping.
    pub lifecycle: shutdown::Config,
}

/// What is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A key that no setting has.
    #[error("unknown key {key:?} in {from}; config/default.toml lists every key")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it stands.
        from: String,
    },
    /// A value that its key can't have.
    #[error("bad value for {key:?} in {from}: {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// Where it stands.
        from: String,
        /// What was expected.
        problem: String,
    },
    /// A file that can't be read.
    #[error("reading {from}: {problem}")]
    Unreadable {
        /// The file.
        from: String,
        /// Why.
        problem: String,
    },
    /// A key without which nothing goes.
    #[error("{variable} is required, such as {example}")]
    Missing {
        /// Its conventional variable.
        variable: &'static str,
        /// What it looks like.
        example: &'static str,
    },
}

/// One source of settings, with the name that errors give it.
struct Source {
    name: String,
    values: Dict,
}

impl Provider for Source {
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
        let mut sources = Vec::new();
        if let Some(path) = file {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| Error::Unreadable {
                from: name.clone(),
                problem: error.to_string(),
            })?;
            let source = read_toml(&name, &text)?;
            check_keys(&source.values, &defaults.values, "", &name)?;
            sources.push(source);
        }
        sources.extend(read_environment(environment, &defaults.values)?);
        let figment = sources.into_iter().fold(Figment::from(defaults), Figment::merge);
        figment.extract().map_err(bad_value)
    }

    /// Fails unless the database is named.
    pub fn require_database(&self) -> Result<(), Error> {
        let example = "postgres://user:password@localhost:5432/customerio_sync";
        require(!self.database.url.expose_secret().is_empty(), "DATABASE_URL", example)
    }

    /// Fails unless the broker is named.
    pub fn require_broker(&self) -> Result<(), Error> {
        let example = "amqp://user:password@localhost:5672/%2f";
        require(!self.broker.url.expose_secret().is_empty(), "AMQP_URL", example)
    }
}

fn require(is_there: bool, variable: &'static str, example: &'static str) -> Result<(), Error> {
    if is_there { Ok(()) } else { Err(Error::Missing { variable, example }) }
}

fn read_toml(name: &str, text: &str) -> Result<Source, Error> {
    let values = Figment::from(Toml::string(text)).extract::<Dict>().map_err(|error| {
        Error::Unreadable { from: name.to_owned(), problem: error.kind.to_string() }
    })?;
    Ok(Source { name: name.to_owned(), values })
}

/// Refuses keys that the defaults don't have.
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

/// The settings in the environment, the conventional variables first. An empty variable is an
/// absent one.
fn read_environment(
    environment: impl IntoIterator<Item = (String, String)>,
    defaults: &Dict,
) -> Result<Vec<Source>, Error> {
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
        let default = find(defaults, &key)
            .ok_or_else(|| Error::UnknownKey { key: key.clone(), from: from.clone() })?;
        let value = like(default, &text).map_err(|problem| Error::BadValue {
            key: key.clone(),
            from: from.clone(),
            problem,
        })?;
        let nested = figment::util::nest(&key, value);
        sources.push((
            conventional.is_none(),
            Source { name: from, values: nested.into_dict().unwrap_or_default() },
        ));
    }
    // The specific variable wins over the conventional one.
    sources.sort_by_key(|(is_specific, _)| *is_specific);
    Ok(sources.into_iter().map(|(_, source)| source).collect())
}

fn find<'a>(values: &'a Dict, key: &str) -> Option<&'a Value> {
    let (section, key) = key.split_once('.')?;
    values.get(section)?.as_dict()?.get(key)
}

/// `text` as a value of the type that the default has.
fn like(default: &Value, text: &str) -> Result<Value, String> {
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
        assert!(load(None, &[("RETRY_DELAYS", "")]).is_ok(), "an empty variable is an absent one");
    }

    #[test]
    fn an_unknown_key_is_told_with_its_place() {
        let told = problem(None, &[("CUSTOMERIO_SYNC__SYNC__BATCHSIZE", "9")]);
        assert_eq!(
            told,
            "unknown key \"sync.batchsize\" in the environment variable \
                CUSTOMERIO_SYNC__SYNC__BATCHSIZE; \
             config/default.toml lists every key"
        );
        let told = problem(Some("[sink]\nbatch_size = 7"), &[]);
        assert!(told.starts_with("unknown key \"sink\" in /"), "{told}");
    }

    #[test]
    fn a_bad_value_is_told_with_its_place_and_what_was_expected() {
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
            let told = problem(None, &[(variable, value)]);
            for part in [key, variable, expected] {
                assert!(told.contains(part), "{told:?} should name {part}");
            }
        }
        let told = problem(Some("[sync]\nbatch_size = \"x\""), &[]);
        assert!(told.contains("sync.batch_size"), "{told}");
        let told = problem(Some("[sync\n"), &[]);
        assert!(told.starts_with("reading /"), "{told}");
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
