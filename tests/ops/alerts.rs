//! The alerts are correct rules, fire and stay silent as their unit tests say, have an entry in the
//! runbook, and fire for real faults.

use std::{collections::BTreeSet, fs};

use regex::Regex;
use serde_json::{Value, json};
use test_servers::{Postgres, RabbitMq};

use crate::{
    helm::{chart, yaml},
    prometheus::Prometheus,
    support::{
        Process, Servers, TempServer, World, free_addr, http_client, root, submitted, wait_for,
    },
    tools::{limited, succeed},
};

fn rules_file() -> String {
    fs::read_to_string(chart().join("files/rules.yaml")).expect("the file is there")
}

/// The rules of all groups.
pub(crate) fn rules() -> Vec<Value> {
    let file = yaml(&rules_file());
    let groups = file["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{what} is a text: {value}"))
}

#[test]
fn promtool_accepts_the_rules() {
    let file = chart().join("files/rules.yaml");
    succeed(limited("promtool").args(["check", "rules", "--lint=all", "--lint-fatal"]).arg(file));
}

#[test]
fn each_alert_fires_and_stays_silent_as_its_unit_tests_say() {
    let path = root().join("tests/ops/rules_test.yaml");
    succeed(limited("promtool").args(["test", "rules"]).arg(&path));
    let tests = yaml(&fs::read_to_string(path).expect("the file is there"));
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for test in tests["tests"].as_array().expect("tests") {
        for alert in test["alert_rule_test"].as_array().expect("alerts") {
            let fires = alert["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
            let name = text(&alert["alertname"], "a name").to_owned();
            if fires {
                firing.insert(name)
            } else {
                silent.insert(name)
            };
        }
    }
    let names = rules().into_iter().map(|rule| text(&rule["alert"], "a name").to_owned());
    let names: BTreeSet<_> = names.collect();
    assert_eq!(firing, names, "a test in which it fires");
    assert_eq!(silent, names, "a test in which it stays silent");
}

#[test]
fn each_alert_has_a_severity_and_an_entry_in_the_runbook() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).expect("the runbook is there");
    let base = "https://github.com/customerio-sync/customerio-sync/blob/main/docs/runbook.md#";
    for rule in rules() {
        let name = text(&rule["alert"], "a name");
        assert!(["page", "ticket"].contains(&text(&rule["labels"]["severity"], name)), "{name}");
        for annotation in ["summary", "description"] {
            assert!(text(&rule["annotations"][annotation], name).ends_with('.'), "{name}");
        }
        let link = text(&rule["annotations"]["runbook_url"], name);
        assert_eq!(link, format!("{base}{}", name.to_lowercase()));
        let entry = runbook.split(&format!("\n### {name}\n")).nth(1);
        let entry = entry.unwrap_or_else(|| panic!("{name} has no entry in the runbook"));
        let entry = entry.split("\n#").next().expect("a text");
        for part in ["- **Meaning:** ", "- **See it:** ", "- **Action:** ", "- **Over when:** "] {
            assert_eq!(entry.matches(part).count(), 1, "{name} {part}");
        }
    }
}

/// The rules with shorter delays: a minute becomes a second.
fn fast_rules() -> String {
    let delay = Regex::new(r"for: ([0-9]+)(m|h)\n").expect("a pattern");
    let rules = rules_file();
    let fast = delay.replace_all(&rules, |found: &regex::Captures<'_>| {
        let minutes: u32 = found[1].parse().expect("a number");
        format!("for: {}s\n", if &found[2] == "h" { minutes * 60 } else { minutes })
    });
    fast.into_owned()
}

/// Starts the service on an address, and waits until it is ready.
async fn serve(world: &World, addr: &str) -> Process {
    let process = world.spawn_with(&[("HTTP_ADDR", addr.to_owned())]);
    wait_for("the service to be ready", || async {
        let ready = http_client().get(format!("http://{addr}/readyz")).send().await.ok()?;
        ready.status().is_success().then_some(())
    })
    .await;
    process
}

async fn submit(world: &World, count: usize) {
    for _ in 0..count {
        world.submit(&submitted(uuid::Uuid::new_v4())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_faults_fire_their_alert_until_they_are_fixed() {
    let postgres = TempServer::<Postgres>::started();
    let rabbitmq = TempServer::<RabbitMq>::started();
    let servers = Servers { database_url: postgres.url(), ..Servers::with_rabbitmq(&rabbitmq) };
    let world = World::on(servers)
        .await
        .with("CUSTOMERIO_SYNC__METRICS__INTERVAL", "500ms")
        .with("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "1s");
    let addr = free_addr().to_string();
    let mut service = serve(&world, &addr).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rules = folder.path().join("rules.yaml");
    fs::write(&rules, fast_rules()).expect("written");
    let prometheus = Prometheus::start(std::slice::from_ref(&addr), Some(&rules)).await;

    world.fault(json!({ "kind": "status", "status": 401 })).await;
    // The first jobs fail; the others wait, and probe.
    submit(&world, 20).await;
    prometheus.wait_until_firing("CustomerioSyncCredentialsRefused").await;
    submit(&world, 20).await;
    world.clear_faults().await;
    prometheus.wait_until_resolved("CustomerioSyncCredentialsRefused").await;

    world.fault(json!({ "kind": "status", "status": 503 })).await;
    submit(&world, 20).await;
    prometheus.wait_until_firing("CustomerioSyncBreakerOpen").await;
    world.clear_faults().await;
    prometheus.wait_until_resolved("CustomerioSyncBreakerOpen").await;

    postgres.stop();
    prometheus.wait_until_firing("CustomerioSyncDatabaseUnavailable").await;
    postgres.start();
    prometheus.wait_until_resolved("CustomerioSyncDatabaseUnavailable").await;

    rabbitmq.stop();
    prometheus.wait_until_firing("CustomerioSyncBrokerUnavailable").await;
    rabbitmq.start();
    prometheus.wait_until_resolved("CustomerioSyncBrokerUnavailable").await;

    service.terminate().await;
    prometheus.wait_until_firing("CustomerioSyncAbsent").await;
    let _service = serve(&world, &addr).await;
    prometheus.wait_until_resolved("CustomerioSyncAbsent").await;
}
