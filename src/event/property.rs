//! What holds for any bytes: property tests and the fuzzer look whether it does.

use super::{CLOUDEVENTS_CONTENT_TYPE, EventType, MAX_BODY_BYTES, RawEvent, parse};

/// Any bytes are read, or it is told where they are wrong; and the same ones are understood the
/// same way again, since the id of a message that brought none and all that is stored come from
/// them.
pub fn any_bytes_are_read_or_told(body: &[u8]) {
    for event_type in EventType::ALL {
        for content_type in ["application/json", CLOUDEVENTS_CONTENT_TYPE] {
            let raw =
                RawEvent { event_type, content_type: Some(content_type), message_id: None, body };
            let read = parse(raw);
            match &read {
                Ok(event) => assert!(!event.id.is_empty() && body.len() <= MAX_BODY_BYTES),
                Err(rejected) => {
                    assert!(!rejected.path.is_empty() && !rejected.expected.is_empty())
                }
            }
            assert_eq!(read, parse(raw));
        }
    }
}
