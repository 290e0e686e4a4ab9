//! What the message that parks or replays another one keeps of its properties and headers.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};
use serde_json::Value;

use super::{address::FRAME_BYTES_MAX, message::short, names::headers};

/// Headers that make RabbitMQ route a message to further queues
/// (<https://www.rabbitmq.com/docs/sender-selected>), and the names under which they are kept.
const ROUTING_HEADERS: [(&str, &str); 2] = [("CC", "x-original-cc"), ("BCC", "x-original-bcc")];

/// Bytes of a content header frame that are not headers: at most nine short strings, and numbers.
const OTHER_BYTES_MAX: usize = 4096;
/// Maximum bytes of the names of headers that are left out.
const LEFT_OUT_BYTES_MAX: usize = 1024;

/// The properties of a message without its headers, and without those that RabbitMQ checks or acts
/// upon: `user_id`, `expiration` and `reply_to`.
pub(super) fn inert_properties(from: &BasicProperties) -> BasicProperties {
    let mut properties = BasicProperties::default();
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<ShortString>, With); 6] = [
        (from.content_type(), BasicProperties::with_content_type),
        (from.content_encoding(), BasicProperties::with_content_encoding),
        (from.correlation_id(), BasicProperties::with_correlation_id),
        (from.message_id(), BasicProperties::with_message_id),
        (from.kind(), BasicProperties::with_type),
        (from.app_id(), BasicProperties::with_app_id),
    ];
    for (text, with) in texts {
        if let Some(text) = text {
            properties = with(properties, text.clone());
        }
    }
    if let Some(mode) = from.delivery_mode() {
        properties = properties.with_delivery_mode(*mode);
    }
    if let Some(priority) = from.priority() {
        properties = properties.with_priority(*priority);
    }
    if let Some(timestamp) = from.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    properties
}

/// The name under which a header is kept.
pub(super) fn harmless_name(key: &ShortString) -> ShortString {
    let renamed = ROUTING_HEADERS.iter().find(|(name, _)| *name == key.as_str());
    renamed.map_or_else(|| key.clone(), |(_, name)| (*name).into())
}

/// The properties that a parked message keeps. Those that RabbitMQ checks or acts upon become
/// headers. Headers that brokers add, and those with a name of ours, are left out.
pub(super) fn kept(from: &BasicProperties) -> BasicProperties {
    let mut kept = FieldTable::default();
    for (key, value) in from.headers().iter().flat_map(FieldTable::inner) {
        if is_publishers(key.as_str()) || key.as_str() == headers::REPAIRED {
            kept.insert(harmless_name(key), value.clone());
        }
    }
    let texts = [
        ("x-original-user-id", from.user_id()),
        ("x-original-expiration", from.expiration()),
        ("x-original-reply-to", from.reply_to()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            kept.insert(name.into(), AMQPValue::LongString(text.as_str().into()));
        }
    }
    inert_properties(from).with_headers(kept)
}

/// The properties of a message whose headers are stored as JSON.
pub(super) fn restored(headers: &Value) -> BasicProperties {
    let mut restored = FieldTable::default();
    for (key, value) in headers.as_object().into_iter().flatten() {
        if is_publishers(key) {
            restored.insert(harmless_name(&short(key)), from_json(value));
        }
    }
    let mut properties = BasicProperties::default().with_headers(restored);
    if let Some(encoding) = headers[headers::ORIGINAL_CONTENT_ENCODING].as_str() {
        properties = properties.with_content_encoding(encoding.into());
    }
    if let Some(timestamp) = headers[headers::ORIGINAL_TIMESTAMP].as_u64() {
        properties = properties.with_timestamp(timestamp);
    }
    properties
}

/// Whether a header is neither ours nor one that brokers add.
fn is_publishers(key: &str) -> bool {
    !headers::ALL.contains(&key) && !headers::is_of_broker(key)
}

fn from_json(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(value) => AMQPValue::LongLongInt(value),
            None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(values) => {
            AMQPValue::FieldArray(values.iter().map(from_json).collect::<Vec<_>>().into())
        }
        Value::Object(fields) => {
            let mut table = FieldTable::default();
            for (key, value) in fields {
                table.insert(short(key), from_json(value));
            }
            AMQPValue::FieldTable(table)
        }
    }
}

/// Our headers, and the originals that fit into one frame with them. Ours win over originals of the
/// same name.
pub(super) fn merged(originals: Option<&FieldTable>, mut ours: FieldTable) -> FieldTable {
    let Some(originals) = originals else { return ours };
    let used = table_size(&ours) + OTHER_BYTES_MAX + LEFT_OUT_BYTES_MAX;
    let mut room = (FRAME_BYTES_MAX as usize).saturating_sub(used);
    let mut left_out = match originals.inner().get(headers::REPAIRED) {
        Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        _ => String::new(),
    };
    for (key, value) in originals.inner() {
        if key.as_str() == headers::REPAIRED || ours.inner().contains_key(key) {
            continue;
        }
        let size = entry_size(key.as_str(), value);
        if size <= room {
            room -= size;
            ours.insert(key.clone(), value.clone());
        } else {
            let separator = if left_out.is_empty() { "" } else { ", " };
            left_out += &format!("{separator}headers.{key}");
        }
    }
    if !left_out.is_empty() {
        left_out.truncate(left_out.floor_char_boundary(LEFT_OUT_BYTES_MAX));
        ours.insert(headers::REPAIRED.into(), AMQPValue::LongString(left_out.into()));
    }
    ours
}

/// Bytes of an entry on the wire: a short string, a type, a value (AMQP 0-9-1, section 4.2.5.5).
fn entry_size(key: &str, value: &AMQPValue) -> usize {
    1 + key.len() + value_size(value)
}

fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(key, value)| entry_size(key.as_str(), value)).sum::<usize>()
}

fn value_size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(text) => 4 + LongString::as_bytes(text).len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => {
            4 + FieldArray::as_slice(values).iter().map(value_size).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => table_size(table),
        // The longest number.
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stored_headers_are_restored_except_ours_and_those_of_brokers() {
        let stored = json!({
            "x-team": "payments",
            "nested": { "list": [1, 2.5, true, null] },
            "x-job-id": "7",
            "x-death": [],
            "x-first-death-reason": "expired",
            "CC": ["elsewhere"],
            "x-original-content-encoding": "utf-8",
            "x-original-timestamp": 1_739_880_000,
        });
        let properties = restored(&stored);
        assert_eq!(properties.content_encoding().as_ref().expect("set").as_str(), "utf-8");
        assert_eq!(*properties.timestamp(), Some(1_739_880_000));
        let headers = properties.headers().as_ref().expect("headers").inner();
        let names: Vec<_> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(names, ["nested", "x-original-cc", "x-team"]);
        let list = [AMQPValue::LongLongInt(1), AMQPValue::Double(2.5), AMQPValue::Boolean(true)];
        let list = list.into_iter().chain([AMQPValue::Void]).collect::<Vec<_>>();
        let mut nested = FieldTable::default();
        nested.insert("list".into(), AMQPValue::FieldArray(list.into()));
        assert_eq!(headers["nested"], AMQPValue::FieldTable(nested));
    }

    #[test]
    fn ours_win_and_no_more_than_a_frame_is_used() {
        let mut originals = FieldTable::default();
        originals.insert("x-reason".into(), AMQPValue::LongString("theirs".into()));
        for n in 0..200 {
            let value = AMQPValue::LongString("y".repeat(1000).into());
            originals.insert(format!("h-{n:03}").into(), value);
        }
        let mut ours = FieldTable::default();
        ours.insert("x-reason".into(), AMQPValue::LongString("ours".into()));
        let all = merged(Some(&originals), ours);
        assert_eq!(all.inner()["x-reason"], AMQPValue::LongString("ours".into()));
        let size = table_size(&all);
        let max = FRAME_BYTES_MAX as usize;
        assert!((max - 8192..=max - OTHER_BYTES_MAX).contains(&size), "{size} bytes");
        assert!(all.inner().contains_key(headers::REPAIRED));
    }
}
