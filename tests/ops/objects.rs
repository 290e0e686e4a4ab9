//! Reading objects of Kubernetes.

use serde_json::Value;

pub(crate) fn kind(object: &Value) -> &str {
    object["kind"].as_str().expect("a kind")
}

pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

/// The only object of a kind.
pub(crate) fn only<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| kind(object) == wanted);
    let first = found.next().unwrap_or_else(|| panic!("no {wanted}"));
    assert!(found.next().is_none(), "more than one {wanted}");
    first
}

pub(crate) fn has(objects: &[Value], wanted: &str) -> bool {
    objects.iter().any(|object| kind(object) == wanted)
}

/// The pod, or the template of pods, that an object contains: a value with `metadata` and `spec`.
pub(crate) fn pod(object: &Value) -> Option<&Value> {
    match kind(object) {
        "Pod" => Some(object),
        "Deployment" | "Job" => Some(&object["spec"]["template"]),
        _ => None,
    }
}

/// The elements of an array; none if it is missing.
pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether `labels` contain all labels of a selector.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().expect("labels");
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

/// The values of every field of that name, at any depth.
pub(crate) fn find<'a>(value: &'a Value, field: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if name == field {
                    found.push(value);
                }
                find(value, field, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| find(value, field, found)),
        _ => {}
    }
}
