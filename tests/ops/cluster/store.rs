//! The objects, and their changes for watches.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{RESOURCES, pods::Run};

/// Changes that a slow watch may lag behind.
const CHANGES_MAX: usize = 1024;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Resource {
    /// `v1` or `group/version`.
    pub(super) group_version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
}

impl Resource {
    pub(super) fn of_kind(kind: &str) -> Self {
        let found = RESOURCES.iter().find(|resource| resource.kind == kind);
        *found.unwrap_or_else(|| panic!("the kind {kind} is served"))
    }
}

/// A change of an object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: Resource,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(super) what: &'static str,
    pub(super) object: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Resource, BTreeMap<String, Value>>,
    changes: Vec<Change>,
    runs: Vec<Run>,
}

pub(super) struct Store {
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
    /// The programs of the images.
    pub(super) programs: BTreeMap<String, PathBuf>,
}

impl Store {
    pub(super) fn new(programs: BTreeMap<String, PathBuf>) -> Self {
        Self { state: Mutex::default(), changes: broadcast::channel(CHANGES_MAX).0, programs }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the lock")
    }

    pub(super) fn get(&self, resource: Resource, name: &str) -> Option<Value> {
        self.state().objects.get(&resource)?.get(name).cloned()
    }

    pub(super) fn list(&self, resource: Resource) -> BTreeMap<String, Value> {
        self.state().objects.get(&resource).cloned().unwrap_or_default()
    }

    /// The version of the latest change.
    pub(super) fn version(&self) -> u64 {
        self.state().version
    }

    /// The changes after a version, and those to come.
    pub(super) fn changes_after(&self, version: u64) -> (Vec<Change>, broadcast::Receiver<Change>) {
        let state = self.state();
        let missed = state.changes.iter().filter(|change| change.version > version).cloned();
        (missed.collect(), self.changes.subscribe())
    }

    /// Stores an object, with the fields that a server sets, and returns it.
    pub(super) fn put(&self, resource: Resource, mut object: Value) -> Value {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let before = state.objects.get(&resource).and_then(|objects| objects.get(&name));
        let mut generation = 1;
        if let Some(before) = before {
            let same = before["spec"] == object["spec"];
            generation = before["metadata"]["generation"].as_u64().unwrap_or(1) + u64::from(!same);
        }
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        object["metadata"]["namespace"] = super::NAMESPACE.into();
        object["metadata"]["uid"] = format!("00000000-0000-4000-8000-{:012}", name.len()).into();
        object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object["metadata"]["generation"] = generation.into();
        if let Some(status) = status(resource.kind, &object, generation) {
            object["status"] = status;
        }
        state.objects.entry(resource).or_default().insert(name, object.clone());
        self.publish(&mut state, Change { version, resource, what, object: object.clone() });
        object
    }

    pub(super) fn delete(&self, resource: Resource, name: &str) -> Option<Value> {
        let mut state = self.state();
        let object = state.objects.get_mut(&resource)?.remove(name)?;
        state.version += 1;
        let change =
            Change { version: state.version, resource, what: "DELETED", object: object.clone() };
        self.publish(&mut state, change);
        Some(object)
    }

    fn publish(&self, state: &mut State, change: Change) {
        state.changes.push(change.clone());
        // Nobody may be watching.
        let _ = self.changes.send(change);
    }

    pub(super) fn record(&self, run: Run) {
        self.state().runs.push(run);
    }

    pub(super) fn runs(&self) -> Vec<Run> {
        self.state().runs.clone()
    }
}

/// The status that controllers would set at once.
fn status(kind: &str, object: &Value, generation: u64) -> Option<Value> {
    match kind {
        "Deployment" => {
            let replicas = object["spec"]["replicas"].as_u64().unwrap_or(1);
            let conditions = json!([{ "type": "Available", "status": "True" },
                { "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" }]);
            Some(json!({ "observedGeneration": generation, "replicas": replicas,
                "updatedReplicas": replicas, "readyReplicas": replicas,
                "availableReplicas": replicas, "conditions": conditions }))
        }
        "PodDisruptionBudget" => Some(json!({ "observedGeneration": generation,
            "currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 1,
            "expectedPods": 1 })),
        _ => None,
    }
}
