//! The payloads of frames: properties of messages, and methods that deliver them.

use std::collections::BTreeSet;

use crate::broker::headers::REPAIRED;

/// Maximum depth of tables and arrays within headers. Deeper ones are left out.
pub(super) const DEPTH_MAX: usize = 64;
/// Maximum bytes of a short string.
const SHORT_STRING_BYTES_MAX: usize = 255;
/// Maximum bytes of the header that names what was repaired.
const REPAIRED_BYTES_MAX: usize = 1024;
/// Class of `basic` methods and of the content that follows them.
const BASIC: u16 = 60;
/// Methods that announce a message: `basic.return`, `basic.deliver` and `basic.get-ok`.
const RETURN: u16 = 50;
const DELIVER: u16 = 60;
const GET_OK: u16 = 71;

/// The type of a property.
#[derive(Clone, Copy, PartialEq)]
enum PropertyType {
    ShortString,
    Table,
    Octet,
    Timestamp,
}

/// Bit of the flags, name and type of each property, in their order (AMQP 0-9-1, class `basic`).
const PROPERTIES: [(u16, &str, PropertyType); 14] = [
    (15, "content_type", PropertyType::ShortString),
    (14, "content_encoding", PropertyType::ShortString),
    (13, "headers", PropertyType::Table),
    (12, "delivery_mode", PropertyType::Octet),
    (11, "priority", PropertyType::Octet),
    (10, "correlation_id", PropertyType::ShortString),
    (9, "reply_to", PropertyType::ShortString),
    (8, "expiration", PropertyType::ShortString),
    (7, "message_id", PropertyType::ShortString),
    (6, "timestamp", PropertyType::Timestamp),
    (5, "type", PropertyType::ShortString),
    (4, "user_id", PropertyType::ShortString),
    (3, "app_id", PropertyType::ShortString),
    (2, "cluster_id", PropertyType::ShortString),
];
const HEADERS_FLAG: u16 = 1 << 13;

/// Reads a payload from its start.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn octet(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn short_string(&mut self) -> Option<&'a [u8]> {
        let size = self.octet()?;
        self.take(size.into())
    }

    /// A long string, or the content of a table or an array: they all start with their size.
    fn long_string(&mut self) -> Option<&'a [u8]> {
        let size = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        self.take(usize::try_from(size).ok()?)
    }
}

/// The payload of a content header frame as lapin can decode it, at most `size_max` bytes. `None`
/// if it can as it is.
///
/// `already` names what was repaired in the method frame before it.
pub(super) fn repair_content(
    payload: &[u8],
    already: Option<&str>,
    size_max: usize,
) -> Option<Vec<u8>> {
    let is_valid = is_valid_content(payload);
    if is_valid != Some(false) && already.is_none() {
        // It is valid, or no content of a message.
        return None;
    }
    let mut repairs = Repairs::default();
    repairs.0.extend(already.map(str::to_owned));
    let repaired = Content::read(payload, &mut repairs)?;
    let bytes = repaired.write(&repairs);
    if bytes.len() <= size_max {
        return Some(bytes);
    }
    // Replacing made the headers longer than a frame.
    repairs.0.insert("headers".to_owned());
    Some(Content { headers: Vec::new(), ..repaired }.write(&repairs))
}

/// The payload of a method frame as lapin can decode it, if the method announces a message and
/// names an exchange or a routing key that is not UTF-8. `None` if lapin can decode it as it is.
pub(super) fn repair_method(payload: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader(payload);
    let (class, method) = (reader.short()?, reader.short()?);
    // Fields before exchange and routing key, and bytes after them.
    let rest = match (class, method) {
        (BASIC, RETURN) => {
            reader.take(2)?;
            reader.short_string()?;
            0
        }
        (BASIC, DELIVER) => {
            reader.short_string()?;
            reader.take(9)?;
            0
        }
        (BASIC, GET_OK) => {
            reader.take(9)?;
            4
        }
        _ => return None,
    };
    let before = payload.len() - reader.0.len();
    let (exchange, routing_key) = (reader.short_string()?, reader.short_string()?);
    if str::from_utf8(exchange).is_ok() && str::from_utf8(routing_key).is_ok() {
        return None;
    }
    let mut repaired = payload[..before].to_vec();
    write_short_string(&mut repaired, &text(exchange));
    write_short_string(&mut repaired, &text(routing_key));
    repaired.extend_from_slice(reader.take(rest)?);
    Some(repaired)
}

/// Whether lapin can decode the properties. `None` if the payload is no content of a message.
fn is_valid_content(payload: &[u8]) -> Option<bool> {
    let mut reader = Reader(payload);
    if reader.short()? != BASIC {
        return None;
    }
    reader.take(10)?;
    let flags = reader.short()?;
    let is_valid = |property: PropertyType, reader: &mut Reader<'_>| match property {
        PropertyType::ShortString => {
            reader.short_string().is_some_and(|bytes| str::from_utf8(bytes).is_ok())
        }
        PropertyType::Table => reader.long_string().is_some_and(|table| is_valid_table(table, 0)),
        PropertyType::Octet => reader.octet().is_some(),
        PropertyType::Timestamp => reader.take(8).is_some(),
    };
    // The two lowest bits announce further flags and properties, which AMQP 0-9-1 does not have.
    let known = PROPERTIES.iter().filter(|(bit, ..)| flags & (1 << bit) != 0);
    let all_valid = known.into_iter().all(|(_, _, property)| is_valid(*property, &mut reader));
    Some(flags & 0b11 == 0 && all_valid)
}

fn is_valid_table(table: &[u8], depth: usize) -> bool {
    let mut reader = Reader(table);
    while !reader.0.is_empty() {
        let Some(name) = reader.short_string() else { return false };
        if str::from_utf8(name).is_err() || !is_valid_value(&mut reader, depth) {
            return false;
        }
    }
    true
}

fn is_valid_array(array: &[u8], depth: usize) -> bool {
    let mut reader = Reader(array);
    while !reader.0.is_empty() {
        if !is_valid_value(&mut reader, depth) {
            return false;
        }
    }
    true
}

fn is_valid_value(reader: &mut Reader<'_>, depth: usize) -> bool {
    match read_value(reader) {
        Some(FieldValue::Table(table)) => depth < DEPTH_MAX && is_valid_table(table, depth + 1),
        Some(FieldValue::Array(array)) => depth < DEPTH_MAX && is_valid_array(array, depth + 1),
        Some(FieldValue::Other(_)) => true,
        None => false,
    }
}

/// A value of a table or an array.
enum FieldValue<'a> {
    Table(&'a [u8]),
    Array(&'a [u8]),
    /// With its type. lapin decodes every such value.
    Other(&'a [u8]),
}

/// Reads a value with its type. `None` if the type is unknown, and with it the size, or if the
/// value is truncated.
fn read_value<'a>(reader: &mut Reader<'a>) -> Option<FieldValue<'a>> {
    let whole = reader.0;
    let size = match reader.octet()? {
        b'F' => return Some(FieldValue::Table(reader.long_string()?)),
        b'A' => return Some(FieldValue::Array(reader.long_string()?)),
        b'S' | b'x' => {
            reader.long_string()?;
            0
        }
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        _ => return None,
    };
    reader.take(size)?;
    Some(FieldValue::Other(&whole[..whole.len() - reader.0.len()]))
}

/// What was repaired, for the header [`REPAIRED`].
#[derive(Default)]
struct Repairs(BTreeSet<String>);

impl Repairs {
    fn note(&mut self, what: &str) {
        self.0.insert(what.to_owned());
    }

    /// The names, as many as fit.
    fn text(&self) -> String {
        let mut text = self.0.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        text.truncate(text.floor_char_boundary(REPAIRED_BYTES_MAX));
        text
    }
}

/// Properties that lapin can decode.
struct Content {
    /// Class, weight and size of the body.
    head: [u8; 12],
    flags: u16,
    /// The properties before the headers.
    before: Vec<u8>,
    /// The entries of the headers.
    headers: Vec<u8>,
    /// The properties after the headers.
    after: Vec<u8>,
}

impl Content {
    /// Reads properties as far as they can be read.
    fn read(payload: &[u8], repairs: &mut Repairs) -> Option<Self> {
        let mut reader = Reader(payload);
        let head = reader.take(12)?.try_into().ok()?;
        let mut present = reader.short()?;
        // Further flags follow as long as the lowest bit is set. AMQP 0-9-1 uses none.
        let mut further = present;
        while further & 1 != 0 {
            further = reader.short()?;
        }
        present &= !0b11;
        let mut content =
            Self { head, flags: 0, before: Vec::new(), headers: Vec::new(), after: Vec::new() };
        for (bit, name, property) in PROPERTIES {
            if present & (1 << bit) == 0 {
                continue;
            }
            if content.read_property(bit, name, property, &mut reader, repairs).is_none() {
                // Where the rest starts is unknown.
                repairs.note(name);
                break;
            }
        }
        Some(content)
    }

    fn read_property(
        &mut self,
        bit: u16,
        name: &str,
        property: PropertyType,
        reader: &mut Reader<'_>,
        repairs: &mut Repairs,
    ) -> Option<()> {
        let written = if bit > 13 { &mut self.before } else { &mut self.after };
        match property {
            PropertyType::ShortString => {
                let bytes = reader.short_string()?;
                if str::from_utf8(bytes).is_err() {
                    repairs.note(name);
                }
                write_short_string(written, &text(bytes));
            }
            PropertyType::Table => {
                let table = reader.long_string()?;
                repair_table(&mut self.headers, table, 0, name, repairs);
            }
            PropertyType::Octet => written.push(reader.octet()?),
            PropertyType::Timestamp => written.extend_from_slice(reader.take(8)?),
        }
        self.flags |= 1 << bit;
        Some(())
    }

    /// Writes the payload, with a header that names the repairs.
    fn write(&self, repairs: &Repairs) -> Vec<u8> {
        let mut headers = self.headers.clone();
        write_short_string(&mut headers, REPAIRED);
        headers.push(b'S');
        write_sized(&mut headers, repairs.text().as_bytes());
        let mut payload = self.head.to_vec();
        payload.extend_from_slice(&(self.flags | HEADERS_FLAG).to_be_bytes());
        payload.extend_from_slice(&self.before);
        write_sized(&mut payload, &headers);
        payload.extend_from_slice(&self.after);
        payload
    }
}

/// Writes the entries of a table that can be decoded.
fn repair_table(
    written: &mut Vec<u8>,
    table: &[u8],
    depth: usize,
    path: &str,
    repairs: &mut Repairs,
) {
    let mut reader = Reader(table);
    while !reader.0.is_empty() {
        let Some(name) = reader.short_string() else {
            repairs.note(path);
            return;
        };
        let text = text(name);
        let path = format!("{path}.{text}");
        if str::from_utf8(name).is_err() {
            repairs.note(&path);
        }
        let start = written.len();
        write_short_string(written, &text);
        if !repair_value(written, &mut reader, depth, &path, repairs) {
            written.truncate(start);
            return;
        }
    }
}

fn repair_array(
    written: &mut Vec<u8>,
    array: &[u8],
    depth: usize,
    path: &str,
    repairs: &mut Repairs,
) {
    let mut reader = Reader(array);
    while !reader.0.is_empty() {
        if !repair_value(written, &mut reader, depth, path, repairs) {
            return;
        }
    }
}

/// Writes a value. Returns whether the next one can be found.
fn repair_value(
    written: &mut Vec<u8>,
    reader: &mut Reader<'_>,
    depth: usize,
    path: &str,
    repairs: &mut Repairs,
) -> bool {
    let Some(value) = read_value(reader) else {
        repairs.note(path);
        return false;
    };
    let mut inner = Vec::new();
    match value {
        FieldValue::Other(bytes) => {
            written.extend_from_slice(bytes);
            return true;
        }
        FieldValue::Table(_) | FieldValue::Array(_) if depth >= DEPTH_MAX => {
            repairs.note(top(path));
            written.push(b'V');
            return true;
        }
        FieldValue::Table(table) => {
            repair_table(&mut inner, table, depth + 1, path, repairs);
            written.push(b'F');
        }
        FieldValue::Array(array) => {
            repair_array(&mut inner, array, depth + 1, path, repairs);
            written.push(b'A');
        }
    }
    write_sized(written, &inner);
    true
}

/// The header at the top of a path such as `headers.a.b`.
fn top(path: &str) -> &str {
    let end = path.match_indices('.').nth(1).map_or(path.len(), |(index, _)| index);
    &path[..end]
}

/// The text of a short string. What is not UTF-8 becomes U+FFFD, as far as there is room.
fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.truncate(text.floor_char_boundary(SHORT_STRING_BYTES_MAX));
    text
}

fn write_short_string(written: &mut Vec<u8>, text: &str) {
    written.push(u8::try_from(text.len()).expect("a short string has up to 255 bytes"));
    written.extend_from_slice(text.as_bytes());
}

fn write_sized(written: &mut Vec<u8>, bytes: &[u8]) {
    let size = u32::try_from(bytes.len()).expect("a frame is smaller than 4 GiB");
    written.extend_from_slice(&size.to_be_bytes());
    written.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::protocol::basic::{AMQPProperties, parse_properties};

    const SIZE_MAX: usize = 131_064;

    /// A content header with these flags and property bytes, for a body of five bytes.
    fn content(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = BASIC.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        payload.extend_from_slice(&flags.to_be_bytes());
        payload.extend_from_slice(properties);
        payload
    }

    fn short(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).expect("short")], bytes].concat()
    }

    /// The properties of a repaired payload, as lapin decodes them.
    fn decode(payload: &[u8]) -> AMQPProperties {
        let (rest, properties) = parse_properties(&payload[12..]).expect("lapin decodes it");
        assert!(rest.is_empty(), "{rest:?}");
        properties
    }

    fn repaired(payload: &[u8]) -> AMQPProperties {
        decode(&repair_content(payload, None, SIZE_MAX).expect("it is repaired"))
    }

    fn repairs(properties: &AMQPProperties) -> String {
        let headers = properties.headers().as_ref().expect("headers");
        match &headers.inner()[REPAIRED] {
            lapin::types::AMQPValue::LongString(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// A table with one entry: `depth` arrays inside one another.
    fn nested(depth: usize) -> Vec<u8> {
        let mut value = vec![b'V'];
        for _ in 0..depth {
            let mut outer = vec![b'A'];
            write_sized(&mut outer, &value);
            value = outer;
        }
        let mut table = Vec::new();
        write_sized(&mut table, &[short(b"k"), value].concat());
        table
    }

    #[test]
    fn valid_properties_stay_as_they_are() {
        for payload in [
            content(0, b""),
            content(
                1 << 15 | 1 << 3,
                &[short(b"application/json"), short("café".as_bytes())].concat(),
            ),
            content(1 << 13, &nested(DEPTH_MAX)),
            // Another class, and a payload that is too short to be content.
            vec![0, 10, 0, 0],
            vec![0, 60],
        ] {
            assert_eq!(repair_content(&payload, None, SIZE_MAX), None, "{payload:?}");
        }
    }

    #[test]
    fn text_that_is_not_utf_8_is_replaced() {
        let properties = [short(b"a\xff"), short(b"caf\xe9")].concat();
        let properties = repaired(&content(1 << 15 | 1 << 3, &properties));
        assert_eq!(properties.content_type().as_ref().expect("kept").as_str(), "a\u{fffd}");
        assert_eq!(properties.app_id().as_ref().expect("kept").as_str(), "caf\u{fffd}");
        assert_eq!(repairs(&properties), "app_id, content_type");
        let long = repaired(&content(1 << 3, &short(&[0xff; 255])));
        assert_eq!(long.app_id().as_ref().expect("kept").as_str().len(), 255);
    }

    #[test]
    fn deep_headers_are_left_out_and_the_other_properties_stay() {
        let properties = [nested(26_000), short(b"id")].concat();
        let properties = repaired(&content(1 << 13 | 1 << 7, &properties));
        assert_eq!(properties.message_id().as_ref().expect("kept").as_str(), "id");
        assert_eq!(repairs(&properties), "headers.k");
    }

    #[test]
    fn an_unknown_type_ends_its_table() {
        let entries = [short(b"a"), b"t\x01".to_vec(), short(b"b"), b"?rest".to_vec()].concat();
        let mut table = Vec::new();
        write_sized(&mut table, &entries);
        let properties = repaired(&content(1 << 13 | 1 << 7, &[table, short(b"id")].concat()));
        let headers = properties.headers().as_ref().expect("headers");
        assert!(headers.contains_key("a") && !headers.contains_key("b"));
        assert_eq!(repairs(&properties), "headers.b");
        assert_eq!(properties.message_id().as_ref().expect("kept").as_str(), "id");
    }

    #[test]
    fn truncated_properties_end_where_they_are_truncated() {
        let properties =
            repaired(&content(1 << 7 | 1 << 3, &[short(b"id"), vec![9, b'x']].concat()));
        assert_eq!(properties.message_id().as_ref().expect("kept").as_str(), "id");
        assert_eq!(*properties.app_id(), None);
        assert_eq!(repairs(&properties), "app_id");
    }

    #[test]
    fn headers_that_grow_beyond_a_frame_are_left_out() {
        let entry = [short(&[0xff; 80]), b"V".to_vec()].concat();
        let mut table = Vec::new();
        write_sized(&mut table, &entry.repeat(1500));
        let payload = content(1 << 13, &table);
        assert!(payload.len() < SIZE_MAX);
        let repaired = repair_content(&payload, None, SIZE_MAX).expect("it is repaired");
        assert!(repaired.len() < SIZE_MAX);
        assert_eq!(decode(&repaired).headers().as_ref().expect("headers").inner().len(), 1);
    }

    #[test]
    fn a_routing_key_that_is_not_utf_8_is_replaced() {
        let mut deliver = [BASIC.to_be_bytes(), DELIVER.to_be_bytes()].concat();
        deliver
            .extend_from_slice(&[short(b"tag"), vec![0; 9], short(b"x"), short(b"k\xe9")].concat());
        let repaired = repair_method(&deliver).expect("it is repaired");
        assert!(repaired.ends_with("k\u{fffd}".as_bytes()));
        assert!(lapin::protocol::parse_class(&repaired[..]).is_ok());
        assert_eq!(repair_method(&repaired), None);
        let unchanged = repair_content(&content(0, b""), Some("routing_key"), SIZE_MAX);
        assert_eq!(repairs(&decode(&unchanged.expect("it is marked"))), "routing_key");
    }
}
