//! The sources of settings: a TOML file, environment variables, and files with secrets.

use std::path::{Path, PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Num, Value},
};
use secrecy::{ExposeSecret, SecretString};

use super::{Error, RenamedKey};

/// Prefix of the environment variables that name a key.
pub(super) const PREFIX: &str = "CUSTOMERIO_SYNC__";
/// Suffix of the variables that name a file with the value of a secret.
const FILE_SUFFIX: &str = "_FILE";
/// Maximum size of a file with a secret.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

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

/// Keys whose values are secrets. A conventional variable of such a key can name a file instead,
/// with [`FILE_SUFFIX`].
const SECRETS: [&str; 5] =
    ["database.url", "broker.url", "customerio.site_id", "customerio.api_key", "http.admin_tokens"];

/// Further keys whose values appear in no error: URLs that may have a password.
const HIDDEN: [&str; 3] =
    ["broker.management_api", "customerio.track_url", "telemetry.otlp_endpoint"];

/// Keys of earlier releases, and their present names. An old key sets the present one, so that one
/// file works with both releases during an upgrade or a rollback. If both are set, the current one
/// wins.
const RENAMED: [(&str, &str); 4] = [
    ("gate.failures_in_a_row", "breaker.failures_in_a_row"),
    ("gate.probe_after", "breaker.probe_after"),
    ("gate.probe_at_least_every", "breaker.probe_interval_max"),
    ("recovery.send_again_after", "recovery.resend_after"),
];

/// One source of settings, with the name that errors use.
pub(super) struct SettingsSource {
    pub(super) name: String,
    pub(super) values: Dict,
}

impl Provider for &SettingsSource {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl SettingsSource {
    /// Whether this source sets `key`.
    pub(super) fn sets(&self, key: &str) -> bool {
        find(&self.values, key).is_some()
    }
}

/// A file that contains the value of a secret. It is read again while the service runs.
#[derive(Debug, Clone)]
pub struct SecretFile {
    /// The environment variable that names it.
    pub variable: String,
    /// The key that its content sets.
    pub key: &'static str,
    /// Its path.
    pub path: PathBuf,
    /// The secret that it contained when the settings were read.
    pub secret: SecretString,
}

impl SecretFile {
    /// Reads the present secret, without surrounding white space. The error never contains it.
    pub fn read(&self) -> Result<SecretString, String> {
        read_secret(&self.path)
    }
}

fn read_secret(path: &Path) -> Result<SecretString, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > SECRET_BYTES_MAX {
        return Err(format!("{size} bytes; expected at most {SECRET_BYTES_MAX}"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    match text.trim() {
        "" => Err("it is empty; expected a secret".to_owned()),
        secret => Ok(secret.into()),
    }
}

/// What the environment sets.
#[derive(Default)]
pub(super) struct Environment {
    /// In the order in which they apply.
    pub(super) sources: Vec<SettingsSource>,
    pub(super) secret_files: Vec<SecretFile>,
}

/// Whether the value may appear in no error.
pub(super) fn is_hidden(key: &str) -> bool {
    SECRETS.contains(&key) || HIDDEN.contains(&key)
}

/// Parses a TOML file. An error names the line, and does not quote it: it may contain a secret.
pub(super) fn read_toml(name: &str, text: &str) -> Result<SettingsSource, Error> {
    let values = Figment::from(Toml::string(text)).extract::<Dict>().map_err(|error| {
        let message = error.kind.to_string();
        let lines: Vec<_> = message.lines().filter(|line| !line.contains('|')).collect();
        Error::Unreadable { from: name.to_owned(), problem: lines.join(": ") }
    })?;
    Ok(SettingsSource { name: name.to_owned(), values })
}

/// Rejects keys that the defaults do not have, and converts each number to the type of its default:
/// a generator of TOML may write `800.0` for 800.
pub(super) fn check_keys(
    values: &mut Dict,
    known: &Dict,
    prefix: &str,
    from: &str,
) -> Result<(), Error> {
    for (key, value) in values {
        let path = format!("{prefix}{key}");
        match (&mut *value, known.get(key)) {
            (Value::Dict(_, values), Some(Value::Dict(_, known))) => {
                check_keys(values, known, &format!("{path}."), from)?
            }
            (Value::Num(_, Num::F64(number)), Some(Value::Num(..))) => {
                *value = integer(*number).ok_or_else(|| Error::BadValue {
                    key: path,
                    from: from.to_owned(),
                    problem: format!("found {number}, expected a whole number"),
                })?;
            }
            (_, Some(_)) => {}
            (_, None) => return Err(Error::UnknownKey { key: path, from: from.to_owned() }),
        }
    }
    Ok(())
}

/// The integer of this value, if it is one that a float represents exactly.
fn integer(number: f64) -> Option<Value> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if number.fract() != 0.0 || number.abs() > EXACT_MAX {
        return None;
    }
    format!("{number:.0}").parse::<i64>().ok().map(|number| Value::from(Num::I64(number)))
}

/// Reads the settings in the environment, the conventional variables first. An empty variable
/// counts as absent.
pub(super) fn read_environment(
    environment: impl IntoIterator<Item = (String, String)>,
    defaults: &Dict,
    renamed: &mut Vec<RenamedKey>,
) -> Result<Environment, Error> {
    let mut ranked = Vec::new();
    let mut secret_files = Vec::new();
    for (name, text) in environment.into_iter().filter(|(_, text)| !text.is_empty()) {
        let from = format!("the environment variable {name}");
        if let Some(key) = key_of_secret_file(&name) {
            let path = PathBuf::from(text);
            let from_file = format!("{} ({name})", path.display());
            let secret = read_secret(&path)
                .map_err(|problem| Error::Unreadable { from: from_file.clone(), problem })?;
            let value = secret.expose_secret().into();
            ranked.push(((false, true), source_of(from_file, key, value)));
            secret_files.push(SecretFile { variable: name, key, path, secret });
            continue;
        }
        let conventional = CONVENTIONAL.iter().find(|(variable, _)| *variable == name);
        let key = match (conventional, name.strip_prefix(PREFIX)) {
            (Some((_, key)), _) => (*key).to_owned(),
            (None, Some(rest)) => rest.to_lowercase().replace("__", "."),
            (None, None) => continue,
        };
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
        ranked.push(((conventional.is_none(), is_present), source_of(from, &key, value)));
    }
    refuse_double_secrets(&secret_files, ranked.iter().map(|(_, source)| source))?;
    // The specific variable wins over the conventional one, and the present name over an old one.
    ranked.sort_by_key(|(rank, _)| *rank);
    let sources = ranked.into_iter().map(|(_, source)| source).collect();
    Ok(Environment { sources, secret_files })
}

fn source_of(name: String, key: &str, value: Value) -> SettingsSource {
    let nested = figment::util::nest(key, value);
    SettingsSource { name, values: nested.into_dict().unwrap_or_default() }
}

/// The key that a file sets, if `name` is the variable of a secret with `_FILE`.
fn key_of_secret_file(name: &str) -> Option<&'static str> {
    let variable = name.strip_suffix(FILE_SUFFIX)?;
    let is_named = |one: &&(&str, &str)| one.0 == variable && SECRETS.contains(&one.1);
    CONVENTIONAL.iter().find(is_named).map(|(_, key)| *key)
}

/// Rejects a secret that the environment gives in a file and also directly.
fn refuse_double_secrets<'a>(
    files: &[SecretFile],
    sources: impl Iterator<Item = &'a SettingsSource> + Clone,
) -> Result<(), Error> {
    for file in files {
        if sources.clone().filter(|source| source.sets(file.key)).count() > 1 {
            return Err(Error::BadValue {
                key: file.key.to_owned(),
                from: format!("the environment variable {}", file.variable),
                problem: format!(
                    "{} is also set; expected one of the two",
                    file.variable.trim_end_matches(FILE_SUFFIX)
                ),
            });
        }
    }
    Ok(())
}

/// Moves the values of old keys to the present ones, unless those are set.
pub(super) fn rename_keys(source: &mut SettingsSource, renamed: &mut Vec<RenamedKey>) {
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
            let number = text.parse().ok().map(|number| Value::from(Num::I64(number)));
            number
                .or_else(|| text.parse().ok().and_then(integer))
                .ok_or_else(|| format!("found {text:?}, expected a whole number"))
        }
        Value::Bool(..) => match text {
            "true" => Ok(Value::from(true)),
            "false" => Ok(Value::from(false)),
            _ => Err(format!("found {text:?}, expected true or false")),
        },
        _ => Ok(Value::from(text)),
    }
}
