//! Pods as processes of the real program.

use std::{path::PathBuf, process::Output, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::store::{Resource, Store};
use crate::{objects::items, support::program_at};

/// A pod that ran.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The name of the Job or of the pod.
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) succeeded: bool,
    pub(crate) output: String,
}

/// Runs the pod of a new Job, or a new pod, in the background.
pub(super) fn start(store: &Arc<Store>, resource: Resource, object: &Value) {
    let spec = match resource.kind {
        "Job" => object["spec"]["template"]["spec"].clone(),
        "Pod" => object["spec"].clone(),
        _ => return,
    };
    let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || {
        let run = run(&store, &name, &spec);
        store.record(run.clone());
        // It may have been deleted meanwhile.
        let Some(mut object) = store.get(resource, &name) else { return };
        object["status"] = ended(resource.kind, run.succeeded);
        store.put(resource, object);
    });
}

/// The output of a pod, for `helm test --logs`.
pub(super) fn log(store: &Store, name: &str) -> String {
    let runs = store.runs();
    runs.into_iter().rev().find(|run| run.name == name).map(|run| run.output).unwrap_or_default()
}

fn run(store: &Store, name: &str, spec: &Value) -> Run {
    let container = &spec["containers"][0];
    let image = container["image"].as_str().expect("an image").to_owned();
    let result = environment(store, container).and_then(|environment| {
        let program = store.programs.get(&image).ok_or(format!("there is no image {image}"))?;
        Ok(execute(program, container, &environment))
    });
    let (succeeded, output) = match result {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        }
        Err(reason) => (false, reason),
    };
    Run { name: name.to_owned(), image, succeeded, output }
}

fn execute(program: &PathBuf, container: &Value, environment: &[(String, String)]) -> Output {
    let arguments = items(&container["args"]).map(|argument| argument.as_str().expect("a text"));
    program_at(program, environment).args(arguments).output().expect("the program starts")
}

/// The environment of a container. A Secret, or a key of one, that does not exist is an error, with
/// which a pod of Kubernetes would wait.
fn environment(store: &Store, container: &Value) -> Result<Vec<(String, String)>, String> {
    let variables = items(&container["env"]).map(|variable| {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let reference = &variable["valueFrom"]["secretKeyRef"];
        let value = match (variable["value"].as_str(), reference["name"].as_str()) {
            (Some(value), _) => value.to_owned(),
            (None, Some(secret)) => secret_value(store, secret, &reference["key"])?,
            (None, None) => return Err(format!("{variable} is not supported")),
        };
        Ok((name, value))
    });
    variables.collect()
}

fn secret_value(store: &Store, name: &str, key: &Value) -> Result<String, String> {
    let missing = || format!("secret \"{name}\" has no key {key}");
    let secret = store.get(Resource::of_kind("Secret"), name);
    let secret = secret.ok_or_else(|| format!("secret \"{name}\" not found"))?;
    let key = key.as_str().expect("a key");
    if let Some(text) = secret["stringData"][key].as_str() {
        return Ok(text.to_owned());
    }
    let encoded = secret["data"][key].as_str().ok_or_else(missing)?;
    let bytes = STANDARD.decode(encoded).map_err(|_| missing())?;
    String::from_utf8(bytes).map_err(|_| missing())
}

fn ended(kind: &str, succeeded: bool) -> Value {
    match (kind, succeeded) {
        ("Job", true) => json!({ "succeeded": 1, "completionTime": "2026-01-01T00:00:00Z",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{ "type": "Complete", "status": "True" }] }),
        ("Job", false) => json!({ "failed": 1, "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
                "message": "Job has reached the specified backoff limit" }] }),
        (_, succeeded) => json!({ "phase": if succeeded { "Succeeded" } else { "Failed" } }),
    }
}
