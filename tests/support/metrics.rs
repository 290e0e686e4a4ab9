//! The metrics that `docs/observability.md` lists.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::root;

/// Prefix of the names of metrics.
const PREFIX: &str = "customerio_sync_";

/// The value of a series, named without the prefix.
pub(crate) fn metric_value(text: &str, series: &str) -> Option<f64> {
    let start = format!("{PREFIX}{series} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(value.parse().expect("a number"))
}

/// The values of each label.
pub(crate) type Labels = BTreeMap<String, BTreeSet<String>>;

/// A metric of `docs/observability.md`.
#[derive(Debug)]
pub(crate) struct Documented {
    pub(crate) kind: String,
    /// Since when it has series.
    pub(crate) from: String,
    pub(crate) label_names: BTreeSet<String>,
    /// Values of the labels that have a fixed set of them.
    pub(crate) labels: Labels,
}

/// The texts in code font.
fn code(text: &str) -> Vec<String> {
    let code = Regex::new("`([^`]*)`").expect("a valid pattern");
    code.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

fn full_name(name: &str) -> String {
    if name.starts_with("process_") { name.to_owned() } else { format!("{PREFIX}{name}") }
}

/// The metrics of `docs/observability.md`, by name.
pub(crate) fn documented_metrics() -> BTreeMap<String, Documented> {
    let path = root().join("docs/observability.md");
    let text = std::fs::read_to_string(path).expect("the document can be read");
    let (_, section) = text.split_once("\n## Metrics\n").expect("a section");
    let section = section.split("\n## ").next().expect("its text");
    let (tables, values) = section.split_once("### Label values\n").expect("the label values");
    let mut metrics = BTreeMap::new();
    for row in tables.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let ["", name, kind, labels, from, _, ""] = cells[..] else { continue };
        let metric = Documented {
            kind: kind.to_owned(),
            from: from.to_owned(),
            label_names: code(labels).into_iter().collect(),
            labels: Labels::new(),
        };
        let name = full_name(&code(name)[0]);
        assert!(metrics.insert(name.clone(), metric).is_none(), "{name} is documented twice");
    }
    let values = values.split("\n### ").next().expect("its text");
    let entries = values.split("\n- ").skip(1).map(|entry| {
        let entry = entry.split("\n\n").next().expect("a paragraph");
        entry.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    for entry in entries {
        let (names, labels) = entry.split_once(": ").expect("names and labels");
        let labels: Labels = labels
            .split("; ")
            .map(|label| {
                let (name, values) = label.split_once(" = ").expect("a label and its values");
                (code(name)[0].clone(), code(values).into_iter().collect())
            })
            .collect();
        for name in code(names) {
            let metric = metrics.get_mut(&full_name(&name)).expect("a metric of a table");
            metric.labels = labels.clone();
        }
    }
    metrics
}
