//! Strict schemas of Kubernetes objects: an unknown field is an error.

use std::{collections::BTreeMap, fs, sync::LazyLock};

use serde_json::{Value, json};

use crate::{helm::yaml, support::root, tools::tools};

/// The versions of Kubernetes whose schemas are checked: the first that the chart supports, one in
/// between, and the latest.
pub(crate) const KUBERNETES: [&str; 3] = ["1.27", "1.30", "1.37"];

/// Group, version and kind of an object.
type Gvk = (String, String, String);

/// Definitions of the fields of objects.
pub(crate) struct Schemas {
    definitions: Value,
    /// The names in `definitions`.
    by_gvk: BTreeMap<Gvk, String>,
}

impl Schemas {
    /// The schemas of a version of Kubernetes, from the Python package kubernetes-validate.
    pub(crate) fn of_kubernetes(version: &str) -> Self {
        let path = tools().join(format!("schemas/v{version}.0-local-strict/_definitions.json"));
        let text = fs::read_to_string(&path).expect("the schemas are installed");
        // The references are to this file, which becomes a part of each schema.
        let text = text.replace("/api/_definitions.json#", "#");
        let file: Value = serde_json::from_str(&text).expect("JSON");
        let mut by_gvk = BTreeMap::new();
        for (name, definition) in file["$defs"].as_object().expect("definitions") {
            let gvks = definition["x-kubernetes-group-version-kind"].as_array();
            for gvk in gvks.into_iter().flatten() {
                let text = |field: &str| gvk[field].as_str().unwrap_or_default().to_owned();
                by_gvk.insert((text("group"), text("version"), text("kind")), name.clone());
            }
        }
        Self { definitions: file["$defs"].clone(), by_gvk }
    }

    /// The errors of an object, one line each. Custom resources are checked as well.
    pub(crate) fn errors(&self, object: &Value) -> Vec<String> {
        let gvk = gvk(object);
        let schema = match (self.by_gvk.get(&gvk), CUSTOM.get(&gvk)) {
            (Some(name), _) => {
                json!({ "$ref": format!("#/$defs/{name}"), "$defs": self.definitions })
            }
            (None, Some(custom)) => custom.clone(),
            (None, None) => return vec![format!("{gvk:?} is unknown")],
        };
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let errors = validator.iter_errors(object);
        errors.map(|error| format!("{gvk:?} {}: {error}", error.instance_path())).collect()
    }
}

/// The custom resource definitions in `tests/ops/crds`.
static CUSTOM: LazyLock<BTreeMap<Gvk, Value>> = LazyLock::new(|| {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(root().join("tests/ops/crds")).expect("the folder is there") {
        let path = file.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let definition = yaml(&fs::read_to_string(path).expect("readable"));
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        for version in spec["versions"].as_array().expect("versions") {
            let gvk = (text(&spec["group"]), text(&version["name"]), text(&spec["names"]["kind"]));
            let mut schema = version["schema"]["openAPIV3Schema"].clone();
            // The API server knows these fields.
            schema["properties"]["metadata"] = json!({ "type": "object" });
            make_strict(&mut schema);
            found.insert(gvk, schema);
        }
    }
    found
});

/// Makes every object refuse fields that it does not list. An object without a list stays free.
fn make_strict(schema: &mut Value) {
    if let Some(schema) = schema.as_object_mut() {
        let keeps = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        let lists = schema.get("properties").is_some_and(Value::is_object);
        if lists && !keeps && !schema.contains_key("additionalProperties") {
            schema.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
        for (name, value) in schema {
            match name.as_str() {
                // Conditions on fields that the schema around them lists.
                "anyOf" | "allOf" | "oneOf" | "not" => {}
                "properties" => {
                    value.as_object_mut().expect("properties").values_mut().for_each(make_strict)
                }
                _ => make_strict(value),
            }
        }
    }
}

fn gvk(object: &Value) -> Gvk {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = object["kind"].as_str().unwrap_or_default();
    (group.to_owned(), version.to_owned(), kind.to_owned())
}

#[test]
fn planted_mistakes_are_found() {
    let schemas = Schemas::of_kubernetes("1.27");
    let deployment = |spec: Value| {
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "x" },
            "spec": spec })
    };
    let template = json!({ "spec": { "containers": [{ "name": "x" }] } });
    let valid = json!({ "selector": { "matchLabels": {} }, "template": template });
    assert_eq!(schemas.errors(&deployment(valid.clone())), [""; 0]);
    for (field, value) in [("replicaz", json!(1)), ("replicas", json!("two"))] {
        let mut spec = valid.clone();
        spec[field] = value;
        assert_eq!(schemas.errors(&deployment(spec)).len(), 1, "{field}");
    }
    let scaled = json!({ "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": { "name": "x" },
        "spec": { "scaleTargetRef": { "name": "x" }, "minReplicaCounts": 1,
            "triggers": [{ "type": "rabbitmq", "metadata": { "value": 5 } }] } });
    assert_eq!(schemas.errors(&scaled).len(), 2, "an unknown field, and a number for a text");
}
