//! The HTTP API: discovery, objects and watches.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    patch, pods,
    store::{Change, Resource, Store},
};
use crate::{helm::yaml, schemas::Schemas};

/// The version of Kubernetes that the server claims to be.
const VERSION: &str = "1.30";

const fn resource(
    group_version: &'static str,
    plural: &'static str,
    kind: &'static str,
) -> Resource {
    Resource { group_version, plural, kind }
}

/// The kinds of objects that are served.
pub(crate) const RESOURCES: [Resource; 18] = [
    resource("v1", "configmaps", "ConfigMap"),
    resource("v1", "pods", "Pod"),
    resource("v1", "secrets", "Secret"),
    resource("v1", "services", "Service"),
    resource("apps/v1", "deployments", "Deployment"),
    resource("apps/v1", "replicasets", "ReplicaSet"),
    resource("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    resource("batch/v1", "jobs", "Job"),
    resource("gateway.networking.k8s.io/v1", "httproutes", "HTTPRoute"),
    resource("keda.sh/v1alpha1", "scaledobjects", "ScaledObject"),
    resource("keda.sh/v1alpha1", "triggerauthentications", "TriggerAuthentication"),
    resource("monitoring.coreos.com/v1", "podmonitors", "PodMonitor"),
    resource("monitoring.coreos.com/v1", "prometheusrules", "PrometheusRule"),
    resource("monitoring.coreos.com/v1", "servicemonitors", "ServiceMonitor"),
    resource("networking.k8s.io/v1", "ingresses", "Ingress"),
    resource("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    resource("v1", "serviceaccounts", "ServiceAccount"),
];

struct Api {
    store: Arc<Store>,
    schemas: Schemas,
}

type Parameters = BTreeMap<String, String>;

pub(super) fn router(store: Arc<Store>) -> Router {
    let api = Arc::new(Api { store, schemas: Schemas::of_kubernetes(VERSION) });
    Router::new().fallback(answer).with_state(api)
}

async fn answer(
    State(api): State<Arc<Api>>,
    method: Method,
    uri: Uri,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // An empty message of Protocol Buffers: Helm then leaves validation to the server.
    if uri.path() == "/openapi/v2" {
        return StatusCode::OK.into_response();
    }
    let result = match discovery(uri.path()) {
        Some(found) => Ok(json(StatusCode::OK, &found)),
        None => api.object(&method, uri.path(), &parameters, &headers, &body),
    };
    result.unwrap_or_else(|refusal| refusal)
}

fn json(status: StatusCode, value: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn refuse(status: StatusCode, reason: &str, message: String) -> Response {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16() });
    json(status, &body)
}

fn not_found(path: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, "NotFound", format!("{path} not found"))
}

/// What clients ask before anything else.
fn discovery(path: &str) -> Option<Value> {
    let groups = || {
        let versions = RESOURCES.iter().filter_map(|one| one.group_version.split_once('/'));
        let groups: BTreeMap<_, _> = versions.collect();
        let groups = groups.into_iter().map(|(group, version)| {
            let version =
                json!({ "groupVersion": format!("{group}/{version}"), "version": version });
            json!({ "name": group, "versions": [version], "preferredVersion": version })
        });
        groups.collect::<Vec<_>>()
    };
    let found = match path {
        "/version" => {
            let (major, minor) = VERSION.split_once('.')?;
            json!({ "major": major, "minor": minor, "gitVersion": format!("v{VERSION}.0") })
        }
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups() }),
        _ => {
            let version = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
            let resources = RESOURCES.iter().filter(|one| one.group_version == version);
            let resources: Vec<_> = resources.map(described).collect();
            if resources.is_empty() {
                return None;
            }
            json!({ "kind": "APIResourceList", "groupVersion": version, "resources": resources })
        }
    };
    Some(found)
}

fn described(resource: &Resource) -> Value {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    json!({ "name": resource.plural, "singularName": resource.kind.to_lowercase(),
        "namespaced": true, "kind": resource.kind, "verbs": verbs })
}

/// A path below `/api` or `/apis`: the kind of object, its name, and a part of it.
fn target(path: &str) -> Option<(Resource, Option<&str>, Option<&str>)> {
    let rest = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
    let found = |resource: &&Resource| {
        let rest = rest.strip_prefix(resource.group_version)?.strip_prefix('/')?;
        let rest = rest.strip_prefix(&format!("namespaces/{}/", super::NAMESPACE)).unwrap_or(rest);
        let mut parts = rest.split('/');
        (parts.next() == Some(resource.plural)).then(|| (**resource, parts.next(), parts.next()))
    };
    RESOURCES.iter().find_map(|resource| found(&resource))
}

impl Api {
    fn object(
        &self,
        method: &Method,
        path: &str,
        parameters: &Parameters,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response, Response> {
        let (resource, name, part) = target(path).ok_or_else(|| not_found(path))?;
        match (method.as_str(), name) {
            ("GET", None) => Ok(self.list(resource, parameters)),
            ("GET", Some(name)) if part == Some("log") => {
                Ok(pods::log(&self.store, name).into_response())
            }
            ("GET", Some(name)) => {
                let object = self.store.get(resource, name).ok_or_else(|| not_found(path))?;
                Ok(json(StatusCode::OK, &object))
            }
            ("POST", None) => self.create(resource, parse(body)),
            ("PATCH", Some(name)) => {
                let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                self.change(resource, name, kind.unwrap_or_default(), &parse(body), path)
            }
            ("DELETE", Some(name)) => {
                let object = self.store.delete(resource, name).ok_or_else(|| not_found(path))?;
                Ok(json(StatusCode::OK, &object))
            }
            _ => Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", path.to_owned())),
        }
    }

    /// Refuses an object that does not have its schema.
    fn check(&self, object: &Value) -> Result<(), Response> {
        let mut checked = object.clone();
        // The schema of a custom resource has no status of ours.
        checked.as_object_mut().expect("an object").remove("status");
        match self.schemas.errors(&checked) {
            errors if errors.is_empty() => Ok(()),
            errors => {
                let message = format!("strict decoding error: {}", errors.join("; "));
                Err(refuse(StatusCode::BAD_REQUEST, "BadRequest", message))
            }
        }
    }

    fn create(&self, resource: Resource, object: Value) -> Result<Response, Response> {
        self.check(&object)?;
        let name = object["metadata"]["name"].as_str().expect("a name");
        if self.store.get(resource, name).is_some() {
            let message = format!("{} {name:?} already exists", resource.plural);
            return Err(refuse(StatusCode::CONFLICT, "AlreadyExists", message));
        }
        let stored = self.store.put(resource, object);
        pods::start(&self.store, resource, &stored);
        Ok(json(StatusCode::CREATED, &stored))
    }

    fn change(
        &self,
        resource: Resource,
        name: &str,
        kind: &str,
        patch: &Value,
        path: &str,
    ) -> Result<Response, Response> {
        let before = self.store.get(resource, name);
        if kind.starts_with("application/apply-patch") && before.is_none() {
            return self.create(resource, patch.clone());
        }
        let before = before.ok_or_else(|| not_found(path))?;
        let mut after = before.clone();
        match kind {
            // Helm is the only manager of fields, so what it applies is the whole object.
            "application/apply-patch+yaml" => after = patch.clone(),
            "application/merge-patch+json" => patch::merge(&mut after, patch),
            "application/strategic-merge-patch+json" => patch::strategic(&mut after, patch),
            _ => {
                let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return Err(refuse(status, "UnsupportedMediaType", kind.to_owned()));
            }
        }
        self.check(&after)?;
        let immutable = match resource.kind {
            "Deployment" => "/spec/selector",
            "Job" => "/spec/template",
            _ => "/kind",
        };
        if before.pointer(immutable) != after.pointer(immutable) {
            let message = format!("{name}: {immutable}: field is immutable");
            return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
        }
        Ok(json(StatusCode::OK, &self.store.put(resource, after)))
    }

    fn list(&self, resource: Resource, parameters: &Parameters) -> Response {
        if parameters.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
            return self.watch(resource, parameters);
        }
        let version = self.store.version();
        let objects = self.store.list(resource);
        let objects = objects.into_values().filter(|object| selected(object, parameters));
        let list = json!({ "kind": format!("{}List", resource.kind),
            "apiVersion": resource.group_version,
            "metadata": { "resourceVersion": version.to_string() },
            "items": objects.collect::<Vec<_>>() });
        json(StatusCode::OK, &list)
    }

    fn watch(&self, resource: Resource, parameters: &Parameters) -> Response {
        if parameters.contains_key("sendInitialEvents") {
            let message = "sendInitialEvents is forbidden".to_owned();
            return refuse(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        }
        let version = parameters.get("resourceVersion").and_then(|version| version.parse().ok());
        let (missed, receiver) = self.store.changes_after(version.unwrap_or(0));
        let parameters = parameters.clone();
        let coming = stream::unfold(receiver, |mut receiver| async {
            // A watch that lags ends, and the client lists again.
            Some((receiver.recv().await.ok()?, receiver))
        });
        let changes = stream::iter(missed).chain(coming).filter_map(move |change: Change| {
            let wanted = change.resource == resource && selected(&change.object, &parameters);
            let line = json!({ "type": change.what, "object": change.object });
            std::future::ready(
                wanted.then(|| Ok::<_, std::convert::Infallible>(format!("{line}\n"))),
            )
        });
        ([(CONTENT_TYPE, "application/json")], Body::from_stream(changes)).into_response()
    }
}

/// Helm sends JSON or YAML.
fn parse(body: &[u8]) -> Value {
    yaml(std::str::from_utf8(body).expect("UTF-8"))
}

/// Whether the selectors of a list or watch select an object.
fn selected(object: &Value, parameters: &Parameters) -> bool {
    let selects = |parameter: &str, fields: &Value, prefix: &str| {
        let selectors = parameters.get(parameter).map_or("", String::as_str);
        let mut selectors = selectors.split(',').filter_map(|selector| selector.split_once('='));
        selectors.all(|(name, value)| {
            fields[name.strip_prefix(prefix).unwrap_or(name)] == value.trim_start_matches('=')
        })
    };
    selects("labelSelector", &object["metadata"]["labels"], "")
        && selects("fieldSelector", &object["metadata"], "metadata.")
}
