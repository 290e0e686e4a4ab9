//! `values.schema.json` describes the values, and refuses mistakes with a message that names the
//! value.

use std::fs;

use figment::{
    Figment,
    providers::{Format, Toml},
};
use serde_json::{Value, json};

use crate::{
    helm::{Helm, chart, values_file, yaml},
    support::root,
    tools::run,
};

/// Keys of the program's settings that the chart takes from Secrets.
const CREDENTIALS: [&str; 6] = [
    "database.url",
    "broker.url",
    "broker.management_api",
    "customerio.site_id",
    "customerio.api_key",
    "http.admin_tokens",
];

fn schema() -> Value {
    let text = fs::read_to_string(chart().join("values.schema.json")).expect("readable");
    serde_json::from_str(&text).expect("JSON")
}

/// The settings of the program with their defaults: `section.key` and value.
fn defaults() -> Vec<(String, Value)> {
    let text = fs::read_to_string(root().join("config/default.toml")).expect("readable");
    let sections: Value = Figment::from(Toml::string(&text)).extract().expect("TOML");
    let sections = sections.as_object().expect("sections").clone();
    let keys = sections.into_iter().flat_map(|(section, keys)| {
        let keys = keys.as_object().expect("keys").clone();
        keys.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value))
    });
    keys.filter(|(key, _)| !CREDENTIALS.contains(&key.as_str())).collect()
}

/// The keys below `config` in the schema, with their schemas.
fn schema_of_settings() -> Vec<(String, Value)> {
    let schema = schema();
    let sections = schema["properties"]["config"]["properties"].as_object().expect("sections");
    let keys = sections.iter().flat_map(|(section, schema)| {
        let keys = schema["properties"].as_object().expect("keys");
        keys.iter().map(move |(key, schema)| (format!("{section}.{key}"), schema.clone()))
    });
    keys.collect()
}

#[test]
fn the_schema_has_the_settings_of_the_program_and_their_defaults() {
    let (mut settings, mut schema) = (defaults(), schema_of_settings());
    settings.sort_by(|a, b| a.0.cmp(&b.0));
    schema.sort_by(|a, b| a.0.cmp(&b.0));
    let keys =
        |list: &[(String, Value)]| list.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&settings), keys(&schema));
    for ((key, default), (_, schema)) in settings.iter().zip(&schema) {
        let kind = match default {
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            _ => "string",
        };
        assert_eq!(schema["type"], kind, "{key}");
        let validator = jsonschema::validator_for(schema).expect("a schema");
        assert!(validator.is_valid(default), "{key}");
        assert!(schema["description"].as_str().is_some_and(|text| text.ends_with('.')), "{key}");
        // The default of the program, loopback, cannot be reached in a pod.
        if key != "http.addr" {
            assert_eq!(schema["default"], *default, "{key}");
        }
    }
}

#[test]
fn the_settings_in_the_default_values_are_those_of_the_program() {
    let values = yaml(&fs::read_to_string(chart().join("values.yaml")).expect("readable"));
    let defaults = defaults();
    for (section, keys) in values["config"].as_object().expect("sections") {
        for (key, value) in keys.as_object().expect("keys") {
            let path = format!("{section}.{key}");
            let default = defaults.iter().find(|(key, _)| *key == path).expect("a setting");
            let expected =
                if path == "http.addr" { json!("0.0.0.0:8080") } else { default.1.clone() };
            assert_eq!(*value, expected, "{path}");
        }
    }
}

#[test]
fn every_object_in_the_schema_refuses_unknown_keys_or_is_free() {
    fn check(path: &str, schema: &Value) {
        if let Some(properties) = schema["properties"].as_object() {
            assert_eq!(schema["additionalProperties"], false, "{path}");
            for (key, schema) in properties {
                check(&format!("{path}.{key}"), schema);
            }
        }
        if schema["items"].is_object() {
            check(&format!("{path}[]"), &schema["items"]);
        }
    }
    check("", &schema());
    assert_eq!(schema()["properties"]["global"], json!({ "type": "object" }));
}

/// Runs `helm template` with values that it must refuse, and returns its message.
fn refusal(helm: Helm, values: &str) -> String {
    let file = values_file(values);
    let mut command = helm.command();
    command.arg("template").arg("prod").arg(chart()).arg("--values").arg(file.path());
    let printed = run(&mut command);
    assert!(!printed.succeeded, "{values} is refused");
    printed.stderr.trim().to_owned()
}

/// Values with a mistake, and the line that each version of Helm prints about it.
const MISTAKES: [(&str, &str, &str); 13] = [
    (
        "replicas: 3",
        "- (root): Additional property replicas is not allowed",
        "- at '': additional properties 'replicas' not allowed",
    ),
    (
        "replicaCount: two",
        "- replicaCount: Invalid type. Expected: integer, given: string",
        "- at '/replicaCount': got string, want integer",
    ),
    (
        "config: {sync: {batchsize: 5}}",
        "- config.sync: Additional property batchsize is not allowed",
        "- at '/config/sync': additional properties 'batchsize' not allowed",
    ),
    (
        "config: {database: {url: postgres://user:password@db/name}}",
        "- config.database: Additional property url is not allowed",
        "- at '/config/database': additional properties 'url' not allowed",
    ),
    (
        "config: {lifecycle: {grace: 25}}",
        "- config.lifecycle.grace: Invalid type. Expected: string, given: integer",
        "- at '/config/lifecycle/grace': got number, want string",
    ),
    (
        "config: {broker: {prefetch: 0}}",
        "- config.broker.prefetch: Must be greater than or equal to 1",
        "- at '/config/broker/prefetch': minimum: got 0, want 1",
    ),
    (
        "config: {customerio: {region: us-east-1}}",
        "- config.customerio.region: config.customerio.region must be one of the following: \
         \"us\", \"eu\"",
        "- at '/config/customerio/region': value must be one of 'us', 'eu'",
    ),
    (
        "migrations: {mode: always}",
        "- migrations.mode: migrations.mode must be one of the following: \"hook\", \"job\", \
         \"none\"",
        "- at '/migrations/mode': value must be one of 'hook', 'job', 'none'",
    ),
    (
        "credentials: {databaseUrl: {value: postgres://user:password@db/name}}",
        "- credentials.databaseUrl: Additional property value is not allowed",
        "- at '/credentials/databaseUrl': additional properties 'value' not allowed",
    ),
    (
        "config: {lifecycle: {grace: 1day}}",
        "- config.lifecycle.grace: Does not match pattern '^([0-9]+ *(ms|s|m|h|d) *)+$'",
        "- at '/config/lifecycle/grace': '1day' does not match pattern \
            '^([0-9]+ *(ms|s|m|h|d) *)+$'",
    ),
    ("tls: null", "- (root): tls is required", "- at '': missing property 'tls'"),
    (
        "credentials: {databaseUrl: {key: null}}",
        "- credentials.databaseUrl: key is required",
        "- at '/credentials/databaseUrl': missing property 'key'",
    ),
    (
        "image: {digest: 0123abc}",
        "- image.digest: Does not match pattern '^(sha256:[0-9a-f]{64})?$'",
        "- at '/image/digest': '0123abc' does not match pattern '^(sha256:[0-9a-f]{64})?$'",
    ),
];

#[test]
fn mistakes_are_refused_with_the_value_that_is_wrong() {
    for (values, third, fourth) in MISTAKES {
        for (helm, expected) in [(Helm::V3, third), (Helm::V4, fourth)] {
            let message = refusal(helm, values);
            let lines: Vec<_> = message.lines().filter(|line| line.starts_with("- ")).collect();
            assert_eq!(lines, [expected], "{helm:?} {values}");
        }
    }
}
