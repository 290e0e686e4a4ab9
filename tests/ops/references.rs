//! Every name that an object refers to exists: in the render, or as an existing object that the
//! values name.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    helm::{Helm, chart, ci_content, ci_names, yaml},
    objects::{find, items, kind, name, only, pod, selects},
};

/// A kind and a name.
type Reference = (&'static str, String);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is a text")).to_owned()
}

/// The existing objects that values declare.
fn declared(values: &Value) -> BTreeSet<Reference> {
    let fields = [
        ("existingSecret", "Secret"),
        ("existingConfigMap", "ConfigMap"),
        ("secretName", "Secret"),
    ];
    let mut declared = BTreeSet::new();
    for (field, kind) in fields {
        let mut found = Vec::new();
        find(values, field, &mut found);
        declared.extend(found.into_iter().map(|name| (kind, text(name))));
    }
    let pull = items(&values["imagePullSecrets"]).map(|secret| ("Secret", text(&secret["name"])));
    declared.extend(pull);
    let gateways = items(&values["httpRoute"]["parentRefs"]);
    declared.extend(gateways.map(|gateway| ("Gateway", text(&gateway["name"]))));
    declared
        .insert(("PriorityClass", values["priorityClassName"].as_str().unwrap_or("").to_owned()));
    declared
}

/// The objects that a pod refers to.
fn references_of_pod(pod: &Value) -> BTreeSet<Reference> {
    let shapes = [
        ("secretKeyRef", "name", "Secret"),
        ("configMapKeyRef", "name", "ConfigMap"),
        ("secretRef", "name", "Secret"),
        ("configMapRef", "name", "ConfigMap"),
        ("secret", "secretName", "Secret"),
        ("configMap", "name", "ConfigMap"),
    ];
    let mut references = BTreeSet::new();
    for (field, name, kind) in shapes {
        let mut found = Vec::new();
        find(&pod["spec"], field, &mut found);
        for reference in found {
            // In a projected volume, a Secret is named like a ConfigMap.
            let name = if reference[name].is_null() { "name" } else { name };
            references.insert((kind, text(&reference[name])));
        }
    }
    let pull = items(&pod["spec"]["imagePullSecrets"]);
    references.extend(pull.map(|secret| ("Secret", text(&secret["name"]))));
    if let Some(class) = pod["spec"]["priorityClassName"].as_str() {
        references.insert(("PriorityClass", class.to_owned()));
    }
    references
}

/// The objects that an object refers to.
fn references(object: &Value) -> BTreeSet<Reference> {
    let spec = &object["spec"];
    let mut references = pod(object).map(references_of_pod).unwrap_or_default();
    match kind(object) {
        "HorizontalPodAutoscaler" | "ScaledObject" => {
            references.insert(("Deployment", text(&spec["scaleTargetRef"]["name"])));
            let mut found = Vec::new();
            find(spec, "authenticationRef", &mut found);
            let names = found.into_iter().map(|one| ("TriggerAuthentication", text(&one["name"])));
            references.extend(names);
        }
        "TriggerAuthentication" => {
            let secrets = items(&spec["secretTargetRef"]).map(|one| ("Secret", text(&one["name"])));
            references.extend(secrets);
            let maps = items(&spec["configMapTargetRef"]);
            references.extend(maps.map(|one| ("ConfigMap", text(&one["name"]))));
        }
        "Ingress" => {
            let mut services = Vec::new();
            find(spec, "service", &mut services);
            references.extend(services.into_iter().map(|one| ("Service", text(&one["name"]))));
            references.extend(items(&spec["tls"]).map(|one| ("Secret", text(&one["secretName"]))));
        }
        "HTTPRoute" => {
            let backends = items(&spec["rules"]).flat_map(|rule| items(&rule["backendRefs"]));
            references.extend(backends.map(|one| ("Service", text(&one["name"]))));
            references
                .extend(items(&spec["parentRefs"]).map(|one| ("Gateway", text(&one["name"]))));
        }
        _ => {}
    }
    references
}

/// The references of a render that lead nowhere.
fn dangling(objects: &[Value], declared: &BTreeSet<Reference>) -> Vec<Reference> {
    let exists = |(wanted, wanted_name): &Reference| {
        objects.iter().any(|object| kind(object) == *wanted && name(object) == wanted_name)
    };
    let references = objects.iter().flat_map(references);
    references.filter(|reference| !declared.contains(reference) && !exists(reference)).collect()
}

fn declared_by(name: &str) -> BTreeSet<Reference> {
    let defaults = std::fs::read_to_string(chart().join("values.yaml")).expect("readable");
    let mut declared = declared(&yaml(&defaults));
    declared.extend(self::declared(&ci_content(name)));
    declared
}

#[test]
fn every_reference_leads_to_an_object() {
    for helm in Helm::ALL {
        for name in ci_names() {
            let dangling = dangling(&helm.render(&name), &declared_by(&name));
            assert_eq!(dangling, [], "{helm:?} {name}");
        }
    }
}

#[test]
fn a_reference_to_a_missing_object_is_found() {
    let mut objects = Helm::V4.render("tls");
    let declared = declared_by("tls");
    objects.retain(|object| kind(object) != "ConfigMap");
    let dangling: BTreeSet<_> = dangling(&objects, &declared).into_iter().collect();
    let expected = ["prod-customerio-sync", "prod-customerio-sync-keda"];
    assert_eq!(dangling, expected.map(|name| ("ConfigMap", name.to_owned())).into());
    let undeclared = self::dangling(&Helm::V4.render("tls"), &BTreeSet::new());
    assert!(undeclared.contains(&("Secret", "postgres-app".to_owned())), "{undeclared:?}");
}

#[test]
fn selectors_and_ports_lead_to_the_pods_of_the_service() {
    for name in ci_names() {
        let objects = Helm::V3.render(&name);
        let pod = &only(&objects, "Deployment")["spec"]["template"];
        let labels = &pod["metadata"]["labels"];
        let container = &pod["spec"]["containers"][0];
        let ports: Vec<_> = items(&container["ports"]).map(|port| port["name"].clone()).collect();
        assert_eq!(ports, [json!("http")]);
        for object in &objects {
            let spec = &object["spec"];
            let selector = match kind(object) {
                "Deployment" | "PodDisruptionBudget" | "PodMonitor" => {
                    &spec["selector"]["matchLabels"]
                }
                "Service" => &spec["selector"],
                "ServiceMonitor" => {
                    let service = &only(&objects, "Service")["metadata"]["labels"];
                    assert!(selects(&spec["selector"]["matchLabels"], service), "{name}");
                    continue;
                }
                _ => continue,
            };
            assert!(selects(selector, labels), "{name}: {}", kind(object));
            // The pods of migration and test receive no requests and count in no budget.
            for other in objects.iter().filter(|other| matches!(kind(other), "Job" | "Pod")) {
                let other = self::pod(other).expect("a pod");
                assert!(
                    !selects(selector, &other["metadata"]["labels"]),
                    "{name}: {}",
                    kind(object)
                );
            }
        }
        let service = only(&objects, "Service");
        assert_eq!(service["spec"]["ports"][0]["targetPort"], "http");
        let (addr, port) = addr_and_port(&objects);
        assert!(addr.ends_with(&format!(":{port}")), "{addr} {port}");
    }
}

/// The address that the service listens on, and the port of its container.
fn addr_and_port(objects: &[Value]) -> (String, i64) {
    let container = &only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let addr = items(&container["env"]).find(|variable| variable["name"] == "HTTP_ADDR");
    let addr = text(&addr.expect("the address is set")["value"]);
    (addr, container["ports"][0]["containerPort"].as_i64().expect("a number"))
}

#[test]
fn every_mount_has_a_volume() {
    for name in ci_names() {
        for object in Helm::V4.render(&name) {
            let Some(pod) = pod(&object) else { continue };
            let volumes: BTreeSet<_> =
                items(&pod["spec"]["volumes"]).map(|volume| text(&volume["name"])).collect();
            let mounts =
                items(&pod["spec"]["containers"]).flat_map(|one| items(&one["volumeMounts"]));
            let mounts: BTreeSet<_> = mounts.map(|mount| text(&mount["name"])).collect();
            assert_eq!(mounts, volumes, "{name}: {}", kind(&object));
        }
    }
}
