//! The dashboard is complete, keeps its fields in Grafana's own types, and shows data.

use std::fs;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    helm::chart,
    objects::items,
    prometheus::{JOB, NAMESPACE, Prometheus},
    support::{World, root, submitted, wait_for},
    tools::{limited, succeed, tools},
};

fn dashboard() -> Value {
    let text = fs::read_to_string(chart().join("files/dashboard.json")).expect("readable");
    serde_json::from_str(&text).expect("JSON")
}

/// The panels that show data.
fn panels() -> Vec<Value> {
    items(&dashboard()["panels"]).filter(|panel| panel["type"] != "row").cloned().collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is a text")).to_owned()
}

/// The queries of all panels.
pub(crate) fn expressions() -> Vec<String> {
    let panels = panels();
    let targets = panels.iter().flat_map(|panel| items(&panel["targets"]));
    targets.map(|target| text(&target["expr"])).collect()
}

#[test]
fn every_panel_is_described_and_filters_by_the_variables() {
    let dashboard = dashboard();
    let variables = items(&dashboard["templating"]["list"]).map(|variable| text(&variable["name"]));
    assert_eq!(variables.collect::<Vec<_>>(), ["datasource", "namespace", "job"]);
    assert_eq!(dashboard["editable"], false);
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    for panel in panels() {
        let title = text(&panel["title"]);
        assert!(text(&panel["description"]).ends_with('.'), "{title}");
        assert!(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{title}");
        assert_eq!(panel["datasource"], source, "{title}");
        for target in items(&panel["targets"]) {
            let expression = text(&target["expr"]);
            let selectors = expression.matches("{namespace=~\"$namespace\",job=~\"$job\"").count();
            let metrics = expression.matches("customerio_sync_").count()
                + expression.matches("process_").count();
            assert_eq!(selectors, metrics, "{title}: {expression}");
            let rates = expression.matches("rate(").count();
            assert_eq!(expression.matches("[$__rate_interval]").count(), rates, "{title}");
            assert_eq!(target["datasource"], source, "{title}");
        }
    }
}

#[test]
fn the_panels_do_not_overlap_and_signups_come_first() {
    let dashboard = dashboard();
    let mut cells = std::collections::BTreeSet::new();
    let mut ids = std::collections::BTreeSet::new();
    for panel in items(&dashboard["panels"]) {
        let number = |field: &str| panel["gridPos"][field].as_u64().expect("a number");
        assert!(ids.insert(panel["id"].as_u64()), "ids are unique");
        for x in number("x")..number("x") + number("w") {
            assert!(x < 24, "{}", panel["title"]);
            for y in number("y")..number("y") + number("h") {
                assert!(cells.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
    }
    let titles: Vec<_> = items(&dashboard["panels"]).map(|panel| text(&panel["title"])).collect();
    assert_eq!(
        titles[..4],
        ["Signups", "Unsynced signups", "Oldest unsynced signup", "Open failures"]
    );
}

/// The fields of `before` that `after` lacks or has with another value.
fn lost(before: &Value, after: &Value, path: &str) -> Vec<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before
            .iter()
            .flat_map(|(name, value)| {
                lost(value, after.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"))
            })
            .collect(),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => before
            .iter()
            .zip(after)
            .enumerate()
            .flat_map(|(index, (before, after))| lost(before, after, &format!("{path}[{index}]")))
            .collect(),
        _ if before == after => Vec::new(),
        _ => vec![format!("{path}: {before} became {after}")],
    }
}

/// The dashboard as Grafana's types print it.
fn round_trip(dashboard: &Value) -> Value {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), dashboard.to_string()).expect("written");
    let mut python = limited(tools().join("python/bin/python"));
    python.arg(root().join("tests/ops/dashboard_round_trip.py")).arg(file.path());
    serde_json::from_str(&succeed(&mut python)).expect("JSON")
}

#[test]
fn grafanas_types_keep_every_field() {
    let dashboard = dashboard();
    assert_eq!(lost(&dashboard, &round_trip(&dashboard), ""), [""; 0]);
    let mut misspelt = dashboard;
    misspelt["panels"][1]["fieldConfig"]["defaults"]["unittt"] = "s".into();
    assert_eq!(lost(&misspelt, &round_trip(&misspelt), "").len(), 1, "a planted field is found");
}

/// The variables that Prometheus answers: label, series, and the value in the tests.
fn variables() -> Vec<(String, String, &'static str)> {
    let dashboard = dashboard();
    let queries = items(&dashboard["templating"]["list"]).filter(|one| one["type"] == "query");
    let variables = queries.map(|variable| {
        let query = text(&variable["query"]["query"]);
        let arguments = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = arguments.and_then(|both| both.rsplit_once(", ")).expect("a query");
        let value = if label == "job" { JOB } else { NAMESPACE };
        (label.to_owned(), series.to_owned(), value)
    });
    variables.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_has_series_while_the_service_works() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__METRICS__INTERVAL", "500ms")
        .with("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "1s");
    let app = world.start().await;
    let prometheus = Prometheus::start(&[app.http_addr().to_string()], None).await;
    for (label, query, value) in variables() {
        let query = query.replace("$namespace", NAMESPACE);
        wait_for(&format!("values of the variable {label}"), || async {
            (prometheus.label_values(&label, &query).await == [value]).then_some(())
        })
        .await;
    }
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let ready = |expression: &str| {
        let expression = expression.replace("$namespace", NAMESPACE).replace("$job", JOB);
        expression.replace("$__rate_interval", "20s")
    };
    for expression in expressions() {
        let query = ready(&expression);
        wait_for(&format!("series of {expression}"), || async {
            // Quantiles need calls within the last seconds.
            world.submit(&submitted(Uuid::new_v4())).await;
            (prometheus.series(&query).await > 0).then_some(())
        })
        .await;
    }
}
