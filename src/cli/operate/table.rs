//! Tables of JSON values.

use comfy_table::{Table, presets::NOTHING};
use serde_json::Value;

/// Formats a value as a cell: a string without quotes, null as empty, a time to the second.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text
            .parse::<chrono::DateTime<chrono::Utc>>()
            .map_or_else(|_| text.clone(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string()),
        other => other.to_string(),
    }
}

/// Formats a table with one row per item. Each column has a header and the JSON pointer of its
/// value.
pub(super) fn of_items(items: &Value, columns: &[(&str, &str)]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns.iter().map(|(header, _)| *header));
    for item in items.as_array().into_iter().flatten() {
        table.add_row(
            columns.iter().map(|(_, pointer)| item.pointer(pointer).map(cell).unwrap_or_default()),
        );
    }
    table.trim_fmt()
}

/// Formats a table of names and values. Facts without a value are left out.
pub(super) fn of_facts(facts: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([*name, value.as_str()]);
    }
    table.trim_fmt()
}
