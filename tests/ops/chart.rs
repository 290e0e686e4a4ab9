//! The chart renders valid, safe and repeatable objects from every values file in `ci/`.

use std::fs;

use serde_json::{Value, json};

use crate::{
    helm::{Helm, chart, ci_names, copy, documents, values_file, yaml},
    objects::{find, has, items, kind, name, only, pod, selects},
    schemas::{KUBERNETES, Schemas},
    support::{program, root},
    tools::{limited, run, succeed},
};

#[test]
fn every_values_file_passes_helms_lint() {
    for helm in Helm::ALL {
        for name in ci_names() {
            let values = chart().join(format!("ci/{name}-values.yaml"));
            let mut lint = helm.command();
            succeed(lint.args(["lint", "--strict"]).arg(chart()).arg("--values").arg(values));
        }
    }
}

#[test]
fn every_object_is_valid_in_every_supported_version_of_kubernetes() {
    let schemas = KUBERNETES.map(Schemas::of_kubernetes);
    let mut kinds = std::collections::BTreeSet::new();
    for helm in Helm::ALL {
        for name in ci_names() {
            for object in helm.render(&name) {
                for (schemas, version) in schemas.iter().zip(KUBERNETES) {
                    let errors = schemas.errors(&object);
                    assert!(errors.is_empty(), "{helm:?} {name} {version}: {errors:?}");
                }
                kinds.insert(kind(&object).to_owned());
            }
        }
    }
    assert_eq!(kinds.len(), 15, "the values files cover every kind of object: {kinds:?}");
}

#[test]
fn both_versions_of_helm_render_the_same_objects_each_time() {
    for name in ci_names() {
        let values = chart().join(format!("ci/{name}-values.yaml"));
        for helm in Helm::ALL {
            let render = || helm.template(&chart(), &values, &[]);
            assert_eq!(render(), render(), "{name}");
        }
        let sorted = |helm: Helm| {
            let mut objects = helm.render(&name);
            objects.sort_by_key(|object| (kind(object).to_owned(), object["metadata"].to_string()));
            objects
        };
        assert_eq!(sorted(Helm::V3), sorted(Helm::V4), "{name}");
    }
}

#[test]
fn a_new_version_of_the_chart_alone_changes_no_pod() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let newer = folder.path().join("customerio-sync");
    copy(&chart(), &newer);
    let manifest = fs::read_to_string(newer.join("Chart.yaml")).expect("readable");
    let changed = manifest.replacen("\nversion: 0.1.0\n", "\nversion: 0.1.1\n", 1);
    assert_ne!(manifest, changed);
    fs::write(newer.join("Chart.yaml"), changed).expect("written");
    for helm in Helm::ALL {
        for name in ci_names() {
            let values = chart().join(format!("ci/{name}-values.yaml"));
            let objects = documents(&helm.template(&newer, &values, &[]));
            let pods = |objects: &[Value]| -> Vec<String> {
                let pods = objects.iter().filter_map(|object| Some((kind(object), pod(object)?)));
                let pods = pods.map(|(kind, pod)| format!("{kind} {pod}"));
                pods.collect()
            };
            assert_eq!(pods(&objects), pods(&helm.render(&name)), "{name}");
            assert_ne!(objects, helm.render(&name), "the labels have the version");
        }
    }
}

#[test]
fn a_changed_setting_restarts_the_pods_and_a_changed_label_does_not() {
    let checksum = |values: &str| {
        let objects = Helm::V4.render_values(values);
        let deployment = only(&objects, "Deployment");
        deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    let default = checksum("{}");
    assert_ne!(default, checksum("config: {sync: {batch_size: 100}}"));
    assert_eq!(default, checksum("service: {annotations: {a: b}}"));
    assert_eq!(default, checksum("monitoring: {dashboard: {enabled: true}}"));
}

#[test]
fn a_parent_chart_can_use_the_chart_and_its_own_globals() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let parent = folder.path().join("parent");
    fs::create_dir_all(parent.join("charts")).expect("created");
    fs::create_dir_all(parent.join("templates")).expect("created");
    copy(&chart(), &parent.join("charts/customerio-sync"));
    let manifest = "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n  \
        - {name: customerio-sync, version: 0.1.0, condition: customerio-sync.enabled}\n";
    fs::write(parent.join("Chart.yaml"), manifest).expect("written");
    let values = values_file(
        "global: {imageRegistry: registry.example.com, anything: {else: 1}}\n\
         customerio-sync: {enabled: true, replicaCount: 3}\n",
    );
    for helm in Helm::ALL {
        succeed(
            helm.command().args(["lint", "--strict"]).arg(&parent).arg("-f").arg(values.path()),
        );
        let objects = documents(&helm.template(&parent, values.path(), &[]));
        assert_eq!(only(&objects, "Deployment")["spec"]["replicas"], 3);
    }
}

/// The settings of a render load in the real program, which also uses them.
#[test]
fn the_program_loads_the_settings_of_every_render() {
    for helm in Helm::ALL {
        for name in ci_names() {
            let objects = helm.render(&name);
            let folder = tempfile::tempdir().expect("a temporary folder");
            let deployment = only(&objects, "Deployment");
            let configs = objects.iter().find(|object| !object["data"]["config.toml"].is_null());
            let config =
                configs.expect("a ConfigMap")["data"]["config.toml"].as_str().expect("text");
            let mounted = "/etc/customerio-sync/";
            let here = format!("{}/", folder.path().display());
            for (path, content) in files_of_volumes(deployment) {
                let path = folder.path().join(path.strip_prefix(mounted).expect("one folder"));
                fs::create_dir_all(path.parent().expect("a folder")).expect("created");
                fs::write(path, content).expect("written");
            }
            let file = folder.path().join("config.toml");
            fs::write(&file, config.replace(mounted, &here)).expect("written");
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            let environment = items(&container["env"]).filter_map(|variable| {
                let value = variable["value"].as_str()?.replace(mounted, &here);
                Some((variable["name"].as_str()?.to_owned(), value))
            });
            let environment: Vec<_> = environment.collect();
            let mut printing = program(&environment);
            let printed = run(printing.args(["topology", "--print", "--config"]).arg(&file));
            assert!(printed.succeeded, "{helm:?} {name}: {}\n{config}", printed.stderr);
            let limit = if name == "everything" { 20 } else { 50 };
            assert!(printed.stdout.contains(&format!("\"x-delivery-limit\": {limit}")), "{name}");
        }
    }
}

/// The files that the credentials and certificates of a Deployment appear as, with sample content.
fn files_of_volumes(deployment: &Value) -> Vec<(String, &'static str)> {
    let spec = &deployment["spec"]["template"]["spec"];
    let mut files = Vec::new();
    for mount in items(&spec["containers"][0]["volumeMounts"]) {
        let volume = items(&spec["volumes"]).find(|volume| volume["name"] == mount["name"]);
        let path = mount["mountPath"].as_str().expect("a path");
        let mut paths = Vec::new();
        find(volume.expect("the volume is there"), "path", &mut paths);
        for file in paths {
            let file = file.as_str().expect("a path");
            let content = match file {
                "DATABASE_URL" => "postgres://user:password@db/name",
                "AMQP_URL" => "amqp://user:password@mq/%2f",
                "ADMIN_TOKENS" => "ann:operator:0123456789abcdef",
                "ca.crt" => include_str!("../certificates/valid.pem"),
                _ => "secret",
            };
            files.push((format!("{path}/{file}"), content));
        }
        if volume
            .is_some_and(|volume| volume["name"].as_str().is_some_and(|n| n.ends_with("-client")))
        {
            files.push((format!("{path}/tls.crt"), include_str!("../certificates/valid.pem")));
            files.push((format!("{path}/tls.key"), "a key that is not read before the first use"));
        }
    }
    files
}

#[test]
fn every_pod_is_restricted() {
    for name in ci_names() {
        for object in Helm::V3.render(&name) {
            let Some(pod) = pod(&object) else { continue };
            let spec = &pod["spec"];
            let what = format!("{name}: {}", kind(&object));
            assert_eq!(spec["automountServiceAccountToken"], false, "{what}");
            assert_eq!(spec["enableServiceLinks"], false, "{what}");
            assert!(spec["serviceAccountName"].is_null(), "{what}");
            let mut security = json!({ "runAsNonRoot": true,
                "seccompProfile": { "type": "RuntimeDefault" } });
            if name == "everything" {
                security["fsGroup"] = 2000.into();
            }
            assert_eq!(spec["securityContext"], security, "{what}");
            for container in items(&spec["containers"]) {
                let security = json!({ "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
                assert_eq!(container["securityContext"], security, "{what}");
                assert!(container["resources"]["requests"]["cpu"].is_string(), "{what}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{what}");
            }
        }
    }
}

#[test]
fn the_deployment_is_replaced_without_a_gap_and_probes_the_program() {
    let objects = Helm::V3.render("default");
    let deployment = &only(&objects, "Deployment")["spec"];
    let rolling = json!({ "type": "RollingUpdate",
        "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } });
    assert_eq!(deployment["strategy"], rolling);
    let container = &deployment["template"]["spec"]["containers"][0];
    for (probe, path) in
        [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "http" }));
    }
    assert_eq!(items(&deployment["template"]["spec"]["topologySpreadConstraints"]).count(), 2);
    assert_eq!(only(&objects, "Service")["spec"]["publishNotReadyAddresses"], true);
    for kind in ["Ingress", "HTTPRoute", "NetworkPolicy", "ServiceMonitor", "PodMonitor"] {
        assert!(!has(&objects, kind), "{kind} is off by default");
    }
}

#[test]
fn the_grace_time_follows_the_setting() {
    for (grace, seconds) in
        [("25s", 35), ("500ms", 11), ("1m", 70), ("1m 30s", 100), ("2m30s", 160), ("1h", 3610)]
    {
        let values = format!("config: {{lifecycle: {{grace: {grace}}}}}");
        let objects = Helm::V4.render_values(&values);
        let pod = &only(&objects, "Deployment")["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], seconds, "{grace}");
    }
}

#[test]
fn an_autoscaler_alone_sets_the_number_of_replicas() {
    for (name, replicas) in
        [("default", Some(2)), ("minimal", Some(1)), ("hpa", None), ("keda", None)]
    {
        let objects = Helm::V3.render(name);
        let spec = &only(&objects, "Deployment")["spec"];
        assert_eq!(spec["replicas"].as_i64(), replicas, "{name}");
        assert_eq!(has(&objects, "HorizontalPodAutoscaler"), name == "hpa");
        assert_eq!(has(&objects, "ScaledObject"), name == "keda");
        // One replica must be movable to another node.
        assert_eq!(has(&objects, "PodDisruptionBudget"), name != "minimal", "{name}");
    }
    let objects = Helm::V3.render("default");
    let budget = &only(&objects, "PodDisruptionBudget")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow");
}

#[test]
fn keda_scales_on_the_work_queues_and_not_during_an_outage() {
    let objects = Helm::V4.render("tls");
    let scaled = &only(&objects, "ScaledObject")["spec"];
    let mut queues = Vec::new();
    find(&scaled["triggers"], "queueName", &mut queues);
    let mut queues: Vec<_> = queues.into_iter().filter_map(Value::as_str).collect();
    queues.sort_unstable();
    let work = [
        "customerio-sync.extraction-confirmed",
        "customerio-sync.jobs",
        "customerio-sync.signup-submitted",
    ];
    assert_eq!(queues, work);
    let formula = scaled["advanced"]["scalingModifiers"]["formula"].as_str().expect("a formula");
    for trigger in items(&scaled["triggers"]) {
        let name = trigger["name"].as_str().expect("a name");
        assert!(formula.split(' ').any(|word| word == name), "{name} is in {formula}");
    }
    assert!(formula.starts_with("breaker > 0 ? 0 : "), "{formula}");
    assert_eq!(scaled["fallback"]["behavior"], "currentReplicasIfHigher");
    let behavior = &scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"];
    assert_eq!(behavior["scaleDown"]["stabilizationWindowSeconds"], 300);
    let authentication = &only(&objects, "TriggerAuthentication")["spec"];
    let parameters = items(&authentication["secretTargetRef"])
        .chain(items(&authentication["configMapTargetRef"]))
        .filter_map(|parameter| parameter["parameter"].as_str());
    let mut parameters: Vec<_> = parameters.collect();
    parameters.sort_unstable();
    assert_eq!(parameters, ["ca", "cert", "host", "key", "tls"]);
}

#[test]
fn the_migration_runs_before_the_release_and_depends_on_nothing_in_it() {
    for helm in Helm::ALL {
        for name in ["default", "tls", "everything"] {
            let objects = helm.render(name);
            let job = only(&objects, "Job");
            let annotations = json!({ "helm.sh/hook": "pre-install,pre-upgrade",
                "helm.sh/hook-weight": "-5",
                "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded" });
            assert_eq!(job["metadata"]["annotations"], annotations, "{name}");
            let text = job["spec"]["template"]["spec"].to_string();
            for object in
                objects.iter().filter(|object| matches!(kind(object), "ConfigMap" | "Secret"))
            {
                assert!(!text.contains(&format!("\"name\":\"{}\"", self::name(object))), "{name}");
            }
            let deployment = only(&objects, "Deployment")["spec"]["template"]["spec"].to_string();
            let config = objects.iter().find(|object| !object["data"]["config.toml"].is_null());
            let config = config.expect("a ConfigMap")["data"]["config.toml"].as_str();
            assert!(config.is_some_and(|text| text.contains("migrate = false")), "{deployment}");
        }
    }
    let tls = Helm::V3.render("tls");
    let environment = &only(&tls, "Job")["spec"]["template"]["spec"]["containers"][0]["env"][0];
    assert_eq!(
        environment["valueFrom"]["secretKeyRef"],
        json!({ "name": "postgres-owner", "key": "uri" })
    );
}

#[test]
fn the_job_for_argo_cd_has_a_new_name_for_each_version() {
    let name_of = |values: &str| {
        let objects = Helm::V4.render_values(&format!("migrations: {{mode: job}}\n{values}"));
        let job = only(&objects, "Job").clone();
        assert!(job["metadata"]["annotations"]["helm.sh/hook"].is_null());
        assert_eq!(job["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"], "-1");
        let name = name(&job).to_owned();
        assert!(name.len() <= 63, "{name}");
        name
    };
    let first = name_of("");
    assert!(first.contains("-0-1-0-1-"), "{first}: version and revision");
    assert_ne!(first, name_of("image: {tag: \"0.2.0\"}"));
    assert_eq!(first, name_of("replicaCount: 5"));
    assert!(!has(&Helm::V4.render("minimal"), "Job"));
}

#[test]
fn mock_mode_has_to_be_asked_for() {
    let variables = |values: &str| {
        let objects = Helm::V3.render_values(values);
        let container = &only(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        let names = items(&container["env"]).filter_map(|variable| variable["name"].as_str());
        let names: Vec<_> = names.map(str::to_owned).collect();
        let test =
            pod(only(&objects, "Pod")).expect("a pod")["spec"]["containers"][0]["args"].clone();
        (names.contains(&"CUSTOMERIO_SITE_ID_FILE".to_owned()), test)
    };
    assert_eq!(variables("{}"), (true, json!(["doctor"])));
    assert_eq!(variables("mockMode: true"), (false, json!(["doctor", "--allow-mock"])));
}

#[test]
fn a_network_policy_lets_through_what_the_service_needs() {
    let objects = Helm::V3.render("everything");
    let policy = &only(&objects, "NetworkPolicy")["spec"];
    for object in &objects {
        if let Some(pod) = pod(object) {
            let selector = &policy["podSelector"]["matchLabels"];
            assert!(selects(selector, &pod["metadata"]["labels"]), "{}", kind(object));
        }
    }
    let ports = |rules: &Value| -> Vec<String> {
        let ports = items(rules).flat_map(|rule| items(&rule["ports"]));
        ports
            .map(|port| format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("")))
            .collect()
    };
    let expected = [
        "53/TCP", "53/UDP", "5353/TCP", "5353/UDP", "5671/TCP", "5672/TCP", "6432/TCP", "443/TCP",
        "4318/TCP", "3128/TCP",
    ];
    assert_eq!(ports(&policy["egress"]), expected);
    assert_eq!(ports(&policy["ingress"]), ["\"http\"/TCP"]);
    let without = Helm::V3.render_values("networkPolicy: {enabled: true}");
    let egress = ports(&only(&without, "NetworkPolicy")["spec"]["egress"]);
    assert!(!egress.contains(&"4318/TCP".to_owned()), "traces are not exported by default");
    assert!(!egress.contains(&"15672/TCP".to_owned()), "doctor does not use it by default");
    let with =
        "networkPolicy: {enabled: true}\ndoctor: {managementApi: {existingSecret: a, key: b}}";
    let objects = Helm::V3.render_values(with);
    let egress = ports(&only(&objects, "NetworkPolicy")["spec"]["egress"]);
    assert!(egress.contains(&"15672/TCP".to_owned()), "{egress:?}");
}

/// The rules in the PrometheusRule of a render in the namespace `prod`.
fn rendered_rules(values: &str) -> Value {
    let file = values_file(values);
    let text = Helm::V4.template(&chart(), file.path(), &["--namespace", "prod"]);
    only(&documents(&text), "PrometheusRule")["spec"].clone()
}

#[test]
fn the_rules_of_a_release_are_about_its_namespace() {
    let values = "monitoring: {prometheusRule: {enabled: true}}";
    let rules = rendered_rules(values);
    let mut expressions = Vec::new();
    find(&rules, "expr", &mut expressions);
    for expression in expressions {
        let expression = expression.as_str().expect("a text");
        let metrics = expression.matches("customerio_sync_").count();
        assert_eq!(expression.matches("{namespace=\"prod\"").count(), metrics, "{expression}");
    }
    // Apart from that, they are those of the file, and pass its unit tests.
    let scoped = rules.to_string().replace("namespace=\\\"prod\\\",", "");
    let scoped = scoped.replace("{namespace=\\\"prod\\\"}", "");
    let file = fs::read_to_string(chart().join("files/rules.yaml")).expect("the file is there");
    assert_eq!(serde_json::from_str::<Value>(&scoped).expect("JSON"), yaml(&file));
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("rules.yaml"), rules.to_string()).expect("written");
    let tests = fs::read_to_string(root().join("tests/ops/rules_test.yaml")).expect("readable");
    let tests = tests.replace("../../helm/customerio-sync/files/rules.yaml", "rules.yaml");
    let tests = tests
        .replace("exp_labels: {severity: page}", "exp_labels: {severity: page, namespace: prod}");
    // The case with another installation is about another namespace.
    let (tests, _) =
        tests.split_once("\n  - name: Drift fires for the one of two").expect("a case");
    fs::write(folder.path().join("test.yaml"), tests).expect("written");
    succeed(limited("promtool").args(["test", "rules"]).arg(folder.path().join("test.yaml")));
}

#[test]
fn the_rules_follow_the_values() {
    let alerts = |values: &str| {
        let rules = rendered_rules(values);
        let (mut names, mut links) = (Vec::new(), Vec::new());
        find(&rules, "alert", &mut names);
        find(&rules, "runbook_url", &mut links);
        let texts = |found: Vec<&Value>| {
            found
                .into_iter()
                .map(|one| one.as_str().expect("a text").to_owned())
                .collect::<Vec<_>>()
        };
        (texts(names), texts(links))
    };
    let enabled =
        "monitoring: {prometheusRule: {enabled: true, runbookUrl: https://wiki.example.com/x}}";
    let (names, links) = alerts(enabled);
    assert!(names.contains(&"CustomerioSyncMockMode".to_owned()));
    for (name, link) in names.iter().zip(links) {
        assert_eq!(link, format!("https://wiki.example.com/x#{}", name.to_lowercase()));
    }
    let (mock, _) = alerts(&format!("mockMode: true\n{enabled}"));
    assert_eq!(mock.len(), names.len() - 1, "mock mode was asked for");
}

#[test]
fn the_dashboard_is_the_file_of_the_chart() {
    let objects = Helm::V4.render("everything");
    let dashboard = objects.iter().find_map(|object| object["data"]["signups.json"].as_str());
    let dashboard: Value = serde_json::from_str(dashboard.expect("a dashboard")).expect("JSON");
    let file = fs::read_to_string(chart().join("files/dashboard.json")).expect("the file is there");
    assert_eq!(dashboard, serde_json::from_str::<Value>(&file).expect("JSON"));
}

#[test]
fn the_chart_installs_the_version_of_the_program() {
    let manifest = yaml(&fs::read_to_string(chart().join("Chart.yaml")).expect("readable"));
    assert_eq!(manifest["appVersion"], env!("CARGO_PKG_VERSION"));
    let objects = Helm::V3.render("default");
    let image = &only(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(*image, format!("customerio-sync:{}", env!("CARGO_PKG_VERSION")));
    // The versions of Kubernetes before the first that is supported are refused.
    let mut old = Helm::V3.command();
    let printed = run(old.args(["template", "x"]).arg(chart()).args(["--kube-version", "1.26.9"]));
    assert!(printed.stderr.contains("requires kubeVersion: >=1.27.0-0"), "{}", printed.stderr);
}
