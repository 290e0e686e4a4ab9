//! Message headers: as this service writes them, and as it reads them.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value};

/// Maximum bytes of a text header. All headers of a message must fit into one frame of 128 KiB.
const TEXT_BYTES_MAX: usize = 2048;

/// Truncates `text` to 2 KiB, so that it fits into a header, and replaces U+0000, which PostgreSQL
/// can't store.
pub fn capped(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text[..end].replace('\0', "\u{fffd}")
}

/// The headers of a message to publish.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Headers(pub(super) FieldTable);

impl Headers {
    pub(super) fn text(mut self, key: &'static str, value: impl AsRef<str>) -> Self {
        self.0.insert(key.into(), AMQPValue::LongString(capped(value.as_ref()).into()));
        self
    }

    pub(super) fn optional(self, key: &'static str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.text(key, value),
            None => self,
        }
    }

    pub(super) fn number(mut self, key: &'static str, value: i32) -> Self {
        self.0.insert(key.into(), AMQPValue::LongInt(value));
        self
    }
}

/// The headers of a delivered message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderMap(Map<String, Value>);

impl HeaderMap {
    pub(super) fn new(table: Option<&FieldTable>) -> Self {
        Self(table.map(table_to_json).unwrap_or_default())
    }

    /// The header `key`, if it exists and is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// The header `key`, if it exists.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All headers as a JSON object.
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }
}

fn table_to_json(table: &FieldTable) -> Map<String, Value> {
    table
        .inner()
        .iter()
        .map(|(key, value)| (key.as_str().replace('\0', "\u{fffd}"), to_json(value)))
        .collect()
}

fn to_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Timestamp(value) => (*value).into(),
        AMQPValue::Float(value) => f64::from(*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::DecimalValue(value) => format!("{value:?}").into(),
        AMQPValue::ShortString(text) => text.as_str().replace('\0', "\u{fffd}").into(),
        AMQPValue::LongString(text) => {
            String::from_utf8_lossy(text.as_bytes()).replace('\0', "\u{fffd}").into()
        }
        AMQPValue::ByteArray(bytes) => {
            String::from_utf8_lossy(bytes.as_slice()).replace('\0', "\u{fffd}").into()
        }
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(to_json).collect(),
        AMQPValue::FieldTable(table) => table_to_json(table).into(),
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_truncated_between_characters() {
        let text = capped(&"ä".repeat(2000));
        assert_eq!(text.len(), 2048);
        assert_eq!(capped(&format!("x{}", "ä".repeat(2000))).len(), 2047);
        assert_eq!(capped("a\0b"), "a\u{fffd}b");
    }
}
