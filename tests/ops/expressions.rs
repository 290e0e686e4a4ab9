//! PromQL expressions of the alerts and the dashboard name metrics and label values that exist.

use std::{collections::BTreeMap, sync::LazyLock};

use regex::Regex;

use crate::{
    alerts::rules,
    dashboard::expressions,
    support::{Documented, documented_metrics},
};

static DOCUMENTED: LazyLock<BTreeMap<String, Documented>> = LazyLock::new(documented_metrics);
static METRIC: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b((?:customerio_sync|process)_\w+)(\{[^}]*\})?").expect("a pattern")
});
static MATCHER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(\w+)(=~|!~|!=|=)"([^"]*)""#).expect("a pattern"));
/// Labels that Prometheus adds to every series.
const ADDED: [&str; 3] = ["namespace", "job", "instance"];

/// What an expression names that the service does not report.
fn unknown(expression: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    for found in METRIC.captures_iter(expression) {
        let name = found[1].trim_end_matches("_bucket");
        let Some(metric) = DOCUMENTED.get(name) else {
            unknown.push(format!("metric {name}"));
            continue;
        };
        let matchers = found.get(2).map_or("", |braces| braces.as_str());
        for matcher in MATCHER.captures_iter(matchers) {
            let (label, operator, value) = (&matcher[1], &matcher[2], &matcher[3]);
            if !ADDED.contains(&label) && !matches_some(metric, label, operator, value) {
                unknown.push(format!("{name}{{{label}{operator}{value:?}}}"));
            }
        }
    }
    unknown
}

/// Whether the label has values that the matcher distinguishes. Each alternative of a pattern
/// without groups has to match one.
fn matches_some(metric: &Documented, label: &str, operator: &str, value: &str) -> bool {
    let Some(values) = metric.labels.get(label) else { return false };
    if !operator.ends_with('~') {
        return values.contains(value);
    }
    let alternatives = if value.contains('(') { vec![value] } else { value.split('|').collect() };
    alternatives.iter().all(|alternative| {
        let pattern = Regex::new(&format!("^(?:{alternative})$")).expect("a pattern");
        values.iter().any(|value| pattern.is_match(value))
    })
}

/// The labels that an expression aggregates by, or matches on, and that no metric has.
fn unknown_groups(expression: &str) -> Vec<String> {
    let grouping = Regex::new(r"\b(?:by|on) \(([^)]*)\)").expect("a pattern");
    let known = |label: &str| {
        label == "le"
            || ADDED.contains(&label)
            || DOCUMENTED.values().any(|metric| metric.label_names.contains(label))
    };
    let groups = grouping.captures_iter(expression);
    let labels =
        groups.flat_map(|found| found[1].split(", ").map(str::to_owned).collect::<Vec<_>>());
    labels.filter(|label| !known(label)).collect()
}

#[test]
fn alerts_and_dashboard_name_only_what_the_service_reports() {
    let alerts = rules().into_iter().map(|rule| rule["expr"].as_str().expect("a text").to_owned());
    let alerts: Vec<_> = alerts.collect();
    assert!(alerts.len() > 20);
    for expression in alerts.iter().chain(&expressions()) {
        assert_eq!(unknown(expression), [""; 0], "{expression}");
        assert_eq!(unknown_groups(expression), [""; 0], "{expression}");
    }
}

#[test]
fn planted_names_are_found() {
    let planted = [
        "customerio_sync_open_failure > 0",
        "customerio_sync_jobs{status=\"done\"}",
        "customerio_sync_connected{connection=~\"broker|queue\"}",
        "customerio_sync_jobs{phase=\"initial\"}",
    ];
    for expression in planted {
        assert!(!unknown(expression).is_empty(), "{expression}");
    }
    assert_eq!(
        unknown_groups("max by (namespace, queues) (customerio_sync_queue_consumers)"),
        ["queues"]
    );
}
