//! Patches of objects.

use serde_json::{Map, Value};

/// The fields by which a strategic merge patch finds the elements of a list, for the lists of the
/// chart. The first that the element has is used.
/// <https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/>
const MERGE_KEYS: [&str; 4] = ["mountPath", "containerPort", "topologyKey", "name"];

/// Applies a JSON merge patch (RFC 7396).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    for (name, value) in patch {
        let fields = fields(target);
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Applies a strategic merge patch, as Helm 3 sends it for objects of Kubernetes itself.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    match patch {
        Value::Object(patch) => {
            if patch.get("$patch").is_some_and(|directive| directive == "replace") {
                *target = Value::Object(Map::new());
            }
            if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
                fields(target).retain(|name, _| kept.iter().any(|one| one == name));
            }
            for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
                let fields = fields(target);
                if value.is_null() {
                    fields.remove(name);
                } else {
                    strategic(fields.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        Value::Array(elements) => strategic_list(target, elements),
        _ => *target = patch.clone(),
    }
}

fn strategic_list(target: &mut Value, elements: &[Value]) {
    let key = |element: &Value| {
        let key = MERGE_KEYS.iter().find(|key| !element[**key].is_null())?;
        Some((*key, element[*key].clone()))
    };
    if !elements.iter().all(|element| key(element).is_some()) {
        *target = Value::Array(elements.to_vec());
        return;
    }
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let list = target.as_array_mut().expect("it is one now");
    for element in elements {
        let (key, wanted) = key(element).expect("checked above");
        let position = list.iter().position(|existing| existing[key] == wanted);
        match (position, element["$patch"] == "delete") {
            (Some(position), true) => drop(list.remove(position)),
            (Some(position), false) => strategic(&mut list[position], element),
            (None, true) => {}
            (None, false) => list.push(element.clone()),
        }
    }
}

fn fields(target: &mut Value) -> &mut Map<String, Value> {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    target.as_object_mut().expect("it is one now")
}
